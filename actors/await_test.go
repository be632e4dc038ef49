package actors

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// Await goes on through the end of a run, the stop of its actor and its restart.
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
