package main

import (
	"path/filepath"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/slurm"
)

// slurmExecutor is the name that jobs choose Slurm by.
const slurmExecutor = "slurm"

// openSlurm makes the executor whose attempts are jobs of a Slurm cluster.
func (n *node) openSlurm(c Config) func(executor.Sink) (executor.Executor, error) {
	return func(sink executor.Sink) (executor.Executor, error) {
		return slurm.New(slurm.Config{
			Dir: filepath.Join(c.Data, "slurm"), Outputs: n.outputs, Sink: sink, Partition: c.SlurmPartition,
			MaxCapture: maxGenerated, Grace: c.KillGrace, Logger: n.log,
		})
	}
}
