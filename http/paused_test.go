package http

import (
	"context"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

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

// TestPausedPages: a page whose budget is used up has fewer entries, or none, and the address
// of the next one.
func TestPausedPages(t *testing.T) {
	e := &fakeEngine{}
	for range 8 {
		e.add(t, seedSpec, dag.RunQueued, dag.TaskQueued)
	}
	s := serve(t, &pausingEngine{e})
	if list, pages := walk(t, s, "/v1/dagruns?limit=5"); list != "0 3 6" || pages != 8 {
		t.Errorf("%s on %d pages", list, pages)
	}
}
