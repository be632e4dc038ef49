package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

// The commands of this file ask for a change of state. They print only errors: the change is
// durable when they exit with 0. A change that the state does not allow now, such as resuming a run
// that is not paused, is the server's 409, whose exit code is 1.

// killCommand kills a run or one task. Its result does not say that the processes have ended.
func (m *Main) killCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "kill ID [TASK]",
		SuggestFor: []string{"cancel", "stop", "abort", "terminate", "delete", "rm"},
		Short:      "Kill a run, or one of its tasks",
		Long: "Kill returns when the request is durable. The processes then get SIGTERM, and after the server's\n" +
			"grace period SIGKILL. `caravan wait` tells when the run is KILLED. Killing a finished run has no effect.",
		Args: argCount(1, 2, "the ID of a run and perhaps the name of a TASK"),
	}
	r := m.addServerFlags(cmd)
	r.completeRunArgs(true)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := parseRunID(args[0])
		if err != nil {
			return err
		}
		c, err := r.newClient()
		if err != nil {
			return err
		}
		if len(args) == 2 {
			return suggestTask(cmd.Context(), c, id, args[1], c.KillTask(cmd.Context(), id, args[1]))
		}
		return c.Kill(cmd.Context(), id)
	}
	return cmd
}

// stateCommand makes the commands pause, resume and restart: each asks for one change of state, to
// PAUSED, RUNNING or QUEUED, as PATCH /v1/dagrun/ID/state/STATE has it. pause and resume also exist
// for the whole server (--all); restarting all runs at once is not a command.
func (m *Main) stateCommand(name, state string) *cobra.Command {
	about := map[string]string{
		client.Paused:  "Pause a run: no task starts, running ones finish",
		client.Running: "Resume a run that is paused",
		client.Queued:  "Restart a run that is ERRORED, KILLED or PAUSED: its COMPLETED tasks stay",
	}
	synonyms := map[string][]string{
		client.Running: {"unpause", "continue"},
		client.Queued:  {"retry", "rerun", "clear"},
	}
	cmd := &cobra.Command{
		Use:        name + " ID",
		SuggestFor: synonyms[state],
		Short:      about[state],
		Args:       argCount(1, 1, "the ID of a run"),
	}
	r := m.addServerFlags(cmd)
	var all bool
	if state != client.Queued {
		cmd.Use = name + " ID | --all"
		cmd.Flags().BoolVar(&all, "all", false, "the whole server: while it is paused, no task of any run starts")
		cmd.Args = func(cmd *cobra.Command, given []string) error {
			if all {
				return argCount(0, 0, "no ID with --all")(cmd, given)
			}
			return argCount(1, 1, "the ID of a run, or --all")(cmd, given)
		}
	}
	// The states from which the change is possible. The shell completes runs in these states; the
	// server decides.
	from := map[string][]string{
		client.Paused:  nil, // every unfinished run
		client.Running: {client.Paused},
		client.Queued:  {client.Errored, client.Killed, client.Paused},
	}
	r.completeRunArgs(false, from[state]...)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := r.newClient()
		if err != nil {
			return err
		}
		if all {
			return c.SetServerState(cmd.Context(), state)
		}
		id, err := parseRunID(args[0])
		if err != nil {
			return err
		}
		return c.SetState(cmd.Context(), id, state)
	}
	return cmd
}

// formatOutcome describes the end of a run in one line, which run and wait print on standard output:
//
//	run 7 ERRORED: 11 COMPLETED, 2 QUEUED, 1 ERRORED, took 2.5s
func formatOutcome(s *client.Summary) string {
	return fmt.Sprintf("run %d %s: %s, took %s", s.RunID, s.State, formatStateCounts(s.TaskCounts), formatDuration(runDuration(s)))
}
