package executortest

import (
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// BenchmarkBare runs /bin/true, two at a time, by a bare fork/exec and wait: the reference for an
// executor's benchmark. Output goes to /dev/null and ends are not recorded, so the difference in
// cpu-us/task is what an executor adds. The environment has five variables, about as few as that of a
// task, because each one adds to the cost of an exec.
func BenchmarkBare(b *testing.B) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	attr := &syscall.ProcAttr{Files: []uintptr{null.Fd(), null.Fd(), null.Fd()}, Env: os.Environ()[:5]}
	MeasureTasks(b, CPUTime, func() {
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
					// A signal may interrupt the call.
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

// MeasureTasks calls run, which runs b.N tasks, and reports tasks/s and cpu-us/task by the
// difference of cpu. run returns when all tasks have ended, because cpu counts a child only when it has
// been waited for. Neither figure includes what the caller set up before.
func MeasureTasks(b *testing.B, cpu func() time.Duration, run func()) {
	before := cpu()
	b.ResetTimer()
	run()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-us/task")
}

// CPUTime is what this process and its ended children have used, user and system. It does not see an
// executor that runs in another process, such as a worker: its benchmark gives MeasureTasks a function
// of its own.
func CPUTime() (sum time.Duration) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if syscall.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}
