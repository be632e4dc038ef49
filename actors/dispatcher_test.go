package actors

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

func TestGrantToAFormerIncarnationIsIgnored(t *testing.T) {
	r := newRig(t)
	id := r.submit(single)
	r.fake.Begin(r.order(1))
	r.node.env.root.Send(r.node.shard(id), &bomb{})
	again := r.order(2)
	r.node.env.root.Send(r.runActor(id), &messages.SlotsGranted{ClassIndex: 0, N: 1})
	r.fake.End(again, messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
	r.runToCompletion(wholeMachine)
	if err := r.node.Err(); err != nil {
		t.Error(err)
	}
}

func TestGrantToAStoppedRunIsReturned(t *testing.T) {
	g := &gate{where: "(*dispatcher).grantSlots", reached: make(chan struct{}), open: make(chan struct{})}
	r := newRig(t, func(c *Config) { c.Clock = g })
	first := r.submit(wholeMachine)
	k := r.order(1)
	waits := r.submit(single)
	if _, err := r.node.View(t.Context(), waits, 0, 1); err != nil {
		t.Fatal(err)
	}
	third := r.submit(wholeMachine) // behind it: what it wants comes to the dispatcher later
	if _, err := r.node.View(t.Context(), third, 0, 1); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	r.fake.End(k, messages.AttemptSucceeded, 0)
	<-g.reached // the dispatcher is about to grant, and the run goes
	if err := r.node.Kill(t.Context(), waits); err != nil {
		t.Fatal(err)
	}
	for r.node.env.index.Summary(waits) != nil {
		if _, err := r.node.View(t.Context(), waits, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	close(g.open)
	r.awaitState(first, dag.RunCompleted)
	r.fake.End(r.order(2), messages.AttemptSucceeded, 0)
	r.awaitState(third, dag.RunCompleted)
}

// TestGrantsOfARunAreOneAllotment: slots that runs get in turn are one allotment for each of them.
func TestGrantsOfARunAreOneAllotment(t *testing.T) {
	var list []allotment
	for n := range 12 {
		list = addAllotment(list, messages.RunID(n%3), 0, 1)
		list = addAllotment(list, messages.RunID(n%3), 1, 1)
	}
	list = addAllotment(list, 9, 0, 128)
	list = addAllotment(list, 9, 0, 128)
	want := []allotment{{0, 0, 4}, {0, 1, 4}, {1, 0, 4}, {1, 1, 4}, {2, 0, 4}, {2, 1, 4}, {9, 0, 128}, {9, 0, 128}}
	if !slices.Equal(list, want) {
		t.Errorf("%v, want %v", list, want)
	}
}

// elastic is an executor whose slots change.
type elastic struct {
	*executortest.Durable
	notify chan func(cpuMillis, memoryBytes int64)
}

func (e *elastic) WatchCapacity(notify func(cpuMillis, memoryBytes int64)) (changes bool) {
	notify(0, 0)
	e.notify <- notify
	return true
}

// TestDispatcherFollowsTheSlotsOfAnExecutor: tasks are granted what the executor has, not what this machine has.
func TestDispatcherFollowsTheSlotsOfAnExecutor(t *testing.T) {
	x := &elastic{executortest.NewDurable(), make(chan func(int64, int64), 1)}
	r := newRig(t, func(c *Config) {
		c.Executors["process"] = func(sink executor.Sink) (executor.Executor, error) {
			_, err := x.Bind(sink)
			return x, err
		}
	})
	r.fake = x.Fake
	await := func(want Load) {
		t.Helper()
		testenv.Eventually(t, fmt.Sprintf("the load is %+v", want), func() bool { return r.node.Load() == want })
	}
	set := <-x.notify
	await(Load{})
	id := r.submit(`{"parameters":{"N":["1","2","3","4","5"]},"tasks":{"a":{"job":{"command":["{{N}}"],"cores":1}}}}`)
	await(Load{Queued: 5})
	set(3000, 1000<<20)
	await(Load{Queued: 2, Running: 3})
	if n := r.gauge("caravan_slots_capacity_cores"); n != 3 {
		t.Errorf("the metrics show %v cores", n)
	}
	set(4000, 1000<<20)
	await(Load{Queued: 1, Running: 4})
	for i := range 5 {
		r.fake.End(r.order(i+1), messages.AttemptSucceeded, 0)
	}
	r.awaitState(id, dag.RunCompleted)
}

// TestLoadOfAnEngine: tasks that wait for a slot and those that have one are told apart, also while the server
// is paused.
func TestLoadOfAnEngine(t *testing.T) {
	r := newRig(t)
	await := func(want Load) {
		t.Helper()
		testenv.Eventually(t, fmt.Sprintf("the load is %+v", want), func() bool { return r.node.Load() == want })
	}
	await(Load{})
	first := r.submit(wholeMachine)
	k := r.order(1)
	second := r.submit(wholeMachine)
	await(Load{Queued: 1, Running: 1})
	if err := r.node.SetPaused(t.Context(), "maintenance"); err != nil {
		t.Fatal(err)
	}
	r.fake.End(k, messages.AttemptSucceeded, 0)
	await(Load{Queued: 1})
	if err := r.node.SetPaused(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	r.awaitState(first, dag.RunCompleted)
	r.fake.End(r.order(2), messages.AttemptSucceeded, 0)
	r.awaitState(second, dag.RunCompleted)
	await(Load{})
}

// TestPausedServer: a paused server starts nothing, of any executor, and takes what comes;
// what ran goes on.
func TestPausedServer(t *testing.T) {
	var saved []string
	var fails error
	r := newRig(t, func(c *Config) {
		c.Paused = "a copy"
		c.SavePaused = func(reason string) error { saved = append(saved, reason); return fails }
	})
	noop := r.submit(`{"tasks":{"a":{"job":{"executor":"noop"}}}}`)
	run := r.submit(`{"tasks":{"a":{"job":{"command":["a"]}},"b":{"job":{"command":["b"]},"parents":["a"]}}}`)
	killed := r.submit(`{"tasks":{"a":{"job":{"command":["a"]}}}}`)
	if err := r.node.Kill(t.Context(), killed); err != nil {
		t.Fatal(err)
	}
	r.awaitState(killed, dag.RunKilled)
	if n := len(r.fake.Orders()); n != 0 || r.node.Paused(t.Context()) != "a copy" {
		t.Fatalf("%d orders, paused %q", n, r.node.Paused(t.Context()))
	}
	if err := r.node.SetPaused(t.Context(), ""); err != nil || r.node.Paused(t.Context()) != "" {
		t.Fatal(t.Context(), t.Context(), t.Context(), t.Context(), err, r.node.Paused(t.Context()))
	}
	r.awaitState(noop, dag.RunCompleted)
	first := r.order(1)
	r.fake.Begin(first)
	if err := r.node.SetPaused(t.Context(), "maintenance"); err != nil || r.node.Paused(t.Context()) != "maintenance" {
		t.Fatal(t.Context(), t.Context(), t.Context(), t.Context(), err, r.node.Paused(t.Context()))
	}
	r.fake.End(first, messages.AttemptSucceeded, 0)
	r.await(run, "a has ended", func(s *messages.Summary) bool { return s.Counts[dag.TaskCompleted] == 1 })
	r.submit(`{"tasks":{"a":{"job":{"command":["c"]}}}}`)
	if err := r.node.SetPaused(t.Context(), "maintenance"); err != nil { // the dispatcher has seen what came before
		t.Fatal(err)
	}
	if n := len(r.fake.Orders()); n != 1 {
		t.Errorf("%d orders while paused", n)
	}
	fails = errors.New("no space left")
	if err := r.node.SetPaused(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "no space left") || r.node.Paused(t.Context()) != "maintenance" {
		t.Errorf("a change that cannot be stored: %v, paused %q", err, r.node.Paused(t.Context()))
	}
	fails = nil
	r.fake.SetScript(succeed)
	if err := r.node.SetPaused(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	r.awaitState(run, dag.RunCompleted)
	if len(saved) != 5 || saved[0] != "" || saved[1] != "maintenance" {
		t.Errorf("stored %q", saved)
	}
}
