package cluster

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/clustertls"
	"github.com/caravan-dag/caravan/messages"
)

// nodeTable says which nodes the cluster has, where they are and what they host. Its leader keeps it in a row of
// partition 0, and the other nodes have copies, which may be old. So it is a hint for addresses,
// placement and operation: the members of a group are what its log says. A table that was shared is never changed.
type nodeTable struct {
	Cluster string // the ID, in hexadecimal: rows of a former cluster may have come with a seed
	// Version is 1 for the first table of a cluster and ascends by 1 with each change. All changes go through the log of
	// partition 0, so two tables of a cluster with the same version are equal.
	Version uint64
	Level   int          // the feature level
	Nodes   []tableNode  // by ascending IDs
	Hosts   [][]nodeID   // by partition: the nodes that have a replica, by ascending IDs
	Move    *replicaMove // at most one is under way in the cluster; nil without one
}

// nodeID shortens the types of this file.
type nodeID = raftlog.NodeID

// tableNode is a node of the table. Its ID tells its name (nameOfID).
type tableNode struct {
	ID      nodeID    `json:"id"`
	Address string    `json:"address,omitempty"` // host and port; "" = unknown
	State   nodeState `json:"state"`
}

// nodeState says what the cluster does with a node.
type nodeState string

const (
	nodeJoining nodeState = "joining" // it has no replica yet
	nodeActive  nodeState = "active"
	nodeLeaving nodeState = "leaving" // an operator removes it
)

// replicaMove is the change of a partition's hosts that is under way: To gets a replica, and then From loses its one.
type replicaMove struct {
	Partition int    `json:"partition"`
	To        nodeID `json:"to,omitempty"`   // "" = no node gets one
	From      nodeID `json:"from,omitempty"` // "" = no node loses one
}

// tableText is the JSON form of a nodeTable. Hosts are positions in Nodes: with IDs, the tables of many partitions
// would be ten times as long.
type tableText struct {
	Cluster string       `json:"cluster"`
	Version uint64       `json:"version"`
	Level   int          `json:"level"`
	Nodes   []tableNode  `json:"nodes"`
	Hosts   [][]int      `json:"hosts"`
	Move    *replicaMove `json:"move,omitempty"`
}

// maxTableBytes bounds the JSON form: it is one row, which is at most a part of an entry of the log.
const maxTableBytes = maxJSONBytes / 2

// encode returns the JSON form of a table. An invalid table is an error: no node could read it.
func (t *nodeTable) encode() ([]byte, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	text := tableText{Cluster: t.Cluster, Version: t.Version, Level: t.Level, Nodes: t.Nodes, Hosts: make([][]int, len(t.Hosts)), Move: t.Move}
	for p, hosts := range t.Hosts {
		text.Hosts[p] = []int{}
		for _, id := range hosts {
			text.Hosts[p] = append(text.Hosts[p], t.index(id))
		}
	}
	data, err := json.Marshal(&text)
	if err == nil && len(data) > maxTableBytes {
		err = fmt.Errorf("table of the nodes: it has %d bytes, at most %d are possible", len(data), maxTableBytes)
	}
	return data, err
}

// decodeTable reads what encode has written.
func decodeTable(data []byte) (*nodeTable, error) {
	if len(data) > maxTableBytes {
		return nil, fmt.Errorf("table of the nodes: it has %d bytes, at most %d are possible", len(data), maxTableBytes)
	}
	var text tableText
	if err := json.Unmarshal(data, &text); err != nil {
		return nil, fmt.Errorf("table of the nodes: %w", err)
	}
	t := &nodeTable{Cluster: text.Cluster, Version: text.Version, Level: text.Level, Nodes: text.Nodes, Hosts: make([][]nodeID, len(text.Hosts)), Move: text.Move}
	for p, hosts := range text.Hosts {
		for _, i := range hosts {
			if i < 0 || i >= len(t.Nodes) {
				return nil, fmt.Errorf("table of the nodes: partition %d: node %d of %d", p, i, len(t.Nodes))
			}
			t.Hosts[p] = append(t.Hosts[p], t.Nodes[i].ID)
		}
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	return t, nil
}

// check says why no leader can have made the table.
func (t *nodeTable) check() error {
	problem := t.problem()
	if problem == nil {
		return nil
	}
	return fmt.Errorf("table of the nodes, version %d: %w", t.Version, problem)
}

func (t *nodeTable) problem() error {
	if id, err := hex.DecodeString(t.Cluster); err != nil || len(id) != len(ID{}) {
		return fmt.Errorf("invalid cluster ID %q", t.Cluster)
	}
	switch {
	case t.Version == 0:
		return errors.New("it has no version")
	case t.Level < 0:
		return fmt.Errorf("feature level %d", t.Level)
	case len(t.Nodes) == 0:
		return errors.New("it has no nodes")
	case len(t.Hosts) == 0 || len(t.Hosts) > messages.MaxPartitions:
		return fmt.Errorf("%d partitions: must be 1 to %d", len(t.Hosts), messages.MaxPartitions)
	}
	for i, n := range t.Nodes {
		if err := clustertls.CheckName(nameOfID(n.ID)); err != nil {
			return fmt.Errorf("node %q: %w", n.ID, err)
		}
		if i > 0 && n.ID <= t.Nodes[i-1].ID {
			return fmt.Errorf("node %s follows %s", n.ID, t.Nodes[i-1].ID)
		}
		switch n.State {
		case nodeJoining, nodeActive, nodeLeaving:
		default:
			return fmt.Errorf("node %s: unknown state %q", n.ID, n.State)
		}
	}
	for p, hosts := range t.Hosts {
		for i, id := range hosts {
			if t.node(id) == nil {
				return fmt.Errorf("partition %d: unknown node %s", p, id)
			}
			if i > 0 && id <= hosts[i-1] {
				return fmt.Errorf("partition %d: node %s follows %s", p, id, hosts[i-1])
			}
		}
	}
	if m := t.Move; m != nil {
		if m.Partition < 0 || m.Partition >= len(t.Hosts) || m.To == m.From {
			return fmt.Errorf("move of partition %d from %q to %q", m.Partition, m.From, m.To)
		}
		for _, id := range []nodeID{m.To, m.From} {
			if id != "" && t.node(id) == nil {
				return fmt.Errorf("move of partition %d: unknown node %s", m.Partition, id)
			}
		}
	}
	return nil
}

// index returns the position of a node in Nodes; -1 = the table lacks it.
func (t *nodeTable) index(id nodeID) int {
	i, ok := slices.BinarySearchFunc(t.Nodes, id, func(n tableNode, id nodeID) int { return cmp.Compare(n.ID, id) })
	if !ok {
		return -1
	}
	return i
}

// node returns a node of the table, nil if it lacks the node. It may be called on nil.
func (t *nodeTable) node(id nodeID) *tableNode {
	if t == nil {
		return nil
	}
	if i := t.index(id); i >= 0 {
		return &t.Nodes[i]
	}
	return nil
}

// isHost reports whether any partition has a replica on a node.
func (t *nodeTable) isHost(id nodeID) bool {
	return slices.ContainsFunc(t.Hosts, func(hosts []nodeID) bool { return slices.Contains(hosts, id) })
}

// isListedWithout reports whether a node is one of the cluster without a replica of partition 0. It may be called on
// nil.
func (t *nodeTable) isListedWithout(id nodeID) bool {
	n := t.node(id)
	return n != nil && n.State != nodeLeaving && !slices.Contains(t.Hosts[0], id)
}

// clone returns a copy that can be changed.
func (t *nodeTable) clone() *nodeTable {
	c := *t
	c.Nodes, c.Hosts = slices.Clone(t.Nodes), slices.Clone(t.Hosts)
	for p := range c.Hosts {
		c.Hosts[p] = slices.Clone(c.Hosts[p])
	}
	if t.Move != nil {
		move := *t.Move
		c.Move = &move
	}
	return &c
}

// equals reports whether two tables say the same, whatever their versions.
func (t *nodeTable) equals(o *nodeTable) bool {
	return t.Cluster == o.Cluster && t.Level == o.Level && slices.Equal(t.Nodes, o.Nodes) &&
		slices.EqualFunc(t.Hosts, o.Hosts, slices.Equal[[]nodeID]) &&
		(t.Move == nil) == (o.Move == nil) && (t.Move == nil || *t.Move == *o.Move)
}

// setHosts notes the members of a partition's group, in any order, and adds those that the table lacks. A node that
// was joining and has a replica is active.
func (t *nodeTable) setHosts(partition int, members []nodeID) {
	t.Hosts[partition] = slices.Compact(slices.Sorted(slices.Values(members)))
	for _, id := range t.Hosts[partition] {
		if n := t.addNode(id); n.State == nodeJoining {
			n.State = nodeActive
		}
	}
}

// addNode returns a node of the table, which it adds as an active one if the table lacks it.
func (t *nodeTable) addNode(id nodeID) *tableNode {
	i, ok := slices.BinarySearchFunc(t.Nodes, id, func(n tableNode, id nodeID) int { return cmp.Compare(n.ID, id) })
	if !ok {
		t.Nodes = slices.Insert(t.Nodes, i, tableNode{ID: id, State: nodeActive})
	}
	return &t.Nodes[i]
}

// setAddresses notes where nodes are, as an operator lists them.
func (t *nodeTable) setAddresses(list []NodeAddress) {
	for i := range t.Nodes {
		for _, node := range list {
			if node.Name == nameOfID(t.Nodes[i].ID) && node.Address != "" {
				t.Nodes[i].Address = node.Address
			}
		}
	}
}

// setLeaving notes that an operator removes the nodes of a name.
func (t *nodeTable) setLeaving(name string) {
	for i := range t.Nodes {
		if nameOfID(t.Nodes[i].ID) == name {
			t.Nodes[i].State = nodeLeaving
		}
	}
}

// dropFormer drops the nodes without a replica that an operator has removed, or whose place a node of the same name
// has taken. A move from or to such a node is over.
func (t *nodeTable) dropFormer() {
	hosting := map[string]bool{} // by name
	for _, n := range t.Nodes {
		hosting[nameOfID(n.ID)] = hosting[nameOfID(n.ID)] || t.isHost(n.ID)
	}
	t.Nodes = slices.DeleteFunc(t.Nodes, func(n tableNode) bool {
		return !t.isHost(n.ID) && (n.State == nodeLeaving || hosting[nameOfID(n.ID)])
	})
	if m := t.Move; m != nil && (m.To != "" && t.node(m.To) == nil || m.From != "" && t.node(m.From) == nil) {
		t.Move = nil
	}
}
