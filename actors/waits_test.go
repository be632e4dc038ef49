package actors

import (
	"context"
	"errors"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// A wait lasts through as many turns as answerWithin has, and one more at most.
func TestWaitsEndInTheirTurn(t *testing.T) {
	var w callDeadlines
	w.rotate()
	first := w.expired()
	w.rotate()
	second := w.expired()
	for range deadlineBuckets - 1 {
		w.rotate()
		if isClosed(first) {
			t.Fatal("a wait ended before its time")
		}
	}
	w.rotate()
	if !isClosed(first) || isClosed(second) {
		t.Errorf("after %d turns: the first wait is over: %v, the second: %v", deadlineBuckets+1, isClosed(first), isClosed(second))
	}
	if len(w.buckets) != deadlineBuckets+1 {
		t.Errorf("%d turns are kept, want %d", len(w.buckets), deadlineBuckets+1)
	}
	last := w.expired()
	w.expireAll()
	if !isClosed(second) || !isClosed(last) || !isClosed(w.expired()) {
		t.Error("a wait goes on when nobody answers any more")
	}
}

func TestCallThatNobodyAnswers(t *testing.T) {
	r := newRig(t)
	over := make(chan struct{})
	close(over)
	if _, err := awaitReply[int](t.Context(), r.node, over, nil); err != errTimeout {
		t.Errorf("%v, want %v", err, errTimeout)
	}
}

// A caller that leaves waits no longer, whatever it asked for. What it asked for may still
// take effect: the commit is held back here, and comes after it has left.
func TestCallersThatLeaveWaitNoLonger(t *testing.T) {
	spec := `{"tasks":{"a":{"job":{"command":["a"]}}}}`
	for name, ask := range map[string]func(context.Context, *rig, messages.RunID) error{
		"submit": func(ctx context.Context, r *rig, _ messages.RunID) error {
			_, err := r.node.Submit(ctx, r.plan(spec))
			return err
		},
		"submit with a key": func(ctx context.Context, r *rig, _ messages.RunID) error {
			sub := r.plan(spec)
			sub.IdempotencyKey = "k"
			_, err := r.node.Submit(ctx, sub)
			return err
		},
		"submit many": func(ctx context.Context, r *rig, _ messages.RunID) error {
			keyed := r.plan(spec)
			keyed.IdempotencyKey = "k"
			results, err := r.node.SubmitAll(ctx, []*messages.Submission{r.plan(spec), keyed})
			if err == nil && results[0].Err != results[1].Err {
				t.Errorf("%v and %v", results[0].Err, results[1].Err)
			}
			return errors.Join(err, results[0].Err)
		},
		"pause": func(ctx context.Context, r *rig, id messages.RunID) error {
			return r.node.SetState(ctx, id, dag.RunPaused)
		},
		"kill": func(ctx context.Context, r *rig, id messages.RunID) error { return r.node.Kill(ctx, id) },
		"kill a task": func(ctx context.Context, r *rig, id messages.RunID) error {
			return r.node.KillTask(ctx, id, "a")
		},
		"await": func(ctx context.Context, r *rig, id messages.RunID) error {
			_, err := r.node.Await(ctx, id, func(*messages.Summary) bool { return false })
			return err
		},
		"follow": func(ctx context.Context, r *rig, id messages.RunID) error {
			f, err := r.node.Follow(context.Background(), id, messages.FromNow)
			if err != nil {
				return err
			}
			defer f.Close()
			for err == nil {
				_, err = f.Next(ctx)
			}
			return err
		},
		"listen": func(ctx context.Context, r *rig, _ messages.RunID) error {
			f, err := r.node.Listen(ctx, messages.ListQuery{}, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			for err == nil {
				_, err = f.Next(ctx)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			id := r.submit(spec)
			r.store.Hold()
			ctx, leave := context.WithCancelCause(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- ask(ctx, r, id) }()
			switch name {
			case "await", "follow", "listen":
			default:
				r.store.WaitPending(1)
			}
			gone := errors.New("the client has gone")
			leave(gone)
			if err := <-ended; !errors.Is(err, gone) {
				t.Errorf("the call ended with %v", err)
			}
			r.store.Release()
		})
	}
}
