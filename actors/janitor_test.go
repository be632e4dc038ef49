package actors

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
)

// TestRetentionReadsDueRunsOnly: a sweep reads no summary of a run that stays, neither for their
// number nor for their age.
func TestRetentionReadsDueRunsOnly(t *testing.T) { inEachNumbering(t, testRetentionReadsDueRunsOnly) }

func testRetentionReadsDueRunsOnly(t *testing.T, change func(*Config)) {
	r, count := newCountedRig(t, change)
	const runs = 20
	for range runs {
		r.passivated(r.submit(`{"tasks":{"a":{"job":{"executor":"noop"}}}}`))
	}
	j := &janitor{n: r.node, keep: runs - 3, age: time.Hour, stop: make(chan struct{})}
	due, err := j.dueRuns()
	if got := count.summaries.Load(); err != nil || fmt.Sprint(r.numbers(due)) != "[0 1 2]" || got != 3 {
		t.Errorf("due are %v by %d summaries, %v", due, got, err)
	}
	count.summaries.Store(0)
	j.keep, j.age = 0, 1
	if due, err = j.dueRuns(); err != nil || len(due) != runs {
		t.Errorf("due are %v, %v", due, err)
	}
}

// A request for a run that is being deleted is answered after the deletion; a run that
// has an actor again is not held.
func TestRequestsDuringADeletion(t *testing.T) { inEachNumbering(t, testRequestsDuringADeletion) }

func testRequestsDuringADeletion(t *testing.T, change func(*Config)) {
	for name, remove := range map[string]bool{"deleted": true, "not deleted": false} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, change)
			r.fake.SetScript(succeed)
			done := r.submit(single)
			r.awaitState(done, dag.RunCompleted)
			r.passivated(done)
			for range Shards - 1 {
				r.awaitState(r.submit(single), dag.RunCompleted)
			}
			r.fake.SetScript(func(executor.Order) executortest.Step { return executortest.Step{Begin: true} })
			unfinished := r.submit(single) // of the same shard
			r.awaitTasks(unfinished, dag.TaskRunning, 1)
			m := &messages.PurgeRuns{Runs: []messages.RunID{done, unfinished}, Reply: messages.NewReply[[]messages.RunID]()}
			held, err := call(t.Context(), r.node, m.Reply, func() { r.node.env.root.Send(r.node.shard(done), m) })
			if err != nil || !slices.Equal(held, []messages.RunID{done}) {
				t.Fatalf("held %v, %v", held, err)
			}
			restart := &messages.SetState{Run: done, To: dag.RunQueued, Reply: messages.NewReply[struct{}]()}
			r.node.env.root.Send(r.node.shard(done), restart)
			if _, err := r.node.View(t.Context(), unfinished, 0, 0); err != nil { // so that the shard has seen the restart
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
			r.node.env.root.Send(r.node.shard(done), &messages.RunsPurged{Runs: m.Runs}) // of which one has an actor
			_, err = call(t.Context(), r.node, restart.Reply, func() {})
			if want := map[bool]messages.ErrorCode{true: messages.NotFound, false: messages.Conflict}[remove]; code(err) != want {
				t.Errorf("restart: %v, want %v", err, want) // a run that is COMPLETED cannot be restarted
			}
		})
	}
}

// A sweep finds the runs that have finished since the last one. A janitor that is stopped deletes no more.
func TestSweepsFindLaterRuns(t *testing.T) { inEachNumbering(t, testSweepsFindLaterRuns) }

func testSweepsFindLaterRuns(t *testing.T, change func(*Config)) {
	r := newRig(t, change)
	r.fake.SetScript(succeed)
	j := &janitor{n: r.node, keep: 1, stop: make(chan struct{})}
	var last messages.RunID
	for range 3 {
		for range 5 {
			last = r.submit(single)
			r.awaitState(last, dag.RunCompleted)
			r.passivated(last)
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
	if _, err := r.node.Summary(t.Context(), r.id(r.number(last)-1)); err != nil {
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
	r.passivated(run) // so the wait is for a run that is only stored
	j := &janitor{n: r.node, keep: 0, age: 1, stop: make(chan struct{})}
	if deleted, err := j.deleteRuns([]messages.RunID{run}); deleted != 1 || err != nil {
		t.Fatalf("deleted %d, %v", deleted, err)
	}
	select {
	case err := <-answer:
		if code(err) != messages.NotFound {
			t.Errorf("%v, want NotFound", err)
		}
	case <-time.After(patience):
		t.Error("the wait goes on")
	}
}

func TestRetention(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(succeed)
	for range 5 {
		r.awaitState(r.submit(single), dag.RunCompleted)
	}
	r.fake.SetScript(nil)
	unfinished := r.submit(single)
	r.order(6)
	for id := range unfinished { // a run that has an actor stays until the next sweep
		r.passivated(id)
	}
	if err := (&janitor{n: r.node, keep: 2, stop: make(chan struct{})}).sweep(); err != nil {
		t.Fatal(err)
	}
	if left := r.left(); !slices.Equal(left, []messages.RunID{3, 4, unfinished}) {
		t.Errorf("left %v", left)
	}
	r.pass(2 * time.Hour)
	if err := (&janitor{n: r.node, age: time.Hour, stop: make(chan struct{})}).sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.node.Summary(t.Context(), 3); code(err) != messages.NotFound {
		t.Errorf("an old run: %v", err)
	}
	if s, err := r.node.Summary(t.Context(), unfinished); err != nil || s.State.Final() {
		t.Errorf("the unfinished run: %+v, %v", s, err)
	}
	if id := r.submit(single); id != unfinished+1 {
		t.Errorf("ids go on at %d", id)
	}
}

// A run is as old as the server's own clock says, whatever happens to the machine's.
func TestRetentionCountsElapsedTime(t *testing.T) {
	const month = 30 * 24 * time.Hour
	r := newRig(t)
	ids := r.finished(3)
	sweep := func(what string, want []messages.RunID) {
		t.Helper()
		j := &janitor{n: r.node, age: month, stop: make(chan struct{})}
		if err := j.sweep(); err != nil {
			t.Fatal(err)
		}
		if got := r.left(); !slices.Equal(got, want) {
			t.Errorf("%s: left %v, want %v", what, got, want)
		}
	}
	r.step(2 * month)
	sweep("the clock was set forward", ids)
	r.step(-4 * month)
	r.crash()
	sweep("it was set back while the server was off", ids)
	r.step(8 * month)
	r.crash()
	sweep("and forward", ids)
	young := r.finished(1)
	r.stop()
	r.reboot(2 * month)
	r.start()
	sweep("the machine was off", append(ids, young...))
	r.pass(trustWallClockAfter)
	r.node.env.steadyClock.compareClocks()
	sweep("and a while later", nil)
}

// However old runs are, a sweep deletes only so many for their age.
func TestRetentionDeletesAShareAtATime(t *testing.T) {
	r := newRig(t)
	ids := r.finished(sweepStep + 100)
	r.pass(1000 * time.Hour)
	j := &janitor{n: r.node, age: time.Hour, stop: make(chan struct{})}
	for _, want := range [][]messages.RunID{ids[sweepStep:], nil} {
		if err := j.sweep(); err != nil {
			t.Fatal(err)
		}
		if got := r.left(); !slices.Equal(got, want) {
			t.Fatalf("%d runs are left, want %d", len(got), len(want))
		}
	}
	for _, c := range []struct {
		age      time.Duration
		finished int
		want     int
	}{
		{30 * 24 * time.Hour, 1_000_000, 10_000},
		{time.Hour, 1_000_000, 4 * 1_000_000 / 360},
		{time.Second, 1_000_000, 1_000_000},
		{time.Hour, 1000, sweepStep},
	} {
		if got := (&janitor{age: c.age}).maxExpiries(c.finished); got != c.want {
			t.Errorf("of %d runs that are kept for %v: %d at once, want %d", c.finished, c.age, got, c.want)
		}
	}
}

// A repeated submission gets the first one's id when that run is deleted already; the
// key is free when its time is over.
func TestIdempotencyKeyOutlivesItsRun(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(succeed)
	keyed := func(key, spec string) *messages.Submission {
		sub := r.plan(spec)
		sub.IdempotencyKey = key
		return sub
	}
	one := func(sub *messages.Submission) (messages.RunID, error) { return r.node.Submit(t.Context(), sub) }
	batch := func(sub *messages.Submission) (messages.RunID, error) {
		results, err := r.node.SubmitAll(t.Context(), []*messages.Submission{sub})
		if err != nil {
			return 0, err
		}
		return results[0].Value, results[0].Err
	}
	id, err := r.node.Submit(t.Context(), keyed("night", single))
	if err != nil {
		t.Fatal(err)
	}
	r.awaitState(id, dag.RunCompleted)
	r.passivated(id)
	last := r.finished(1)[0]
	j := &janitor{n: r.node, keep: 1, keysFor: 24 * time.Hour, mostKeys: mostKeys, stop: make(chan struct{})}
	sweep := func() {
		t.Helper()
		if err := j.sweep(); err != nil {
			t.Fatal(err)
		}
	}
	sweep()
	if got := r.left(); !slices.Equal(got, []messages.RunID{last}) {
		t.Fatalf("left %v", got)
	}
	again := func(what string) {
		t.Helper()
		for name, submit := range map[string]func(*messages.Submission) (messages.RunID, error){"alone": one, "in a batch": batch} {
			if got, err := submit(keyed("night", single)); got != id || err != nil {
				t.Errorf("%s, %s: run %d, %v; want %d", what, name, got, err, id)
			}
			if _, err := submit(keyed("night", chain)); code(err) != messages.KeyReused {
				t.Errorf("%s, %s: another body: %v", what, name, err)
			}
		}
	}
	again("deleted")
	if _, err := r.node.Summary(t.Context(), id); code(err) != messages.NotFound {
		t.Errorf("the deleted run: %v", err)
	}
	r.crash()
	j.n = r.node
	r.step(1000 * time.Hour)
	r.pass(23 * time.Hour)
	sweep()
	again("after 23 hours")
	r.pass(2 * time.Hour)
	sweep()
	next, err := r.node.Submit(t.Context(), keyed("night", chain))
	if err != nil || next <= last {
		t.Errorf("after 25 hours: run %d, %v", next, err)
	}
}

// Of too many keys the oldest go before their time, and are counted.
func TestIdempotencyKeysAreBounded(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(succeed)
	j := &janitor{n: r.node, keep: 1, keysFor: time.Hour, mostKeys: 2, stop: make(chan struct{})}
	sub := func(key string) *messages.Submission {
		s := r.plan(single)
		s.IdempotencyKey = key
		return s
	}
	ids := make(map[string]messages.RunID)
	for _, key := range []string{"a", "b", "c", "d"} {
		id, err := r.node.Submit(t.Context(), sub(key))
		if err != nil {
			t.Fatal(err)
		}
		ids[key] = id
		r.awaitState(id, dag.RunCompleted)
		r.passivated(id)
		r.pass(time.Minute)
		if err := j.sweep(); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.node.env.store.KeptKeyCount(); n != 2 {
		t.Errorf("%d keys are kept", n)
	}
	if n := counted(t, r.node.env.metrics.keysDropped); n != 1 {
		t.Errorf("%v keys were dropped", n)
	}
	for key, known := range map[string]bool{"a": false, "b": true, "c": true, "d": true} {
		if id, err := r.node.Submit(t.Context(), sub(key)); err != nil || (id == ids[key]) != known {
			t.Errorf("key %s of run %d: run %d, %v", key, ids[key], id, err)
		}
	}
}
