package cluster

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// TestPartitionsAreSharedOut: each node is the first choice of equally many partitions, and those of a lost
// node are shared out equally among the others. The order does not depend on that of the list.
func TestPartitionsAreSharedOut(t *testing.T) {
	names := []string{"n3", "n1", "n4", "n2", "n5"}
	for count := 1; count <= len(names); count++ {
		list := names[:count]
		partitions := count * max(count-1, 1)
		first, second := map[string]int{}, map[[2]string]int{}
		for p := range partitions {
			order := preferredLeaders(p, list)
			if sorted := slices.Sorted(slices.Values(order)); !slices.Equal(sorted, slices.Sorted(slices.Values(list))) {
				t.Errorf("partition %d of %d nodes: %q", p, count, order)
			}
			slices.Reverse(list)
			if again := preferredLeaders(p, list); !slices.Equal(again, order) {
				t.Errorf("partition %d of %d nodes: %q, and by another list %q", p, count, order, again)
			}
			first[order[0]]++
			if count > 1 {
				second[[2]string{order[0], order[1]}]++
			}
		}
		for name, n := range first {
			if n != partitions/count {
				t.Errorf("%d nodes: %s is the first choice of %d partitions of %d", count, name, n, partitions)
			}
		}
		for names, n := range second {
			if n != 1 {
				t.Errorf("%d nodes: %d partitions of %s prefer %s next", count, n, names[0], names[1])
			}
		}
	}
}

// TestLeadersMoveToTheirNodes: each partition comes to the node that it prefers, while runs are submitted and
// complete; when that one is lost, to the next one; and back when it has returned.
func TestLeadersMoveToTheirNodes(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 3)
	c.steadyTime = 100 * time.Millisecond
	c.each((*testNode).start)
	load := c.startLoad(3)
	await := func(what string, leaders ...int) {
		t.Helper()
		testenv.EventuallyWithin(t, 2*patience, what, func() bool {
			for p, at := range leaders {
				if n, _ := c.findLeader(p); n != c.nodes[at] {
					return false
				}
			}
			return true
		})
	}
	await("each node leads its partition", 0, 1, 2)
	c.nodes[0].close()
	await("the partition of the lost node is led by the next one", 1, 1, 2)
	c.nodes[0].start()
	await("each node leads its partition again", 0, 1, 2)
	for p := range 3 {
		load.awaitAccepted(p, 1)
	}
	c.checkRuns(load.stop())
	c.checkReplicas()
}

// TestPartitionsThatStay: a partition stays where it is while a task of it runs or it is paused, while the node
// that it prefers is not steady, while this node has not led it for some time, and while this node stops.
func TestPartitionsThatStay(t *testing.T) {
	t.Parallel()
	for _, unrest := range []struct {
		load   actors.Load
		reason string
	}{{actors.Load{Running: 1}, ""}, {actors.Load{IsRecovering: true}, ""}, {actors.Load{}, "by the operator"}} {
		if isAtRest(unrest.load, unrest.reason) {
			t.Errorf("%+v is at rest", unrest)
		}
	}
	if !isAtRest(actors.Load{Queued: 5}, "") {
		t.Error("tasks that wait keep a partition from moving")
	}
	c := startCluster(t, 2)             // no partition moves by itself
	home := c.nodes[0].running().Self() // that of partition 0
	testenv.EventuallyWithin(t, 4*patience, "a node leads the partition throughout the test", func() bool {
		leader, epoch := c.leaderOf(0)
		if leader == c.nodes[0] {
			h := leader.running().hosts[0]
			if err := h.handOver(t.Context()); err != nil {
				t.Log(err)
			}
			h.unblockEngines()
			return false
		}
		engine, _, ok := leader.running().Engine(0)
		if !ok {
			return false
		}
		problems := stayProblems(t, leader.running(), engine, home, c.nodes[0].running().announcer)
		if _, now, ok := leader.running().Engine(0); !ok || now != epoch {
			return false
		}
		for _, problem := range problems {
			t.Error(problem)
		}
		return true
	})
	testenv.EventuallyWithin(t, patience, "the partition moves", func() bool {
		leader, _ := c.findLeader(0)
		if leader != nil && leader != c.nodes[0] {
			b := newBalancer(leader.running(), time.Millisecond)
			defer b.close()
			b.moveOne() // it sees the leadership
			testenv.Poll(time.Second, b.moveOne)
		}
		return leader == c.nodes[0]
	})
}

// stayProblems returns what is wrong with the decisions of the leader of partition 0, which prefers the node home.
func stayProblems(t *testing.T, m *Member, engine Engine, home raftlog.NodeID, atHome *announcer) (problems []string) {
	note := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	eager := newBalancer(m, time.Millisecond)
	defer eager.close()
	moves := func() bool { return eager.destination(m.hosts[0]) == home }
	if !testenv.Poll(testenv.Patience, moves) {
		note("the partition does not move")
	}
	if err := engine.SetPaused(t.Context(), "a reason"); err != nil {
		note("%v", err)
	}
	if to := eager.destination(m.hosts[0]); to != "" {
		note("it moves to %s while it is paused", to)
	}
	if err := engine.SetPaused(t.Context(), ""); err != nil {
		note("%v", err)
	}
	if !testenv.Poll(testenv.Patience, moves) {
		note("the partition does not move after a pause")
	}
	patient := newBalancer(m, time.Hour)
	defer patient.close()
	if to := patient.destination(m.hosts[0]); to != "" {
		note("it moves to %s at once", to)
	}
	patient.lead[0] = steadyLead{patient.lead[0].epoch, time.Now().Add(-90 * time.Minute)}
	if to := patient.destination(m.hosts[0]); to != "" {
		note("it moves to %s, which is not steady", to)
	}
	isSteady := func() bool { // the next line of the node says that its connection is young
		m.announcer.pretendSteady(home, 2*time.Hour)
		return patient.destination(m.hosts[0]) == home
	}
	if !testenv.Poll(testenv.Patience, isSteady) {
		note("the partition does not move after one and a half of its time")
	}
	patient.moves[0] = []time.Time{time.Now()}
	if isSteady() {
		note("it moves to %s, and has moved before", home)
	}
	m.announcer.isStopping.Store(true)
	if to := eager.destination(m.hosts[0]); to != "" {
		note("it moves to %s while this node stops", to)
	}
	m.announcer.isStopping.Store(false)
	atHome.isStopping.Store(true)
	if !testenv.Poll(testenv.Patience, func() bool { return eager.destination(m.hosts[0]) == "" }) {
		note("a node that stops gets the partition")
	}
	atHome.isStopping.Store(false)
	return problems
}

// pretendSteady makes a node one that has announced itself for some time.
func (a *announcer) pretendSteady(node raftlog.NodeID, ago time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	heard := a.heard[node]
	heard.since = time.Now().Add(-ago)
	a.heard[node] = heard
}
