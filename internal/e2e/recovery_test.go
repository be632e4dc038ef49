package e2e

import (
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// TestMillionTasksRecover: a run of 1,000,000 no-op tasks is killed with its server when
// a quarter, half and three quarters of it are done. The next server is ready, and new
// tasks of the run have ended, within a second of its start (the best of the three), and
// the run loses nothing.
func TestMillionTasksRecover(t *testing.T) {
	const limit = time.Second
	width := 1000
	if e2etest.Race {
		width = 50
	}
	s := e2etest.Start(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"first": e2etest.Noop(""), "last": e2etest.Noop("").After("mid"),
		"mid": e2etest.Task{"job": map[string]any{"executor": "noop", "command": []string{"noop", "{{M}}", "{{N}}"}}}.After("first"),
	}).With("parameters", map[string]any{"M": e2etest.Numbers(1000), "N": e2etest.Numbers(width)}))
	all := 1000*width + 2
	completed := func() int {
		for _, r := range s.List("?all=1") {
			return r.TaskCounts["COMPLETED"]
		}
		return 0
	}
	best := time.Hour
	for quarter := 1; quarter <= 3; quarter++ {
		seen := 0
		e2etest.Eventually(t, "the run makes progress", func() bool {
			seen = completed()
			return seen >= all*quarter/4
		})
		begin := time.Now()
		s = s.Crash()
		ready := time.Since(begin)
		// What was under way and not seen yet is less than a window of no-op tasks.
		e2etest.Eventually(t, "new tasks of the run end", func() bool { return completed() >= min(seen+2*1024, all) })
		took := time.Since(begin)
		t.Logf("%d of %d tasks were seen: ready after %v, new ones ended after %v", seen, all, ready, took)
		best = min(best, took)
	}
	if best > limit && !e2etest.Race {
		t.Errorf("the quickest recovery took %v, more than %v", best, limit)
	}
	s.Await(run, "COMPLETED")
	if n := completed(); n != all {
		t.Errorf("%d of %d tasks are COMPLETED", n, all)
	}
}

// TestBacklogRecovers: runs that wait for their first slot wait on when the server was
// killed, are answered for, and run once when their turn comes.
func TestBacklogRecovers(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t, e2etest.Args("--cores", "1"))
	holder := s.Submit(e2etest.Graph(map[string]e2etest.Task{"hold": e2etest.Sh("exec sleep 300")}))
	s.AwaitTask(holder, "hold", "RUNNING")
	var waiting []uint64
	for range max(scaled(200), 20) {
		waiting = append(waiting, s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true"), "b": e2etest.Sh("true").After("a")})))
	}
	killed, paused := waiting[0], waiting[1]
	for range 2 {
		s = s.Crash()
		if n := len(s.List("")); n != len(waiting)+1 {
			t.Fatalf("%d runs are unfinished, want %d", n, len(waiting)+1)
		}
	}
	s.Want(200, "DELETE", e2etest.Path(killed, ""), "")
	s.Want(200, "PATCH", e2etest.Path(paused, "/state/PAUSED"), "")
	if state := s.TaskState(waiting[2], "b"); state != "QUEUED" {
		t.Errorf("task b of a run that waits is %s", state)
	}
	s.Want(200, "DELETE", e2etest.Path(holder, ""), "")
	s.Await(killed, "KILLED")
	for _, run := range waiting[2:] {
		s.Await(run, "COMPLETED")
		for task, attempts := range s.Get(run).TaskAttempts {
			if len(attempts) != 1 {
				t.Errorf("run %d: task %s had %d attempts", run, task, len(attempts))
			}
		}
	}
	if state := s.State(paused); state != "PAUSED" {
		t.Errorf("the paused run is %s", state)
	}
	s.Want(200, "PATCH", e2etest.Path(paused, "/state/RUNNING"), "")
	s.Await(paused, "COMPLETED")
}
