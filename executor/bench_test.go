package executor_test

import (
	"log/slog"
	"testing"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// BenchmarkTrue runs /bin/true, two at a time, through a Process with orders sent ahead, and by a
// bare fork/exec and wait. Compare tasks/s and cpu-us/task of one run.
func BenchmarkTrue(b *testing.B) {
	b.Run("bare", executortest.BenchmarkBare)
	b.Run("process", benchmarkProcess)
}

func benchmarkProcess(b *testing.B) {
	store, err := outputs.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	ended := make(chan messages.AttemptResult, 16)
	sink := executor.SinkFunc(func(r executor.Report) {
		if r.Kind == executor.Finished {
			ended <- r.Record.Result
		}
	})
	p, err := executor.NewProcess(executor.ProcessConfig{
		CommonConfig: executor.CommonConfig{Outputs: store, Sink: sink, Logger: slog.New(slog.DiscardHandler)}, CPUMillis: 2000,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	executortest.MeasureTasks(b, executortest.CPUTime, func() {
		const ahead = 8
		for i := range b.N + ahead {
			if i >= ahead {
				if r := <-ended; r != messages.AttemptSucceeded {
					b.Fatal(r)
				}
			}
			if i < b.N {
				p.Start(executor.Order{Key: id(uint32(i)), Command: []string{"/bin/true"}, CPUMillis: 1000})
			} else if i < ahead {
				ended <- messages.AttemptSucceeded // fewer orders than are sent ahead
			}
		}
	})
}
