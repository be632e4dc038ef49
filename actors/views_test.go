package actors

import (
	"strconv"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// cachedTasks is a number of tasks from which a finished run is cached.
const cachedTasks = 10_000

// The view of a large finished run, which is cached, is current after a restart of the run. The
// run is unknown once it is deleted.
func TestViewsOfACachedRunAreCurrent(t *testing.T) {
	r, count := newCountedRig(t)
	var n []string
	for i := range cachedTasks {
		n = append(n, strconv.Itoa(i))
	}
	id := r.submit(`{"parameters":{"N":["` + strings.Join(n, `","`) + `"]},"tasks":{
		"many":{"job":{"command":["{{N}}"],"executor":"noop"}},
		"one":{"job":{"command":["x"]}}}}`)
	sees := func(state dag.RunState) {
		t.Helper()
		r.awaitState(id, state)
		r.retired(id)
		for i := range 2 {
			loads := count.loads.Load()
			if v, err := r.node.View(t.Context(), id, 0, 1); err != nil || v.State != state {
				t.Fatalf("%+v, %v; want %v", v, err, state)
			}
			if loaded := count.loads.Load() > loads; loaded != (i == 0) {
				t.Errorf("view %d of the run: loaded %v", i, loaded)
			}
		}
	}
	r.fake.End(r.order(1), messages.AttemptFailed, 1)
	sees(dag.RunErrored)
	r.fake.SetScript(succeed)
	if err := r.node.SetState(t.Context(), id, dag.RunQueued); err != nil {
		t.Fatal(err)
	}
	sees(dag.RunCompleted)
	j := &janitor{n: r.node, keep: 1, stop: make(chan struct{})}
	last := r.submit(single)
	r.awaitState(last, dag.RunCompleted)
	r.retired(last)
	if err := j.sweep(); err != nil {
		t.Fatal(err)
	}
	r.passed(id) // the shard has released it
	if _, err := r.node.View(t.Context(), id, 0, 1); code(err) != messages.NotFound {
		t.Errorf("a deleted run: %v", err)
	}
}

// Readers that share a cached run get copies of its state.
func TestViewsOfACachedRunAreCopies(t *testing.T) {
	r := newRig(t)
	numbers := strings.Repeat(`"x",`, cachedTasks-1) + `"x"`
	id := r.submit(`{"jobDefaults":{"executor":"noop"},"parameters":{"N":[` + numbers + `]},"tasks":{
		"many":{"job":{"command":["{{N}}"]}},"last":{"job":{},"parents":["many"]}}}`)
	r.awaitState(id, dag.RunCompleted)
	r.retired(id)
	done := make(chan error)
	for range 8 {
		go func() {
			v, err := r.node.View(t.Context(), id, 0, 1<<32-1)
			for first := uint32(0); err == nil && first <= cachedTasks; first += 1000 {
				v.States[first] = dag.TaskKilled // it is a copy
				v.Changes[0].State, v.Times[0] = dag.RunKilled, dag.Times{}
				_, err = r.node.Task(t.Context(), id, v.Plan.TaskName(first))
			}
			done <- err
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if v, err := r.node.View(t.Context(), id, 0, 1<<32-1); err != nil || v.States[0] != dag.TaskCompleted || v.Changes[0].State != dag.RunQueued || v.Times[0].First == 0 {
		t.Errorf("%v, %v", v.Changes, err)
	}
}
