package actors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

// partitionLog is a replicated log of one replica: an entry is committed when it is applied. The test ends
// a term at any moment, also between the two.
type partitionLog struct {
	db *persistence.DB

	mu       sync.Mutex
	term, at uint64
	held     chan struct{} // the next proposal closes it, when the log has its group, and then waits for released
	released chan struct{}
}

// lead begins a term.
func (l *partitionLog) lead() persistence.Lead {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.term++
	l.at++ // the entry that begins the term
	term := l.term
	return persistence.Lead{Epoch: term, At: l.at, Propose: func(group []byte) (uint64, error) { return l.propose(term, group) }}
}

func (l *partitionLog) propose(term uint64, group []byte) (at uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if term != l.term {
		return 0, fmt.Errorf("%w: term %d has begun", persistence.ErrLost, l.term)
	}
	l.at++
	if _, err := l.db.Apply(l.at, term, group); err != nil {
		return 0, err
	}
	at = l.at
	if held := l.held; held != nil {
		l.held = nil
		l.mu.Unlock()
		close(held)
		<-l.released
		l.mu.Lock()
	}
	if term != l.term {
		return 0, fmt.Errorf("%w: term %d has begun", persistence.ErrLost, l.term)
	}
	return at, nil
}

// depose ends the present term.
func (l *partitionLog) depose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.term++
}

// hold makes the next proposal wait until release, when its rows are stored and the store does not know.
func (l *partitionLog) hold() (held <-chan struct{}, release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held, l.released = make(chan struct{}), make(chan struct{})
	released := l.released
	return l.held, func() { close(released) }
}

// leader is the engine of a partition for one term after the other, over one DB and one executor.
type leader struct {
	t        *testing.T
	log      *partitionLog
	shared   *executor.Shared
	durable  *executortest.Durable
	outputs  *outputs.Store
	registry *prometheus.Registry
	rig      // of the present term: node, and what the test asks of it
	store    *persistence.RunStore
	change   []func(*Config)
}

const testPartitions = 6

func newLeader(t *testing.T, change ...func(*Config)) *leader {
	t.Helper()
	l := &leader{t: t, durable: executortest.NewDurable(), registry: prometheus.NewRegistry(), change: change}
	db, err := persistence.OpenDB(persistence.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	l.log = &partitionLog{db: db}
	if l.outputs, err = outputs.Open(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	l.shared, err = executor.NewShared(testPartitions, func(sink executor.Sink) (executor.Partitioned, error) {
		_, err := l.durable.Bind(sink)
		return l.durable, err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.end()
		if err := errors.Join(l.shared.Detach(), db.Close(), l.outputs.Close()); err != nil {
			t.Error(err)
		}
	})
	l.begin()
	return l
}

// begin has an engine lead the next term.
func (l *leader) begin() {
	l.t.Helper()
	numbering := messages.Numbering{Partitions: testPartitions, Partition: 2}
	var err error
	lead := l.log.lead()
	if l.store, err = l.log.db.Lead(lead, persistence.Config{Numbering: numbering, Registerer: l.registry}); err != nil {
		l.t.Fatal(err)
	}
	c := Config{
		Store: l.store, Outputs: l.outputs, Numbering: numbering, Epoch: lead.Epoch, CPUMillis: 2000, MemoryBytes: 1 << 30, KillGrace: time.Second,
		Executors: map[string]func(executor.Sink) (executor.Executor, error){
			"process": l.shared.Front(numbering.Partition, lead.Epoch),
			"noop":    func(s executor.Sink) (executor.Executor, error) { return executor.NewNoop(s.Report), nil },
		},
		Registerer: l.registry, Logger: slog.New(slog.NewTextHandler(l.t.Output(), nil)),
	}
	for _, f := range l.change {
		f(&c)
	}
	wrap := l.wrap
	if wrap != nil {
		c.Store = wrap(l.store)
	}
	l.rig = rig{t: l.t, fake: l.durable.Fake, config: c, wrap: wrap, clock: testClock{system: SystemClock()}}
	if l.node, err = Start(c); err != nil {
		l.t.Fatal(err)
	}
}

// end ends engine and store of the term.
func (l *leader) end() {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := l.node.Detach(ctx); err != nil && !errors.Is(err, persistence.ErrLost) {
		l.t.Errorf("detach: %v", err)
	}
	if err := l.store.Close(); err != nil {
		l.t.Error(err)
	}
}

// TestLostLeadershipEndsTheEngineAlone: an engine of the next term goes on over the same DB, with the same
// executor and under the same metrics, many times and without a trace of the ones before.
func TestLostLeadershipEndsTheEngineAlone(t *testing.T) {
	l := newLeader(t)
	run := l.submit(chain)
	first := l.order(1)
	l.fake.Begin(first)
	l.awaitTasks(run, dag.TaskRunning, 1)
	for term := range 5 {
		old := l.node
		l.log.depose()
		if _, err := old.Submit(t.Context(), l.plan(single)); code(err) != messages.OutcomeUnknown {
			t.Errorf("a submission under a lost leadership: %v", err)
		}
		within(t, "the engine ends", old.Failed())
		if err := old.Err(); !errors.Is(err, persistence.ErrLost) {
			t.Errorf("it ends by %v", err)
		}
		for what, err := range map[string]error{
			"submit": second(old.Submit(t.Context(), l.plan(single))),
			"kill":   old.Kill(t.Context(), run),
			"ready":  old.Ready(t.Context()),
			"runs":   old.AcceptsRuns(t.Context()),
		} {
			if code(err) != messages.NotLeader {
				t.Errorf("%s after the leadership: %v", what, err)
			}
		}
		if term%2 == 0 { // a Close, too, leaves the attempts to the next leader
			if err := old.Close(t.Context()); err != nil && !errors.Is(err, persistence.ErrLost) {
				t.Errorf("close: %v", err)
			}
		}
		l.end()
		l.begin()
		s := l.awaitTasks(run, dag.TaskRunning, 1) // its attempt goes on
		if s.State != dag.RunRunning {
			t.Errorf("in term %d the run is %s", term, s.State)
		}
		if n := l.fake.Starts(first); n != 1 {
			t.Errorf("the attempt has started %d times", n)
		}
		if epoch := l.node.env.epochs.Load() >> epochShift; epoch != l.log.term {
			t.Errorf("epochs of term %d begin with %d", l.log.term, epoch)
		}
		if _, err := l.registry.Gather(); err != nil {
			t.Error(err)
		}
	}
	l.fake.End(first, messages.AttemptSucceeded, 0)
	l.awaitState(run, dag.RunRunning)
	l.fake.End(l.order(7), messages.AttemptSucceeded, 0) // it was ordered once, and again in each term
	l.awaitState(run, dag.RunCompleted)
	if err := l.log.db.Err(); err != nil {
		t.Errorf("the DB has failed: %v", err)
	}
}

// TestLostSubmissionsSayWhatIsKnown: of those that were under way only the one that the log may have is in
// doubt; and the next engine has it.
func TestLostSubmissionsSayWhatIsKnown(t *testing.T) {
	l := newLeader(t)
	held, release := l.log.hold()
	submit := func() <-chan error {
		answer := make(chan error, 1)
		go func() {
			_, err := l.node.Submit(t.Context(), l.plan(single))
			answer <- err
		}()
		return answer
	}
	proposed := submit()
	<-held
	queued := submit()
	for l.node.NextNumber() < 2 {
		time.Sleep(time.Millisecond)
	}
	l.drainShard(l.config.Numbering.ID(1)) // the second one is in the journal's hands
	l.log.depose()
	release()
	if err := <-proposed; code(err) != messages.OutcomeUnknown {
		t.Errorf("the submission that was proposed: %v", err)
	}
	if err := <-queued; code(err) != messages.NotLeader {
		t.Errorf("the submission that was not: %v", err)
	}
	l.end()
	l.begin()
	if _, err := l.node.Summary(t.Context(), l.config.Numbering.ID(0)); err != nil {
		t.Errorf("the run that the log has: %v", err)
	}
	if _, err := l.node.Summary(t.Context(), l.config.Numbering.ID(1)); code(err) != messages.NotFound {
		t.Errorf("the run that it does not have: %v", err)
	}
}

// async calls f, and returns where its error comes.
func async(f func() error) <-chan error {
	answer := make(chan error, 1)
	go func() { answer <- f() }()
	return answer
}

// TestLostChangesSayWhatIsKnown: of the changes of runs only the one that the log may have is in doubt.
func TestLostChangesSayWhatIsKnown(t *testing.T) {
	l := newLeader(t)
	first, other := l.submit(single), l.submit(single)
	l.order(2)
	l.awaitTasks(first, dag.TaskGranted, 1)
	l.awaitTasks(other, dag.TaskGranted, 1)
	held, release := l.log.hold()
	proposed := async(func() error { return l.node.SetState(t.Context(), first, dag.RunPaused) })
	<-held
	late := async(func() error { return l.node.SetState(t.Context(), first, dag.RunRunning) })
	queued := async(func() error { return l.node.Kill(t.Context(), other) })
	l.drainShard(first)
	l.drainShard(other)
	l.log.depose()
	release()
	if err := <-proposed; code(err) != messages.OutcomeUnknown {
		t.Errorf("the change that was proposed: %v", err)
	}
	for what, answer := range map[string]<-chan error{"behind it": late, "of another run": queued} {
		if err := <-answer; code(err) != messages.NotLeader {
			t.Errorf("%s: %v", what, err)
		}
	}
	l.end()
	l.begin()
	l.awaitState(first, dag.RunPaused)
	if s := l.awaitTasks(other, dag.TaskGranted, 1); s.State != dag.RunRunning {
		t.Errorf("the run whose kill was refused is %s", s.State)
	}
	if n := l.fake.Kills(messages.AttemptKey{Run: other, Attempt: 1}); n != 0 {
		t.Errorf("a kill that is not durable was carried out %d times", n)
	}
}

// TestReadersAreNeverInDoubt: a read that waited for the commit of a change may simply be repeated.
func TestReadersAreNeverInDoubt(t *testing.T) {
	if err := readError(errMayHaveChanged); code(err) != messages.NotLeader {
		t.Error(err)
	}
	if err := readError(errTimeout); err != errTimeout {
		t.Error(err)
	}
}

// TestDetachedEngineAnswersItsCallers: a change that is under way when the engine ends is answered as what
// it becomes, and with an unknown outcome if that takes too long.
func TestDetachedEngineAnswersItsCallers(t *testing.T) {
	for what, inTime := range map[string]bool{"in time": true, "too late": false} {
		t.Run(what, func(t *testing.T) {
			l := newLeader(t, func(c *Config) {
				c.changePatience = patience
				if !inTime {
					c.changePatience = 10 * time.Millisecond
				}
			})
			held, release := l.log.hold()
			submitted := async(func() error { return second(l.node.Submit(t.Context(), l.plan(single))) })
			<-held
			detached := async(func() error { return l.node.Detach(t.Context()) })
			for !l.node.closing.Load() {
				time.Sleep(time.Millisecond)
			}
			if _, err := l.node.Submit(t.Context(), l.plan(single)); err != messages.ErrNotLeader {
				t.Errorf("a submission after that: %v", err)
			}
			if inTime {
				release()
				if err := <-submitted; err != nil {
					t.Errorf("the run is stored, and the answer is %v", err)
				}
			} else {
				if err := <-submitted; code(err) != messages.OutcomeUnknown {
					t.Errorf("the answer is %v", err)
				}
				release()
			}
			if err := <-detached; err != nil {
				t.Error(err)
			}
			l.end()
			l.begin()
			if _, err := l.node.Summary(t.Context(), l.config.Numbering.ID(0)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLossDuringALoadIsNotTheRunsFault: a request that waits for a run which cannot be read any more is
// repeated elsewhere.
func TestLossDuringALoadIsNotTheRunsFault(t *testing.T) {
	l := newLeader(t)
	run := l.submit(single)
	l.order(1)
	l.end()
	slow := newSlowLoads(run)
	l.wrap = func(s persistence.Store) persistence.Store {
		slow.Store = s
		return slow
	}
	l.begin()
	<-slow.begun
	kill := async(func() error { return l.node.Kill(t.Context(), run) })
	l.drainShard(run)
	l.log.depose()
	_, _ = l.node.Submit(t.Context(), l.plan(single)) // finds out
	within(t, "the engine ends", l.node.Failed())
	close(slow.proceed)
	if err := <-kill; code(err) != messages.NotLeader {
		t.Errorf("the request: %v", err)
	}
	l.wrap = nil
	l.end()
	l.begin()
	if s := l.awaitTasks(run, dag.TaskGranted, 1); s.State != dag.RunRunning {
		t.Errorf("the run is %s", s.State)
	}
}

// TestLostLeadershipEndsWaits: a caller that waits for a run, or for events, is not kept until the engine
// is closed.
func TestLostLeadershipEndsWaits(t *testing.T) {
	l := newLeader(t)
	run := l.submit(single)
	l.order(1)
	feed, err := l.node.Follow(t.Context(), run, messages.FromNow)
	if err != nil {
		t.Fatal(err)
	}
	defer feed.Close()
	ended := make(chan error, 2)
	go func() {
		_, err := l.node.Await(t.Context(), run, func(s *messages.Summary) bool { return s.State.Final() })
		ended <- err
	}()
	go func() {
		for {
			if _, err := feed.Next(t.Context()); err != nil {
				ended <- err
				return
			}
		}
	}()
	l.log.depose()
	_ = l.node.Kill(t.Context(), run) // the next commit finds out
	for range 2 {
		select {
		case err := <-ended:
			if c := code(err); c != messages.NotLeader && c != messages.Unavailable { // the second ends the feed
				t.Errorf("a wait ends by %v", err)
			}
		case <-time.After(patience):
			t.Fatal("a wait does not end")
		}
	}
}

// TestClosedEngineLeavesNoGoroutine: engines come and go while the process stays.
func TestClosedEngineLeavesNoGoroutine(t *testing.T) {
	l := newLeader(t)
	l.end()
	before := goleak.IgnoreCurrent()
	for range 3 {
		l.begin()
		l.awaitState(l.submit(`{"tasks":{"a":{"job":{"executor":"noop"}}}}`), dag.RunCompleted)
		l.log.depose()
		_, _ = l.node.Submit(t.Context(), l.plan(single))
		within(t, "the engine ends", l.node.Failed())
		l.end()
		if err := testenv.FindLeaks(before); err != nil {
			t.Fatal(err)
		}
		families, err := l.registry.Gather()
		if err != nil || len(families) > 0 {
			t.Errorf("%d metrics are left, %v", len(families), err)
		}
	}
	l.begin()
}

// TestStartThatFailsLeavesNothing: a node that cannot register its metrics, or whose executor does not open,
// can be started again.
func TestStartThatFailsLeavesNothing(t *testing.T) {
	r := newRig(t)
	r.stop()
	before := goleak.IgnoreCurrent()
	c := r.config
	c.Store, c.Registerer = r.store, prometheus.NewRegistry()
	other := newMetrics()
	c.Registerer.MustRegister(other.keysDropped)
	if _, err := Start(c); err == nil {
		t.Error("metrics are registered twice")
	}
	c.Registerer = prometheus.NewRegistry()
	c.Executors = map[string]func(executor.Sink) (executor.Executor, error){
		"noop":    r.config.Executors["noop"],
		"process": func(executor.Sink) (executor.Executor, error) { return nil, errDisk },
	}
	if _, err := Start(c); !errors.Is(err, errDisk) {
		t.Errorf("an executor that does not open: %v", err)
	}
	if err := testenv.FindLeaks(before); err != nil {
		t.Error(err)
	}
	c.Executors = r.config.Executors
	r.config = c
	r.start()
}
