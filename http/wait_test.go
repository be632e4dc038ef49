package http

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

func TestStateIsWaitedFor(t *testing.T) {
	e := seedEngine(t)
	e.moves = true
	s := serve(t, e)
	var all sync.WaitGroup
	for _, query := range []string{"?wait=60s", "?wait=1m&from=RUNNING"} {
		all.Go(func() {
			if r := s.get("/v1/dagrun/2/state" + query); r.status != 200 || r.body != `{"state":"COMPLETED"}` {
				t.Errorf("%s: %d %s", query, r.status, r.body)
			}
		})
	}
	eventually(t, "both wait", func() bool { return e.waits() == 2 })
	e.move(0, dag.RunErrored) // another run
	e.move(2, dag.RunRunning) // the same state
	if n := e.waits(); n != 2 {
		t.Errorf("%d wait, nothing has changed", n)
	}
	e.move(2, dag.RunCompleted)
	all.Wait()
}

func TestStateIsNotWaitedForInVain(t *testing.T) {
	e := seedEngine(t)
	s := serve(t, e)
	for _, query := range []string{"?wait=60s&from=RUNNING", "?wait=0s", "?wait=1ms", "?from=COMPLETED", "?wait=10ms&from=COMPLETED", "?"} {
		if r := s.get("/v1/dagrun/0/state" + query); r.status != 200 || r.body != `{"state":"COMPLETED"}` {
			t.Errorf("%s: %d %s", query, r.status, r.body)
		}
	}
	if r := s.do("HEAD", "/v1/dagrun/0/state?wait=1ms", ""); r.status != 200 || r.body != "" {
		t.Errorf("HEAD: %d %q", r.status, r.body)
	}
	refusedWith(t, s.get("/v1/dagrun/9/state?wait=60s"), 404, "unknown run 9")
	for query, text := range map[string]string{
		"?wait=61s": `wait: "61s"`, "?wait=-1s": `wait: "-1s"`, "?wait=30": `wait: "30"`, "?wait=": `wait: ""`,
		"?from=RETRY": `unknown state "RETRY"`, "?wiat=1s": `unknown query parameter "wiat"`, "?wait=%zz": "invalid escape",
	} {
		refusedWith(t, s.get("/v1/dagrun/0/state"+query), 400, text)
	}
	e.fail = map[string]error{"Await": &messages.Error{Code: messages.Unavailable, Text: "no"}}
	refusedWith(t, s.get("/v1/dagrun/0/state?wait=60s"), 503, "no")
}

// TestShutdownAnswersWhoWaits with the present state.
func TestShutdownAnswersWhoWaits(t *testing.T) {
	e := seedEngine(t)
	s := serve(t, e)
	answered := make(chan reply, 1)
	go func() { answered <- s.get("/v1/dagrun/2/state?wait=60s") }()
	eventually(t, "it waits", func() bool { return e.waits() == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if r := <-answered; r.status != 200 || r.body != `{"state":"RUNNING"}` {
		t.Errorf("%d %s", r.status, r.body)
	}
}
