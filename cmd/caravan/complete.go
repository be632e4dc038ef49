package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

// Completion of words in a shell. It asks the server, when there is one: for a second
// at most, and for no more than a screen can show.

const (
	completeWithin = time.Second
	completeMost   = 100
)

// completionCommand prints what makes a shell complete caravan's words.
func (m *Main) completionCommand() *cobra.Command {
	shells := []cobra.Completion{"bash", "zsh", "fish", "powershell"}
	cmd := &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print a script that makes a shell complete commands, flags, runs and tasks",
		Long: "Completion prints a script for SHELL: " + strings.Join(shells, ", ") + ". For bash (with bash-completion):\n\n" +
			"  source <(caravan completion bash)",
		Args:              args(1, 1, "a SHELL"),
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
		return usagef("%q is no shell known here: those are %s", args[0], strings.Join(shells, ", "))
	}
	return cmd
}

// words completes a flag from a closed set.
func words(cmd *cobra.Command, flag string, words ...cobra.Completion) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // cmd has no such flag
	}
}

// completesOptions completes the server's options from a closed set.
func completesOptions(cmd *cobra.Command) {
	words(cmd, "log-level", "debug", "info", "warn", "error")
	words(cmd, "log-format", "text", "json")
	words(cmd, "verify", "full", "off")
	words(cmd, "enforce-memory", "on", "off")
	words(cmd, "slurm", "on", "off")
	words(cmd, "resume", "on", "off")
	if cmd.Flags().Lookup("paused") != nil {
		words(cmd, "paused", "on", "off")
	}
	if cmd.Flags().Lookup("insecure").Value.Type() == "switch" { // run's is another one
		words(cmd, "insecure", "on", "off")
	}
}

// completesRuns completes the first argument with the runs in these states (none: those that
// have not ended), and where withTask is set the second one with the run's tasks.
func (r *remote) completesRuns(withTask bool, states ...string) {
	r.cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completeWithin)
		defer cancel()
		var found []cobra.Completion
		switch {
		case len(args) == 0:
			found = r.runs(ctx, states, begun)
		case len(args) == 1 && withTask:
			found = r.tasks(ctx, args[0], begun)
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// completesTask completes a flag with the tasks of the run that the first argument names.
func (r *remote) completesTask(flag string) {
	err := r.cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeWithin)
		defer cancel()
		return r.tasks(ctx, args[0], begun), cobra.ShellCompDirectiveNoFileComp
	})
	if err != nil {
		panic(err) // cmd has no such flag
	}
}

// runs are ids that begin with begun; none when the server does not answer.
func (r *remote) runs(ctx context.Context, states []string, begun string) (found []cobra.Completion) {
	c, err := r.client()
	if err != nil {
		return nil
	}
	for s, err := range take(c.Runs(ctx, client.ListOptions{States: states, Limit: completeMost}), completeMost) {
		if err != nil {
			return nil
		}
		if id := strconv.FormatUint(s.RunID, 10); s.Error == "" && strings.HasPrefix(id, begun) {
			found = append(found, cobra.CompletionWithDesc(id, strings.TrimSpace(s.State+" "+printable(s.Tag))))
		}
	}
	return found
}

// tasks are names of a run's tasks that begin with begun.
func (r *remote) tasks(ctx context.Context, run, begun string) (found []cobra.Completion) {
	id, err := runID(run)
	if err != nil {
		return nil
	}
	c, err := r.client()
	if err != nil {
		return nil
	}
	page, err := c.Tasks(ctx, id, client.TaskOptions{Limit: completeMost})
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
