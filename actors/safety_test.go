package actors

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
	"github.com/prometheus/client_golang/prometheus"
)

// Each test here fails when the one line is deleted that it names.

// soon bounds the wait for what happens at once when it happens at all.
const soon = 10 * time.Second

func within(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(soon):
		t.Fatalf("%s: not within %v", what, soon)
	}
}

// The bound on suspended tasks: so many task actors wait for their retry, not more.
func TestSuspendedTasksAreBounded(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(func(executor.Order) executortest.Step { return executortest.Step{End: messages.AttemptFailed} })
	values := make([]string, maxSuspended+300)
	for i := range values {
		values[i] = strconv.Quote(strconv.Itoa(i))
	}
	id := r.submit(`{"parameters":{"N":[` + strings.Join(values, ",") + `]},
		"tasks":{"a":{"job":{"command":["{{N}}"],"cores":0.001},"maxRetries":1,"retryIntervalSeconds":3600}}}`)
	r.awaitTasks(id, dag.TaskRetry, uint32(len(values)))
	if _, err := r.node.View(t.Context(), id, 0, 1); err != nil { // all effects are carried out
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(r.node.env.metrics.actors)
	all, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if n := all[0].Metric[0].Gauge.GetValue(); n != maxSuspended {
		t.Errorf("%v task actors wait for their retry, want %d", n, maxSuspended)
	}
	r.fake.SetScript(succeed)
	r.pass(2 * time.Hour)
	r.awaitState(id, dag.RunCompleted)
}

// The pool's overflow: what is scheduled runs when all goroutines wait for something
// and the queue is full.
func TestPoolOverflows(t *testing.T) {
	p := newPool()
	gate, last := make(chan struct{}), make(chan struct{})
	for range p.size {
		p.Schedule(func() { <-gate })
	}
	scheduled := make(chan struct{})
	go func() {
		defer close(scheduled)
		for range poolQueue + p.size {
			p.Schedule(func() { <-gate })
		}
		p.Schedule(func() { close(last) })
	}()
	within(t, "scheduling", scheduled)
	within(t, "what was scheduled last", last)
	close(gate)
	p.close()
}

// pauseHeld pauses a run with one running task while the store commits nothing.
func (r *rig) pauseHeld() (messages.RunID, *messages.SetState) {
	id := r.submit(single)
	r.fake.Begin(r.order(1))
	r.awaitTasks(id, dag.TaskRunning, 1)
	r.store.Hold()
	r.t.Cleanup(r.store.Release) // else a test that fails would wait for the store
	paused := &messages.SetState{Run: id, To: dag.RunPaused, Reply: messages.NewReply[struct{}]()}
	r.node.env.root.Send(r.node.shard(id), paused)
	r.store.WaitPending(1)
	return id, paused
}

// The wait for a former incarnation's batch: a run that begins again does so from all
// that its former actor has given to the journal.
func TestRunBeginsAgainFromTheLastBatch(t *testing.T) {
	r := newRig(t)
	id, paused := r.pauseHeld()
	r.node.env.root.Send(r.runActor(id), &loaded{epoch: r.node.env.epochs.Load()}) // the actor panics: there is no run in it
	asked := make(chan struct{})
	go func() {
		r.store.WaitPending(2)
		close(asked)
	}()
	within(t, "the next incarnation waits for the batch of the one before", asked)
	r.store.Release()
	<-paused.Reply
	// Else the run goes on from before the pause, and is never seen paused.
	ctx, cancel := context.WithTimeout(t.Context(), soon/2)
	defer cancel()
	if s, err := r.node.Await(ctx, id, func(s *messages.Summary) bool { return s.State == dag.RunPaused }); err != nil {
		t.Fatalf("the next incarnation is not paused: %+v, %v", s, err)
	}
	if err := r.node.SetState(t.Context(), id, dag.RunRunning); err != nil {
		t.Fatal(err)
	}
	if got, want := r.changes(id), []string{"QUEUED", "RUNNING", "PAUSED", "RUNNING"}; !slices.Equal(got, want) {
		t.Errorf("changes %v, want %v", got, want)
	}
}

// Publish, then answer: whoever is answered reads what it has written.
func TestWhoIsAnsweredSeesTheChange(t *testing.T) {
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
	m := &messages.Create{Run: r.node.nextID(), Submission: r.plan(single), Reply: messages.NewReply[messages.RunID]()}
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

// The epoch of a commit: that of a batch of a former incarnation carries nothing out.
func TestCommitOfAFormerIncarnationIsIgnored(t *testing.T) {
	r := newRig(t)
	id, paused := r.pauseHeld()
	r.node.env.root.Send(r.runActor(id), &messages.Committed{Epoch: r.node.env.epochs.Load() + 1})
	select {
	case a := <-paused.Reply:
		t.Fatalf("answered before its batch is durable: %v", a.Err)
	case <-time.After(50 * time.Millisecond):
	}
	r.store.Release()
	if a := <-paused.Reply; a.Err != nil {
		t.Error(a.Err)
	}
}

// An end that came when no task actor waited for it is acknowledged, so that its
// executor forgets it, when it is history and that is durable; not while its attempt is live.
func TestUnclaimedEndsAreKeptUntilTheyAreDurable(t *testing.T) {
	r, d := durable(t)
	id := r.submit(single)
	k := r.order(1)
	r.fake.Begin(k)
	r.awaitTasks(id, dag.TaskRunning, 1)
	unclaim := func() { r.node.env.root.Send(r.node.shard(id), &orphanedEnd{k, r.node.env.durables[0]}) }
	unclaim()
	if _, err := r.node.View(t.Context(), id, 0, 1); err != nil { // behind it
		t.Fatal(err)
	}
	if n := d.AckCount(k); n != 0 {
		t.Fatalf("the end of a live attempt was acknowledged %d times", n)
	}
	r.store.Hold()
	r.fake.End(k, messages.AttemptSucceeded, 0)
	r.store.WaitPending(1)
	unclaim()
	r.passed(id)
	if n := d.AckCount(k); n != 0 {
		t.Fatalf("an end that is not durable was acknowledged %d times", n)
	}
	r.store.Release()
	d.WaitAck(t, k)
	r.awaitState(id, dag.RunCompleted)
}
