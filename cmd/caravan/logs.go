package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

func (m *Main) logsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "logs ID TASK",
		SuggestFor: []string{"output", "tail", "cat"},
		Short:      "Print what a task wrote",
		Long: "Logs prints the raw output of one attempt of a task: standard output, or with --stream stderr\n" +
			"standard error. With -f it waits until the task has begun, and goes on while the attempt runs.",
		Args: args(2, 2, "the ID of a run and the name of a TASK"),
	}
	r := m.talks(cmd)
	r.completesRuns(true)
	o := client.LogOptions{Stream: client.Stdout}
	cmd.Flags().BoolVarP(&o.Follow, "follow", "f", false, "wait until the task has begun, go on while the attempt runs")
	cmd.Flags().IntVar(&o.Attempt, "attempt", 0, "the `number` of the attempt, from 1; 0 for the latest")
	cmd.Flags().StringVar(&o.Stream, "stream", client.Stdout, "stdout or stderr")
	words(cmd, "stream", client.Stdout, client.Stderr)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := runID(args[0])
		switch {
		case err != nil:
			return err
		case o.Attempt < 0:
			return usagef("--attempt must not be negative")
		case o.Stream != client.Stdout && o.Stream != client.Stderr:
			return usagef("--stream %q is neither stdout nor stderr", o.Stream)
		}
		c, err := r.client()
		if err != nil {
			return err
		}
		ctx, task := cmd.Context(), args[1]
		log, err := c.Log(ctx, id, task, o)
		if o.Follow && o.Attempt == 0 && errors.Is(err, client.ErrNotFound) {
			if awaitBegin(ctx, c, id, task) == nil {
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

// beginLook is how often it is looked whether a task has begun.
const beginLook = 250 * time.Millisecond

// awaitBegin waits until a task is no longer QUEUED, or its run has ended without it.
// It is an error when there is no such task.
func awaitBegin(ctx context.Context, c *client.Client, run uint64, name string) error {
	look := time.NewTicker(beginLook)
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
