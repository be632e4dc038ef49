package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/servertest"
)

// behindShell is the binary under test behind a line of shell.
func behindShell(t *testing.T, line string) func(*servertest.Config) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "caravan")
	text := fmt.Sprintf("#!/bin/sh\n%s || exit 9\nexec %q \"$@\"\n", line, e2etest.Binary())
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return e2etest.Program(path)
}

// eachOnce checks that every task of a run is COMPLETED after one attempt.
func eachOnce(t *testing.T, s *e2etest.Server, run uint64, tasks int) {
	t.Helper()
	s.Await(run, "COMPLETED")
	doc := s.Get(run)
	if len(doc.TaskAttempts) != tasks {
		t.Errorf("%d tasks have attempts, want %d", len(doc.TaskAttempts), tasks)
	}
	for name, attempts := range doc.TaskAttempts {
		if len(attempts) != 1 || attempts[0].RC != 0 {
			t.Errorf("%s: %+v", name, attempts)
		}
	}
}

// TestTasksWithFewDescriptors: 150 tasks that sleep, all of which the slots would take at once.
func TestTasksWithFewDescriptors(t *testing.T) {
	s := e2etest.Start(t, behindShell(t, "ulimit -n 256"))
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"t": e2etest.Sh(`: {{N}}; exec sleep 1`).Job("cores", "0.01"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(150)}))
	eachOnce(t, s, run, 150)
}

// TestTasksWithFewProcesses: server, worker and tasks share 60 processes and threads.
func TestTasksWithFewProcesses(t *testing.T) {
	group := "/sys/fs/cgroup/pids/caravan-test-" + fmt.Sprint(os.Getpid())
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Skip("no control group for processes can be made here: ", err)
	}
	t.Cleanup(func() { e2etest.Eventually(t, "the group is empty", func() bool { return os.Remove(group) == nil }) })
	if err := os.WriteFile(group+"/pids.max", []byte("60"), 0); err != nil {
		t.Skip("the number of processes cannot be limited here: ", err)
	}
	s := e2etest.Start(t, behindShell(t, "echo $$ >"+group+"/cgroup.procs"))
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"t": e2etest.Sh(`: {{N}}; exec sleep 0.05`).Job("cores", "0.01"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(300)}))
	eachOnce(t, s, run, 300)
}

// TestHungWorkerIsNoticed: a worker that hangs is noticed within 10 s, in the log, by /healthz
// and a metric; a kill is answered meanwhile and carried out when it is back.
func TestHungWorkerIsNoticed(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	dir := t.TempDir()
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"t": e2etest.Sh("exec sleep 1000").Job("workDir", dir)}))
	s.AwaitTask(run, "t", "RUNNING")
	pids := servertest.Workers(s.Config().Data)
	if len(pids) != 1 {
		t.Fatalf("workers: %v", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pids[0], syscall.SIGCONT)
	began := time.Now()
	e2etest.Eventually(t, "/healthz says that the worker hangs", func() bool {
		r := s.Do(http.MethodGet, "/healthz", "")
		return r.Status == 503 && strings.Contains(string(r.Body), "has not answered for")
	})
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("noticed after %v", took)
	}
	if v, err := s.Metric("caravan_worker_responding"); err != nil || v != 0 {
		t.Errorf("caravan_worker_responding %v, %v", v, err)
	}
	e2etest.Eventually(t, "the log says that the worker hangs", func() bool {
		return strings.Contains(s.Log(), "a worker does not answer")
	})
	s.Want(200, http.MethodDelete, fmt.Sprintf("/v1/dagrun/%d", run), "")
	s.Submit(e2etest.Graph(map[string]e2etest.Task{"n": e2etest.Sh("true")})) // still taken
	_ = syscall.Kill(pids[0], syscall.SIGCONT)
	s.Await(run, "KILLED")
	e2etest.Eventually(t, "/healthz is well again", func() bool { return s.Do(http.MethodGet, "/healthz", "").Status == 200 })
	// The log says so with the next pulse, up to a second behind the answer.
	e2etest.Eventually(t, "the log says that the worker is back", func() bool {
		return strings.Contains(s.Log(), "a worker answers again")
	})
	// A pause of the server itself is no hang of the worker.
	before := strings.Count(s.Log(), "a worker does not answer")
	_ = s.Signal(syscall.SIGSTOP)
	pauseFor(12 * time.Second)
	_ = s.Signal(syscall.SIGCONT)
	for range 30 {
		if r := s.Do(http.MethodGet, "/healthz", ""); r.Status != 200 {
			t.Fatalf("%+v", r)
		}
		pauseFor(100 * time.Millisecond)
	}
	if n := strings.Count(s.Log(), "a worker does not answer"); n != before {
		t.Error("the server's own pause is taken for the worker's")
	}
}
