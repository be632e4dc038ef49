package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agnivade/levenshtein"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/caravan-dag/caravan/client"
)

// unknownCommand is the error for a word that is not a command of root. It names the commands that
// may be meant, by the first rule that finds any:
//
//	the word is a synonym of a command           status  get
//	the word resembles the name of a command     sumbit  submit
//	the word resembles a synonym of a command    stauts  get
//
// cobra has the second rule. It compares synonyms (SuggestFor) only as a whole, and would list the
// command of an exact synonym together with commands whose names merely resemble it.
func unknownCommand(root *cobra.Command, word string) error {
	root.SuggestionsMinimumDistance = maxMisspelled(word)
	names := root.SuggestionsFor(word)
	commands, synonyms := commandsBySynonym(root)
	if name := commands[strings.ToLower(word)]; name != "" {
		names = []string{name}
	} else if len(names) == 0 {
		for _, synonym := range allNearest(word, synonyms) {
			if name := commands[synonym]; !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	if len(names) > 0 {
		return usageErrorf("unknown command %q%s", word, didYouMean(strings.Join(names, " or ")))
	}
	return usageErrorf("unknown command %q; `caravan help` lists them", word)
}

// commandsBySynonym returns the names of root's commands by their synonyms, which SuggestFor lists in
// lower case, and the synonyms in the order of the commands. Hidden commands are left out.
func commandsBySynonym(root *cobra.Command) (names map[string]string, synonyms []string) {
	names = map[string]string{}
	for _, cmd := range root.Commands() {
		if !cmd.IsAvailableCommand() {
			continue
		}
		for _, synonym := range cmd.SuggestFor {
			names[synonym] = cmd.Name()
		}
		synonyms = append(synonyms, cmd.SuggestFor...)
	}
	return names, synonyms
}

// flagError names the command that a mistaken flag was given to, and the flag that may be meant. It
// turns pflag's error into a usageError, as cobra's SetFlagErrorFunc allows. A mistaken short flag
// gets no suggestion: any other letter is as close.
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
	return usageErrorf("%s%w%s", commandPrefix(cmd), err, hint)
}

// maxSuggestedTasks bounds the tasks of a run that are compared with a misspelled name: one page of
// the server. A hint is not worth reading a million names.
const maxSuggestedTasks = 1000

// suggestTask adds to err, when the run lacks a task of this name, the task that may be meant: the
// first of those that name was expanded to (build_0 for build), or the one that is spelled most
// like it. err is what a call about the task has returned, nil included. Only for
// client.ErrNotFound it asks the server for the names; if that fails, err stays as it is. It keeps
// the kind of err, and so the exit code.
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

// didYouMean is the end of an error with a suggestion.
func didYouMean(word string) string { return ": did you mean " + word + "?" }

// nearest is the word of words that word may be a misspelling or an abbreviation of, or "". It
// returns the first of several that are equally close. cobra compares only commands, so flags,
// configuration keys and tasks are compared here, by the same rule.
func nearest(word string, words []string) string {
	if all := allNearest(word, words); len(all) > 0 {
		return all[0]
	}
	return ""
}

// allNearest returns the words that word may be a misspelling of: those that differ from it in the
// fewest letters, maxMisspelled at most. Without such a word it returns those that begin with word,
// if word has three letters or more. Case does not matter.
func allNearest(word string, words []string) (closest []string) {
	word = strings.ToLower(word)
	least := maxMisspelled(word)
	for _, candidate := range words {
		switch d := levenshtein.ComputeDistance(word, strings.ToLower(candidate)); {
		case d < least || d == least && closest == nil:
			closest, least = []string{candidate}, d
		case d == least:
			closest = append(closest, candidate)
		}
	}
	if closest != nil || len(word) < 3 {
		return closest
	}
	for _, candidate := range words {
		if strings.HasPrefix(strings.ToLower(candidate), word) {
			closest = append(closest, candidate)
		}
	}
	return closest
}

// maxMisspelled is how many letters word may differ in from the one that is meant: two, as cobra
// has it, but at most half of a short word. A swap of neighbours counts as two, since the distance
// is that of Levenshtein.
func maxMisspelled(word string) int { return min(2, len(word)/2) }

// helpCommand is `caravan help`. An unknown command is an error with the code 2: cobra's own help
// command prints it with the usage, and exits with 0.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Explain a command and its flags",
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

// Shell completion. A shell calls `caravan __complete …` (cobra) at each Tab, which calls the
// functions below for the arguments of a command. They print only candidates: a message would end
// up in the user's line, so an error, or a server that does not answer, gives an empty list.

// completionTimeout and maxCompletions bound what a Tab may cost: a second, and a few screens of
// words.
const (
	completionTimeout = time.Second
	maxCompletions    = 100
)

// completionCommand prints the completion script of a shell, as cobra generates it. It replaces
// cobra's own command of this name, whose shells are subcommands with long texts.
func (m *Main) completionCommand() *cobra.Command {
	shells := []cobra.Completion{"bash", "zsh", "fish", "powershell"}
	cmd := &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print a script for shell completion of commands, flags, runs and tasks",
		Long: "Completion prints a script for SHELL: " + strings.Join(shells, ", ") + ". For bash (with bash-completion):\n\n" +
			"  source <(caravan completion bash)",
		Args:              argCount(1, 1, "a SHELL"),
		ValidArgsFunction: cobra.FixedCompletions(shells, cobra.ShellCompDirectiveNoFileComp),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		root := cmd.Root()
		switch args[0] {
		case "bash":
			return root.GenBashCompletionV2(m.Stdout, true)
		case "zsh":
			return root.GenZshCompletion(m.Stdout)
		case "fish":
			return root.GenFishCompletion(m.Stdout, true)
		case "powershell":
			return root.GenPowerShellCompletionWithDesc(m.Stdout)
		}
		return usageErrorf("unknown shell %q: must be one of %s", args[0], strings.Join(shells, ", "))
	}
	return cmd
}

// completeFlag completes a flag with a fixed set of words. The shell picks those that match what is
// typed.
func completeFlag(cmd *cobra.Command, flag string, words ...cobra.Completion) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // a programming error: cmd has no such flag
	}
}

// completeFolder completes a flag with the names of folders.
func completeFolder(cmd *cobra.Command, flag string) {
	if err := cmd.MarkFlagDirname(flag); err != nil {
		panic(err) // a programming error: cmd has no such flag
	}
}

// completeOptions completes the server's options that have a fixed set of values, of serve or run:
// run lacks some of the flags, and its --insecure is that of a client.
func completeOptions(cmd *cobra.Command) {
	completeFlag(cmd, "log-level", "debug", "info", "warn", "error")
	completeFlag(cmd, "log-format", "text", "json")
	completeFlag(cmd, "verify", "full", "off")
	completeFlag(cmd, "enforce-memory", "on", "off")
	completeFlag(cmd, "slurm", "on", "off")
	completeFlag(cmd, "resume", "on", "off")
	if cmd.Flags().Lookup("replace") != nil {
		completeFlag(cmd, "replace", "on", "off")
	}
	if cmd.Flags().Lookup("paused") != nil {
		completeFlag(cmd, "paused", "on", "off")
	}
	if cmd.Flags().Lookup("insecure").Value.Type() == "switch" { // --insecure of run is a boolean flag
		completeFlag(cmd, "insecure", "on", "off")
	}
}

// completeRunArgs completes the first argument with the IDs of runs in these states, or of all
// unfinished runs if no state is given. With withTask it completes the second argument with the tasks
// of the run.
func (r *serverFlags) completeRunArgs(withTask bool, states ...string) {
	r.cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		var found []cobra.Completion
		switch {
		case len(args) == 0:
			found = r.runCompletions(ctx, states, begun)
		case len(args) == 1 && withTask:
			found = r.taskCompletions(ctx, args[0], begun)
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeTaskFlag completes a flag with the tasks of the run that the first argument names.
func (r *serverFlags) completeTaskFlag(flag string) {
	err := r.cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		return r.taskCompletions(ctx, args[0], begun), cobra.ShellCompDirectiveNoFileComp
	})
	if err != nil {
		panic(err) // a programming error: cmd has no such flag
	}
}

// runCompletions returns the run IDs that begin with begun, or nil if the server does not answer.
// Each has its state and tag as a description, which zsh and fish show: "7  RUNNING nightly".
func (r *serverFlags) runCompletions(ctx context.Context, states []string, begun string) (found []cobra.Completion) {
	c, err := r.newClient()
	if err != nil {
		return nil
	}
	for s, err := range limitSeq(c.Runs(ctx, client.ListOptions{States: states, Limit: maxCompletions}), maxCompletions) {
		if err != nil {
			return nil
		}
		if id := strconv.FormatUint(s.RunID, 10); s.Error == "" && strings.HasPrefix(id, begun) {
			found = append(found, cobra.CompletionWithDesc(id, strings.TrimSpace(s.State+" "+printable(s.Tag))))
		}
	}
	return found
}

// taskCompletions returns the names of a run's tasks that begin with begun, with their states. It
// leaves out names with control characters, which a shell could neither show nor take.
func (r *serverFlags) taskCompletions(ctx context.Context, run, begun string) (found []cobra.Completion) {
	id, err := parseRunID(run)
	if err != nil {
		return nil
	}
	c, err := r.newClient()
	if err != nil {
		return nil
	}
	page, err := c.Tasks(ctx, id, client.TaskOptions{Limit: maxCompletions})
	if err != nil {
		return nil
	}
	for _, t := range page.Tasks {
		if strings.HasPrefix(t.Name, begun) && printable(t.Name) == t.Name {
			found = append(found, cobra.CompletionWithDesc(t.Name, t.State))
		}
	}
	return found
}
