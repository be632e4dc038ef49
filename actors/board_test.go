package actors

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// absences is how many runs are waited for that are not on the board.
func (b *summaryIndex) absences() int {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return len(b.pending)
}

// A run is waited for through its end, its farewell and its restart.
func TestAwaitOutlivesTheActor(t *testing.T) {
	r := newRig(t)
	id := r.submit(single)
	first := r.order(1)
	r.fake.End(first, messages.AttemptFailed, 1)
	r.awaitState(id, dag.RunErrored)
	r.finishes(wholeMachine) // the same slots: run and dispatcher are done with it
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			s, err := r.node.Await(ctx, id, func(s *messages.Summary) bool { return s.State == dag.RunCompleted })
			if err != nil || s.State != dag.RunCompleted {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
	if err := r.node.SetState(t.Context(), id, dag.RunQueued); err != nil {
		t.Fatal(err)
	}
	orders := r.fake.WaitOrders(t, 3)
	r.fake.End(orders[2].Key, messages.AttemptSucceeded, 0)
	all.Wait()
	if n := r.node.env.summaries.absences(); n != 0 {
		t.Errorf("%d absent runs are waited for", n)
	}
}

func TestAwaitEnds(t *testing.T) {
	r := newRig(t)
	never := func(*messages.Summary) bool { return false }
	live := r.submit(single)
	r.order(1)
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if s, err := r.node.Await(over, live, never); !errors.Is(err, context.Canceled) || s.State.Final() {
		t.Errorf("a live run: %+v, %v", s, err)
	}
	if _, err := r.node.Await(over, live+1, never); code(err) != messages.NotFound {
		t.Errorf("an unknown run: %v", err)
	}
	r.fake.End(r.order(1), messages.AttemptSucceeded, 0)
	r.awaitState(live, dag.RunCompleted)
	r.finishes(wholeMachine)
	if s, err := r.node.Await(over, live, never); !errors.Is(err, context.Canceled) || s.State != dag.RunCompleted {
		t.Errorf("a finished run: %+v, %v", s, err)
	}
	if n := r.node.env.summaries.absences(); n != 0 {
		t.Errorf("%d absent runs are waited for", n)
	}
	waits := make(chan error)
	go func() {
		_, err := r.node.Await(context.Background(), live, never)
		waits <- err
	}()
	r.stop()
	if err := <-waits; code(err) != messages.Unavailable {
		t.Errorf("a node that closes: %v", err)
	}
	r.start() // for the rig's own stop
}

// The board is listed page by page, from any run on, while runs come and go.
func TestBoardIsListedInPages(t *testing.T) {
	b := newSummaryIndex()
	const last = 1<<64 - 1
	var want []messages.RunID
	for i := range messages.RunID(2*indexPage + 7) {
		b.insert(&messages.Summary{ID: 3 * i})
		want = append(want, 3*i)
	}
	b.insert(&messages.Summary{ID: last})
	want = append(want, last)
	for _, at := range []int{0, 1, indexPage, indexPage + 1, len(want) - 1} {
		from := messages.RunID(0)
		if at > 0 {
			from = want[at-1] + 1
		}
		var got []messages.RunID
		for s := range b.summariesFrom(from) {
			got = append(got, s.ID)
		}
		if !slices.Equal(got, want[at:]) {
			t.Errorf("from %d on: %d runs, want %d", from, len(got), len(want)-at)
		}
	}
	seen := 0
	for s := range b.summariesFrom(0) {
		if seen++; s.ID != last {
			b.remove(s.ID)
		}
		if seen > len(want)/2 {
			break
		}
	}
	if seen != len(want)/2+1 || b.len() != len(want)-seen {
		t.Errorf("%d seen, %d left", seen, b.len())
	}
}
