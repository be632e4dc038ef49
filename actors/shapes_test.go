package actors

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/dagtest"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

var sizes = flag.String("sizes", "", "big: TestShapes has runs of 1,000,000 tasks")

// TestShapes runs graphs of known forms on the engine and the store that serve, and
// holds what is kept of their attempts against the order that follows from the names
// of the tasks alone; at the end, and as it is read back by a node that comes later.
func TestShapes(t *testing.T) {
	n := 1_000
	if *sizes == "big" {
		n = 1_000_000
	}
	for i, shape := range dagtest.Shapes(n) {
		if testing.Short() && i%4 != 0 {
			continue
		}
		t.Run(fmt.Sprintf("%s, %d", shape.Name, n), func(t *testing.T) {
			store, err := persistence.OpenStore(persistence.Config{Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { // after the node's
				if err := store.Close(); err != nil {
					t.Error(err)
				}
			})
			r := newRig(t)
			r.stop()
			r.wrap = func(persistence.Store) persistence.Store { return store }
			r.start()
			begin := time.Now()
			id := r.submit(string(dagtest.SpecJSON(shape.Spec, true)))
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			s, err := r.node.Await(ctx, id, func(s *messages.Summary) bool { return s.State.Final() })
			if err != nil || s.State != dag.RunCompleted || s.Counts[dag.TaskCompleted] != s.Tasks {
				t.Fatalf("%+v: %v", s, err)
			}
			t.Logf("%d tasks in %v", s.Tasks, time.Since(begin))
			inOrder(t, r, id, shape.Spec)
			r.stop()
			r.start()
			inOrder(t, r, id, shape.Spec)
		})
	}
}

// inOrder checks that each task of a COMPLETED run had one attempt, which began after
// the ends of those of all its parents.
func inOrder(t *testing.T, r *rig, id messages.RunID, spec *dag.Spec) {
	t.Helper()
	order, err := dagtest.NewOrder(spec)
	if err != nil {
		t.Fatal(err)
	}
	names := slices.Collect(order.TaskNames)
	view, err := r.node.View(t.Context(), id, 0, uint32(len(names))+1)
	if err != nil {
		t.Fatal(err)
	}
	if view.State != dag.RunCompleted || int(view.Tasks) != len(names) || len(view.States) != len(names) {
		t.Fatalf("%s with %d tasks and %d states, want %d", view.State, view.Tasks, len(view.States), len(names))
	}
	began := make([]int64, 0, len(names))
	err = r.node.Attempts(t.Context(), id, 0, view.Tasks, func(a *messages.AttemptRecord) bool {
		task := len(began)
		if int(a.Task) != task || a.Attempt != 1 || a.Result != messages.AttemptSucceeded || view.States[task] != dag.TaskCompleted {
			t.Errorf("record %d is %+v", task, a)
			return false
		}
		began = append(began, a.Start)
		if err := order.MarkCompleted(names[task], a.Stop); err != nil {
			t.Error(err)
			return false
		}
		return true
	})
	if err != nil || t.Failed() {
		t.Fatal(err)
	}
	for task, at := range began {
		since, ready, err := order.ReadySince(names[task])
		if err != nil || !ready || at < since {
			t.Fatalf("%s began at %d; all its parents have ended: %v, the last one at %d (%v)", names[task], at, ready, since, err)
		}
	}
	if len(began) != len(names) {
		t.Fatalf("attempts of %d tasks of %d", len(began), len(names))
	}
}
