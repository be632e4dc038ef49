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

// blocking is a request that keeps a shard busy until it is released.
type blocking struct{ entered, release chan struct{} }

func (b *blocking) Target() messages.RunID {
	close(b.entered)
	<-b.release
	return 1 << 40
}

func (*blocking) Refuse(error) {}

// A submission is in the store a little before its shard knows. A request for
// the run in between must find it, and must not start a second actor.
func TestRequestBeforeItsRunIsKnownToBeDurable(t *testing.T) {
	for name, end := range map[string]dag.RunState{"kill": dag.RunKilled, "kill task": dag.RunKilled, "pause": dag.RunPaused} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.fake.SetScript(func(executor.Order) executortest.Step { return executortest.Step{Begin: true} })
			r.store.Hold()
			submitted, asked := make(chan error, 1), make(chan error, 1)
			go func() { submitted <- second(r.node.Submit(t.Context(), r.plan(chain))) }()
			r.store.WaitPending(1)
			block := &blocking{make(chan struct{}), make(chan struct{})}
			r.node.env.root.Send(r.node.shard(0), block)
			<-block.entered
			m := &messages.SetState{To: end, Reply: messages.NewReply[struct{}]()}
			if name != "kill task" {
				r.node.env.root.Send(r.node.shard(0), m) // before the news
			}
			r.store.Step(1)
			r.store.Release()
			if name == "kill task" {
				go func() { asked <- r.node.KillTask(t.Context(), 0, "a") }()
			} else {
				go func() { asked <- (<-m.Reply).Err }()
			}
			close(block.release)
			if err := <-submitted; err != nil {
				t.Fatal(err)
			}
			if err := <-asked; err != nil {
				t.Fatal(err)
			}
			r.awaitState(0, end)
			if end == dag.RunPaused {
				r.fake.SetScript(succeed)
				for _, k := range r.fake.Live() {
					r.fake.End(k, messages.AttemptSucceeded, 0)
				}
				if err := r.node.SetState(t.Context(), 0, dag.RunRunning); err != nil {
					t.Fatal(err)
				}
				r.awaitState(0, dag.RunCompleted)
			}
			if n := len(r.fake.Orders()); n > 2 {
				t.Errorf("%d orders for two tasks", n)
			}
		})
	}
}

// A submission that could not be stored leaves nothing behind.
func TestRequestForASubmissionThatFails(t *testing.T) {
	r := newRig(t)
	r.store.Hold()
	submitted := make(chan error, 1)
	go func() { submitted <- second(r.node.Submit(t.Context(), r.plan(chain))) }()
	r.store.WaitPending(1)
	m := &messages.SetState{To: dag.RunPaused, Reply: messages.NewReply[struct{}]()}
	r.node.env.root.Send(r.node.shard(0), m)
	r.drainShard(0)
	r.store.Fail(errDisk)
	if err := <-submitted; code(err) != messages.Unavailable {
		t.Errorf("submit: %v", err)
	}
	if a := <-m.Reply; a.Err == nil {
		t.Error("pause of what is not there")
	}
}

// hasActor tells whether a run has the actor of its first life.
func (r *rig) hasActor(id messages.RunID) bool {
	_, ok := r.node.system.ProcessRegistry.GetLocal(fmt.Sprintf("node/shard-%d/run-%d", id%Shards, id))
	return ok
}

// A run that waits for its first slot has no actor; when its turn comes it runs as
// it was submitted, whether its plan was kept or has to be loaded again.
func TestQueuedRunsHaveNoActor(t *testing.T) {
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

// queuedRuns are four runs of two tasks each that wait for a slot, by what users ask of them.
type queuedRuns struct{ viewed, killed, half, paused messages.RunID }

func submitQueuedRuns(r *rig) queuedRuns {
	return queuedRuns{r.submit(two), r.submit(two), r.submit(two), r.submit(two)}
}

// request views one run, kills one and a task of one, and pauses one, while no slot is free.
func (q queuedRuns) request(r *rig) {
	r.t.Helper()
	v, err := r.node.View(r.t.Context(), q.viewed, 0, 10)
	if err != nil || len(v.States) != 2 || v.State != dag.RunQueued || len(v.Changes) != 1 {
		r.t.Errorf("view: %+v, %v", v, err)
	}
	if err := r.node.Kill(r.t.Context(), q.killed); err != nil {
		r.t.Error(err)
	}
	r.awaitState(q.killed, dag.RunKilled)
	if err := r.node.KillTask(r.t.Context(), q.half, "a"); err != nil {
		r.t.Error(err)
	}
	if err := r.node.SetState(r.t.Context(), q.paused, dag.RunPaused); err != nil {
		r.t.Error(err)
	}
}

// expect ends the attempt that holds the machine, and checks what becomes of the runs.
func (q queuedRuns) expect(r *rig, held messages.AttemptKey) {
	r.t.Helper()
	r.fake.SetScript(succeed)
	r.fake.End(held, messages.AttemptSucceeded, 0)
	r.awaitState(q.viewed, dag.RunCompleted)
	r.awaitState(q.half, dag.RunKilled)
	if s := r.awaitState(q.paused, dag.RunPaused); s.Counts[dag.TaskQueued] != 2 {
		r.t.Errorf("paused: %+v", s)
	}
	if err := r.node.SetState(r.t.Context(), q.paused, dag.RunRunning); err != nil {
		r.t.Error(err)
	}
	r.awaitState(q.paused, dag.RunCompleted)
	for _, o := range r.fake.Orders() {
		if o.Key.Run == q.killed || o.Key.Run == q.half && o.Name == "a" {
			r.t.Errorf("%+v was started", o.Key)
		}
	}
}

// What users ask of a run that waits is answered, and done.
func TestRequestsForQueuedRuns(t *testing.T) {
	for _, kept := range []bool{true, false} {
		t.Run(fmt.Sprint("plan kept: ", kept), func(t *testing.T) {
			r := newRig(t)
			r.submit(wholeMachine)
			held := r.order(1)
			q := submitQueuedRuns(r)
			for range 2 * maxCachedPlans * Shards {
				if !kept {
					r.submit(`{"tasks":{"a":{"job":{"executor":"noop"}}}}`)
				}
			}
			q.request(r)
			q.expect(r, held)
		})
	}
}

// A PID is never given twice: an executor with a report, or the dispatcher with a grant, may
// still have the PID of a former actor, and must not reach a later one by it.
func TestActorNamesAreUnique(t *testing.T) {
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
		r.passivated(id)
		r.runToCompletion(wholeMachine)
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
func TestNoopThatIsRevoked(t *testing.T) {
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

// TestKillOfARunWithoutAnEntry: a shard that has lost the entry of an unfinished run does not take the run
// for finished, and acknowledges a kill that it carries out.
func TestKillOfARunWithoutAnEntry(t *testing.T) {
	r := newRig(t)
	r.submit(wholeMachine)
	r.order(1)
	id := r.submit(single)                                                // dormant
	r.node.env.root.Send(r.node.shard(id), &messages.Passivated{Run: id}) // as for a finished run
	if err := r.node.Kill(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if s, err := r.node.Summary(t.Context(), id); err != nil || s.State != dag.RunKilled {
		t.Errorf("%+v, %v after an acknowledged kill", s, err)
	}
}
