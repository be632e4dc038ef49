package actors

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
)

// Who asks for a run that is being deleted is answered when that is done; a run that
// lives is not held.
func TestRequestsDuringADeletion(t *testing.T) {
	for name, remove := range map[string]bool{"deleted": true, "not deleted": false} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.fake.SetScript(succeed)
			done := r.submit(single)
			r.awaitState(done, dag.RunCompleted)
			if _, err := r.node.View(t.Context(), done, 0, 0); err != nil { // its actor is gone
				t.Fatal(err)
			}
			for range Shards - 1 {
				r.awaitState(r.submit(single), dag.RunCompleted)
			}
			r.fake.SetScript(func(executor.Order) executortest.Step { return executortest.Step{Begin: true} })
			live := r.submit(single) // of the same shard
			r.awaitTasks(live, dag.TaskRunning, 1)
			m := &messages.Purge{Runs: []messages.RunID{done, live}, Reply: messages.NewReply[[]messages.RunID]()}
			held, err := call(t.Context(), r.node, m.Reply, func() { r.node.env.root.Send(r.node.shard(done), m) })
			if err != nil || !slices.Equal(held, []messages.RunID{done}) {
				t.Fatalf("held %v, %v", held, err)
			}
			restart := &messages.SetState{Run: done, To: dag.RunQueued, Reply: messages.NewReply[struct{}]()}
			r.node.env.root.Send(r.node.shard(done), restart)
			if _, err := r.node.View(t.Context(), live, 0, 0); err != nil { // so that the shard has seen the restart
				t.Fatal(err)
			}
			if len(restart.Reply) > 0 {
				t.Fatal("a run was restarted while it was being deleted")
			}
			if remove {
				if err := r.store.Delete([]messages.RunID{done}, 0); err != nil {
					t.Fatal(err)
				}
			}
			r.node.env.root.Send(r.node.shard(done), &messages.Purged{Runs: m.Runs}) // of which one lives
			_, err = call(t.Context(), r.node, restart.Reply, func() {})
			if want := map[bool]messages.Code{true: messages.NotFound, false: messages.Conflict}[remove]; code(err) != want {
				t.Errorf("restart: %v, want %v", err, want) // a run that is COMPLETED cannot be restarted
			}
		})
	}
}

// The janitor finds what has come since, and deletes no more once it is stopped.
func TestJanitorSweepsAgain(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(succeed)
	j := &janitor{n: r.node, keep: 1, stop: make(chan struct{})}
	var last messages.RunID
	for range 3 {
		for range 5 {
			last = r.submit(single)
			r.awaitState(last, dag.RunCompleted)
			if _, err := r.node.View(t.Context(), last, 0, 0); err != nil { // its actor is gone
				t.Fatal(err)
			}
		}
		if err := j.sweep(); err != nil {
			t.Fatal(err)
		}
		var left []messages.RunID
		_ = r.node.Summaries(t.Context(), messages.ListQuery{All: true}, func(s *messages.Summary) bool { left = append(left, s.ID); return true })
		if !slices.Equal(left, []messages.RunID{last}) {
			t.Errorf("left %v, want %d", left, last)
		}
	}
	close(j.stop)
	last = r.submit(single)
	r.awaitState(last, dag.RunCompleted)
	if err := j.sweep(); err != nil {
		t.Error(err)
	}
	if _, err := r.node.Summary(t.Context(), last-1); err != nil {
		t.Errorf("a janitor that was stopped has deleted: %v", err)
	}
}

// Whoever waits for another state of a run that is deleted meanwhile learns that at once.
func TestDeletionEndsAWait(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(succeed)
	run := r.submit(single)
	r.awaitState(run, dag.RunCompleted)
	waits, answer := make(chan struct{}), make(chan error, 1)
	go func() {
		var once sync.Once
		_, err := r.node.Await(context.Background(), run, func(*messages.Summary) bool {
			once.Do(func() { close(waits) })
			return false
		})
		answer <- err
	}()
	<-waits
	for { // its actor is gone, and so the wait is for a run that is only stored
		if _, err := r.node.View(t.Context(), run, 0, 0); err != nil {
			t.Fatal(err)
		}
		if r.node.env.index.Entry(run) == nil {
			break
		}
	}
	j := &janitor{n: r.node, keep: 0, age: 1, stop: make(chan struct{})}
	if deleted, err := j.purge([]messages.RunID{run}); deleted != 1 || err != nil {
		t.Fatalf("deleted %d, %v", deleted, err)
	}
	select {
	case err := <-answer:
		if code(err) != messages.NotFound {
			t.Errorf("%v, want NotFound", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the wait goes on")
	}
}
