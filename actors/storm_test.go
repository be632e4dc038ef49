package actors

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
)

// TestStormWithBatchedReports is TestStorm with reports that come together, and with attempts that outlive
// their run's actor. (Those that outlive a crash would be known to the node before it, which is
// not dead in a test.)
func TestStormWithBatchedReports(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := newRig(t, snapshotsOf(seed))
			r.fake.GatherReports()
			storm(t, seed, 3, r)
		})
		t.Run(fmt.Sprint(seed, " durable"), func(t *testing.T) {
			r, _ := durable(t, snapshotsOf(seed))
			r.fake.GatherReports()
			storm(t, seed, 1, r)
		})
	}
}

var stormSpecs = []string{
	chain, fanNoop, single, wholeMachine,
	`{"parameters":{"N":["1","2","3","4","5","6"]},"tasks":{
		"a":{"job":{"command":["{{N}}"]},"maxRetries":2},
		"b":{"job":{"command":["{{N}}"],"executor":"noop"},"parents":[{"task":"a","match":["N"]}]},
		"c":{"job":{"command":["c"]},"parents":["b"],"maxRetries":1,"retryIntervalSeconds":3600}}}`,
	`{"tasks":{"gen":{"job":{"command":["g"]},"isGenerator":true,"maxRetries":1,"children":["z"]},
		"gen2":{"job":{"command":["g"]},"isGenerator":true},"z":{"job":{"command":["z"],"cores":2}}}}`,
	`{"parameters":{"N":["1","2","3","4","5","6"],"M":["1","2","3","4","5","6"]},"tasks":{
		"a":{"job":{"command":["{{N}}","{{M}}"],"cores":0.1},"maxRetries":2},
		"b":{"job":{"command":["{{N}}","{{M}}"],"cores":0.1},"parents":[{"task":"a","match":["N","M"]}]}}}`,
}

// Users, tasks and crashes do what they like. In the end everything has come to
// rest: no slot is held, nothing is live, no caller waits, and no attempt of a task
// came after one that succeeded.
func TestStorm(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { storm(t, seed, 3, newRig(t, snapshotsOf(seed))) })
	}
}

// snapshotsOf has the runs of every other storm take snapshots.
func snapshotsOf(seed uint64) func(*Config) {
	return func(c *Config) { c.snapshotEvery = int(seed%2) * 200 }
}

func storm(t *testing.T, seed uint64, lives int, r *rig) {
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(seed, 7))
	dice := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rnd.IntN(n)
	}
	r.fake.SetScript(func(o executor.Order) executortest.Step {
		if o.Capture {
			return executortest.Step{Out: fmt.Sprintf(`{"x%d":{"job":{"command":["x"]}},"y%d":{"job":{"command":["y"]}}}`, o.Key.Task, dice(3))}
		}
		switch dice(10) {
		case 0, 1:
			return executortest.Step{End: messages.AttemptFailed}
		case 2:
			return executortest.Step{Begin: true}
		case 3:
			return executortest.Step{Hold: true}
		case 4:
			return executortest.Step{End: messages.AttemptNotStarted}
		case 5:
			return executortest.Step{End: messages.AttemptLost}
		case 6:
			if dice(4) == 0 {
				return executortest.Step{Panic: "boom"}
			}
		}
		return executortest.Step{End: messages.AttemptSucceeded}
	})
	for life := range lives {
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for range 60 {
					stormStep(r, dice)
				}
			})
		}
		all.Wait()
		if life < lives-1 {
			r.crash()
		}
	}
	stormEnds(r)
}

// stormStep is one act of a user, or the end of something that runs.
func stormStep(r *rig, dice func(int) int) {
	next, err := r.store.NextRun()
	if err != nil {
		r.t.Error(err)
		return
	}
	id := messages.RunID(dice(int(next) + 1))
	task := []string{"a", "a_0", "b", "gen", "first", "z", "c"}[dice(7)]
	switch act := dice(12); act {
	case 0, 1, 2:
		_, err = r.node.Submit(context.Background(), r.plan(stormSpecs[dice(len(stormSpecs))]))
	case 3:
		err = r.node.Kill(context.Background(), id)
	case 4:
		err = r.node.KillTask(context.Background(), id, task)
	case 5:
		err = r.node.SetState(context.Background(), id, dag.RunPaused)
	case 6:
		err = r.node.SetState(context.Background(), id, dag.RunRunning)
	case 7:
		err = r.node.SetState(context.Background(), id, dag.RunQueued)
	case 8:
		_, err = r.node.View(context.Background(), id, 0, 100)
	case 9:
		_, err = r.node.Task(context.Background(), id, task)
	case 10:
		if dice(8) == 0 {
			r.node.env.root.Send(r.node.shard(id), &bombFor{id})
		}
	default:
		if live := r.fake.Live(); len(live) > 0 {
			endIfLive(r.fake, live[dice(len(live))])
		}
	}
	if c := code(err); err != nil && c != messages.Conflict && c != messages.NotFound && c != messages.Unavailable && c != messages.Internal {
		r.t.Errorf("run %d: %v", id, err)
	}
}

// endIfLive ends an attempt, unless somebody else has just done so.
func endIfLive(f *executortest.Fake, k messages.AttemptKey) {
	defer func() { _ = recover() }()
	f.End(k, messages.AttemptSucceeded, 0)
}

func stormEnds(r *rig) {
	t := r.t
	r.fake.SetScript(succeed)
	next, err := r.store.NextRun()
	if err != nil {
		t.Fatal(err)
	}
	for id := range next {
		for {
			err := r.node.Kill(context.Background(), id)
			if err == nil {
				break
			}
			if code(err) != messages.Unavailable { // it had to be loaded again
				t.Fatalf("run %d: %v", id, err)
			}
		}
	}
	deadline := time.Now().Add(patience)
	for ; r.node.env.index.Len() > 0 && time.Now().Before(deadline); runtime.Gosched() {
	}
	for s := range r.node.env.index.SummariesFrom(0) {
		v, err := r.node.View(context.Background(), s.ID, 0, 100)
		t.Errorf("run %d has not ended: %+v %v; live %v", s.ID, v, err, r.fake.Live())
	}
	idle := messages.NewReply[struct{}]()
	r.node.env.root.Send(r.node.env.dispatcher, &halt{idle})
	select {
	case <-idle:
	case <-time.After(patience):
		t.Error("the dispatcher holds slots that no run has")
	}
	for i := range r.node.env.attempts.parts {
		p := &r.node.env.attempts.parts[i]
		for len := 1; len > 0 && time.Now().Before(deadline); runtime.Gosched() { // the last actors may be stopping
			p.mu.Lock()
			len = sizeOf(p.waiting)
			p.mu.Unlock()
		}
		if n := sizeOf(p.waiting); n > 0 {
			t.Errorf("%d attempts are still waited for", n)
		}
	}
	if err := r.node.Err(); err != nil {
		t.Error(err)
	}
	for id := range next {
		succeeded := map[uint32]bool{}
		err := r.node.Attempts(context.Background(), id, 0, 1<<20, func(a *messages.AttemptRecord) bool {
			if succeeded[a.Task] {
				v, _ := r.node.View(context.Background(), id, a.Task, 1)
				if v.States[0] == dag.TaskCompleted {
					t.Errorf("run %d: task %d: attempt %d after one that succeeded", id, a.Task, a.Attempt)
				}
			}
			succeeded[a.Task] = a.Result == messages.AttemptSucceeded && !killedOnce(r, id)
			return true
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// killedOnce tells whether a run, or a task of it, may ever have been killed: then a
// success may have come too late, and a restart runs the task again.
func killedOnce(r *rig, id messages.RunID) bool {
	v, err := r.node.View(context.Background(), id, 0, 0)
	if err != nil {
		r.t.Error(err)
		return true
	}
	for _, c := range v.Changes {
		if c.State != dag.RunQueued && c.State != dag.RunRunning && c.State != dag.RunCompleted {
			return true
		}
	}
	return false
}

func sizeOf[K comparable, V any](m map[K]V) int { return len(m) }
