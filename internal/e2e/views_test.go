package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// TestLongPoll: who waits for another state is answered when it comes, not before.
func TestLongPoll(t *testing.T) {
	s := e2etest.Start(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("sleep 300")}))
	s.AwaitTask(run, "a", "RUNNING")
	answer := make(chan string, 1)
	go func() {
		answer <- string(s.Do("GET", e2etest.Path(run, "/state?wait=60s&from=RUNNING"), "").Body)
	}()
	select {
	case early := <-answer:
		t.Fatalf("answered before anything changed: %s", early)
	case <-time.After(100 * time.Millisecond):
	}
	s.Want(200, "DELETE", e2etest.Path(run, ""), "")
	select {
	case got := <-answer:
		if got != `{"state":"KILLED"}` {
			t.Errorf("answered %s", got)
		}
	case <-time.After(e2etest.Patience):
		t.Error("not answered")
	}
}

// TestStateVector: a byte per task in the order of the plan, while tasks run, after
// the end and after a crash.
func TestStateVector(t *testing.T) {
	s := e2etest.Start(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"a": e2etest.Noop("N"), "b": e2etest.Sh("exit 3").After("a"), "c": e2etest.Sh("sleep 300").After("a"), "d": e2etest.Noop("").After("c"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(2000)}))
	s.AwaitTask(run, "b", "ERRORED")
	s.AwaitTask(run, "c", "RUNNING")
	want := strings.Repeat("C", 2000) + "ERQ"
	r := s.Want(200, "GET", e2etest.Path(run, "/states"), "")
	if got := string(r.Body); got != want || r.Header.Get("X-Tasks") != "2003" || r.Header.Get("X-State") != "RUNNING" {
		t.Errorf("%d bytes, %v", len(got), r.Header)
	}
	s.Want(200, "DELETE", e2etest.Path(run, ""), "")
	s.Await(run, "KILLED")
	s = s.Crash()
	want = strings.Repeat("C", 2000) + "EKQ"
	if got := string(s.Want(200, "GET", e2etest.Path(run, "/states"), "").Body); got != want {
		t.Errorf("after the end and a crash: %d bytes, the last are %q", len(got), got[max(len(got)-3, 0):])
	}
}
