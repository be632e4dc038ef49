package http

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

func TestLongPollAnswersAtAChange(t *testing.T) {
	e := contractEngine(t)
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
	testenv.Eventually(t, "both wait", func() bool { return e.waits() == 2 })
	e.move(0, dag.RunErrored) // another run
	e.move(2, dag.RunRunning) // the same state
	if n := e.waits(); n != 2 {
		t.Errorf("%d wait, nothing has changed", n)
	}
	e.move(2, dag.RunCompleted)
	all.Wait()
}

func TestLongPollAnswersAtOnceOrAtItsEnd(t *testing.T) {
	e := contractEngine(t)
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

// TestShutdownAnswersLongPolls with the present state.
func TestShutdownAnswersLongPolls(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	answered := make(chan reply, 1)
	go func() { answered <- s.get("/v1/dagrun/2/state?wait=60s") }()
	testenv.Eventually(t, "it waits", func() bool { return e.waits() == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if r := <-answered; r.status != 200 || r.body != `{"state":"RUNNING"}` {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// pausingEngine has lists that look at one run at a time.
type pausingEngine struct{ *fakeEngine }

func (e *pausingEngine) Summaries(ctx context.Context, q messages.ListQuery, yield func(*messages.Summary) bool) error {
	if q.Budget == nil {
		return e.fakeEngine.Summaries(ctx, q, yield)
	}
	at := messages.RunID(0)
	if q.HasAfter {
		at = q.After + 1
	}
	if at%3 == 0 { // the others are not selected
		yield(&e.runs[at].view.Summary)
	}
	if int(at) == len(e.runs)-1 {
		return nil
	}
	return &messages.ListPaused{After: at}
}

// TestPagesEndWhenTheirBudgetIsUsed: a page whose budget is used up has fewer entries, or none,
// and the address of the next one.
func TestPagesEndWhenTheirBudgetIsUsed(t *testing.T) {
	e := &fakeEngine{}
	for range 8 {
		e.add(t, contractSpec, dag.RunQueued, dag.TaskQueued)
	}
	s := serve(t, &pausingEngine{e})
	if list, pages := walk(t, s, "/v1/dagruns?limit=5"); list != "0 3 6" || pages != 8 {
		t.Errorf("%s on %d pages", list, pages)
	}
}

// TestPagesOfLongEntriesAreBounded: a page is in memory as a whole, so it ends early where its entries
// are long, and the next page goes on.
func TestPagesOfLongEntriesAreBounded(t *testing.T) {
	e := &fakeEngine{}
	long := strings.Repeat("x", maxPageBytes/4)
	for range 6 {
		e.add(t, contractSpec, dag.RunQueued, dag.TaskQueued).view.Tag = long
	}
	s := serve(t, e)
	if list, pages := walk(t, s, "/v1/dagruns?limit=100"); list != "0 1 2 3 4 5" || pages != 2 {
		t.Errorf("%s on %d pages", list, pages)
	}
	e.runs = e.runs[:4]
	if list, pages := walk(t, s, "/v1/dagruns?limit=100"); list != "0 1 2 3" || pages != 1 {
		t.Errorf("a page that is just full: %s on %d pages", list, pages)
	}
}
