package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

// The commands of this file follow what happens: logs an attempt, events the changes, wait a run. An
// interrupt ends the command (130) and leaves the run alone.

// logsCommand prints the raw bytes of one stream of one attempt, with control characters, as `cat`
// would: output is data. A task without such an attempt is an error (6), unless -f waits for it.
func (m *Main) logsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "logs ID TASK",
		SuggestFor: []string{"output", "tail", "cat"},
		Short:      "Print the output of a task",
		Long: "Logs prints the raw output of one attempt of a task: standard output, or with --stream stderr\n" +
			"standard error. With -f it waits for the start of the task, and goes on while the attempt runs.",
		Args: argCount(2, 2, "the ID of a run and the name of a TASK"),
	}
	r := m.addServerFlags(cmd)
	r.completeRunArgs(true)
	o := client.LogOptions{Stream: client.Stdout}
	cmd.Flags().BoolVarP(&o.Follow, "follow", "f", false, "wait for the start of the task, and go on while the attempt runs")
	cmd.Flags().IntVar(&o.Attempt, "attempt", 0, "the `number` of the attempt, from 1; 0 for the latest")
	cmd.Flags().StringVar(&o.Stream, "stream", client.Stdout, "stdout or stderr")
	completeFlag(cmd, "stream", client.Stdout, client.Stderr)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := parseRunID(args[0])
		switch {
		case err != nil:
			return err
		case o.Attempt < 0:
			return usageErrorf("--attempt must not be negative")
		case o.Stream != client.Stdout && o.Stream != client.Stderr:
			return usageErrorf("--stream %q must be stdout or stderr", o.Stream)
		}
		c, err := r.newClient()
		if err != nil {
			return err
		}
		ctx, task := cmd.Context(), args[1]
		log, err := c.Log(ctx, id, task, o)
		// The log of a task that has not started does not exist yet. The server answers 404, as for
		// an unknown task; waitForStart tells the two apart.
		if o.Follow && o.Attempt == 0 && errors.Is(err, client.ErrNotFound) {
			if waitForStart(ctx, c, id, task) == nil {
				log, err = c.Log(ctx, id, task, o)
			} else if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		if err != nil {
			return suggestTask(ctx, c, id, task, err)
		}
		defer log.Close()
		_, err = io.Copy(m.Stdout, log)
		return err
	}
	return cmd
}

// startPollInterval is how often waitForStart asks for the state. The API has long polls for the
// state of a run, and none for that of a task.
const startPollInterval = 250 * time.Millisecond

// waitForStart waits until a task has left QUEUED, or its run has ended: a task that was never
// started, in a run that was killed or has failed, stays QUEUED for good. It returns an error for
// an unknown task, and the cause of ctx when that ends.
func waitForStart(ctx context.Context, c *client.Client, run uint64, name string) error {
	look := time.NewTicker(startPollInterval)
	defer look.Stop()
	for {
		state, err := c.TaskState(ctx, run, name)
		if err != nil || state != client.Queued {
			return err
		}
		if state, err = c.State(ctx, run); err != nil || client.Final(state) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-look.C:
		}
	}
}

// eventsCommand prints changes as they become durable. With an ID it ends with the run and exits by
// its outcome; without one it ends only by an interrupt, whose code is 130, or by an error. The
// client connects again after a broken connection (client.Events) and resumes after the last event,
// so a restart of the server is invisible, apart from a change that may be printed twice.
func (m *Main) eventsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "events [ID]",
		SuggestFor: []string{"watch", "follow"},
		Short:      "Print the changes of a run, or which runs change, as they happen",
		Long: "Events prints a line for each change of a run and of its tasks until the run ends, and exits by its\n" +
			"outcome. Without an ID it prints a line for each run that changes, until it is interrupted. It\n" +
			"survives a restart of the server that takes less than 30 s.",
		Args: argCount(0, 1, "at most the ID of a run"),
	}
	r := m.addServerFlags(m.addOutputFlag(cmd))
	r.completeRunArgs(false)
	var o client.EventOptions
	var tag string
	cmd.Flags().StringVar(&o.After, "after", "", "begin after the event with this `id`; 0 for the whole history of a run")
	cmd.Flags().StringVar(&tag, "tag", "", "without an ID: only runs with this `tag`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := r.newClient()
		if err != nil {
			return err
		}
		if len(args) == 0 {
			if cmd.Flags().Changed("tag") {
				o.Tag = &tag
			}
			err := m.printEvents(c.RunEvents(cmd.Context(), o))
			if cause := context.Cause(cmd.Context()); cause != nil {
				return cause
			}
			return err
		}
		id, err := parseRunID(args[0])
		switch {
		case err != nil:
			return err
		case cmd.Flags().Changed("tag"):
			return usageErrorf("--tag is for all runs and cannot be combined with an ID")
		}
		// The last event of a run is its summary, which has the outcome.
		var last *client.Summary
		err = m.printEvents(func(yield func(*client.Event, error) bool) {
			for e, err := range c.Events(cmd.Context(), id, o) {
				if err == nil && e.Summary != nil {
					last = e.Summary
				}
				if !yield(e, err) {
					return
				}
			}
		})
		if err != nil {
			return waitError(cmd.Context(), id, err)
		}
		if last == nil { // the run had ended before the event --after
			if last, err = c.Summary(cmd.Context(), id); err != nil {
				return err
			}
		}
		return outcomeError(last)
	}
	return cmd
}

// printEvents prints events as they arrive, as lines for people, or each as a JSON object on a line
// of its own (client.Event). The first error ends it, of the stream or of standard output.
func (m *Main) printEvents(events iter.Seq2[*client.Event, error]) error {
	for e, err := range events {
		if err == nil && m.jsonOutput {
			err = json.NewEncoder(m.Stdout).Encode(e)
		} else if err == nil {
			err = m.printEvent(m.Stdout, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// printEvent prints one event in one or more lines. Names come from users and are escaped.
//
//	2026-11-30 08:00:02  run 7 RUNNING: 1 COMPLETED, 2 RUNNING    a summary
//	2026-11-30 08:00:02  RUNNING                                  a change of the run's state
//	2026-11-30 08:00:02  task build COMPLETED (attempt 1, rc 0)   a change of a task
//	12 changes missed                                             a reader that was too slow
func (m *Main) printEvent(w io.Writer, e *client.Event) (err error) {
	switch {
	case e.Summary != nil:
		s := e.Summary
		_, err = fmt.Fprintf(w, "%s  run %d %s: %s\n", m.formatTime(s.LastUpdate), s.RunID, s.State, formatStateCounts(s.TaskCounts))
	case e.State != nil:
		_, err = fmt.Fprintf(w, "%s  %s\n", m.formatTime(e.State.Time), e.State.State)
	case e.Missed > 0:
		_, err = fmt.Fprintf(w, "%s missed\n", pluralize(int(e.Missed), "change"))
	}
	for _, t := range e.Tasks {
		if err != nil {
			return err
		}
		rc := ""
		if t.RC != nil {
			rc = fmt.Sprintf(", rc %d", *t.RC)
		}
		_, err = fmt.Fprintf(w, "%s  task %s %s (attempt %d%s)\n", m.formatTime(t.Time), printable(t.Task), t.State, t.Attempt, rc)
	}
	return err
}

// waitCommand waits for a run that another command has submitted. Its exit code is that of the run,
// 8 after --timeout, and 130 after an interrupt; the last two leave the run alone.
func (m *Main) waitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wait ID",
		Short: "Wait for the end of a run, and exit by its outcome",
		Long: "Wait shows the progress of a run until its end. It survives a restart of the server that takes\n" +
			"less than 30 s.",
		Args: argCount(1, 1, "the ID of a run"),
	}
	r := m.addServerFlags(m.addOutputFlag(cmd))
	r.completeRunArgs(false)
	var timeout time.Duration
	cmd.Flags().Var((*duration)(&timeout), "timeout", "give up after this `duration`; the run goes on")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		id, err := parseRunID(args[0])
		if err != nil {
			return err
		}
		c, err := r.newClient()
		if err != nil {
			return err
		}
		if timeout > 0 {
			// The cause of the context tells this end from an interrupt: see waitError.
			text := fmt.Sprintf("run %d has not ended after %s", id, formatDuration(timeout))
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(ctx, timeout, &timeoutError{text})
			defer cancel()
		}
		return m.waitAndReport(ctx, c, id)
	}
	return cmd
}

// waitAndReport shows the progress of a run until its end, on standard error, and prints the
// outcome on standard output: one line, or the summary as JSON. Its error carries the exit code.
func (m *Main) waitAndReport(ctx context.Context, c *client.Client, id uint64) error {
	p := m.newProgress(id)
	s, err := c.Wait(ctx, id, client.WaitOptions{Progress: p.show, Poll: p.pollInterval()})
	p.close()
	if err != nil {
		return waitError(ctx, id, err)
	}
	if m.jsonOutput {
		err = m.printJSON(s)
	} else {
		_, err = fmt.Fprintln(m.Stdout, formatOutcome(s))
	}
	if err != nil {
		return err
	}
	return outcomeError(s)
}

// waitError explains a wait that ended before the run: err is what the wait returned, ctx the
// context that it had. A timeout and an interrupt end ctx, and their cause has the exit code; the
// error of the request that they broke off would hide it.
func waitError(ctx context.Context, id uint64, err error) error {
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

// outcomeError returns nil for a COMPLETED run, else the error that carries the exit code. The
// outcome is already printed, on standard output, so Run prints no error.
func outcomeError(s *client.Summary) error {
	if s.State == client.Completed {
		return nil
	}
	return &runEndedError{run: s.RunID, state: s.State, reported: true}
}
