package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// hangingScripts makes n scripts whose exec waits as long as their lease is held. Each appends the
// number of its attempt to dir/ran. The graph has a task for each: t0, t1, …
func hangingScripts(t *testing.T, dir string, n int) (graph e2etest.Doc, leases []*faults.Lease) {
	t.Helper()
	tasks := map[string]e2etest.Task{}
	for i := range n {
		path := filepath.Join(dir, fmt.Sprint("slow", i))
		text := fmt.Sprintf("#!/bin/sh\necho \"%d $CARAVAN_ATTEMPT\" >>%s/ran\n", i, dir)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		lease, err := faults.HoldLease(path)
		if err != nil {
			t.Skip(err)
		}
		t.Cleanup(lease.Release)
		leases = append(leases, lease)
		tasks[fmt.Sprint("t", i)] = e2etest.Task{"job": map[string]any{"command": []string{path}}}
	}
	return e2etest.Graph(tasks), leases
}

func awaitExecs(t *testing.T, leases []*faults.Lease) {
	t.Helper()
	for _, lease := range leases {
		e2etest.Eventually(t, "the program is being executed", lease.HasWaiter)
	}
}

// hangingTasks adds tasks whose folder, or program, is on a file system that does not answer, where
// one can be mounted.
func hangingTasks(t *testing.T, graph e2etest.Doc) {
	t.Helper()
	dir := t.TempDir()
	folder, err := faults.MountHanging(dir)
	if err != nil {
		t.Logf("no folder hangs: %v", err)
		return
	}
	t.Cleanup(func() {
		if err := folder.Close(); err != nil {
			t.Error(err)
		}
	})
	tasks := graph["tasks"].(map[string]e2etest.Task)
	tasks["in"] = e2etest.Sh("true").Job("workDir", dir)
	tasks["long"] = e2etest.Sh("#"+strings.Repeat("x", 200<<10)+"\ntrue").Job("workDir", dir)
	tasks["searched"] = e2etest.Task{"job": map[string]any{"command": []string{"true"}, "environment": map[string]string{"PATH": dir + ":/bin"}}}
}

// TestHangingStartsDelayOnlyThemselves: programs whose exec hangs, and folders that cannot be
// entered, do not delay the kills, timeouts, ends and logs of other tasks, and can be killed.
func TestHangingStartsDelayOnlyThemselves(t *testing.T) {
	const grace, late = time.Second, 2 * time.Second // what waits for a start that hangs waits for all of the test
	s := e2etest.Start(t, e2etest.Args("--cores", "20", "--kill-grace", grace.String()))
	graph, leases := hangingScripts(t, t.TempDir(), 8)
	hangingTasks(t, graph)
	hung := s.Submit(graph)
	awaitExecs(t, leases)

	// best tolerates a machine that is busy with other work.
	best := func(what string, least, most time.Duration, measure func() time.Duration) {
		t.Helper()
		var took time.Duration
		for range 5 {
			if took = measure(); took < least {
				break
			}
			if took <= most {
				t.Logf("%s: %v", what, took)
				return
			}
		}
		t.Errorf("%s: %v, want %v to %v", what, took, least, most)
	}
	run := func(task e2etest.Task) uint64 { return s.Submit(e2etest.Graph(map[string]e2etest.Task{"t": task})) }
	length := func(run uint64) time.Duration {
		a := s.Get(run).TaskAttempts["t"]
		if len(a) != 1 {
			t.Fatalf("%+v", a)
		}
		return time.Duration(a[0].StopTime - a[0].StartTime)
	}
	prints := func(run uint64, want string) {
		t.Helper()
		e2etest.Eventually(t, "it prints "+want, func() bool {
			return string(s.Do("GET", e2etest.Path(run, "/task/t/log"), "").Body) == want
		})
	}

	best("a kill", grace, grace+late, func() time.Duration {
		id := run(e2etest.Sh("trap '' TERM; echo ready; sleep 1000"))
		prints(id, "ready\n")
		asked := time.Now()
		s.Want(200, "DELETE", e2etest.Path(id, ""), "")
		s.Await(id, "KILLED")
		return time.Since(asked)
	})
	best("a timeout of 1 s", time.Second, time.Second+late, func() time.Duration {
		id := run(e2etest.Sh("exec sleep 1000").Job("timeoutSeconds", 1))
		s.Await(id, "ERRORED")
		return length(id)
	})
	best("a sleep of 2 s", 2*time.Second, 2*time.Second+late, func() time.Duration {
		begun := time.Now()
		s.Await(run(e2etest.Sh("exec sleep 2")), "COMPLETED")
		return time.Since(begun)
	})
	id := run(e2etest.Sh("echo log; exec sleep 1000"))
	prints(id, "log\n")
	best("a log", 0, late, func() time.Duration {
		asked := time.Now()
		s.Want(200, "GET", e2etest.Path(id, "/task/t/log"), "")
		return time.Since(asked)
	})
	s.Want(200, "DELETE", e2etest.Path(id, ""), "")
	s.Await(id, "KILLED")
	// Enough tasks to make the worker's garbage collector run.
	many := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"t": e2etest.Sh(": {{N}}"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(400)}))
	s.Await(many, "COMPLETED")

	awaitExecs(t, leases) // they still wait
	asked := time.Now()
	s.Want(200, "DELETE", e2etest.Path(hung, ""), "")
	s.Await(hung, "KILLED")
	if took := time.Since(asked); took > grace+e2etest.Patience/3 { // otherwise they would stay for ever
		t.Errorf("the slow ones are killed after %v", took)
	}
	awaitExecs(t, leases)
}

// sessionProcesses lists the living processes of a session except its leader.
func sessionProcesses(session int) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, _ := os.ReadFile(path)
		f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if len(f) > 3 && err == nil && pid != session && f[0] != "Z" && f[0] != "X" && f[3] == strconv.Itoa(session) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestWorkerKilledBeforeExec kills the worker, and the server too, while the exec of its tasks
// hangs. Processes before their exec are found and ended at once, and each program runs once, in a
// new attempt.
func TestWorkerKilledBeforeExec(t *testing.T) {
	for _, both := range []bool{false, true} {
		t.Run(fmt.Sprint("server killed: ", both), func(t *testing.T) {
			const tasks = 4
			dir := t.TempDir()
			s := e2etest.Start(t, e2etest.Args("--cores", "20"))
			graph, leases := hangingScripts(t, dir, tasks)
			run := s.Submit(graph)
			awaitExecs(t, leases)
			workers := testenv.Workers(s.Config().Data)
			if len(workers) != 1 {
				t.Fatalf("workers: %v", workers)
			}
			var children []int
			e2etest.Eventually(t, "the worker has its children", func() bool {
				children = sessionProcesses(workers[0])
				return len(children) == tasks
			})
			if both {
				s.Kill()
			}
			_ = syscall.Kill(workers[0], syscall.SIGKILL)
			if both {
				s = s.Restart()
			}
			killed := time.Now()
			e2etest.Eventually(t, "no child of the dead worker is left", func() bool { return len(sessionProcesses(workers[0])) == 0 })
			t.Logf("the dead worker's children were ended after %v", time.Since(killed))
			if text, err := os.ReadFile(dir + "/ran"); err == nil {
				t.Errorf("programs of the dead worker ran: %q", text)
			}
			for _, lease := range leases {
				lease.Release()
			}
			s.Await(run, "COMPLETED")
			text, err := os.ReadFile(dir + "/ran")
			if lines := strings.Fields(string(text)); err != nil || len(lines) != 2*tasks {
				t.Errorf("%q, %v", text, err)
			}
			for name, attempts := range s.Get(run).TaskAttempts {
				if len(attempts) != 2 || !strings.Contains(attempts[0].ExecutorLog, "lost") || attempts[1].RC != 0 {
					t.Errorf("%s: %+v", name, attempts)
				}
			}
		})
	}
}

// TestHandoverWithHangingStarts: a server ends, and another one takes over, while an exec hangs. Its
// task is not started again.
func TestHandoverWithHangingStarts(t *testing.T) {
	dir := t.TempDir()
	s := e2etest.Start(t, e2etest.Args("--cores", "20"))
	graph, leases := hangingScripts(t, dir, 4)
	run := s.Submit(graph)
	awaitExecs(t, leases)
	asked := time.Now()
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(asked); took >= 10*time.Second { // after which it ends in any case
		t.Errorf("the server ended after %v", took)
	}
	s = s.Restart()
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"t": e2etest.Sh("true")}))
	awaitExecs(t, leases)
	for _, lease := range leases {
		lease.Release()
	}
	s.Await(run, "COMPLETED")
	for name, attempts := range s.Get(run).TaskAttempts {
		if len(attempts) != 1 || attempts[0].RC != 0 {
			t.Errorf("%s: %+v", name, attempts)
		}
	}
}
