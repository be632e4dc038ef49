package actors

import (
	"context"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// times of a run's first template.
func (r *rig) times(id messages.RunID) dag.Times {
	r.t.Helper()
	v, err := r.node.View(context.Background(), id, 0, 1<<30)
	if err != nil {
		r.t.Fatal(err)
	}
	return v.Times[0]
}

// TestTimesOfTemplates: they are those of the attempts' records, in live and in
// finished runs, over retries, over snapshots that cut the journal, and over crashes.
func TestTimesOfTemplates(t *testing.T) {
	r := newRig(t, func(c *Config) { c.snapshotEvery = -1 })
	id := r.submit(`{"tasks":{"a":{"job":{"command":["a"]},"maxRetries":2}}}`)
	k := r.order(1)
	if got := r.times(id); got != (dag.Times{}) {
		t.Errorf("nothing has started: %v", got)
	}
	r.fake.Begin(k)
	r.awaitTasks(id, dag.TaskRunning, 1)
	first := r.times(id).First
	if first == 0 || r.times(id).Last != 0 {
		t.Errorf("one has started: %v", r.times(id))
	}
	r.fake.End(k, messages.AttemptFailed, 1)
	r.order(2)
	last := r.attempts(id, "a")[0].Stop
	if got := r.times(id); got != (dag.Times{First: first, Last: last}) {
		t.Errorf("one has ended: %v, want %d to %d", got, first, last)
	}
	r.crash()
	if got := r.times(id); got.First != first || got.Last < last {
		t.Errorf("after a crash: %v, was %d to %d", got, first, last)
	}
	r.fake.End(r.order(3), messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
	recs := r.attempts(id, "a")
	want := dag.Times{First: recs[0].Start, Last: recs[len(recs)-1].Stop}
	if got := r.times(id); got != want || got.First != first {
		t.Errorf("at the end: %v, want %v", got, want)
	}
}
