package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/caravan-dag/caravan/client"
)

// otherWords are what other programs call the commands: they are no commands here,
// but what is meant by them is known.
func otherWords(command string) []string {
	return map[string][]string{
		"serve":    {"server", "start", "daemon", "up"},
		"run":      {"exec", "make"},
		"submit":   {"trigger", "create", "apply", "post", "enqueue"},
		"validate": {"check", "lint", "verify"},
		"ls":       {"list", "ps", "runs", "jobs"},
		"get":      {"status", "state", "show", "describe", "inspect", "tasks"},
		"logs":     {"output", "tail", "cat"},
		"events":   {"watch", "follow"},
		"kill":     {"cancel", "stop", "abort", "terminate", "delete", "rm"},
		"resume":   {"unpause", "continue"},
		"restart":  {"retry", "rerun", "clear"},
	}[command]
}

// unknownCommand says that there is no such command, and which one may be meant.
func unknownCommand(root *cobra.Command, word string) error {
	meant := map[string]string{}
	var words []string
	for _, cmd := range root.Commands() {
		if cmd.Hidden {
			continue
		}
		for _, w := range append(otherWords(cmd.Name()), cmd.Name()) {
			meant[w] = cmd.Name()
			words = append(words, w)
		}
	}
	if name := meant[nearest(word, words)]; name != "" {
		return usagef("unknown command %q%s", word, didYouMean(name))
	}
	return usagef("unknown command %q; `caravan help` lists them", word)
}

// flagError names the command that a mistaken flag was given to, and the flag that
// may be meant.
func flagError(cmd *cobra.Command, err error) error {
	hint := ""
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() == "" {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if name := nearest(unknown.GetSpecifiedName(), names); name != "" {
			hint = didYouMean("--" + name)
		}
	}
	return usagef("%s%w%s", of(cmd), err, hint)
}

// hintTasks is how many of a run's tasks are looked at for one that may be meant.
const hintTasks = 1000

// taskHint adds to err, when it is about a task that is none of the run's, which one
// may be meant: the first of those that name was expanded to, or one that is written
// like it.
func taskHint(ctx context.Context, c *client.Client, run uint64, name string, err error) error {
	if !errors.Is(err, client.ErrNotFound) {
		return err
	}
	page, e := c.Tasks(ctx, run, client.TaskOptions{Limit: hintTasks})
	if e != nil {
		return err
	}
	var names []string
	for _, t := range page.Tasks {
		names = append(names, t.Name)
	}
	meant := name + "_0"
	switch {
	case slices.Contains(names, name): // then it is about something else
		return err
	case !slices.Contains(names, meant):
		meant = nearest(name, names)
	}
	if meant == "" {
		return err
	}
	return fmt.Errorf("%w%s", err, didYouMean(meant))
}

// of is what an error begins with that is about a command.
func of(cmd *cobra.Command) string {
	if !cmd.HasParent() {
		return ""
	}
	return cmd.Name() + ": "
}

func didYouMean(word string) string { return ": did you mean " + word + "?" }

// nearest is the one of words that word may be a slip of; "" when none is close. Of
// several that are equally close it is the first.
func nearest(word string, words []string) string {
	word = strings.ToLower(word)
	best, least := "", max(1, len(word)/3)+1
	for _, w := range words {
		if d := slips(word, strings.ToLower(w)); d < least {
			best, least = w, d
		}
	}
	if best != "" || len(word) < 3 {
		return best
	}
	for _, w := range words {
		if strings.HasPrefix(strings.ToLower(w), word) {
			return w
		}
	}
	return ""
}

// slips is how many letters must be put in, left out, exchanged for another or for
// the one beside it, to make b of a.
func slips(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
		for j := 1; j <= len(b); j++ {
			if i == 0 {
				rows[0][j] = j
				continue
			}
			change := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			rows[i][j] = min(change, rows[i-1][j]+1, rows[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// helpCommand is `caravan help`: of a command that is none it says so.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Say what a command does and which flags it has",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, _, err := root.Find(args)
			if err != nil || len(args) > 0 && about == root {
				return unknownCommand(root, args[0])
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var names []cobra.Completion
			for _, c := range root.Commands() {
				if len(args) == 0 && !c.Hidden && strings.HasPrefix(c.Name(), begun) {
					names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
}
