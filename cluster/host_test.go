package cluster

import (
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// TestUnresolvedProposalsHoldTheNextEngine: no engine begins while the log may still take a proposal of the
// one before.
func TestUnresolvedProposalsHoldTheNextEngine(t *testing.T) {
	c := startCluster(t, 1)
	leader, _ := c.leaderOf(0)
	h := leader.running().hosts[0]
	h.unresolved.Add(1)
	before := h.takeovers.Load()
	h.currentLeadership().retire()
	testenv.EventuallyWithin(t, patience, "the engine ends", func() bool { return h.currentLeadership() == nil })
	timer := time.NewTimer(2 * reconcileEvery)
	<-timer.C
	if n := h.takeovers.Load(); n != before {
		t.Errorf("%d engines began while a proposal was not resolved", n-before)
	}
	h.unresolved.Add(-1)
	testenv.EventuallyWithin(t, patience, "the next engine begins", func() bool { return h.takeovers.Load() > before || leader.running().Status(0).Term > 2 })
	c.checkRuns([][]messages.RunID{c.mustSubmit(0, 3)})
}

// TestEvictedEngine: an engine whose rows are about to be replaced ends at once, in the middle of its work and
// also while its proposals cannot be committed; the next one begins when it is allowed.
func TestEvictedEngine(t *testing.T) {
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
		allow := testenv.Receive(t, "the engine is evicted", evicted)
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

// TestCopiesUnderLoad: followers that were away for longer than the logs reach get copies of several
// partitions while clients go on, and catch up.
func TestCopiesUnderLoad(t *testing.T) {
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
