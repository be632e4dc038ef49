package remote_test

import (
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// BenchmarkTrue runs /bin/true, two at a time: as a bare fork/exec and wait, through a
// Process of this process, and through a worker. Compare tasks/s and cpu-us/task, which
// counts all processes, of one run.
func BenchmarkTrue(b *testing.B) {
	b.Run("bare", executortest.BenchmarkBare)
	b.Run("process", func(b *testing.B) {
		store, err := outputs.Open(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		defer store.Close()
		benchmarkExecutor(b, func(sink executor.Sink) executor.Executor {
			p, err := executor.NewProcess(executor.ProcessConfig{CommonConfig: executor.CommonConfig{Outputs: store, Sink: sink}, CPUMillis: 2000})
			if err != nil {
				b.Fatal(err)
			}
			return p
		}, executortest.CPUTime)
	})
	b.Run("worker", func(b *testing.B) {
		dir := filepath.Join(b.TempDir(), "worker")
		benchmarkExecutor(b, func(sink executor.Sink) executor.Executor {
			r, err := remote.New(remote.Config{Dir: dir, Args: []string{"worker", dir}, Sink: sink, CPUMillis: 2000,
				Settings: worker.Settings{Outputs: filepath.Join(dir, "output")}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
			if err != nil {
				b.Fatal(err)
			}
			return r
		}, func() time.Duration { return executortest.CPUTime() + workerCPU(b, dir) })
	})
}

// benchmarkExecutor keeps 16 orders at the executor, and acknowledges each end; cpu is what
// all processes of it have used.
func benchmarkExecutor(b *testing.B, open func(executor.Sink) executor.Executor, cpu func() time.Duration) {
	const ahead = 16
	ended := make(chan executor.Report, 2*ahead)
	e := open(executor.SinkFunc(func(r executor.Report) {
		if r.Kind == executor.Finished {
			ended <- r
		}
	}))
	defer e.Close()
	next := uint32(0)
	start := func() {
		e.Start(executor.Order{Key: messages.AttemptKey{Run: 1, Task: next, Attempt: 1}, Name: "true",
			Command: []string{"/bin/true"}, CPUMillis: 1000, GrantedAt: time.Now().UnixNano()})
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
	executortest.MeasureTasks(b, cpu, func() { run(b.N) })
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
