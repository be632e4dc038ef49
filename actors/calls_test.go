package actors

import (
	"context"
	"errors"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// Many at once: each is answered in its place, whatever became of the others, and
// ids go up.
func TestSubmitAll(t *testing.T) {
	r := newRig(t)
	keyed := func(key, spec string) *messages.Submission {
		s := r.plan(spec)
		s.IdempotencyKey = key
		return s
	}
	subs := []*messages.Submission{r.plan(single), keyed("k", chain), r.plan(chain), keyed("k", chain), keyed("k", single), r.plan(fanNoop)}
	got, err := r.node.SubmitAll(t.Context(), subs)
	if err != nil || len(got) != len(subs) {
		t.Fatalf("%+v, %v", got, err)
	}
	for i, res := range got {
		if i == 4 {
			if code(res.Err) != messages.KeyReused {
				t.Errorf("another body with the same key: %+v", res)
			}
			continue
		}
		s, err := r.node.Summary(t.Context(), res.Value)
		if res.Err != nil || err != nil || s.Tasks != subs[i].Plan.Tasks {
			t.Errorf("%d: %+v: %+v, %v", i, res, s, err)
		}
	}
	if got[1] != got[3] || got[0].Value >= got[2].Value || got[2].Value >= got[5].Value {
		t.Errorf("ids: %+v", got)
	}
	if next := r.submit(single); next != 4 {
		t.Errorf("the next run is %d: each id is given once", next)
	}
	r.awaitState(got[5].Value, dag.RunCompleted)
	if none, err := r.node.SubmitAll(t.Context(), nil); err != nil || len(none) != 0 {
		t.Errorf("nothing: %+v, %v", none, err)
	}
	r.crash()
	for i, res := range got {
		if _, err := r.node.Summary(t.Context(), res.Value); i != 4 && err != nil {
			t.Errorf("%d: after a crash: %v", i, err)
		}
	}
}

// When the storage fails in mid-batch, what was durable is answered so, the rest not.
func TestSubmitAllWhenStorageFails(t *testing.T) {
	r := newRig(t)
	r.store.FailAt(3, errDisk)
	got, err := r.node.SubmitAll(t.Context(), []*messages.Submission{r.plan(single), r.plan(single), r.plan(single), r.plan(single), r.plan(single)})
	if err != nil {
		t.Fatal(err)
	}
	good := 0
	for i, res := range got {
		switch {
		case res.Err == nil:
			good++
		case code(res.Err) != messages.Unavailable:
			t.Errorf("%d: %v", i, res.Err)
		}
	}
	if good > 2 {
		t.Errorf("%d are said to be durable, 2 are", good)
	}
	<-r.node.Failed()
	if _, err := r.node.SubmitAll(t.Context(), []*messages.Submission{r.plan(single)}); code(err) != messages.Unavailable {
		t.Errorf("after a failure: %v", err)
	}
}

// When nothing becomes durable, all are answered.
func TestSubmitAllIsAnswered(t *testing.T) {
	r := newRig(t)
	r.store.Hold()
	answered := make(chan []messages.Result[messages.RunID], 1)
	go func() {
		s := r.plan(single)
		s.IdempotencyKey = "k"
		got, err := r.node.SubmitAll(t.Context(), []*messages.Submission{r.plan(single), s})
		if err != nil {
			t.Error(err)
		}
		answered <- got
	}()
	r.store.WaitPending(2)
	r.store.Fail(errors.New("disk is gone"))
	for i, res := range <-answered {
		if code(res.Err) != messages.Unavailable {
			t.Errorf("%d: %+v", i, res)
		}
	}
	<-r.node.Failed()
}

// A wait lasts for deadlineBuckets intervals, and one more at most.
func TestDeadlinesExpireInOrder(t *testing.T) {
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
		t.Errorf("after %d rotations: the first wait is over: %v, the second: %v", deadlineBuckets+1, isClosed(first), isClosed(second))
	}
	if len(w.buckets) != deadlineBuckets+1 {
		t.Errorf("%d buckets are kept, want %d", len(w.buckets), deadlineBuckets+1)
	}
	last := w.expired()
	w.expireAll()
	if !isClosed(second) || !isClosed(last) || !isClosed(w.expired()) {
		t.Error("a wait goes on after expireAll")
	}
}

func TestUnansweredCallTimesOut(t *testing.T) {
	r := newRig(t)
	over := make(chan struct{})
	close(over)
	if _, err := awaitReply[int](t.Context(), r.node, over, nil); err != errTimeout {
		t.Errorf("%v, want %v", err, errTimeout)
	}
}

// A caller that leaves waits no longer, whatever it asked for. What it asked for may still
// take effect: the commit is held back here, and comes after it has left.
func TestCallEndsWithItsContext(t *testing.T) {
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
			f, err := r.node.Follow(ctx, id, messages.FromNow)
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
