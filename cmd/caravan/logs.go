package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

func (m *Main) logsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "logs ID TASK",
		Short: "Print what a task wrote",
		Long: "Logs prints the raw output of one attempt of a task: standard output, or with --stream stderr\n" +
			"standard error. With -f it goes on while the attempt runs.",
		Args: args(2, 2, "the ID of a run and the name of a TASK"),
	}
	r := m.talks(cmd)
	r.completesRuns(true)
	o := client.LogOptions{Stream: client.Stdout}
	cmd.Flags().BoolVarP(&o.Follow, "follow", "f", false, "go on while the attempt runs")
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
		log, err := c.Log(cmd.Context(), id, args[1], o)
		if err != nil {
			return taskHint(cmd.Context(), c, id, args[1], err)
		}
		defer log.Close()
		_, err = io.Copy(m.Stdout, log)
		return err
	}
	return cmd
}
