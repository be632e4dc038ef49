package e2e

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/servertest"
)

// TestProcessesAtOnce: very many tasks of next to no cores run at the same time. They are
// listed, a kill ends them all, and the memory of their worker stays small.
func TestProcessesAtOnce(t *testing.T) {
	tasks := scaled(1000)
	if *sizesFlag == "big" {
		tasks = 10_000
	}
	// The worker keeps 64 descriptors and takes 8 for each attempt.
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if most := int(min(files.Max, 1<<30)-64) / 8; most < tasks {
		t.Logf("%d descriptors are allowed here, so no more than %d attempts at once", files.Max, most)
		tasks = most
	}
	const most = 100 << 20
	s := e2etest.Start(t, e2etest.Args("--cores", "10"))
	dir := t.TempDir()
	begin := time.Now()
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"t": e2etest.Sh("echo {{N}} >>ran; exec sleep 600").Job("workDir", dir).Job("cores", "0.001"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(tasks)}))
	e2etest.Poll(5*time.Minute, func() bool { return ranIn(dir) == tasks })
	started := time.Since(begin)
	if got := len(inFolder(dir)); got != tasks {
		t.Errorf("%d processes run, want %d", got, tasks)
	}
	e2etest.Eventually(t, "all are listed as running", func() bool { return statesOf(s, run)["RUNNING"] == tasks })
	workers := servertest.Workers(s.Config().Data)
	begin = time.Now()
	s.Want(200, "DELETE", e2etest.Path(run, ""), "")
	if !e2etest.Poll(2*time.Minute, func() bool { return s.State(run) == "KILLED" }) {
		t.Fatalf("after a kill the run is %s, its tasks %v", s.State(run), statesOf(s, run))
	}
	killed := time.Since(begin)
	if left := inFolder(dir); len(left) > 0 {
		t.Errorf("the run is KILLED, %d of its processes live: %s", len(left), left[0])
	}
	if got := statesOf(s, run)["KILLED"]; got != tasks {
		t.Errorf("%d tasks are KILLED, want %d", got, tasks)
	}
	if len(workers) != 1 {
		t.Fatalf("%d workers", len(workers))
	}
	peak := peakMemory(t, workers[0])
	if peak > most && !e2etest.Race {
		t.Errorf("the worker had %d MB of memory, want at most %d", peak>>20, most>>20)
	}
	t.Logf("%d processes at once after %v, all killed after %v; the worker had %d MB at most, the server %d MB",
		tasks, started.Round(time.Millisecond), killed.Round(time.Millisecond), peak>>20, peakMemory(t, s.PID())>>20)
	settled(t, s, dir)
}

// statesOf counts the tasks of a run by state.
func statesOf(s *e2etest.Server, run uint64) map[string]int {
	counts := map[string]int{}
	for _, state := range s.Get(run).TaskStates {
		counts[state]++
	}
	return counts
}
