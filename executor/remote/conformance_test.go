package remote_test

import (
	"testing"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/remote"
)

func TestConformance(t *testing.T) {
	block := executor.Order{Command: []string{"sleep", "1000"}, CPUMillis: 1000}
	executortest.Test(t, executortest.Subject{
		Open: func(t testing.TB, sink executor.Sink) executor.Executor {
			g := newRig(t.(*testing.T))
			r, err := remote.New(g.config(sink))
			if err != nil {
				t.Fatal(err)
			}
			return r
		},
		Quick:         executor.Order{Command: []string{"true"}, CPUMillis: 1000},
		Block:         &block,
		Slots:         2,
		RunsTakeTurns: true,
	})
}
