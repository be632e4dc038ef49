package e2e

import (
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
