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
)

// isAlive reports whether the process exists and is not a zombie.
func isAlive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	rest := string(text[strings.LastIndexByte(string(text), ')')+1:])
	return !strings.HasPrefix(strings.TrimSpace(rest), "Z")
}

// readPIDs reads the files to which tasks wrote their process ids.
func readPIDs(t *testing.T, dir string) []int {
	t.Helper()
	files, err := filepath.Glob(dir + "/pid-*")
	if err != nil {
		t.Fatal(err)
	}
	var list []int
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(w)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, pid)
		}
	}
	return list
}

// endLeftovers ends the tasks that remain when a test has killed its server.
func endLeftovers(t *testing.T, dir string) {
	t.Cleanup(func() {
		for _, pid := range readPIDs(t, dir) {
			if isAlive(pid) {
				// The process may end by itself at this moment.
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
}

// TestKillWithAllSlotsBusy: a run is KILLED less than 200 ms after the request, not counting what the disk takes
// for its commits, while 200 tasks are queued behind the two that hold all slots.
func TestKillWithAllSlotsBusy(t *testing.T) {
	s := e2etest.Start(t)
	dir := t.TempDir()
	var took, limit time.Duration
	for try := range 10 { // the machine may be busy with other work
		limit = limitHere(s, 200*time.Millisecond) + 4*syncTime(t)
		run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
			"busy": e2etest.Sh("echo $$ > "+dir+"/pid-{{N}}; exec sleep 300").With("maxRetries", 3),
		}).With("parameters", map[string]any{"N": e2etest.Numbers(202)}))
		e2etest.Eventually(t, "two tasks have written their pid", func() bool { return len(readPIDs(t, dir)) == 2 })
		begin := time.Now()
		s.Want(200, "DELETE", e2etest.Path(run, ""), "")
		s.Await(run, "KILLED")
		took = time.Since(begin)
		for _, pid := range readPIDs(t, dir) {
			if isAlive(pid) {
				t.Errorf("the run is KILLED, its process %d lives", pid)
			}
		}
		sum := s.Get(run)
		counts := map[string]int{}
		for _, state := range sum.TaskStates {
			counts[state]++
		}
		if counts["KILLED"] != 2 || counts["QUEUED"] != 200 {
			t.Errorf("after the kill: %v, want 2 KILLED and 200 QUEUED", counts)
		}
		if took < limit {
			break
		}
		t.Logf("try %d: %v", try, took)
		for _, f := range []string{"0", "1"} {
			os.Remove(dir + "/pid-" + f)
		}
	}
	t.Logf("from the request to KILLED: %v", took)
	if took >= limit {
		t.Errorf("a kill with all slots busy took %v, want less than %v", took, limit)
	}
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"x": e2etest.Sh("true").Job("cores", 2)})) // all slots are free again
}

// TestKillEscalatesToSIGKILL: a task ignores SIGTERM. SIGKILL follows after the grace period, for
// the whole process group.
func TestKillEscalatesToSIGKILL(t *testing.T) {
	t.Parallel()
	const grace = 400 * time.Millisecond
	s := e2etest.Start(t, e2etest.Args("--kill-grace", grace.String()))
	dir := t.TempDir()
	endLeftovers(t, dir)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"deaf": e2etest.Sh("trap '' TERM; sleep 300 & echo $$ $! > "+dir+"/new; mv "+dir+"/new "+dir+"/pid-x; while :; do wait; done").
			With("maxRetries", 5),
		"after": e2etest.Sh("true").After("deaf"),
	}))
	e2etest.Eventually(t, "the task has written its pids", func() bool { return len(readPIDs(t, dir)) == 2 })
	begin := time.Now()
	s.Want(200, "DELETE", e2etest.Path(run, "/task/deaf"), "")
	s.Want(200, "DELETE", e2etest.Path(run, "/task/deaf"), "")
	s.Await(run, "KILLED")
	if took := time.Since(begin); took < grace || took > time.Minute {
		t.Errorf("killed after %v, want %v and little more", took, grace)
	}
	for _, pid := range readPIDs(t, dir) {
		if isAlive(pid) {
			t.Errorf("the task is KILLED, its process %d lives", pid)
		}
	}
	doc := s.Get(run)
	if doc.TaskStates["deaf"] != "KILLED" || doc.TaskStates["after"] != "QUEUED" || len(doc.TaskAttempts["deaf"]) != 1 {
		t.Errorf("states %v, attempts %+v", doc.TaskStates, doc.TaskAttempts["deaf"])
	}
}

// TestKillTaskLeavesOthersRunning: the run ends KILLED when no other task can make progress.
func TestKillTaskLeavesOthersRunning(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"victim": e2etest.Sh("sleep 300"), "child": e2etest.Sh("true").After("victim"),
		"other": e2etest.Sh("sleep 0.3"), "next": e2etest.Sh("true").After("other"),
	}))
	s.AwaitTask(run, "victim", "RUNNING")
	s.Want(200, "DELETE", e2etest.Path(run, "/task/victim"), "")
	s.Await(run, "KILLED")
	want := map[string]string{"victim": "KILLED", "child": "QUEUED", "other": "COMPLETED", "next": "COMPLETED"}
	if got := s.Get(run).TaskStates; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("states %v, want %v", got, want)
	}
	s.Want(200, "DELETE", e2etest.Path(run, ""), "") // a finished run ignores it
	if got := s.State(run); got != "KILLED" {
		t.Errorf("after a kill of the finished run it is %s", got)
	}
}
