package remote_test

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// BenchmarkTrue runs /bin/true, two at a time: as a bare fork/exec and wait, through a
// Process of this process, and through a worker. Compare tasks/s and cpu-us/task, which
// counts all processes, of one run.
func BenchmarkTrue(b *testing.B) {
	b.Run("bare", benchmarkBare)
	b.Run("process", func(b *testing.B) {
		store, err := outputs.Open(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		defer store.Close()
		benchmarkExecutor(b, func(sink executor.Sink) executor.Executor {
			p, err := executor.NewProcess(executor.ProcessConfig{Outputs: store, CoresMilli: 2000, Sink: sink})
			if err != nil {
				b.Fatal(err)
			}
			return p
		}, func() time.Duration { return 0 })
	})
	b.Run("worker", func(b *testing.B) {
		dir := filepath.Join(b.TempDir(), "worker")
		benchmarkExecutor(b, func(sink executor.Sink) executor.Executor {
			r, err := remote.New(remote.Config{Dir: dir, Args: []string{"worker", dir}, Sink: sink, CoresMilli: 2000,
				Settings: worker.Settings{Outputs: filepath.Join(dir, "output")}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
			if err != nil {
				b.Fatal(err)
			}
			return r
		}, func() time.Duration { return workerCPU(b, dir) })
	})
}

func benchmarkBare(b *testing.B) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	attr := &syscall.ProcAttr{Files: []uintptr{null.Fd(), null.Fd(), null.Fd()}, Env: os.Environ()[:5]}
	measure(b, func() time.Duration { return 0 }, func() {
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

// benchmarkExecutor keeps 16 orders at the executor, and acknowledges each end.
func benchmarkExecutor(b *testing.B, open func(executor.Sink) executor.Executor, others func() time.Duration) {
	const ahead = 16
	ended := make(chan executor.Report, 2*ahead)
	e := open(func(r executor.Report) {
		if r.Kind == executor.Finished {
			ended <- r
		}
	})
	defer e.Close()
	next := uint32(0)
	start := func() {
		e.Start(executor.Order{Key: messages.AttemptKey{Run: 1, Task: next, Attempt: 1}, Name: "true",
			Command: []string{"/bin/true"}, CoresMilli: 1000, GrantedAt: time.Now().UnixNano()})
		next++
	}
	run := func(n int) {
		for range min(ahead, n) {
			start()
		}
		for i := range n {
			r := <-ended
			if r.Record.Result != messages.AttemptSucceeded {
				b.Fatal(r)
			}
			if d, ok := e.(executor.Durable); ok {
				d.Acknowledge(r.Key)
			}
			if i+ahead < n {
				start()
			}
		}
	}
	run(20) // the worker is there
	measure(b, others, func() { run(b.N) })
}

func measure(b *testing.B, others func() time.Duration, run func()) {
	before := cpu() + others()
	b.ResetTimer()
	run()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
	b.ReportMetric(float64((cpu()+others()-before).Microseconds())/float64(b.N), "cpu-us/task")
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

// workerCPU is what the worker of dir and its ended children have used.
func workerCPU(b *testing.B, dir string) (sum time.Duration) {
	for _, pid := range allPIDs() {
		if !strings.Contains(read(fmt.Sprintf("/proc/%d/cmdline", pid)), "worker\x00"+dir+"\x00") {
			continue
		}
		stat := read(fmt.Sprintf("/proc/%d/stat", pid))
		f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
		for _, field := range f[11:15] {
			ticks, err := strconv.Atoi(field)
			if err != nil {
				b.Fatal(err)
			}
			sum += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return sum
}
