package slurm_test

import (
	"testing"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/slurm"
)

// TestConformance: the cluster has two slots, which are not the executor's: what waits
// for them is in the queue of the cluster, and can be taken back.
func TestConformance(t *testing.T) {
	block := executor.Order{Command: []string{"sleep", "1000"}, CPUMillis: 1000}
	executortest.Test(t, executortest.Subject{
		Open: func(t testing.TB, sink executor.Sink) executor.Executor {
			g := newRig(t)
			g.cluster.SetSlots(2)
			s, err := slurm.New(g.config(sink))
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		Quick: executor.Order{Command: []string{"true"}, CPUMillis: 1000},
		Block: &block,
		Slots: 2,
	})
}
