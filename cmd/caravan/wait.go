package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

func (m *Main) waitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wait ID",
		Short: "Wait until a run has ended, and exit by how it did",
		Long: "Wait shows the run's progress until it has ended. It survives a restart of the server that takes\n" +
			"less than 30 s.",
		Args: args(1, 1, "the ID of a run"),
	}
	r := m.talks(m.shows(cmd))
	r.completesRuns(false)
	var timeout time.Duration
	cmd.Flags().Var((*duration)(&timeout), "timeout", "give up after this `duration`; the run goes on")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		id, err := runID(args[0])
		if err != nil {
			return err
		}
		c, err := r.client()
		if err != nil {
			return err
		}
		if timeout > 0 {
			text := fmt.Sprintf("run %d has not ended after %s", id, span(timeout))
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(ctx, timeout, &timeoutError{text})
			defer cancel()
		}
		return m.await(ctx, c, id)
	}
	return cmd
}

// await shows a run's progress until it has ended, and says how it did on Stdout.
func (m *Main) await(ctx context.Context, c *client.Client, id uint64) error {
	p := m.newProgress(id)
	s, err := c.Wait(ctx, id, client.WaitOptions{Progress: p.show, Poll: p.every()})
	p.close()
	if err != nil {
		return lookedAway(ctx, id, err)
	}
	if m.json {
		err = m.printJSON(s)
	} else {
		_, err = fmt.Fprintln(m.Stdout, ending(s))
	}
	if err != nil {
		return err
	}
	return outcome(s)
}

// lookedAway explains a wait that ended before the run did.
func lookedAway(ctx context.Context, id uint64, err error) error {
	cause := context.Cause(ctx)
	var timeout *timeoutError
	switch {
	case errors.As(cause, &timeout):
		return timeout
	case cause != nil:
		return fmt.Errorf("%w: run %d goes on", cause, id)
	}
	return err
}

// outcome is nil for a run that is COMPLETED, else the error that gives the exit
// code; the user has been told.
func outcome(s *client.Summary) error {
	if s.State == client.Completed {
		return nil
	}
	return &endedError{run: s.RunID, state: s.State, told: true}
}
