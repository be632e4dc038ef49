package actors

import (
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
