package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// awaitTable waits until all nodes that run have the same table, and reports whether it is as wanted.
func (c *testCluster) awaitTable(what string, isWanted func(*nodeTable) bool) {
	c.t.Helper()
	testenv.EventuallyWithin(c.t, patience, what, func() bool {
		var first *nodeTable
		for _, n := range c.nodes {
			m := n.running()
			if m == nil {
				continue
			}
			t := m.table()
			if t == nil || !isWanted(t) || first != nil && (first.Version != t.Version || !first.equals(t)) {
				return false
			}
			first = t
		}
		return first != nil
	})
}

// awaitOwnTable waits until all nodes have a table of this cluster that has exactly them, with all partitions.
func (c *testCluster) awaitOwnTable() {
	c.t.Helper()
	c.awaitTable("the table is of these nodes", func(table *nodeTable) bool {
		for _, n := range c.nodes {
			id := n.running().Self()
			if node := table.node(id); node == nil || node.State != nodeActive || node.Address != n.name {
				return false
			}
			for _, hosts := range table.Hosts {
				if !slices.Contains(hosts, id) || len(hosts) != len(c.nodes) {
					return false
				}
			}
		}
		return table.Cluster == c.nodes[0].running().Cluster().String() && len(table.Nodes) == len(c.nodes)
	})
}

// changeTable changes the table at the leader of partition 0, whichever that is.
func (c *testCluster) changeTable(change func(*nodeTable)) {
	c.t.Helper()
	testenv.RepeatWithin(c.t, patience, "the table is changed", func() bool {
		leader, _ := c.leaderOf(0)
		err := leader.running().tables.changeTable(func(t *nodeTable) error { change(t); return nil })
		if err != nil && !errors.Is(err, errNotLeader) {
			c.t.Fatal(err)
		}
		return err == nil
	})
}

// TestTableIsSpread: a new cluster has a table of its nodes, a change of it reaches all nodes, and those that start
// later have it from their cache or from others.
func TestTableIsSpread(t *testing.T) {
	t.Parallel()
	for _, partitions := range []int{1, 2} {
		t.Run(fmt.Sprint(partitions), func(t *testing.T) {
			c := startCluster(t, partitions)
			c.awaitTable("all nodes have the first table", func(table *nodeTable) bool {
				return table.Level == supportedLevel && len(table.Nodes) == 3 && len(table.Hosts) == partitions && len(table.Hosts[0]) == 3 && table.Nodes[0].Address == "n1"
			})
			stale := c.nodes[2]
			former := stale.running().table()
			stale.close()
			joining := tableNode{ID: "n4-0000000000000004", Address: "n4", State: nodeJoining}
			c.changeTable(func(t *nodeTable) { t.Nodes = append(t.Nodes, joining) })
			stale.start()
			if now := stale.running().tables; now.version() < former.Version {
				t.Errorf("version %d after %d", now.version(), former.Version)
			}
			c.awaitTable("all nodes know the joining one", func(table *nodeTable) bool { return table.node(joining.ID) != nil })
			m := stale.running()
			if place, err := m.placeOf(joining.ID); err != nil || place != (NodeAddress{Name: "n4", Address: "n4"}) {
				t.Errorf("the joining node is at %v, %v", place, err)
			}
			if nodes := m.Nodes(); len(nodes) != 4 || nodes[3].Address != "n4" {
				t.Errorf("the nodes are %v", nodes)
			}
			newest := m.table()
			if err := m.tables.adopt(former); err != nil || m.table() != newest {
				t.Errorf("an old table takes the place of a newer one, %v", err)
			}
			c.checkReplicas()
		})
	}
}

// TestTableAcrossLeaders: versions ascend, and no committed change is lost, while the leader of partition 0 changes.
func TestTableAcrossLeaders(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	for i := range 3 {
		id := nodeID(fmt.Sprintf("n%d-%016d", 4+i, i))
		c.changeTable(func(t *nodeTable) {
			if t.node(id) == nil {
				t.Nodes = append(t.Nodes, tableNode{ID: id, State: nodeJoining})
			}
		})
		c.handOver(0)
	}
	c.awaitTable("all nodes have all changes", func(table *nodeTable) bool { return len(table.Nodes) == 6 })
	c.checkReplicas()
}

// TestTableCacheIsLost: a crash between the row and the cache, a damaged cache and one of another cluster cost
// nothing.
func TestTableCacheIsLost(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	c.awaitTable("all nodes have the first table", func(*nodeTable) bool { return true })
	former := map[*testNode][]byte{}
	for _, n := range c.nodes {
		text, err := os.ReadFile(filepath.Join(n.dir, tableFile))
		if err != nil {
			t.Fatal(err)
		}
		former[n] = text
	}
	c.changeTable(func(t *nodeTable) {
		t.Nodes = append(t.Nodes, tableNode{ID: "n4-0000000000000004", State: nodeJoining})
	})
	version := c.nodes[0].running().table().Version
	c.each((*testNode).close)
	for i, n := range c.nodes {
		text := [][]byte{former[n], []byte("{"), []byte(strings.Replace(string(former[n]), `"cluster": "`, `"cluster": "00`, 1))}[i]
		if err := os.WriteFile(filepath.Join(n.dir, tableFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.each((*testNode).start)
	c.awaitTable("all nodes have the row again", func(table *nodeTable) bool {
		return table.Version >= version && table.node("n4-0000000000000004") != nil
	})
}

// TestUpgradeLevel: a cluster of an older program has level 0, until all nodes run a newer one and an operator raises
// it. From then on the older program refuses the folder.
func TestUpgradeLevel(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 1)
	old := 0
	c.each(func(n *testNode) { n.level = &old })
	c.each((*testNode).start)
	c.awaitTable("the cluster has level 0", func(table *nodeTable) bool { return table.Level == 0 })
	if from, to, err := c.nodes[0].running().UpgradeLevel(t.Context()); from != 0 || to != 0 || err != nil {
		t.Errorf("levels %d, %d, %v", from, to, err)
	}
	refused := func(text string) {
		t.Helper()
		testenv.EventuallyWithin(t, patience, text, func() bool {
			_, _, err := c.nodes[0].running().UpgradeLevel(t.Context())
			if err == nil {
				t.Fatal("the level is raised")
			}
			return code(err) == messages.Conflict && strings.Contains(err.Error(), text)
		})
	}
	for _, n := range c.nodes[:2] {
		n.close()
		n.level = nil
		n.start()
	}
	refused("too old for a feature level above 0: n3")
	c.nodes[2].close()
	refused("not heard: n3")
	c.nodes[2].level = nil
	c.nodes[2].start()
	testenv.RepeatWithin(t, patience, "the level is raised", func() bool {
		_, to, err := c.nodes[0].running().UpgradeLevel(t.Context())
		return err == nil && to == 1
	})
	c.awaitTable("all nodes know level 1", func(table *nodeTable) bool { return table.Level == 1 })
	n := c.nodes[1]
	n.close()
	text, err := os.ReadFile(filepath.Join(n.dir, identityFile))
	if err != nil || !strings.Contains(string(text), `"format": 2`) {
		t.Errorf("node.json is %s, %v", text, err)
	}
	n.level = &old
	if m, err := Open(t.Context(), n.config()); err == nil || !strings.Contains(err.Error(), "the cluster has feature level 1, and this program supports levels up to 0") {
		t.Errorf("an older program opens the folder: %v, %v", m, err)
	}
	n.level = nil
	n.start()
	c.mustSubmit(0, 1)
	c.checkReplicas()
}
