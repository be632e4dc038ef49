package cluster

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// others returns the nodes but some.
func (c *testCluster) others(except ...*testNode) (others []*testNode) {
	for _, n := range c.nodes {
		if !contains(except, n) {
			others = append(others, n)
		}
	}
	return others
}

// transfer moves the leadership of a partition, asked at a node, until that succeeds: on a busy machine an election
// may come in between.
func (c *testCluster) transfer(at *testNode, partition int, to *testNode) {
	c.t.Helper()
	var err error
	testenv.EventuallyWithin(c.t, patience, "the leadership moves to "+to.name, func() bool {
		_, err = at.running().TransferLead(c.t.Context(), partition, to.name)
		if n, _ := c.findLeader(partition); n == to {
			return true
		}
		if err != nil {
			c.t.Log(err)
		}
		return false
	})
}

// TestLeadershipIsTransferred: whichever node is asked, the leadership goes to the node that is named, and comes
// back, while runs are submitted. Balance leaves the partition there.
func TestLeadershipIsTransferred(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 2)
	c.steadyTime = 50 * time.Millisecond
	balanced := &logCounter{text: `"the partition was moved to the node that it prefers" node=n3 `}
	c.log = balanced
	c.each((*testNode).start)
	load := c.startLoad(4)
	for p, home := range c.nodes[:2] { // each partition is where it prefers to be
		testenv.EventuallyWithin(t, patience, "balance is at rest", func() bool { n, _ := c.findLeader(p); return n == home })
	}
	third := c.nodes[2]
	former := balanced.lines.Load()
	moved := third.running()
	// An election ends the hold, and balance moves the partition away then.
	testenv.EventuallyWithin(t, 2*patience, "the next leader holds the partitions", func() bool {
		c.transfer(c.nodes[1], 0, third)
		c.transfer(third, 1, third)
		return moved.isLeadHeld(0) && moved.isLeadHeld(1)
	})
	_, epoch := c.leaderOf(0)
	for p := range 2 {
		load.awaitAccepted(p, 20)
	}
	if n := balanced.lines.Load() - former; n > 0 {
		t.Errorf("balance has moved %d partitions away from the node", n)
	}
	testenv.EventuallyWithin(t, patience, "balance has had its turn", func() bool {
		b := newBalancer(moved, time.Millisecond)
		defer b.close()
		if _, now, ok := moved.Engine(0); !ok || now != epoch {
			return true // an election was faster
		}
		b.lead[0] = steadyLead{epoch, time.Now().Add(-time.Hour)} // long ago
		if to := b.destination(moved.hosts[0]); to != "" {
			t.Errorf("balance moves the partition to %s", to)
		}
		moved.holdLead(0, 0)
		defer moved.holdLead(0, time.Hour)
		return testenv.Poll(time.Second, func() bool { return b.destination(moved.hosts[0]) != "" })
	})
	c.transfer(third, 0, c.nodes[0])
	c.checkRuns(load.stop())
	c.checkReplicas()
}

// TestNodeIsDrained: all leaderships of a node go to others, and balance gives it none until it is told to.
func TestNodeIsDrained(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 3)
	c.steadyTime = 50 * time.Millisecond
	c.each((*testNode).start)
	for p, home := range c.nodes {
		testenv.EventuallyWithin(t, patience, "balance is at rest", func() bool { n, _ := c.findLeader(p); return n == home })
	}
	drained := c.nodes[0]
	testenv.RepeatWithin(t, 2*patience, "the node gives away what it leads", func() bool {
		all, err := c.nodes[1].running().TransferAllLeads(t.Context(), drained.name)
		isDone := err == nil
		for _, moved := range all {
			if moved.From != drained.running().Self() || moved.Problem == "" && moved.To == moved.From {
				t.Errorf("%+v", moved)
			}
			isDone = isDone && moved.Problem == "" // a busy machine may be too slow for one transfer
		}
		if !isDone {
			t.Log(all, err)
		}
		return isDone
	})
	testenv.EventuallyWithin(t, patience, "the others take it for one that stops", func() bool {
		return !slices.ContainsFunc(c.others(drained), func(n *testNode) bool {
			return n.running().announcer.isSteady(drained.running().Self(), 0)
		})
	})
	testenv.EventuallyWithin(t, patience, "the other nodes lead its partition", func() bool {
		n, _ := c.findLeader(0)
		if n == drained { // an election has chosen it
			_, _ = drained.running().TransferAllLeads(t.Context(), drained.name)
		}
		return n != nil && n != drained
	})
	c.mustSubmit(0, 1)
	holder, _ := c.leaderOf(0)
	c.transfer(holder, 0, drained) // ends it
	if drained.running().announcer.isDrained() {
		t.Error("a transfer to the node does not end its state")
	}
}

// TestTransferIsRefused with the reason, and the leader leads on.
func TestTransferIsRefused(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	c.mustSubmit(0, 1)
	leader, _ := c.leaderOf(0)
	others := c.others(leader)
	down, asked := others[0], others[1]
	check := func(partition int, node string, code messages.ErrorCode, text string) {
		t.Helper()
		var err error
		isRefused := testenv.Poll(patience, func() bool {
			_, err = asked.running().TransferLead(t.Context(), partition, node)
			e, ok := errors.AsType[*messages.Error](err)
			return ok && e.Code == code && strings.Contains(e.Text, text)
		})
		if !isRefused {
			t.Errorf("to %s: %v, want %s", node, err, text)
		}
	}
	check(1, asked.name, messages.NotFound, "unknown partition 1: there are 0 to 0")
	check(-1, asked.name, messages.NotFound, "unknown partition -1")
	check(0, "n9", messages.NotFound, `unknown node "n9": the cluster has [n1 n2 n3]`)
	if err := leader.running().checkNextLeader(t.Context(), leader.running().hosts[0], raftlog.NodeID("n9-0123456789abcdef")); err == nil || !strings.Contains(err.Error(), "no replica") {
		t.Error(err)
	}
	check(0, leader.name, messages.Conflict, "node "+leader.name+" leads partition 0 already")
	damage := errors.New("a block does not have its checksum")
	down.damage.Store(&damage)
	check(0, down.name, messages.Conflict, "node "+down.name+" cannot lead partition 0: node "+string(down.running().Self())+": its rows are damaged")
	if down.running().isLeadHeld(0) {
		t.Error("a node that does not lead holds the partition")
	}
	var none error
	down.damage.Store(&none)
	wrong := &PartitionVerdict{Index: 1 << 40, Replicas: []ReplicaDigest{{Node: down.running().Self(), Differs: true}}}
	for _, n := range c.nodes {
		n.running().noteVerdict(wrong)
	}
	check(0, down.name, messages.Conflict, "node "+down.name+" cannot lead partition 0: its rows differ")
	if leader, _ := c.leaderOf(0); leader != down {
		if next := leader.running().nextLeader(leader.running().hosts[0]); next == down.running().Self() {
			t.Error("a replica that differs shall lead next")
		}
	}
	right := &PartitionVerdict{Index: wrong.Index + 1}
	for _, n := range c.nodes {
		n.running().noteVerdict(right)
	}
	down.close()
	testenv.EventuallyWithin(t, patience, "the leader is the same", func() bool { n, _ := c.findLeader(0); leader = n; return n != nil })
	if leader == asked {
		asked = c.others(down, leader)[0]
	}
	check(0, down.name, messages.Conflict, "node "+down.name+" cannot lead partition 0: it is not heard")
	c.mustSubmit(0, 1)
	if _, err := asked.running().TransferAllLeads(t.Context(), down.name); code(err) != messages.Unavailable {
		t.Errorf("drain of a node that is down: %v", err)
	}
	if _, err := asked.running().TransferAllLeads(t.Context(), "n9"); code(err) != messages.NotFound {
		t.Errorf("drain of an unknown node: %v", err)
	}
	down.start()
}

// TestNextLeaderHoldsAtOnce: balance of the next leader leaves the partition alone from the first moment, also while
// nobody has told it yet that the transfer is done.
func TestNextLeaderHoldsAtOnce(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	leader, _ := c.leaderOf(0)
	next := c.others(leader)[0].running()
	if _, err := leader.running().ask(t.Context(), next.Self(), &inquiry{Kind: readyInquiry}); err != nil {
		t.Fatal(err)
	}
	if !next.isLeadHeld(0) {
		t.Error("balance may move the partition before it is told")
	}
}

// TestTransferProblems: a voter is not heard, or lacks entries.
func TestTransferProblems(t *testing.T) {
	for want, at := range map[string][2]uint64{"it is not heard": {0, 5000}, "it has 9 of 5000 entries": {9, 5000}} {
		if got := lagProblem(at[0], at[1]); got != want {
			t.Errorf("%v: %q", at, got)
		}
	}
}

// TestStartingEngineIsDrained: a partition whose engine is starting on the node goes with the others.
func TestStartingEngineIsDrained(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	c.mustSubmit(0, 1)
	testenv.EventuallyWithin(t, 2*patience, "the node leads nothing", func() bool {
		leader, _ := c.leaderOf(0)
		m := leader.running()
		h := m.hosts[0]
		l := h.blockEngines()
		if l != nil {
			l.retire()
			<-l.ended
		}
		leads := m.drainHere()
		moved := make(chan []Transfer, 1)
		go func() {
			all, err := m.TransferAllLeads(t.Context(), leader.name)
			if err != nil {
				t.Error(err)
			}
			moved <- all
		}()
		h.unblockEngines()
		all := testenv.ReceiveWithin(t, patience, "the transfers", moved)
		now, _ := c.leaderOf(0)
		t.Log(leads, all)
		return slices.Equal(leads, []int{0}) && len(all) == 1 && all[0].Problem == "" && now != leader
	})
}
