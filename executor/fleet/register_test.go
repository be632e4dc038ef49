package fleet

import (
	"errors"
	"slices"
	"testing"
)

// awaitReports waits until nodes have reported to the leader.
func (n *testNode) awaitReports(ids ...string) {
	n.c.t.Helper()
	eventually(n.c.t, "nodes have reported", func() bool {
		n.Fleet.mu.Lock()
		defer n.Fleet.mu.Unlock()
		table := n.leads[testPartition.Partition].table
		return !slices.ContainsFunc(ids, func(id string) bool { return !table.HasHeard(id) })
	})
}

// forget removes a node from the list of another one, and waits until its connection has ended.
func (n *testNode) forget(id string) {
	n.c.t.Helper()
	n.unknown.Store(&id)
	eventually(n.c.t, id+" is not connected", func() bool {
		n.Fleet.mu.Lock()
		defer n.Fleet.mu.Unlock()
		return n.connecting[id] == nil && n.links[id] == nil
	})
}

// awaitFrame waits until a node has taken in a frame of its own agent that was sent after the call.
func (n *testNode) awaitFrame() {
	n.c.t.Helper()
	for range 2 { // the first one may have been under way
		before := n.Heard(n.id)
		n.agent.beat(1)
		n.agent.mu.Lock()
		n.agent.announceState()
		n.agent.mu.Unlock()
		eventually(n.c.t, "the node is heard", func() bool { return n.Heard(n.id).After(before) })
	}
}

// TestLeaderWithAStaleListOfNodes: an attempt is not lost while a node that has a row has not reported, although the
// leader does not know that node. The node goes on with it.
func TestLeaderWithAStaleListOfNodes(t *testing.T) {
	c := newTestCluster(t, "a", "b", "c")
	a, b := c.nodes[0], c.nodes[1]
	a.forget("b")
	key, missing := testKey(1), testKey(2)
	b.lead(4)
	b.awaitRoom()
	b.order(key)
	eventually(t, "the order comes", func() bool { return b.workers.startsOf(key) == 1 })
	b.workers.begin(key)
	b.awaitHeard(key, "started")
	b.HandOver(testPartition)
	a.lead(5, key, missing)
	a.awaitReports("a", "c")
	if got := slices.Concat(a.heard(key), a.heard(missing)); len(got) != 0 {
		t.Fatalf("decided without b: %v", got)
	}
	a.unknown.Store(nil)
	a.awaitHeard(key, "started")
	a.awaitHeard(missing, "lost")
}

// TestNoOrderBeforeTheRowsOfNodes: no node gets an order before the rows of all nodes are committed, which is one
// commit. Later orders and leaders commit nothing.
func TestNoOrderBeforeTheRowsOfNodes(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	starts := func(task uint32) int { return a.workers.startsOf(testKey(task)) + b.workers.startsOf(testKey(task)) }
	open := c.rows.close(t)
	a.lead(4)
	a.order(testKey(1))
	eventually(t, "the rows are being added", func() bool { return slices.Equal(c.rows.allBegun(), []string{"+a b"}) })
	a.awaitFrame()
	if starts(1) != 0 {
		t.Fatal("a node has an order before its row")
	}
	open()
	eventually(t, "the order comes", func() bool { return starts(1) == 1 })
	a.HandOver(testPartition)
	b.lead(5)
	b.awaitRoom()
	b.order(testKey(2))
	eventually(t, "the order comes", func() bool { return starts(2) == 1 })
	if got := c.rows.allBegun(); !slices.Equal(got, []string{"+a b"}) {
		t.Errorf("changes %v", got)
	}

	b.HandOver(testPartition)
	c.rows = &testRows{err: errors.New("the leadership is lost")}
	a.lead(6, testKey(3))
	eventually(t, "the rows are not added", func() bool { return slices.Equal(c.rows.allBegun(), []string{"+a b"}) })
	a.order(testKey(4))
	a.awaitFrame()
	if starts(4) != 0 || len(a.heard(testKey(3))) != 0 {
		t.Errorf("without rows: %d orders, heard %v", starts(4), a.heard(testKey(3)))
	}
}

// TestNodeThatJoinsHasItsRow: a node that is missing in the rows gets one before its first order.
func TestNodeThatJoinsHasItsRow(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a := c.nodes[0]
	c.rows.listed = []string{"a"}
	a.lead(4)
	eventually(t, "b has its row", func() bool { return slices.Equal(c.rows.all(), []string{"a", "b"}) })
	a.awaitReports("b")
	if got := c.rows.allBegun(); !slices.Equal(got, []string{"+b"}) {
		t.Errorf("changes %v", got)
	}
}

// TestRowOfANodeThatLeft goes when its lease is over, and stays as long as an attempt of it is not forgotten. The node
// is not waited for any more.
func TestRowOfANodeThatLeft(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	key := testKey(1)
	b.lead(4)
	b.awaitRoom()
	b.order(key)
	eventually(t, "the order comes", func() bool { return b.workers.startsOf(key) == 1 })
	b.HandOver(testPartition)
	a.lead(5, key)
	a.awaitReports("a", "b")
	a.forget("b")
	a.tickUntilSilent(key)
	a.awaitHeard(key, "lost")
	removeRows := func() {
		a.Fleet.mu.Lock()
		a.removeRows()
		a.unlockAndDeliver()
	}
	removeRows()
	if got := c.rows.allBegun(); !slices.Equal(got, []string{"+a b"}) {
		t.Errorf("changes %v before the loss is durable", got)
	}
	a.Acknowledge(key)
	eventually(t, "the row is removed", func() bool { return slices.Equal(c.rows.all(), []string{"a"}) })
	a.HandOver(testPartition)
	a.lead(6, testKey(2))
	a.awaitHeard(testKey(2), "lost")
}

// TestNodesAreNoJoinedWorkers: the rows of nodes are not shown, and a node cannot be declared dead as a worker can.
func TestNodesAreNoJoinedWorkers(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a := c.nodes[0]
	a.lead(4)
	a.awaitReports("a", "b")
	if got := a.JoinedWorkers(); len(got) != 0 {
		t.Errorf("%+v is shown", got)
	}
	if isKnown, err := a.WorkerDead(1, 4, "b"); isKnown || err != nil || len(c.rows.all()) != 2 {
		t.Errorf("%v, %v, listed %v", isKnown, err, c.rows.all())
	}
}
