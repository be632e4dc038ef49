package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/caravan-dag/caravan/client"
)

// unknownCommand is the error for a word that is not a command. It names the command that may be
// meant: the one whose SuggestFor has the word, else those that cobra finds similar.
func unknownCommand(root *cobra.Command, word string) error {
	root.SuggestionsMinimumDistance = maxMisspelled(word)
	names := root.SuggestionsFor(word)
	for _, cmd := range root.Commands() {
		if slices.Contains(cmd.SuggestFor, strings.ToLower(word)) {
			names = []string{cmd.Name()}
		}
	}
	if len(names) > 0 {
		return usagef("unknown command %q%s", word, didYouMean(strings.Join(names, " or ")))
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
	return usagef("%s%w%s", commandPrefix(cmd), err, hint)
}

// maxSuggestedTasks bounds the tasks of a run that are compared with a misspelled name.
const maxSuggestedTasks = 1000

// suggestTask adds to err, when the run has no task of this name, the task that may be meant: the
// first of those that name was expanded to, or the one that is spelled most like it.
func suggestTask(ctx context.Context, c *client.Client, run uint64, name string, err error) error {
	if !errors.Is(err, client.ErrNotFound) {
		return err
	}
	page, e := c.Tasks(ctx, run, client.TaskOptions{Limit: maxSuggestedTasks})
	if e != nil {
		return err
	}
	var names []string
	for _, t := range page.Tasks {
		names = append(names, t.Name)
	}
	meant := name + "_0"
	switch {
	case slices.Contains(names, name): // the task exists: err is about its attempt or output
		return err
	case !slices.Contains(names, meant):
		meant = nearest(name, names)
	}
	if meant == "" {
		return err
	}
	return fmt.Errorf("%w%s", err, didYouMean(meant))
}

// commandPrefix begins an error about a command: its name, or "" for the program as a whole.
func commandPrefix(cmd *cobra.Command) string {
	if !cmd.HasParent() {
		return ""
	}
	return cmd.Name() + ": "
}

func didYouMean(word string) string { return ": did you mean " + word + "?" }

// nearest is the word of words that word may be a misspelling or an abbreviation of, or "". It
// returns the first of several that are equally close. cobra compares only commands, so flags,
// configuration keys and tasks are compared here, by the same rule.
func nearest(word string, words []string) string {
	word = strings.ToLower(word)
	best, bestDistance := "", maxMisspelled(word)+1
	for _, candidate := range words {
		if d := levenshtein.ComputeDistance(word, strings.ToLower(candidate)); d < bestDistance {
			best, bestDistance = candidate, d
		}
	}
	if best != "" || len(word) < 3 {
		return best
	}
	for _, candidate := range words {
		if strings.HasPrefix(strings.ToLower(candidate), word) {
			return candidate
		}
	}
	return ""
}

// maxMisspelled is how many letters word may differ in from the one that is meant: two, as cobra
// has it, but at most half of a short word.
func maxMisspelled(word string) int { return min(2, len(word)/2) }

// helpCommand is `caravan help`. An unknown command is an error.
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
