package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

func (m *Main) getCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "get ID",
		SuggestFor: []string{"status", "state", "show", "describe", "inspect", "tasks"},
		Short:      "Show a run and its tasks, or with --task one task",
		Long: "Get shows a run at a glance and its tasks. With -o json it prints the run's whole record as the\n" +
			"server streams it; --state and --limit then do not apply.",
		Args: args(1, 1, "the ID of a run"),
	}
	r := m.talks(m.shows(cmd))
	var (
		task   string
		states []string
		limit  int
	)
	cmd.Flags().StringVar(&task, "task", "", "show just the task of this `name`")
	cmd.Flags().StringSliceVar(&states, "state", nil, "only tasks in this `state`; may be given more than once")
	words(cmd, "state", taskWords()...)
	cmd.Flags().IntVar(&limit, "limit", 100, "at most this `number` of tasks; 0 for all")
	r.completesRuns(false)
	r.completesTask("task")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		id, err := runID(args[0])
		if err != nil {
			return err
		}
		if limit < 0 {
			return usagef("--limit must not be negative")
		}
		if states, err = taskStateNames(states); err != nil {
			return err
		}
		c, err := r.client()
		switch {
		case err != nil:
			return err
		case cmd.Flags().Changed("task"):
			return m.getTask(ctx, c, id, task)
		case m.json:
			return m.getRaw(ctx, c, id)
		}
		return m.getRun(ctx, c, id, client.TaskOptions{States: states}, limit)
	}
	return cmd
}

// getRaw prints a run's record as it comes.
func (m *Main) getRaw(ctx context.Context, c *client.Client, id uint64) error {
	body, err := c.GetRaw(ctx, id)
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err = io.Copy(m.Stdout, body); err == nil {
		_, err = fmt.Fprintln(m.Stdout)
	}
	return err
}

func (m *Main) getRun(ctx context.Context, c *client.Client, id uint64, o client.TaskOptions, limit int) error {
	s, err := c.Summary(ctx, id)
	if err != nil {
		return err
	}
	paint := m.painter(m.Stdout)
	fmt.Fprintf(m.Stdout, "run      %d\n", s.RunID)
	if s.Tag != "" {
		fmt.Fprintf(m.Stdout, "tag      %s\n", printable(s.Tag))
	}
	fmt.Fprintf(m.Stdout, "state    %s\n", paint(s.State))
	fmt.Fprintf(m.Stdout, "started  %s\n", m.moment(s.StartTime))
	fmt.Fprintf(m.Stdout, "updated  %s\n", m.moment(s.LastUpdate))
	fmt.Fprintf(m.Stdout, "took     %s\n", span(took(s)))
	fmt.Fprintf(m.Stdout, "tasks    %d: %s\n\n", s.Total(), counts(s.TaskCounts))

	if limit > 0 && limit < 1000 {
		o.Limit = limit + 1 // one more tells whether there are more
	}
	t := newTable(m.Stdout, paint, "TASK", "STATE", "ATTEMPTS", "RC", "TOOK")
	n := 0
	for task, err := range c.AllTasks(ctx, id, o) {
		if err != nil {
			return err
		}
		if n++; limit > 0 && n > limit {
			break
		}
		rc, spent := "-", "-"
		if len(task.Attempts) > 0 {
			a := task.Attempts[len(task.Attempts)-1]
			if a.StopTime != 0 {
				rc = strconv.Itoa(a.RC)
			}
			spent = span(attemptTook(a))
		}
		if err := t.add(task.Name, task.State, strconv.Itoa(len(task.Attempts)), rc, spent); err != nil {
			return err
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	if limit > 0 && n > limit {
		fmt.Fprintf(m.Stdout, "there are more than %s: --limit 0 shows all, --state some\n", plural(limit, "task"))
	}
	return nil
}

// attemptTook is how long an attempt has been going on, or went on.
func attemptTook(a client.Attempt) time.Duration {
	switch {
	case a.StartTime == 0:
		return -1
	case a.StopTime == 0:
		return time.Since(a.StartTime.Time())
	}
	return time.Duration(a.StopTime - a.StartTime)
}
