package main

import (
	"log/slog"
	"slices"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/datafolder"
)

// workerCommand runs the tasks of a cluster on a machine without a node (join.go).
//
// With --name it is the process that forks the tasks of a server, and outlives it. The server starts
// it (executor/remote, spawnWorker) as
//
//	caravan worker --data DATA --name w-…
//
// with the lock and the socket of the worker's folder as descriptors 3 and 4, so users cannot run
// it. It is the same binary, so that the two always speak one protocol; a server of another version
// drains it and starts its own. It is in a session of its own: the terminal's signals, and those to
// the server's process group, do not reach it. Its environment is as small as that of a task, so
// its configuration is a file in its folder, and its log is another one, at level Info.
//
// Its exit code is 0 when it was idle, drained or told to stop, and 1 otherwise. Only its log tells
// why.
func (m *Main) workerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Run tasks of a cluster on a machine without a node",
		Long: "Worker joins a cluster: it connects to the nodes at the addresses of --join, and runs tasks of all of them.\n" +
			"It stores no runs and needs no open port. Give it the addresses of all nodes: one that is not listed cannot\n" +
			"use it. --tls-dir has the files of `caravan tls worker NAME`. SIGTERM stops it: tasks that run go on, and the\n" +
			"next worker of the same data folder finds them.",
		Args: argCount(0, 0, "no arguments"),
	}
	all := workerOptions(thisMachine("/"))
	addOptionFlags(cmd.Flags(), all)
	completeFlag(cmd, "log-level", "debug", "info", "warn", "error")
	completeFlag(cmd, "log-format", "text", "json")
	completeFlag(cmd, "enforce-memory", "on", "off")
	name := cmd.Flags().String("name", "", "the folder of a process that a server starts")
	cmd.Flags().Lookup("name").Hidden = true
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *name != "" {
			data := cmd.Flags().Lookup("data").Value.String()
			return worker.Run(cmd.Context(), worker.Config{
				Dir: datafolder.WorkerIn(data), Name: *name, Logger: newLogger(m.Stderr, "text", slog.LevelInfo), FS: fileSystem(data),
			})
		}
		c, err := resolveConfig(cmd.Flags(), m.LookupEnv, all)
		if err != nil {
			return err
		}
		if c.Umask, err = m.taskUmask(); err != nil {
			return err
		}
		if len(c.Join) == 0 {
			return usageErrorf("--join is missing: the addresses of the nodes, HOST:PORT,…")
		}
		if c.TLSDir == "" {
			return usageErrorf("--tls-dir is missing: nodes know a worker by its certificate; `caravan tls worker NAME` creates it")
		}
		if m.CatchSignals != nil {
			m.CatchSignals()
		}
		return m.runJoined(cmd.Context(), c)
	}
	return cmd
}

// workerOptions lists the options of a worker: those of a server that concern tasks, and the nodes.
func workerOptions(hw machine) []option {
	var all []option
	for _, o := range serverOptions(hw) {
		if slices.Contains([]string{"cores", "memory-mb", "enforce-memory", "kill-grace", "log-level", "log-format"}, o.name) {
			all = append(all, o)
		}
	}
	return append(all,
		option{"data", "folder", "folder for output and the state of tasks; created if it does not exist", "./caravan-worker",
			func(c *Config, s string) (err error) { c.Data, err = parseNonEmpty(s); return err }, false},
		option{"tls-dir", "folder", "certificate of this worker, and the authority of the cluster; see caravan tls worker. Reloaded when it changes", "",
			func(c *Config, s string) error { c.TLSDir = s; return nil }, false},
		option{"join", "nodes", "addresses of all nodes of the cluster: HOST:PORT", "",
			func(c *Config, s string) (err error) { c.Join, err = parseJoin(s); return err }, false})
}

// parseJoin parses a list of addresses of nodes.
func parseJoin(s string) ([]string, error) {
	addresses := parseList(s)
	for _, address := range addresses {
		if err := checkNodeAddress(address); err != nil {
			return nil, err
		}
	}
	slices.Sort(addresses)
	return slices.Compact(addresses), nil
}
