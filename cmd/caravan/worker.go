package main

import (
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/executor/worker"
)

// workerFolder is where the workers of a data folder have theirs.
func workerFolder(data string) string { return filepath.Join(data, "worker") }

// workerCommand is how a server starts the process that forks its tasks. It is not
// for users: it takes over descriptors that the server opened.
func (m *Main) workerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:    "worker",
		Short:  "Run the tasks of a server (started by the server itself)",
		Hidden: true,
		Args:   args(0, 0, "no arguments"),
	}
	data := cmd.Flags().String("data", "", "the server's data `folder`")
	name := cmd.Flags().String("name", "", "the worker's own folder in it")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *data == "" || *name == "" {
			return usagef("caravan worker is started by caravan serve and caravan run, not by hand")
		}
		return worker.Run(cmd.Context(), worker.Config{
			Dir: workerFolder(*data), Name: *name, Logger: newLogger(m.Stderr, "text", slog.LevelInfo), FS: fileSystem(*data),
		})
	}
	return cmd
}
