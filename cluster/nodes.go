package cluster

import (
	"context"
	"fmt"
	"net"
	"slices"

	"github.com/caravan-dag/caravan/cluster/raftlog"
)

// Node is a node of the cluster, for users.
type Node struct {
	ID      raftlog.NodeID
	Name    string
	Address string // of its port, as the configuration or the table of the nodes lists it; "" = neither does
}

// Nodes returns all nodes of the cluster, by name: the members of its first partition, as this node knows
// them (knownHosts), or those that formed it; and those of the table of the nodes that have no replica of this partition.
func (m *Member) Nodes() (nodes []Node) {
	ids := slices.Clone(m.knownHosts(0))
	if len(ids) == 0 {
		ids = m.identity.ids()
	}
	if t := m.table(); t != nil {
		for _, n := range t.Nodes {
			// The group alone says who has a replica: the table may be old.
			if !slices.Contains(t.Hosts[0], n.ID) && !slices.Contains(ids, n.ID) {
				ids = append(ids, n.ID)
			}
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		place, _ := m.placeOf(id)
		nodes = append(nodes, Node{ID: id, Name: nameOfID(id), Address: place.Address})
	}
	return nodes
}

// IsReplacement reports whether this node took the place of a former one of its name, which was lost.
func (m *Member) IsReplacement() bool { return m.identity.IsReplacement }

// placeOf returns the name and the address of a member: as the configuration lists them, or else as the table of the
// nodes does.
func (m *Member) placeOf(id raftlog.NodeID) (NodeAddress, error) {
	name := nameOfID(id)
	for _, node := range m.config.Nodes {
		if node.Name == name {
			return node, nil
		}
	}
	if n := m.table().node(id); n != nil && n.Address != "" {
		return NodeAddress{Name: name, Address: n.Address}, nil
	}
	return NodeAddress{}, fmt.Errorf("node %s is not a member of the cluster", id)
}

// Dial connects to another member.
func (m *Member) Dial(ctx context.Context, node raftlog.NodeID, protocol string) (net.Conn, error) {
	place, err := m.placeOf(node)
	if err != nil {
		return nil, err
	}
	conn, err := m.port.dialNode(ctx, place, protocol, m.cluster, node)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", node, err)
	}
	return conn, nil
}
