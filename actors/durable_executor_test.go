package actors

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// durable makes the rig's executor one whose attempts outlive the node.
func durable(t *testing.T, change ...func(*Config)) (*rig, *executortest.Durable) {
	d := executortest.NewDurable()
	r := newRig(t, append([]func(*Config){func(c *Config) { c.Executors["process"] = d.Bind }}, change...)...)
	r.fake = d.Fake
	return r, d
}

func TestACrashLeavesAttemptsRunning(t *testing.T) {
	r, d := durable(t)
	before := r.now()
	id := r.submit(`{"parameters":{"N":["1","2"]},"tasks":{"a":{"job":{"command":["{{N}}"]}}}}`)
	runs, ended := r.order(1), r.order(2)
	r.fake.Begin(runs)
	r.fake.Begin(ended)
	r.awaitTasks(id, dag.TaskRunning, 2)
	r.crash()
	r.fake.End(ended, messages.AttemptSucceeded, 0) // before it is asked for, or after
	orders := r.fake.WaitOrders(t, 4)[2:]
	for _, o := range orders {
		if !o.Resume || o.GrantedAt < before || o.GrantedAt > r.now() || o.Key != runs && o.Key != ended {
			t.Errorf("given again: %+v", o)
		}
	}
	if got := d.ExpectedRuns(); !slices.Equal(got, []messages.RunID{id}) {
		t.Errorf("expected: %v", got)
	}
	d.WaitResumeDone(t, id, 1)
	d.WaitAck(t, ended)
	r.awaitTasks(id, dag.TaskRunning, 1)
	r.awaitTasks(id, dag.TaskCompleted, 1)
	if n := d.AckCount(runs); n != 0 {
		t.Errorf("acknowledged %d times while it runs", n)
	}
	// Their slots are counted: there is one, not two.
	whole := r.submit(wholeMachine)
	if _, err := r.node.View(t.Context(), whole, 0, 1); err != nil {
		t.Fatal(err)
	}
	r.fake.End(runs, messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
	last := r.order(5)
	if last.Run != whole {
		t.Errorf("order %v", last)
	}
	r.fake.End(last, messages.AttemptSucceeded, 0)
	r.awaitState(whole, dag.RunCompleted)
	for _, k := range []messages.AttemptKey{runs, ended} {
		d.WaitAck(t, k)
		if r.fake.Starts(k) != 1 || r.fake.Kills(k) != 0 {
			t.Errorf("%v: %d starts, %d kills", k, r.fake.Starts(k), r.fake.Kills(k))
		}
	}
	if a := r.attempts(id, "a_0"); len(a) != 1 {
		t.Errorf("attempts: %+v", a)
	}
}

func TestDetachLeavesAttemptsRunning(t *testing.T) {
	r, d := durable(t)
	id := r.submit(single)
	k := r.order(1)
	r.fake.Begin(k)
	r.awaitTasks(id, dag.TaskRunning, 1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := r.node.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	if r.fake.Kills(k) != 0 {
		t.Error("it was killed")
	}
	r.fake.End(k, messages.AttemptSucceeded, 0)
	r.start()
	r.awaitState(id, dag.RunCompleted)
	d.WaitAck(t, k)
}

// loading is a store that holds a run back, or refuses it, when it is loaded.
type loading struct {
	persistence.Store
	run  messages.RunID
	gate chan error
}

func (s *loading) Load(id messages.RunID) (*persistence.Stored, error) {
	if id == s.run {
		if err, ok := <-s.gate; ok {
			return nil, err
		}
	}
	return s.Store.Load(id)
}

// TestNoSlotIsGrantedBeforeRunsReportHeldSlots: a run that loads slowly holds the
// whole machine; one that is back at once gets nothing until that is known.
func TestNoSlotIsGrantedBeforeRunsReportHeldSlots(t *testing.T) {
	r, _ := durable(t)
	slow := r.submit(wholeMachine)
	k := r.order(1)
	r.fake.Begin(k)
	quick := r.submit(single)
	r.awaitTasks(slow, dag.TaskRunning, 1)
	gate := make(chan error)
	r.wrap = func(s persistence.Store) persistence.Store { return &loading{s, slow, gate} }
	r.crash()
	// It has its turn, wants a slot and gets none; a no-op task needs none.
	if _, err := r.node.View(t.Context(), quick, 0, 1); err != nil {
		t.Fatal(err)
	}
	r.awaitState(r.submit(`{"tasks":{"a":{"job":{"executor":"noop"}}}}`), dag.RunCompleted)
	if n := len(r.fake.Orders()); n != 1 {
		t.Fatalf("%d orders before all runs are back", n)
	}
	if n := r.gauge("caravan_recovering_runs"); n != 1 {
		t.Errorf("%v runs are recovering, want the slow one", n)
	}
	close(gate)
	if again := r.fake.WaitOrders(t, 2)[1]; again.Key != k || !again.Resume {
		t.Errorf("%+v", again)
	}
	// The run resumes its attempt by itself: the dispatcher may hear of it a moment later.
	testenv.Eventually(t, "no run is recovering", func() bool { return r.gauge("caravan_recovering_runs") == 0 })
	r.fake.End(k, messages.AttemptSucceeded, 0)
	r.awaitState(slow, dag.RunCompleted)
	r.fake.End(r.order(3), messages.AttemptSucceeded, 0)
	r.awaitState(quick, dag.RunCompleted)
}

// TestUnloadableRunDoesNotDelayOthers: its attempts are left alone.
func TestUnloadableRunDoesNotDelayOthers(t *testing.T) {
	r, d := durable(t)
	bad := r.submit(single)
	k := r.order(1)
	good := r.submit(single)
	other := r.order(2)
	r.fake.Begin(k)
	r.fake.Begin(other)
	r.awaitTasks(bad, dag.TaskRunning, 1)
	r.awaitTasks(good, dag.TaskRunning, 1)
	gate := make(chan error, 1)
	gate <- errors.New("damaged")
	r.wrap = func(s persistence.Store) persistence.Store { return &loading{s, bad, gate} }
	r.crash()
	r.fake.WaitOrders(t, 3)
	r.fake.End(other, messages.AttemptSucceeded, 0)
	r.awaitState(good, dag.RunCompleted)
	third := r.submit(single)
	r.fake.End(r.order(4), messages.AttemptSucceeded, 0)
	r.awaitState(third, dag.RunCompleted)
	if err := r.node.Kill(t.Context(), bad); code(err) != messages.Internal {
		t.Errorf("kill of what cannot be loaded: %v", err)
	}
	if r.fake.Kills(k) != 0 || d.AckCount(k) != 0 {
		t.Errorf("%d kills, %d acknowledgements", r.fake.Kills(k), d.AckCount(k))
	}
	r.wrap = nil
	r.fake.End(k, messages.AttemptSucceeded, 0)
	r.crash()
	r.awaitState(bad, dag.RunCompleted) // another server takes its end
	d.WaitAck(t, k)
}

func TestPanicOfARunKeepsItsAttempts(t *testing.T) {
	r, d := durable(t)
	id := r.submit(`{"parameters":{"N":["1","2"]},"tasks":{"a":{"job":{"command":["{{N}}"]}}}}`)
	first, second := r.order(1), r.order(2)
	r.fake.Begin(first)
	r.awaitTasks(id, dag.TaskRunning, 1)
	r.node.env.root.Send(r.node.shard(id), &bomb{})
	if orders := r.fake.WaitOrders(t, 4)[2:]; !orders[0].Resume || !orders[1].Resume {
		t.Errorf("given again: %+v", orders)
	}
	d.WaitResumeDone(t, id, 1)
	r.awaitTasks(id, dag.TaskRunning, 1) // which is said once more
	whole := r.submit(wholeMachine)      // gets nothing before both slots are free
	r.fake.End(first, messages.AttemptSucceeded, 0)
	r.fake.End(second, messages.AttemptFailed, 1)
	r.awaitState(id, dag.RunErrored)
	d.WaitAck(t, first)
	d.WaitAck(t, second)
	for _, k := range []messages.AttemptKey{first, second} {
		if r.fake.Starts(k) != 1 || r.fake.Kills(k) != 0 {
			t.Errorf("%v: %d starts, %d kills", k, r.fake.Starts(k), r.fake.Kills(k))
		}
	}
	r.fake.End(r.order(5), messages.AttemptSucceeded, 0)
	r.awaitState(whole, dag.RunCompleted)
	if err := r.node.Err(); err != nil {
		t.Error(err)
	}
}

// panicLog has a test act while an actor panics: the log of the panic waits for the test.
type panicLog struct {
	slog.Handler
	panics  chan struct{}
	proceed chan struct{}
}

func (l *panicLog) Handle(ctx context.Context, record slog.Record) error {
	if record.Message == "actor panicked" {
		l.panics <- struct{}{}
		<-l.proceed
	}
	return l.Handler.Handle(ctx, record)
}

// TestRevocationIsOfOneIncarnation: an order comes back while the actor of its run panics. The next
// incarnation has given the attempt to the executor again when it finds the word of the former task actor in
// its mailbox. If it took that for the present order's, the task would be granted again under the same
// number, and the end of the attempt would have no recipient.
func TestRevocationIsOfOneIncarnation(t *testing.T) {
	log := &panicLog{slog.NewTextHandler(t.Output(), nil), make(chan struct{}), make(chan struct{})}
	r, d := durable(t, func(c *Config) { c.Logger = slog.New(log) })
	id := r.submit(single)
	k := r.order(1)
	if _, err := r.node.View(t.Context(), id, 0, 1); err != nil { // the run is at rest
		t.Fatal(err)
	}
	former := r.node.env.attempts.find(k).task
	r.fake.SetScript(succeed)
	r.node.env.root.Send(r.node.shard(id), &bombFor{id})
	testenv.Receive(t, "the run panics", log.panics)
	r.fake.Revoke(k)
	r.node.env.root.Send(former, &messages.KillAttempt{Attempt: k.Attempt})
	r.fake.WaitKill(t, k) // so the actor has passed the revocation on
	close(log.proceed)
	r.awaitState(id, dag.RunCompleted)
	d.WaitAck(t, k)
	if n := r.fake.Starts(k); n != 1 {
		t.Errorf("it was started %d times", n)
	}
	if a := r.attempts(id, "a"); len(a) != 1 || a[0].Result != messages.AttemptSucceeded {
		t.Errorf("attempts: %+v", a)
	}
}

// TestEveryEndIsAcknowledged: an end is acknowledged once it is durable, also one that no actor waits for.
func TestEveryEndIsAcknowledged(t *testing.T) {
	var sink atomic.Pointer[executor.Sink]
	d := executortest.NewDurable()
	r := newRig(t, func(c *Config) {
		c.Executors["process"] = func(s executor.Sink) (executor.Executor, error) {
			sink.Store(&s)
			return d.Bind(s)
		}
	})
	r.fake = d.Fake
	id := r.submit(`{"tasks":{"a":{"job":{"command":["a"]},"maxRetries":1},"b":{"job":{"command":["b"]}}}}`)
	a, b := r.order(1), r.order(2)
	if a.Task > b.Task { // they may come in any order
		a, b = b, a
	}
	r.store.Hold()
	r.fake.End(a, messages.AttemptFailed, 1)
	r.store.WaitPending(1)
	if n := d.AckCount(a); n != 0 {
		t.Errorf("%d acknowledgements before the end is durable", n)
	}
	r.store.Release()
	d.WaitAck(t, a)
	again := r.order(3)
	// Late and repeated: of a live run, of attempts that there never were, of a
	// finished run, and of an unknown one.
	say := func(k messages.AttemptKey) {
		(*sink.Load())(executor.Report{Key: k, Kind: executor.Finished, Record: messages.AttemptRecord{Result: messages.AttemptLost, RC: -1}})
	}
	never := messages.AttemptKey{Run: id, Task: 77, Attempt: 1}
	say(a)
	say(never)
	d.WaitAck(t, never)
	for d.AckCount(a) < 2 {
		if _, err := r.node.View(t.Context(), id, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	r.fake.End(again, messages.AttemptSucceeded, 0)
	r.fake.End(b, messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
	d.WaitAck(t, again)
	d.WaitAck(t, b)
	unknown := messages.AttemptKey{Run: id + 100, Task: 0, Attempt: 1}
	say(unknown)
	d.WaitAck(t, unknown)
	say(b)
	for d.AckCount(b) < 2 {
		r.drainShard(id)
	}
	if a := r.attempts(id, "a"); len(a) != 2 || a[0].Result != messages.AttemptFailed {
		t.Errorf("attempts: %+v", a)
	}
}

// TestAStorageFailureLeavesAttemptsRunning: an end that could not be written is repeated to
// the next server.
func TestAStorageFailureLeavesAttemptsRunning(t *testing.T) {
	r, d := durable(t)
	r.stop()
	r.wrap = func(s persistence.Store) persistence.Store {
		return &refusing{s, func(b *persistence.Batch) bool { return len(b.Attempts) > 0 && b.Attempts[0].RC == 77 }}
	}
	r.start()
	id := r.submit(`{"parameters":{"N":["1","2"]},"tasks":{"a":{"job":{"command":["{{N}}"]}}}}`)
	first, other := r.order(1), r.order(2)
	r.fake.Begin(other)
	r.fake.End(first, messages.AttemptFailed, 77)
	for code(r.node.SetState(t.Context(), id, dag.RunRunning)) != messages.Internal {
	}
	if r.fake.Kills(other) != 0 || d.AckCount(first) != 0 {
		t.Errorf("%d kills, %d acknowledgements", r.fake.Kills(other), d.AckCount(first))
	}
	r.fake.End(other, messages.AttemptSucceeded, 0) // no actor waits for it, and it must be acknowledged
	r.drainShard(id)
	if d.AckCount(other) != 0 {
		t.Error("acknowledged, though the run has stopped")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := r.node.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	r.wrap = nil
	r.start()
	r.awaitState(id, dag.RunErrored)
	d.WaitAck(t, first)
	d.WaitAck(t, other)
	if r.fake.Starts(first) != 1 || r.fake.Starts(other) != 1 {
		t.Errorf("%d and %d starts", r.fake.Starts(first), r.fake.Starts(other))
	}
}
