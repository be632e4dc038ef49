package actors

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// alive returns the runs that have an actor, in any life of theirs.
func (r *rig) alive() map[messages.RunID]bool {
	r.t.Helper()
	alive := map[messages.RunID]bool{}
	for _, bucket := range r.node.system.ProcessRegistry.LocalPIDs.LocalPIDs {
		for _, name := range bucket.Keys() {
			var shard, run int
			if _, err := fmt.Sscanf(name, "node/shard-%d/run-%d", &shard, &run); err == nil {
				alive[messages.RunID(run)] = true
			}
		}
	}
	return alive
}

// backlog returns when the shards have heard of all that was left waiting.
func (r *rig) backlog(ids ...messages.RunID) {
	r.t.Helper()
	r.node.env.dormantAdoption.Wait()
	for _, id := range ids {
		r.drainShard(id)
	}
}

const two = `{"tasks":{"a":{"job":{"command":["a"]}},"b":{"job":{"command":["b"]}}}}`

// What waited for its first slot before a crash waits on without an actor; nothing else
// does. When its turn comes it runs as it was submitted.
func TestQueuedRunsSurviveACrash(t *testing.T) {
	r, d := durable(t)
	holder := r.submit(wholeMachine)
	held := r.order(1)
	r.fake.Begin(held)
	r.awaitTasks(holder, dag.TaskRunning, 1)
	ids := make([]messages.RunID, 6*Shards)
	for i := range ids {
		ids[i] = r.submit(fmt.Sprintf(`{"tag":"t%d","tasks":{"a":{"job":{"command":["a","%d"],"cores":2}},"b":{"job":{"executor":"noop"},"parents":["a"]}}}`, i, i))
	}
	half, paused := r.submit(two), r.submit(two)
	if err := r.node.KillTask(t.Context(), half, "a"); err != nil {
		t.Fatal(err)
	}
	if err := r.node.SetState(t.Context(), paused, dag.RunPaused); err != nil {
		t.Fatal(err)
	}
	for range 2 { // what was left once is left again
		r.crash()
		r.backlog(append(ids, half, paused)...)
		alive := r.alive()
		for _, id := range ids {
			if alive[id] {
				t.Fatalf("run %d waits and has an actor", id)
			}
			if s, err := r.node.Summary(t.Context(), id); err != nil || s.State != dag.RunQueued || s.Counts[dag.TaskQueued] != 2 {
				t.Fatalf("run %d: %+v, %v", id, s, err)
			}
		}
		for _, id := range []messages.RunID{holder, half, paused} {
			if !alive[id] {
				t.Errorf("run %d has no actor", id)
			}
		}
	}
	if got := d.ExpectedRuns(); !slices.Equal(got, []messages.RunID{holder, paused, holder, paused}) {
		t.Errorf("expected to have attempts: %v", got)
	}
	again := len(r.fake.Orders())
	r.fake.SetScript(succeed)
	r.fake.End(held, messages.AttemptSucceeded, 0)
	r.awaitState(holder, dag.RunCompleted)
	for i, id := range ids {
		if s := r.awaitState(id, dag.RunCompleted); s.Tag != fmt.Sprint("t", i) {
			t.Fatalf("run %d has the tag %q", id, s.Tag)
		}
	}
	r.awaitState(half, dag.RunKilled)
	if s := r.awaitState(paused, dag.RunPaused); s.Counts[dag.TaskQueued] != 2 {
		t.Errorf("paused: %+v", s)
	}
	starts := map[messages.RunID]int{}
	for _, o := range r.fake.Orders()[again:] {
		starts[o.Key.Run]++
		if i := slices.Index(ids, o.Key.Run); i >= 0 && (o.Command[1] != fmt.Sprint(i) || o.Key.Attempt != 1 || o.Resume) {
			t.Errorf("order of run %d: %+v", o.Key.Run, o)
		}
		if o.Key.Run == half && o.Name == "a" {
			t.Errorf("%+v was started, its task had been killed", o.Key)
		}
	}
	for _, id := range append(ids, half) {
		if starts[id] != 1 {
			t.Errorf("run %d: %d attempts", id, starts[id])
		}
	}
}

// untold is a store that tells nothing of untouched runs before its gate is open.
type untold struct {
	persistence.Store
	gate chan struct{}
}

func (s *untold) DefinitionIfPristine(id messages.RunID) ([]byte, error) {
	<-s.gate
	return s.Store.DefinitionIfPristine(id)
}

// What users ask of a run that was left waiting is answered and done, before it is known
// what the run wants and after.
func TestRequestsForQueuedRunsAfterARestart(t *testing.T) {
	for _, known := range []bool{false, true} {
		t.Run(fmt.Sprint("demand known: ", known), func(t *testing.T) {
			r, _ := durable(t)
			r.submit(wholeMachine)
			held := r.order(1)
			q, left := submitQueuedRuns(r), r.submit(two)
			gate := make(chan struct{})
			r.wrap = func(s persistence.Store) persistence.Store { return &untold{s, gate} }
			r.crash()
			if known {
				close(gate)
				r.backlog(q.viewed, q.killed, q.half, q.paused, left)
			}
			q.request(r)
			if !known {
				close(gate)
				r.backlog(q.viewed, q.killed, q.half, q.paused, left)
			}
			if r.alive()[left] {
				t.Error("it has an actor without a request for it")
			}
			q.expect(r, held)
			r.awaitState(left, dag.RunCompleted)
		})
	}
}

// unreadable is a store that has lost the definition of a run.
type unreadable struct {
	persistence.Store
	run messages.RunID
}

func (s *unreadable) DefinitionIfPristine(id messages.RunID) ([]byte, error) {
	if id == s.run {
		return []byte("{"), nil
	}
	return s.Store.DefinitionIfPristine(id)
}

func (s *unreadable) Load(id messages.RunID) (*persistence.Stored, error) {
	if id == s.run {
		return nil, errDisk
	}
	return s.Store.Load(id)
}

// A run that cannot be read says so, and those behind it go on.
func TestUnreadableQueuedRun(t *testing.T) {
	r, _ := durable(t)
	r.submit(wholeMachine)
	held := r.order(1)
	lost, next := r.submit(two), r.submit(two)
	r.wrap = func(s persistence.Store) persistence.Store { return &unreadable{s, lost} }
	r.crash()
	r.backlog(lost)
	if _, err := r.node.View(t.Context(), lost, 0, 1); err == nil || !strings.Contains(err.Error(), errDisk.Error()) {
		t.Errorf("view: %v", err)
	}
	r.fake.SetScript(succeed)
	r.fake.End(held, messages.AttemptSucceeded, 0)
	r.awaitState(next, dag.RunCompleted)
}
