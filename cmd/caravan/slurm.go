package main

import (
	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/slurm"
)

// slurmExecutor is the name that jobs choose Slurm by.
const slurmExecutor = "slurm"

// slurmLimits lets jobs choose Slurm, if the server has it.
func slurmLimits(c Config, l *dag.Limits) {
	if c.Slurm {
		l.Executors = append(l.Executors, slurmExecutor)
		l.ExternalExecutors = append(l.ExternalExecutors, slurmExecutor)
	}
}

// withSlurm adds the executor whose attempts are jobs of a Slurm cluster, if the
// server is to have it.
func (n *node) withSlurm(c Config, engine actors.Config) actors.Config {
	if !c.Slurm {
		return engine
	}
	engine.ExternalExecutors = map[string]int{slurmExecutor: c.SlurmJobs}
	engine.Executors[slurmExecutor] = func(sink executor.Sink) (executor.Executor, error) {
		return slurm.New(slurm.Config{
			Dir: n.folder.Slurm(), Outputs: n.outputs, Sink: sink, Partition: c.SlurmPartition,
			MaxCapture: maxGenerated, Grace: c.KillGrace, Umask: c.Umask, Logger: n.log,
		})
	}
	return engine
}
