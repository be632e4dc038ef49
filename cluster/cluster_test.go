package cluster

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// TestRunsSurviveTheirLeader: one group on three nodes loses nothing when its leader is killed, cut off, or
// closed without ceremony, again and again under load.
func TestRunsSurviveTheirLeader(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	l := c.startLoad(4)
	for _, fault := range []string{"kill", "isolate", "close", "kill"} {
		l.awaitAccepted(0, 20)
		leader, epoch := c.leaderOf(0)
		switch fault {
		case "kill":
			leader.kill()
		case "close":
			leader.close()
		case "isolate":
			leader.isolate()
		}
		_, next := c.leaderOf(0, leader)
		if next <= epoch {
			t.Errorf("after %s: epoch %d follows epoch %d", fault, next, epoch)
		}
		l.awaitAccepted(0, 20)
		if fault == "isolate" {
			testenv.EventuallyWithin(t, patience, "the engine of the node that is cut off ends", func() bool {
				_, _, ok := leader.running().Engine(0)
				return !ok
			})
			c.network.HealAll()
		} else {
			leader.start()
		}
	}
	accepted := l.stop()
	c.checkRuns(accepted)
	c.checkReplicas()
}

// TestIDsAscendOverLeaders: a run's ID is given once, whichever engine gives it, and later runs have higher
// ones.
func TestIDsAscendOverLeaders(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	var last messages.RunID
	for round := range 3 {
		for _, id := range c.mustSubmit(0, 5) {
			if id <= last && last > 0 {
				t.Fatalf("run %d comes after run %d", id, last)
			}
			last = id
		}
		if round < 2 {
			c.handOver(0)
		}
	}
}

// TestAllNodesAreKilled: runs that were acknowledged are there when all nodes come back from what a kill
// has left of them.
func TestAllNodesAreKilled(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	accepted := [][]messages.RunID{c.mustSubmit(0, 30)}
	for _, n := range c.nodes {
		n.kill()
	}
	c.each((*testNode).start)
	c.checkRuns(accepted)
	accepted[0] = append(accepted[0], c.mustSubmit(0, 10)...)
	c.checkRuns(accepted)
	c.checkReplicas()
}

// TestQuickChangesOfLeader: leaderships that come and go within milliseconds leave no engine behind and no
// partition without one. Each hand-over begins while the engine before may still be starting.
func TestQuickChangesOfLeader(t *testing.T) {
	t.Parallel()
	rng := newSeed(t)
	c := startCluster(t, 1)
	l := c.startLoad(2)
	l.awaitAccepted(0, 5)
	for range 30 {
		for _, n := range c.nodes {
			_ = n.running().hosts[0].group.Transfer(t.Context(), "") // most of them do not lead; the engine is not told
		}
		timer := time.NewTimer(time.Duration(rng.IntN(60)) * time.Millisecond)
		<-timer.C
	}
	l.awaitAccepted(0, 10)
	accepted := l.stop()
	testenv.EventuallyWithin(t, patience, "a node has an engine only if it leads", func() bool {
		leader, epoch := c.findLeader(0)
		for _, n := range c.nodes {
			_, e, ok := n.running().Engine(0)
			if ok != (n == leader) || ok && e != epoch || (n.running().hosts[0].currentLeadership() != nil) != ok {
				return false
			}
		}
		return leader != nil
	})
	for _, n := range c.nodes {
		s := n.running().Status(0)
		t.Logf("%s: %d engines, term %d", n.name, s.Takeovers, s.Term)
	}
	c.checkRuns(accepted)
	c.checkReplicas()
}

// TestOneEngineInATerm: an engine that ends by itself while its node goes on to lead is followed by another
// one of the same term, which has all that was acknowledged; and if that happens again and again, another
// node leads.
func TestOneEngineInATerm(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	accepted := [][]messages.RunID{c.mustSubmit(0, 5)}
	var h *host
	var epoch uint64
	var before int64
	testenv.RepeatWithin(t, patience, "another engine of the same term", func() bool { // not if the leader changes
		var leader *testNode
		var l *leadership
		leader, l = c.leadershipOf(0)
		h = leader.running().hosts[0]
		before = h.takeovers.Load()
		_, epoch, _ = leader.running().Engine(0)
		l.retire()
		var next uint64
		testenv.EventuallyWithin(t, patience, "another engine", func() bool {
			_, next = c.leaderOf(0)
			return next > epoch || h.takeovers.Load() > before
		})
		return next == epoch && h.takeovers.Load() == before+1
	})
	accepted[0] = append(accepted[0], c.mustSubmit(0, 5)...)
	c.checkRuns(accepted)
	for {
		_, next := c.leaderOf(0)
		if next > epoch {
			break
		}
		if l := h.currentLeadership(); l != nil {
			l.retire()
		}
	}
	if n := h.takeovers.Load() - before; n > maxEngines {
		t.Errorf("%d engines were started in one term after the first", n)
	}
	accepted[0] = append(accepted[0], c.mustSubmit(0, 5)...)
	c.checkRuns(accepted)
	c.checkReplicas()
}

// TestPlannedStop: a member that stops hands its leadership over first, so the gap is far shorter than an
// election, and no submission has an unknown outcome.
func TestPlannedStop(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	l := c.startLoad(2)
	_, first := c.leaderOf(0)
	isSteady := true
	for range 3 {
		l.awaitAccepted(0, 10)
		leader, epoch := c.leaderOf(0)
		m := leader.running()
		isSteady = isSteady && m.HasLease(0, epoch)
		begin := time.Now()
		testenv.RepeatWithin(t, patience, "the leader hands over", func() bool { return m.HandOver(t.Context()) == nil })
		leader.close()
		c.leaderOf(0, leader)
		t.Logf("another node leads after %v", time.Since(begin))
		leader.start()
	}
	accepted := l.stop()
	if _, last := c.leaderOf(0); l.unknown > 0 && isSteady && last == first+3 { // else the machine was too slow for a leader
		t.Errorf("%d submissions have an unknown outcome", l.unknown)
	}
	c.checkRuns(accepted)
	c.checkReplicas()
}

// TestFormationNeedsAllNodes: two of three nodes form no cluster, however long they wait.
func TestFormationNeedsAllNodes(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 2)
	var waiting []chan struct{}
	for _, n := range c.nodes[:2] {
		config, lines := n.config(), &missingNode{name: "n3", heard: make(chan struct{})}
		config.Logger = slog.New(slog.NewTextHandler(lines, nil))
		waiting = append(waiting, lines.heard)
		go func() {
			_, err := Open(ctx, config)
			failed <- err
		}()
	}
	for i, n := range c.nodes[:2] {
		testenv.ReceiveWithin(t, patience, n.name+" has heard of the other one, and waits for the third", waiting[i])
	}
	timer := time.NewTimer(3 * introductionPause)
	<-timer.C
	cancel()
	for range 2 {
		if err := testenv.ReceiveWithin(t, patience, "the start ends", failed); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "node n3") {
			t.Errorf("a start without the third node: %v", err)
		}
	}
	c.each((*testNode).start) // from the same folders
	c.checkRuns([][]messages.RunID{c.mustSubmit(0, 3)})
}

// TestWipedNodeIsRefused: a node that lost its folder does not come back under its old name, and two of them
// do not form an empty cluster beside the one that has the runs.
func TestWipedNodeIsRefused(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	accepted := [][]messages.RunID{c.mustSubmit(0, 5)}
	wipe := func(n *testNode) {
		n.close()
		if err := os.RemoveAll(n.dir); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(n *testNode) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, err := Open(ctx, n.config())
		var reason *RefusedError
		if !errors.As(err, &reason) || !strings.Contains(err.Error(), "folder of that node was lost") {
			t.Errorf("%s comes back without its folder: %v", n.name, err)
		}
	}
	wipe(c.nodes[2])
	refused(c.nodes[2])
	c.checkRuns(accepted) // two of three go on
	accepted[0] = append(accepted[0], c.mustSubmit(0, 5)...)
	wipe(c.nodes[1])
	refused(c.nodes[1])
	if n, _ := c.findLeader(0); n != nil {
		testenv.EventuallyWithin(t, patience, "one of three does not lead", func() bool {
			n, _ := c.findLeader(0)
			return n == nil
		})
	}
	c.nodes[0].close()
	c.nodes[0].start()
	refused(c.nodes[2]) // the folder that the first refusal has left
}

// TestLostReplicaIsRefused: a node whose folder lacks a part does not start.
func TestLostReplicaIsRefused(t *testing.T) {
	for _, lost := range []string{"node.json", "p/0", "p/0/replica.json", "p/0/group", "p/0/group/log", "p/0/group/vote"} {
		t.Run(lost, func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, 1)
			c.mustSubmit(0, 3)
			n := c.nodes[0]
			n.kill() // so that no table tells of rows
			if err := os.RemoveAll(filepath.Join(n.dir, lost)); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			m, err := Open(ctx, n.config())
			if err == nil {
				n.setRunning(m)
				t.Fatal("it starts")
			}
			t.Log(err)
		})
	}
}

// TestFolderIsLocked: two members never share a folder.
func TestFolderIsLocked(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 1, 1)
	n := c.nodes[0]
	n.start()
	other := n.config()
	other.Listener = c.network.Listen("other")
	if _, err := Open(t.Context(), other); err == nil || !strings.Contains(err.Error(), "another process uses the folder") {
		t.Errorf("a second member of the folder: %v", err)
	}
}

// TestFollowerGetsACopy: a follower that was away for longer than the log reaches gets the rows of another
// replica, also when it is killed between any two steps of their installation.
func TestFollowerGetsACopy(t *testing.T) {
	for step := range 4 {
		if testing.Short() && step%2 == 1 {
			continue
		}
		t.Run(fmt.Sprintf("killed after step %d", step), func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t, 3, 1)
			c.settings.TrailingEntries, c.settings.SnapshotInterval = 10, 50*time.Millisecond
			c.settings.SegmentBytes = 4 << 10 // raft-wal still reads trimmed entries of its newest segment
			c.each((*testNode).start)
			accepted := [][]messages.RunID{c.mustSubmit(0, 5)}
			leader, _ := c.leaderOf(0)
			away := c.nodes[0]
			if away == leader {
				away = c.nodes[1]
			}
			last := away.running().Status(0).Last
			away.close()
			accepted[0] = append(accepted[0], c.leaveBehind(away, last)...)
			if step > 0 {
				crashed := make(chan struct{})
				away.afterRestoreStep = func(_, s int) error {
					if s != step {
						return nil
					}
					close(crashed)
					return errors.New("injected crash")
				}
				away.start()
				testenv.ReceiveWithin(t, patience, "the copy is being installed", crashed)
				testenv.EventuallyWithin(t, patience, "the replica ends", func() bool { return len(away.fatals()) > 0 })
				away.kill()
				away.afterRestoreStep = nil
				away.forgetFatals()
			}
			away.start()
			c.checkReplicas()
			if s := away.running().Status(0); step == 0 && s.SnapshotsGotten == 0 {
				t.Errorf("the follower got no copy: %+v", s)
			}
			testenv.EventuallyWithin(t, patience, "the folder of the former rows is removed", func() bool {
				folders, _ := filepath.Glob(filepath.Join(away.dir, "p", "0", "db-*"))
				return len(folders) == 1
			})
			accepted[0] = append(accepted[0], c.mustSubmit(0, 5)...)
			c.checkRuns(accepted)
			c.checkReplicas()
		})
	}
}

// leaveBehind goes on without a node until the others' logs begin after the last entry of its own. Their
// restarts make Badger write what it has in memory, so that the log may forget entries.
func (c *testCluster) leaveBehind(away *testNode, last uint64) (ids []messages.RunID) {
	c.t.Helper()
	ids = c.mustSubmit(0, 20)
	for _, n := range c.nodes {
		if n != away {
			n.close()
			n.start()
			ids = append(ids, c.mustSubmit(0, 5)...)
		}
	}
	isTrimmed := func(n *testNode) bool { return n == away || n.running().Status(0).First > last+1 }
	for !isTrimmed(c.nodes[0]) || !isTrimmed(c.nodes[1]) || !isTrimmed(c.nodes[2]) {
		if len(ids) > 1000 {
			c.t.Fatalf("the log is not trimmed up to entry %d: %+v", last, c.nodes[2].running().Status(0))
		}
		ids = append(ids, c.mustSubmit(0, 1)...)
	}
	return ids
}

// TestUnwrittenRowsAreLost: a proposal whose rows the DB has not written is not acknowledged.
func TestUnwrittenRowsAreLost(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	c.checkRuns([][]messages.RunID{c.mustSubmit(0, 1)}) // nothing more is proposed
	var leader *testNode
	var engine Engine
	testenv.EventuallyWithin(t, patience, "a leader has an engine", func() (ok bool) {
		if leader, _ = c.findLeader(0); leader != nil {
			engine, _, ok = leader.running().Engine(0)
		}
		return ok
	})
	h := leader.running().hosts[0]
	h.machine.mu.Lock()
	for i := range uint64(1000) {
		h.machine.unwritten[h.group.Status().Last+i] = struct{}{}
	}
	h.machine.mu.Unlock()
	if _, err := engine.Submit(t.Context(), plan(t, chain)); err == nil {
		t.Errorf("a submission whose rows were not written: %v", err)
	}
	testenv.EventuallyWithin(t, patience, "another engine leads", func() bool {
		n, _ := c.findLeader(0)
		return n != nil && (n != leader || n.running().hosts[0].takeovers.Load() > 1)
	})
	c.mustSubmit(0, 2)
	c.checkReplicas()
}

var rounds = flag.Int("rounds", 6, "rounds of TestPartitionsOverNodes")

// TestPartitionsOverNodes: several groups on three nodes lose nothing while nodes are killed, cut off and
// stopped at random under load.
func TestPartitionsOverNodes(t *testing.T) {
	t.Parallel()
	rng := newSeed(t)
	c := startCluster(t, 3)
	l := c.startLoad(6)
	for range *rounds {
		for p := range c.partitions {
			l.awaitAccepted(p, 3)
		}
		c.disturb(rng)
	}
	for p := range c.partitions {
		l.awaitAccepted(p, 3)
	}
	accepted := l.stop()
	c.checkRuns(accepted)
	c.checkReplicas()
	for partition, ids := range accepted {
		for _, id := range ids {
			if int(id)%c.partitions != partition {
				t.Fatalf("run %d is not of partition %d", id, partition)
			}
		}
	}
}

// disturb makes one fault and undoes it.
func (c *testCluster) disturb(rng *rand.Rand) {
	n := c.nodes[rng.IntN(len(c.nodes))]
	switch rng.IntN(6) {
	case 0:
		c.t.Logf("kill %s", n.name)
		n.kill()
		n.start()
	case 1:
		c.t.Logf("cut %s off", n.name)
		n.isolate()
		timer := time.NewTimer(time.Duration(rng.IntN(1500)) * time.Millisecond)
		<-timer.C
		c.network.HealAll()
	case 2:
		c.t.Logf("stop %s", n.name)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := n.running().Stop(ctx); err != nil {
			c.t.Log(err) // others may be electing
		}
		n.setRunning(nil)
		n.start()
	case 3:
		c.t.Logf("transfer what %s leads", n.name)
		for h := range n.running().ownHosts() {
			_ = h.group.Transfer(c.t.Context(), "")
		}
	case 4:
		other := c.nodes[rng.IntN(len(c.nodes))]
		c.t.Logf("cut the way from %s to %s", n.name, other.name)
		c.network.Cut(raftlog.NodeID(n.name), raftlog.NodeID(other.name))
		timer := time.NewTimer(time.Duration(rng.IntN(1500)) * time.Millisecond)
		<-timer.C
		c.network.HealAll()
	case 5:
		c.t.Log("kill all")
		for _, n := range c.nodes {
			n.kill()
		}
		c.each((*testNode).start)
	}
}
