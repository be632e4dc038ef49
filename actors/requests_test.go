package actors

import (
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
	"github.com/prometheus/client_golang/prometheus"
)

// fresh counts the orders for attempts that were not there before a restart.
func (r *rig) fresh() (n int) {
	for _, o := range r.fake.Orders() {
		if !o.Resume {
			n++
		}
	}
	return n
}

// durably asks for what takes one commit of the run, and checks that the answer waits for it.
func (r *rig) durably(id messages.RunID, ask func() error) {
	r.t.Helper()
	r.store.Hold()
	answered := make(chan error, 1)
	go func() { answered <- ask() }()
	r.store.WaitPending(1)
	r.drainShard(id)
	select {
	case err := <-answered:
		r.t.Fatalf("answered before it was durable: %v", err)
	default:
	}
	r.store.Step(1)
	if err := <-answered; err != nil {
		r.t.Fatal(err)
	}
}

// What a user asks for is durable before it is answered: it is not answered while
// its commit is held back, and a crash right after the answer changes nothing.
func TestIntentsAreDurableBeforeTheyAreAnswered(t *testing.T) {
	for name, c := range map[string]struct {
		ask  func(*rig, messages.RunID) error
		then func(*rig, messages.RunID) // after the crash
	}{
		"kill": {
			func(r *rig, id messages.RunID) error { return r.node.Kill(t.Context(), id) },
			func(r *rig, id messages.RunID) { r.awaitState(id, dag.RunKilled) },
		},
		"kill by state": {
			func(r *rig, id messages.RunID) error { return r.node.SetState(t.Context(), id, dag.RunKilled) },
			func(r *rig, id messages.RunID) { r.awaitState(id, dag.RunKilled) },
		},
		"kill of a task": {
			func(r *rig, id messages.RunID) error { return r.node.KillTask(t.Context(), id, "a") },
			func(r *rig, id messages.RunID) {
				r.awaitState(id, dag.RunKilled)
				if a, b := r.state(id, "a"), r.state(id, "b"); a != dag.TaskKilled || b != dag.TaskQueued {
					t.Errorf("a is %v, b is %v", a, b)
				}
			},
		},
		"pause": {
			func(r *rig, id messages.RunID) error { return r.node.SetState(t.Context(), id, dag.RunPaused) },
			func(r *rig, id messages.RunID) { r.awaitState(id, dag.RunPaused) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			id := r.submit(chain)
			r.fake.Begin(r.order(1))
			r.awaitTasks(id, dag.TaskRunning, 1)
			r.fake.HoldKills(true)
			r.durably(id, func() error { return c.ask(r, id) })
			r.fake.HoldKills(false)
			r.crash()
			c.then(r, id)
			if n := r.fresh(); n != 1 {
				t.Errorf("%d attempts were ordered", n)
			}
		})
	}
}

// A restart is durable before it is answered, too.
func TestRestartIsDurableBeforeItIsAnswered(t *testing.T) {
	r := newRig(t)
	id := r.submit(single)
	r.fake.End(r.order(1), messages.AttemptFailed, 1)
	r.awaitState(id, dag.RunErrored)
	for r.node.env.index.Summary(id) != nil { // it is to be loaded again
		runtime.Gosched()
	}
	r.durably(id, func() error { return r.node.SetState(t.Context(), id, dag.RunQueued) })
	r.crash()
	k := r.order(2)
	if k.Run != id || k.Attempt != 2 {
		t.Errorf("got %+v", k)
	}
	r.fake.End(k, messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
	if got := r.changes(id); !slices.Equal(got, []string{"QUEUED", "RUNNING", "ERRORED", "QUEUED", "RUNNING", "COMPLETED"}) {
		t.Errorf("changes %v", got)
	}
}

// A kill of what has ended is answered, and changes nothing: neither while the
// run's actor is still there nor when it has to be loaded.
func TestKillOfAFinishedRunChangesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		end  messages.AttemptResult
		want dag.RunState
	}{
		"COMPLETED": {messages.AttemptSucceeded, dag.RunCompleted},
		"ERRORED":   {messages.AttemptFailed, dag.RunErrored},
		"KILLED":    {messages.AttemptKilled, dag.RunKilled},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.fake.HoldKills(true)
			id := r.submit(single)
			k := r.order(1)
			r.fake.Begin(k)
			r.awaitTasks(id, dag.TaskRunning, 1)
			if c.want == dag.RunKilled {
				if err := r.node.Kill(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				r.fake.WaitKill(t, k)
			}
			r.fake.End(k, c.end, 0)
			r.awaitState(id, c.want)
			before, err := r.node.View(t.Context(), id, 0, 1)
			if err != nil {
				t.Fatal(err)
			}
			kills := r.fake.Kills(k)
			for range 2 {
				for name, err := range map[string]error{
					"kill": r.node.Kill(t.Context(), id), "kill by state": r.node.SetState(t.Context(), id, dag.RunKilled), "kill of a task": r.node.KillTask(t.Context(), id, "a"),
				} {
					if err != nil {
						t.Errorf("%s: %v", name, err)
					}
				}
				after, err := r.node.View(t.Context(), id, 0, 1)
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(after.Summary, before.Summary) || !slices.Equal(after.Changes, before.Changes) || after.States[0] != before.States[0] {
					t.Errorf("it was\n%+v, is\n%+v", before, after)
				}
				for r.node.env.index.Summary(id) != nil { // then once more, from the store
					runtime.Gosched()
				}
			}
			if r.fresh() != 1 || r.fake.Kills(k) != kills || len(r.attempts(id, "a")) != 1 {
				t.Errorf("%d orders, %d kills where there were %d, attempts %+v", r.fresh(), r.fake.Kills(k), kills, r.attempts(id, "a"))
			}
		})
	}
}

// Whatever makes an attempt fail is retried, and uses up a retry; what was lost is
// run again and does not.
func TestEveryKindOfFailureIsRetried(t *testing.T) {
	for name, c := range map[string]struct {
		result messages.AttemptResult
		rc     int32
	}{
		"exit code":   {messages.AttemptFailed, 3},
		"signal":      {messages.AttemptSignaled, 137},
		"timeout":     {messages.AttemptTimedOut, 143},
		"not started": {messages.AttemptNotStarted, -1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.fake.SetScript(func(o executor.Order) executortest.Step {
				if o.Key.Attempt == 2 {
					return executortest.Step{End: messages.AttemptLost}
				}
				return executortest.Step{End: c.result, RC: c.rc}
			})
			id := r.submit(`{"tasks":{"a":{"job":{"command":["x"]},"maxRetries":1,"children":["b"]},"b":{"job":{"command":["y"]}}}}`)
			s := r.awaitState(id, dag.RunErrored)
			if s.Counts[dag.TaskErrored] != 1 || s.Counts[dag.TaskQueued] != 1 {
				t.Errorf("counts %v", s.Counts)
			}
			recs := r.attempts(id, "a")
			if len(recs) != 3 {
				t.Fatalf("attempts %+v", recs)
			}
			for i, want := range []messages.AttemptResult{c.result, messages.AttemptLost, c.result} {
				if recs[i].Result != want || recs[i].Attempt != uint32(i+1) || want == c.result && recs[i].RC != c.rc {
					t.Errorf("attempt %d: %+v", i+1, recs[i])
				}
			}
		})
	}
}

// The changes of a run's state: each once, with its time, from its submission on.
func TestChangesHaveTimes(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(succeed)
	sub := r.plan(chain)
	id, err := r.node.Submit(t.Context(), sub)
	if err != nil {
		t.Fatal(err)
	}
	s := r.awaitState(id, dag.RunCompleted)
	v, err := r.node.View(t.Context(), id, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Changes) != 3 || v.Changes[0].At != sub.At || s.Start != sub.At || v.Changes[2].At != s.LastUpdate {
		t.Errorf("submitted at %d, changes %v, summary %+v", sub.At, v.Changes, s)
	}
	a, b := r.attempts(id, "a")[0], r.attempts(id, "b")[0]
	times := []int64{v.Changes[0].At, v.Changes[1].At, a.Start, a.Stop, b.Start, b.Stop, v.Changes[2].At}
	if !slices.IsSorted(times) {
		t.Errorf("submitted, running, a, b, completed at %v", times)
	}
}

// The limits of the node hold for what is generated, before a crash and after it.
func TestLimitsHoldForGeneratedTasks(t *testing.T) {
	const spec = `{"parameters":{"N":["1","2","3"]},"tasks":{"gen":{"job":{"command":["g"]},"isGenerator":true}}}`
	r := newRig(t, func(c *Config) { c.Limits = dag.Limits{MaxTasks: 3} })
	sub := r.plan(spec)
	sub.Plan = sub.Plan.WithLimits(r.config.Limits) // as http plans it
	before, err := r.node.Submit(t.Context(), sub)
	if err != nil {
		t.Fatal(err)
	}
	first := r.order(1)
	after := r.submit(spec)
	r.order(2)
	const four = `{"x":{"job":{"command":["{{N}}"]}}}`
	r.fake.Print(first, four)
	r.fake.End(first, messages.AttemptSucceeded, 0)
	r.awaitState(before, dag.RunErrored)
	r.fake.SetScript(func(executor.Order) executortest.Step { return executortest.Step{Out: four} })
	r.crash()
	r.awaitState(after, dag.RunErrored)
	for _, id := range []messages.RunID{before, after} {
		recs := r.attempts(id, "gen")
		last := recs[len(recs)-1]
		if last.Result != messages.AttemptRejected || !strings.Contains(last.ExecutorLog, "the run has 4 tasks, the limit is 3") {
			t.Errorf("run %d: %+v", id, recs)
		}
	}
}

// Publish, then answer: whoever is answered reads what it has written.
func TestAnsweredCallerSeesTheChange(t *testing.T) {
	g := &gate{where: "(*run).applyEffects", reached: make(chan struct{}), open: make(chan struct{})}
	r := newRig(t, func(c *Config) { c.Clock = g })
	id := r.submit(single)
	r.fake.Begin(r.order(1))
	r.awaitTasks(id, dag.TaskRunning, 1)
	if _, err := r.node.View(t.Context(), id, 0, 1); err != nil { // all effects are carried out
		t.Fatal(err)
	}
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	paused := &messages.SetState{Run: id, To: dag.RunPaused, Reply: messages.NewReply[struct{}]()}
	r.node.env.root.Send(r.node.shard(id), paused)
	within(t, "the pause", g.reached) // the effects are about to be carried out
	if s, err := r.node.Summary(t.Context(), id); err != nil || s.State != dag.RunPaused || len(paused.Reply) > 0 {
		t.Errorf("before the answer the run is %v, %v; %d answers", s.State, err, len(paused.Reply))
	}
	close(g.open)
	if a := <-paused.Reply; a.Err != nil {
		t.Error(a.Err)
	}
}

// incCounter calls a function when it is incremented.
type incCounter struct {
	prometheus.Counter
	inc func()
}

func (c incCounter) Inc() { c.inc() }

// A submitted run is in the index before the caller gets its id.
func TestSubmittedRunIsVisibleToItsCaller(t *testing.T) {
	r := newRig(t)
	r.store.Hold()
	m := &messages.CreateRun{Run: r.node.nextID(), Submission: r.plan(single), Reply: messages.NewReply[messages.RunID]()}
	counted := make(chan struct{})
	metrics := r.node.env.metrics
	metrics.submissions = incCounter{metrics.submissions, func() { // between the index and the answer
		if r.node.env.index.Summary(m.Run) == nil {
			t.Error("the submission is counted before the run is in the index")
		}
		if len(m.Reply) > 0 {
			t.Error("the submission is counted after the caller has its id")
		}
		close(counted)
	}}
	r.node.env.root.Send(r.node.shard(m.Run), m)
	r.store.WaitPending(1)
	if r.node.env.index.Summary(m.Run) != nil {
		t.Error("the run is in the index before it is durable")
	}
	r.store.Release()
	if a := <-m.Reply; a.Err != nil || r.node.env.index.Summary(m.Run) == nil {
		t.Errorf("%v, %v", a, r.node.env.index.Summary(m.Run))
	}
	<-counted
}
