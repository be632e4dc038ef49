package actors

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/actors/scheduler"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
)

// hasActor tells whether a run has the actor of its first life.
func (r *rig) hasActor(id messages.RunID) bool {
	_, ok := r.node.system.ProcessRegistry.GetLocal(fmt.Sprintf("node/shard-%d/run-%d", id%Shards, id))
	return ok
}

// A run that waits for its first slot has no actor; when its turn comes it runs as
// it was submitted, whether its plan was kept or has to be loaded again.
func TestWaitingRunsHaveNoActor(t *testing.T) {
	r := newRig(t)
	holder := r.submit(wholeMachine)
	held := r.order(1)
	ids := make([]messages.RunID, 3*maxCachedPlans*Shards)
	for i := range ids {
		ids[i] = r.submit(fmt.Sprintf(`{"tag":"t%d","tasks":{"a":{"job":{"command":["a","%d"],"cores":2}},"b":{"job":{"executor":"noop"},"parents":["a"]}}}`, i, i))
	}
	for _, id := range ids {
		if r.hasActor(id) {
			t.Fatalf("run %d waits and has an actor", id)
		}
		if s, err := r.node.Summary(t.Context(), id); err != nil || s.State != dag.RunQueued || s.Counts[dag.TaskQueued] != 2 {
			t.Fatalf("run %d: %+v, %v", id, s, err)
		}
	}
	r.fake.SetScript(succeed)
	r.fake.End(held, messages.AttemptSucceeded, 0)
	r.awaitState(holder, dag.RunCompleted)
	for i, id := range ids {
		s := r.awaitState(id, dag.RunCompleted)
		if s.Tag != fmt.Sprint("t", i) {
			t.Fatalf("run %d has the tag %q", id, s.Tag)
		}
	}
	orders := r.fake.Orders()[1:]
	if len(orders) != len(ids) {
		t.Fatalf("%d orders for %d runs", len(orders), len(ids))
	}
	for _, o := range orders { // a few at a time are granted ahead: their order may differ
		if i := slices.Index(ids, o.Key.Run); i < 0 || o.Command[1] != fmt.Sprint(i) || o.Key.Attempt != 1 {
			t.Fatalf("order of run %d is %+v", o.Key.Run, o)
		}
	}
}

// What users ask of a run that waits is answered, and done.
func TestRequestsOfWaitingRuns(t *testing.T) {
	for _, kept := range []bool{true, false} {
		t.Run(fmt.Sprint("plan kept: ", kept), func(t *testing.T) {
			r := newRig(t)
			r.submit(wholeMachine)
			held := r.order(1)
			viewed, killed, half, paused := r.submit(two), r.submit(two), r.submit(two), r.submit(two)
			for range 2 * maxCachedPlans * Shards {
				if !kept {
					r.submit(`{"tasks":{"a":{"job":{"executor":"noop"}}}}`)
				}
			}
			v, err := r.node.View(t.Context(), viewed, 0, 10)
			if err != nil || len(v.States) != 2 || v.State != dag.RunQueued || len(v.Changes) != 1 {
				t.Errorf("view: %+v, %v", v, err)
			}
			if err := r.node.Kill(t.Context(), killed); err != nil {
				t.Error(err)
			}
			r.awaitState(killed, dag.RunKilled)
			if err := r.node.KillTask(t.Context(), half, "a"); err != nil {
				t.Error(err)
			}
			if err := r.node.SetState(t.Context(), paused, dag.RunPaused); err != nil {
				t.Error(err)
			}
			r.fake.SetScript(succeed)
			r.fake.End(held, messages.AttemptSucceeded, 0)
			r.awaitState(viewed, dag.RunCompleted)
			r.awaitState(half, dag.RunKilled)
			if s := r.awaitState(paused, dag.RunPaused); s.Counts[dag.TaskQueued] != 2 {
				t.Errorf("paused: %+v", s)
			}
			if err := r.node.SetState(t.Context(), paused, dag.RunRunning); err != nil {
				t.Error(err)
			}
			r.awaitState(paused, dag.RunCompleted)
			for _, o := range r.fake.Orders() {
				if o.Key.Run == killed || o.Key.Run == half && o.Name == "a" {
					t.Errorf("%+v was started", o.Key)
				}
			}
		})
	}
}

// A PID is never given twice: who still has that of a former actor (an executor with
// a report, the dispatcher with a grant) must not reach a later one by it.
func TestNoNameIsGivenTwice(t *testing.T) {
	r := newRig(t)
	var pids []string
	note := func(pid *actor.PID) { pids = append(pids, pid.Id) }
	r.fake.SetScript(func(executor.Order) executortest.Step { return executortest.Step{Begin: true} })
	id := r.submit(single)
	for n := 1; n <= 3; n++ {
		k := r.order(2*n - 1)
		r.awaitTasks(id, dag.TaskRunning, 1)
		pid := r.node.env.attempts.find(k).task
		note(pid)
		note(actor.NewPID(pid.Address, pid.Id[:strings.LastIndexByte(pid.Id, '/')]))
		r.fake.End(k, messages.AttemptFailed, 1)
		r.awaitState(id, dag.RunErrored)
		r.retired(id)
		r.finishes(wholeMachine)
		if n < 3 {
			if err := r.node.SetState(t.Context(), id, dag.RunQueued); err != nil {
				t.Fatal(err)
			}
		}
	}
	all := len(pids)
	slices.Sort(pids)
	if pids = slices.Compact(pids); len(pids) != all {
		t.Errorf("%d names for %d actors: %v", len(pids), all, pids)
	}
}

// A no-op that is granted while the node is being closed comes back unstarted. Its run
// must not wait for its end.
func TestNoopThatIsGivenBack(t *testing.T) {
	r := newRig(t)
	if err := r.node.env.executors[scheduler.NoopExecutor].Close(); err != nil {
		t.Fatal(err)
	}
	r.submit(`{"jobDefaults":{"executor":"noop"},"tasks":{"a":{"job":{}}}}`)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := r.node.Close(ctx); err != nil {
		t.Error(err)
	}
}
