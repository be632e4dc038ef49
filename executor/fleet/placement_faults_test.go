package fleet

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// placing returns a table that places orders at workers with so many cores each, by name, which all accept orders.
func placing(t *testing.T, nodes map[string]int64) *rig {
	slots := NewSlots("n1", 1)
	g := newRig(t, func(c *TableConfig) { c.Slots, c.SilenceTicks = slots, 400 })
	for _, name := range []string{"n1", "n2", "n3"} {
		if n := nodes[name]; n > 0 {
			slots.SetNode(name, workerpb.NodeStatus{Capacity: cores(n, 1<<30), Taken: make([]workerpb.Taken, 1)})
			g.connect(name)
			g.hear(name, synced)
			g.beat(name)
		}
	}
	g.effects = nil
	return g
}

// beat lets a worker be heard, and its lease be renewed.
func (g *rig) beat(worker string) {
	g.Heartbeat(worker)
	g.Renew(worker, 1, 9)
}

// place orders attempts that take so many cores each.
func (g *rig) place(size int64, tasks ...uint32) {
	for _, task := range tasks {
		g.Start(&executor.Order{Key: key(task), GrantedAt: 5, CPUMillis: 1000 * size}, Unplaced, 9)
	}
}

// at returns the worker of an attempt.
func (g *rig) at(task uint32) string {
	worker, _ := g.WorkerOf(key(task))
	return worker
}

// TestQuietNodeGetsNoOrder: a node that is lost keeps its connection for long. Its slots are not granted any more, and
// it gets no order, until it is heard again. What it holds counts as granted.
func TestQuietNodeGetsNoOrder(t *testing.T) {
	g := placing(t, map[string]int64{"n1": 4, "n2": 1})
	g.place(1, 1)
	if g.at(1) != "n2" || g.Capacity() != cores(5, 2<<30) {
		t.Fatalf("at %q, capacity %v", g.at(1), g.Capacity())
	}
	for range 4 {
		g.Tick(9)
		g.beat("n1")
	}
	if c := g.Capacity(); c.CPUMillis != 5000 { // four of n1, and the attempt at n2
		t.Errorf("capacity %v", c)
	}
	g.hear("n2", started(1))
	g.hear("n2", finished(1))
	if c := g.Capacity(); c.CPUMillis != 4000 {
		t.Errorf("capacity without attempts at n2: %v", c)
	}
	g.place(1, 2)
	if g.at(2) != "n1" {
		t.Errorf("an order goes to %q", g.at(2))
	}
	g.beat("n2")
	g.place(1, 3)
	if g.at(3) != "n2" || g.Capacity().CPUMillis != 5000 {
		t.Errorf("heard again: at %q, capacity %v", g.at(3), g.Capacity())
	}
}

// TestOrderThatDoesNotBeginMoves: a node may not be able to start what it has room for, and not know it. An order moves
// from there when its patience is over, which doubles each time: on slow machines orders do not go round for ever. Until
// the node begins an attempt, orders prefer the others.
func TestOrderThatDoesNotBeginMoves(t *testing.T) {
	g := placing(t, map[string]int64{"n1": 2, "n2": 4})
	ticks := func(n int) {
		for range n {
			g.Tick(9)
			g.Heartbeat("n1")
			g.Heartbeat("n2")
		}
	}
	g.place(1, 1, 2)
	g.expect("n1: order 1 in 1", "n1: order 2 in 1")
	ticks(9)
	g.expect()
	ticks(1)
	g.expect("n1: revocation 2 in 1", "n1: revocation 1 in 1")
	g.hear("n1", revoked(2), revoked(1))
	g.hear("n1", synced)
	g.expect("n1: lead 3 of epoch 4", "n2: order 1 in 2", "n2: order 2 in 2")
	g.beat("n1")
	g.place(1, 3)
	if g.at(3) != "n2" { // both have two cores free, and n1 is the own node
		t.Errorf("an order goes to %q, which has begun nothing", g.at(3))
	}
	g.hear("n2", started(2))
	g.effects = nil
	ticks(10)
	g.expect("n2: revocation 3 in 2") // the patience of the first one is twice as long by now
	g.hear("n2", revoked(3))
	g.hear("n2", queued(1), started(2), synced)
	g.expect("n2: lead 4 of epoch 4", "n1: order 3 in 3")
	g.beat("n2")
	g.hear("n1", started(3))
	g.place(1, 4)
	if g.at(4) != "n1" {
		t.Errorf("an order goes to %q, although n1 has begun one", g.at(4))
	}
}

// TestNodeThatReturnsItsOrders gets no further ones for a while, which grows: else the orders that wait at a full node
// would be asked back for it again and again.
func TestNodeThatReturnsItsOrders(t *testing.T) {
	g := placing(t, map[string]int64{"n1": 4, "n2": 1})
	g.place(1, 1)
	g.hear("n2", started(1))
	g.place(1, 2, 3)
	orders := 0
	for range 100 {
		g.Tick(9)
		for handled := 0; handled < len(g.effects); handled++ {
			var node string
			var task, session uint32
			effect := strings.ReplaceAll(g.effects[handled], ":", "")
			switch n, _ := fmt.Sscanf(effect, "%s order %d in %d", &node, &task, &session); {
			case n == 3 && node == "n1":
				orders++
				g.hear("n1", revoked(task))
				g.hear("n1", synced)
			case n != 3:
				if n, _ := fmt.Sscanf(effect, "%s revocation %d in %d", &node, &task, &session); n == 3 {
					g.hear("n2", revoked(task))
					fill := []func(*workerpb.PartitionReport){started(1)}
					for other := uint32(2); other < 4; other++ {
						if other != task && g.at(other) == "n2" {
							fill = append(fill, queued(other))
						}
					}
					g.hear("n2", append(fill, synced)...)
				}
			}
		}
		g.effects = nil
		g.beat("n1")
		g.beat("n2")
	}
	if orders == 0 || orders > 50 {
		t.Errorf("%d orders went to a node that returns all", orders)
	}
	if g.at(2) == "n1" || g.at(3) == "n1" {
		t.Errorf("orders at %q and %q", g.at(2), g.at(3))
	}
}

// TestLargeOrderWaitsForTheNodeThatFits: while the only node that is large enough begins a session, an order does not go
// to one that would refuse it. An order that is too large for all is refused.
func TestLargeOrderWaitsForTheNodeThatFits(t *testing.T) {
	g := placing(t, map[string]int64{"n1": 1, "n2": 4})
	g.disconnect("n2")
	g.place(3, 1)
	if g.at(1) != Unplaced {
		t.Errorf("it goes to %q", g.at(1))
	}
	g.connect("n2")
	g.hear("n2", synced)
	g.beat("n2")
	if g.at(1) != "n2" {
		t.Errorf("it is at %q", g.at(1))
	}
	g.place(9, 2)
	if g.at(2) == Unplaced {
		t.Error("an order that is too large for all nodes waits")
	}
}

// TestNewSessionKeepsTheCapacity: the slots of a node whose session begins again stay granted.
func TestNewSessionKeepsTheCapacity(t *testing.T) {
	g := placing(t, map[string]int64{"n1": 2, "n2": 2})
	before := g.Capacity()
	g.beginSession(g.workers["n2"])
	if c := g.Capacity(); c != before {
		t.Errorf("capacity %v, before %v", c, before)
	}
	g.disconnect("n2")
	if c := g.Capacity(); c.CPUMillis != 2000 {
		t.Errorf("without n2: %v", c)
	}
}

// TestDrainingNodeGivesItsOrdersBack: orders that wait at a node that stops go to others, also to those that are full.
func TestDrainingNodeGivesItsOrdersBack(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	a.lead(4)
	capacity := a.capacityOf()
	eventually(t, "the slots of both nodes", func() bool { return capacity() == 4 })
	keys := []messages.AttemptKey{}
	for task := range uint32(6) { // two of them do not fit
		keys = append(keys, testKey(task))
		a.orderOf(1, testKey(task))
	}
	for _, k := range keys {
		eventually(t, "an order comes", func() bool { return a.workers.has(k) || b.workers.has(k) })
	}
	var running []messages.AttemptKey
	for _, k := range keys {
		if b.workers.has(k) && len(running) < 2 {
			b.workers.begin(k)
			a.awaitHeard(k, "started")
			running = append(running, k)
		}
	}
	b.Drain()
	for _, k := range keys {
		if k == running[0] || k == running[1] {
			continue
		}
		eventually(t, "the order is at a", func() bool { return a.workers.has(k) && !b.workers.has(k) })
	}
	for _, k := range running {
		if !b.workers.has(k) {
			t.Error("a task that runs is ended")
		}
	}
}

// TestUnhealthyNodeGivesItsOrdersBack: a node whose workers hang keeps no order that has not begun, and gets none.
func TestUnhealthyNodeGivesItsOrdersBack(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	a.lead(4)
	capacity := a.capacityOf()
	eventually(t, "the slots of both nodes", func() bool { return capacity() == 4 })
	a.orderOf(1, testKey(1))
	a.orderOf(1, testKey(2))
	eventually(t, "the orders are at a", func() bool { return a.workers.has(testKey(1)) && a.workers.has(testKey(2)) })
	a.workers.setHealth(errors.New("the worker hangs"))
	eventually(t, "the orders are at b", func() bool { return b.workers.has(testKey(1)) && b.workers.has(testKey(2)) })
	if a.workers.has(testKey(1)) || a.workers.has(testKey(2)) {
		t.Error("a has kept an order")
	}
	a.workers.setHealth(nil)
	eventually(t, "the slots of both nodes", func() bool { return capacity() == 4 })
}
