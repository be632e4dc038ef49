package executor_test

import (
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// BenchmarkTrue runs /bin/true, two at a time, through a Process with orders sent
// ahead, and as a bare fork/exec and wait. Compare tasks/s and cpu-us/task of one run.
func BenchmarkTrue(b *testing.B) {
	b.Run("bare", benchmarkBare)
	b.Run("process", benchmarkProcess)
}

func benchmarkBare(b *testing.B) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	attr := &syscall.ProcAttr{Files: []uintptr{null.Fd(), null.Fd(), null.Fd()}, Env: os.Environ()[:5]}
	measure(b, func() {
		var wg sync.WaitGroup
		for first := range 2 {
			wg.Go(func() {
				for i := first; i < b.N; i += 2 {
					pid, err := syscall.ForkExec("/bin/true", []string{"/bin/true"}, attr)
					if err != nil {
						b.Error(err)
						return
					}
					var status syscall.WaitStatus
					for {
						if _, err := syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
							break
						}
					}
				}
			})
		}
		wg.Wait()
	})
}

func benchmarkProcess(b *testing.B) {
	store, err := outputs.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	ended := make(chan messages.AttemptResult, 16)
	p, err := executor.NewProcess(executor.ProcessConfig{
		Outputs: store, CoresMilli: 2000, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Sink: func(r executor.Report) {
			if r.Kind == executor.Finished {
				ended <- r.Record.Result
			}
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	measure(b, func() {
		const ahead = 8
		for i := range b.N + ahead {
			if i >= ahead {
				if r := <-ended; r != messages.AttemptSucceeded {
					b.Fatal(r)
				}
			}
			if i < b.N {
				p.Start(executor.Order{Key: id(uint32(i)), Command: []string{"/bin/true"}, CoresMilli: 1000})
			} else if i < ahead {
				ended <- messages.AttemptSucceeded // fewer orders than are sent ahead
			}
		}
	})
}

func measure(b *testing.B, run func()) {
	before := cpu()
	b.ResetTimer()
	run()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-us/task")
}

// cpu is what this process and its ended children have used.
func cpu() (sum time.Duration) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if syscall.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}
