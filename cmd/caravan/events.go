package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

func (m *Main) eventsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "events [ID]",
		SuggestFor: []string{"watch", "follow"},
		Short:      "Tell what changes in a run, or which runs change, as it happens",
		Long: "Events prints a line for each change of a run and of its tasks until the run has ended, and exits by\n" +
			"how it did. Without an ID it prints a line for each run that changes, until it is interrupted. It\n" +
			"survives a restart of the server that takes less than 30 s.",
		Args: args(0, 1, "at most the ID of a run"),
	}
	r := m.talks(m.shows(cmd))
	r.completesRuns(false)
	var o client.EventOptions
	var tag string
	cmd.Flags().StringVar(&o.After, "after", "", "begin behind the event with this `id`; 0 for a run's whole story")
	cmd.Flags().StringVar(&tag, "tag", "", "without an ID: only runs with this `tag`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := r.client()
		if err != nil {
			return err
		}
		if len(args) == 0 {
			if cmd.Flags().Changed("tag") {
				o.Tag = &tag
			}
			err := m.tellEvents(c.RunEvents(cmd.Context(), o))
			if cause := context.Cause(cmd.Context()); cause != nil {
				return cause
			}
			return err
		}
		id, err := runID(args[0])
		switch {
		case err != nil:
			return err
		case cmd.Flags().Changed("tag"):
			return usagef("--tag is for all runs: it does not go with an ID")
		}
		var last *client.Summary
		err = m.tellEvents(func(yield func(*client.Event, error) bool) {
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
			return lookedAway(cmd.Context(), id, err)
		}
		if last == nil { // there was nothing behind --after: it had ended
			if last, err = c.Summary(cmd.Context(), id); err != nil {
				return err
			}
		}
		return outcome(last)
	}
	return cmd
}

// tellEvents prints events as they come.
func (m *Main) tellEvents(events iter.Seq2[*client.Event, error]) error {
	for e, err := range events {
		if err == nil && m.json {
			err = json.NewEncoder(m.Stdout).Encode(e)
		} else if err == nil {
			err = m.tellEvent(m.Stdout, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *Main) tellEvent(w io.Writer, e *client.Event) (err error) {
	switch {
	case e.Summary != nil:
		s := e.Summary
		_, err = fmt.Fprintf(w, "%s  run %d %s: %s\n", m.moment(s.LastUpdate), s.RunID, s.State, counts(s.TaskCounts))
	case e.State != nil:
		_, err = fmt.Fprintf(w, "%s  %s\n", m.moment(e.State.Time), e.State.State)
	case e.Missed > 0:
		_, err = fmt.Fprintf(w, "%s missed\n", plural(int(e.Missed), "change"))
	}
	for _, t := range e.Tasks {
		if err != nil {
			return err
		}
		rc := ""
		if t.RC != nil {
			rc = fmt.Sprintf(", rc %d", *t.RC)
		}
		_, err = fmt.Fprintf(w, "%s  task %s %s (attempt %d%s)\n", m.moment(t.Time), printable(t.Task), t.State, t.Attempt, rc)
	}
	return err
}
