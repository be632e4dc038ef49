package cluster

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// TestUnresolvedProposalsHoldTheNextEngine: no engine begins while the log may still take a proposal of the
// one before.
func TestUnresolvedProposalsHoldTheNextEngine(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	leader, _ := c.leaderOf(0)
	h := leader.running().hosts[0]
	h.unresolved.Add(1)
	testenv.RepeatWithin(t, patience, "the engine ends", func() bool {
		l := h.currentLeadership()
		if l != nil {
			l.retire()
		}
		return l == nil
	})
	before := h.takeovers.Load()
	timer := time.NewTimer(2 * reconcileEvery)
	<-timer.C
	if n := h.takeovers.Load(); n != before {
		t.Errorf("%d engines began while a proposal was not resolved", n-before)
	}
	h.unresolved.Add(-1)
	testenv.EventuallyWithin(t, patience, "the next engine begins", func() bool { return h.takeovers.Load() > before || leader.running().Status(0).Term > 2 })
	c.checkRuns([][]messages.RunID{c.mustSubmit(0, 3)})
}

// TestNoEngineBeginsInADoubtfulTerm: when the log does not know the outcome of a proposal, no other engine begins in
// its term, although the node still leads: the entry may come after the rows that the engine would read. The
// leadership is given away, and the next engine has a later term.
func TestNoEngineBeginsInADoubtfulTerm(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	accepted := [][]messages.RunID{c.mustSubmit(0, 3)}
	_, l := c.leadershipOf(0)
	_, err := l.awaitLog(func() (logPosition, error) {
		return logPosition{}, &raftlog.LostError{Unknown: true, Cause: errors.New("the answer was lost")}
	})
	if !errors.Is(err, persistence.ErrLost) {
		t.Fatalf("the outcome of the proposal: %v", err)
	}
	l.retire()
	testenv.ReceiveWithin(t, patience, "the engine ends", l.ended)
	if _, next := c.leadershipOf(0); next.epoch <= l.epoch {
		t.Errorf("an engine of term %d begins after one of term %d", next.epoch, l.epoch)
	}
	accepted[0] = append(accepted[0], c.mustSubmit(0, 3)...)
	c.checkRuns(accepted)
}

// TestLeadershipThatComesBackUnnoticed: a node that loses and wins the leadership between two looks of its
// host gets a new engine. The one of the former term has no lease. Nothing else tells it that its term is
// over: the leader in between has written no rows.
func TestLeadershipThatComesBackUnnoticed(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	accepted := [][]messages.RunID{c.mustSubmit(0, 3)}
	c.checkRuns(accepted)
	leader, _ := c.leaderOf(0)
	m := leader.running()
	h := m.hosts[0]
	h.stop() // from here on the test looks
	leads := func() bool {
		node, _, ok := h.group.Leader()
		return ok && node == h.self
	}
	win := func() {
		t.Helper()
		testenv.RepeatWithin(t, patience, "this node leads", func() bool {
			if leads() {
				return true
			}
			if next, _ := c.findLeader(0, leader); next != nil {
				_ = next.running().hosts[0].group.Transfer(t.Context(), h.self)
			}
			return leads()
		})
	}
	reconcile := func() (epoch uint64) {
		t.Helper()
		testenv.RepeatWithin(t, patience, "this node has an engine", func() (ok bool) {
			win()
			if err := h.reconcile(); err != nil {
				t.Fatal(err)
			}
			_, epoch, ok = m.Engine(0)
			return ok
		})
		return epoch
	}
	first := reconcile()
	testenv.RepeatWithin(t, patience, "another node leads", func() bool {
		if leads() {
			_ = h.group.Transfer(t.Context(), "")
		}
		next, _ := c.findLeader(0, leader)
		return next != nil
	})
	win()
	if _, epoch, ok := m.Engine(0); !ok || epoch != first {
		t.Fatalf("the engine of epoch %d has ended by itself: %d", first, epoch)
	}
	if m.HasLease(0, first) {
		t.Error("the engine of a former term has a lease")
	}
	if second := reconcile(); second <= first {
		t.Errorf("the engine of epoch %d follows that of epoch %d", second, first)
	}
	c.checkRuns(accepted)
	if err := h.endEngine(); err != nil {
		t.Error(err)
	}
}

// TestCommittedProposalsAreCounted: an acknowledged change is one of a group that was proposed after the
// call began.
func TestCommittedProposalsAreCounted(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	acknowledged := 0
	testenv.RepeatWithin(t, patience, "three runs are acknowledged", func() bool {
		leader, _ := c.leaderOf(0)
		engine, _, ok := leader.running().Engine(0)
		if !ok {
			return false
		}
		before, _ := engine.Proposals()
		if _, err := engine.Submit(t.Context(), plan(t, chain)); err != nil {
			return false // another node leads
		}
		if proposed, committed := engine.Proposals(); committed <= before || committed > proposed {
			t.Errorf("%d of %d proposals are committed, and there were %d", committed, proposed, before)
		}
		acknowledged++
		return acknowledged == 3
	})
}

// TestLeaderThatIsCutOffHasNoLease: its engine may be there for a moment longer, and its answers are not sent.
func TestLeaderThatIsCutOffHasNoLease(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	var leader *testNode
	var epoch uint64
	var h *host
	testenv.RepeatWithin(t, patience, "a leader with an engine is cut off", func() bool {
		c.network.HealAll()
		leader, epoch = c.leaderOf(0)
		h = leader.running().hosts[0]
		h.mu.Lock() // the host cannot end the engine
		leader.isolate()
		_, e, ok := leader.running().Engine(0)
		if !ok || e != epoch { // an election was faster
			h.mu.Unlock()
			return false
		}
		return true
	})
	begin := time.Now()
	for time.Since(begin) < c.settings.ReadLease || leader.running().HasLease(0, epoch) {
		if time.Since(begin) > patience {
			t.Fatal("the lease does not end")
		}
		time.Sleep(time.Millisecond)
	}
	c.leaderOf(0, leader)
	if leader.running().HasLease(0, epoch) {
		t.Error("two nodes have a lease")
	}
	if _, e, ok := leader.running().Engine(0); !ok || e != epoch {
		t.Error("the engine has ended, and the test shows nothing")
	}
	h.mu.Unlock()
	testenv.EventuallyWithin(t, patience, "the engine ends", func() bool {
		_, _, ok := leader.running().Engine(0)
		return !ok
	})
}

// TestEvictedEngine: an engine whose rows are about to be replaced ends at once, in the middle of its work and
// also while its proposals cannot be committed; the next one begins when it is allowed.
func TestEvictedEngine(t *testing.T) {
	t.Parallel()
	for _, isCutOff := range []bool{false, true} {
		c := startCluster(t, 1)
		l := c.startLoad(3)
		l.awaitAccepted(0, 5)
		leader, _ := c.leaderOf(0)
		h := leader.running().hosts[0]
		if isCutOff {
			leader.isolate()
		}
		evicted := make(chan func(), 1)
		go func() { evicted <- h.evictEngine() }()
		allow := testenv.ReceiveWithin(t, patience, "the engine is evicted", evicted)
		if l := h.currentLeadership(); l != nil {
			t.Error("an engine is there after the eviction")
		}
		store := h.machine.db.Load()
		if err := store.Err(); err != nil {
			t.Errorf("the DB has failed: %v", err)
		}
		timer := time.NewTimer(2 * reconcileEvery)
		<-timer.C
		if l := h.currentLeadership(); l != nil {
			t.Error("an engine begins before it is allowed")
		}
		allow()
		c.network.HealAll()
		l.awaitAccepted(0, 5)
		c.checkRuns(l.stop())
		c.checkReplicas()
	}
}

// stalledExecutor is an executor whose Detach waits for a disk that does not answer.
type stalledExecutor struct {
	*executor.Noop
	answers chan struct{}
}

func (*stalledExecutor) ExpectResume(...messages.RunID)     {}
func (*stalledExecutor) ResumeDone(messages.RunID)          {}
func (*stalledExecutor) Acknowledge(...messages.AttemptKey) {}

// Detach waits for the disk.
func (s *stalledExecutor) Detach() error {
	<-s.answers
	return nil
}

// startWithStalledExecutors starts a cluster of one partition whose engines end when answer was called.
func startWithStalledExecutors(t *testing.T, detachLimit time.Duration) (c *testCluster, answer func()) {
	t.Helper()
	c = newTestCluster(t, 3, 1)
	answers := make(chan struct{})
	answer = sync.OnceFunc(func() { close(answers) })
	t.Cleanup(answer)
	c.each(func(n *testNode) {
		config := n.config()
		config.detachLimit = detachLimit
		engine := config.Engine
		config.Engine = func(term EngineTerm) actors.Config {
			c := engine(term)
			c.Executors["stalled"] = func(s executor.Sink) (executor.Executor, error) {
				return &stalledExecutor{executor.NewNoop(s.Report), answers}, nil
			}
			return c
		}
		m, err := Open(t.Context(), config)
		if err != nil {
			t.Error(err)
			return
		}
		n.setRunning(m)
	})
	return c, answer
}

// TestEngineThatDoesNotEndIsReported: the partition has no other engine until then, so the process has to end.
func TestEngineThatDoesNotEndIsReported(t *testing.T) {
	t.Parallel()
	c, answer := startWithStalledExecutors(t, 100*time.Millisecond)
	accepted := [][]messages.RunID{c.mustSubmit(0, 3)}
	leader, l := c.leadershipOf(0)
	l.retire()
	testenv.EventuallyWithin(t, patience, "the engine is reported", func() bool { return len(leader.fatals()) > 0 })
	answer()
	testenv.ReceiveWithin(t, patience, "the engine ends", l.ended)
	c.checkRuns(accepted)
	for _, n := range c.nodes {
		n.close()
		for _, err := range n.forgetFatals() { // a busy machine may be slow to end others
			if !strings.Contains(err.Error(), "does not end within 200ms") {
				t.Error(err)
			}
		}
	}
}

// TestCallAfterATimeInWhichTheProcessRuns: a call that is stopped in time is not made.
func TestCallAfterATimeInWhichTheProcessRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		called := make(chan time.Duration, 2)
		stop := callAfter(time.Minute, func() { called <- time.Since(begin) })
		stop()
		stop = callAfter(time.Minute, func() { called <- time.Since(begin) })
		if after := <-called; after != time.Minute {
			t.Errorf("the call comes after %v", after)
		}
		stop()
		synctest.Wait()
		if len(called) > 0 {
			t.Error("a stopped call is made")
		}
	})
}

// TestFailedReplicaIsReportedAtOnce: a disk that is in doubt is reported before the engine ends, which may
// have to wait for that disk.
func TestFailedReplicaIsReportedAtOnce(t *testing.T) {
	t.Parallel()
	c, answer := startWithStalledExecutors(t, 0)
	leader, _ := c.leaderOf(0)
	m := leader.running()
	if _, err := m.hosts[0].machine.db.Load().Apply(1, 1, []byte("not a group")); err == nil {
		t.Error("the DB takes anything for a group")
	}
	testenv.EventuallyWithin(t, patience, "the failure is reported", func() bool { return len(leader.fatals()) > 0 })
	if _, _, ok := m.Engine(0); ok {
		t.Error("the engine is still published")
	}
	answer()
	_ = m.Close() // the DB has failed
	leader.setRunning(nil)
	leader.forgetFatals()
}

// TestDamagedReplicaLeavesTheLead: a leader whose rows are found damaged gives the leadership away, and does
// so again before it starts an engine. It leads if it has to: between two attempts.
func TestDamagedReplicaLeavesTheLead(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 1)
	found := &logCounter{text: "the rows of this replica are damaged"}
	left := &logCounter{text: "a damaged replica gives its leadership away"}
	c.log = io.MultiWriter(found, left)
	c.each((*testNode).start)
	accepted := [][]messages.RunID{c.mustSubmit(0, 3)}
	damaged, _ := c.leaderOf(0)
	m := damaged.running()
	damage := errors.New("a block is damaged")
	damaged.damage.Store(&damage)
	transferBack := func() {
		t.Helper()
		next, _ := c.leaderOf(0, damaged)
		_ = next.running().hosts[0].group.Transfer(t.Context(), m.Self()) // an error: the next attempt comes
	}
	testenv.RepeatWithin(t, patience, "it gives its leadership away before it starts an engine", func() bool {
		engines, attempts := m.hosts[0].takeovers.Load(), left.lines.Load()
		transferBack()
		c.leaderOf(0, damaged)
		return left.lines.Load() > attempts && m.hosts[0].takeovers.Load() == engines
	})
	c.checkRuns(accepted)
	c.damagedLeadPause.Store(int64(time.Hour))
	testenv.RepeatWithin(t, patience, "it leads", func() bool {
		_, epoch, ok := m.Engine(0)
		if ok && m.HasLease(0, epoch) {
			return true
		}
		if next, _ := c.findLeader(0, damaged); next != nil {
			transferBack()
		}
		return false
	})
	accepted[0] = append(accepted[0], c.mustSubmit(0, 3)...)
	c.checkRuns(accepted)
	if n := found.lines.Load(); n != 1 {
		t.Errorf("the damage is found %d times", n)
	}
}

// TestFailedHandOver: a node that cannot give its leadership away leads on until it is closed.
func TestFailedHandOver(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	const attempts = 3 // a node that has just lost its leadership has nothing to hand over
	isRefused := false
	for range attempts {
		leader, _ := c.leaderOf(0)
		if isRefused = leader.running().HandOver(ctx) != nil; isRefused {
			break
		}
	}
	if !isRefused {
		t.Error("a leadership was handed over without any time for it")
	}
	c.checkRuns([][]messages.RunID{c.mustSubmit(0, 3)})
}

// TestLeadershipComesBackDuringAStop: a node that has handed over and still answers its last requests leads
// nothing without an engine.
func TestLeadershipComesBackDuringAStop(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	stopping, _ := c.leaderOf(0)
	m := stopping.running()
	testenv.RepeatWithin(t, patience, "the node hands over", func() bool { return m.HandOver(t.Context()) == nil })
	next, _ := c.leaderOf(0, stopping)
	_ = next.running().hosts[0].group.Transfer(t.Context(), m.Self())
	c.checkRuns([][]messages.RunID{c.mustSubmit(0, 3)})
	if leader, _ := c.leaderOf(0); leader == stopping {
		t.Error("the node that stops leads")
	}
}

// TestCopiesUnderLoad: followers that were away for longer than the logs reach get copies of several
// partitions while clients go on, and catch up.
func TestCopiesUnderLoad(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 2)
	c.settings.TrailingEntries, c.settings.SnapshotInterval, c.settings.SegmentBytes = 10, 50*time.Millisecond, 4<<10
	c.each((*testNode).start)
	l := c.startLoad(4)
	for _, away := range c.nodes[:2] {
		for p := range c.partitions {
			l.awaitAccepted(p, 5)
		}
		last := []uint64{away.running().Status(0).Last, away.running().Status(1).Last}
		away.close()
		for _, n := range c.nodes { // a close writes tables, so that the logs may forget entries
			if n != away {
				for p := range c.partitions {
					l.awaitAccepted(p, 10)
				}
				n.close()
				n.start()
			}
		}
		testenv.EventuallyWithin(t, patience, "the logs are trimmed", func() bool {
			for _, n := range c.nodes {
				for p := range c.partitions {
					if n != away && n.running().Status(p).First <= last[p]+1 {
						return false
					}
				}
			}
			return true
		})
		away.start()
		testenv.EventuallyWithin(t, patience, away.name+" gets copies", func() bool {
			return away.running().Status(0).SnapshotsGotten > 0 && away.running().Status(1).SnapshotsGotten > 0
		})
		for p := range c.partitions {
			l.awaitAccepted(p, 10)
		}
	}
	c.checkRuns(l.stop())
	c.checkReplicas()
}
