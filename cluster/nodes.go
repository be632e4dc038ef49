package cluster

import (
	"slices"

	"github.com/caravan-dag/caravan/cluster/raftlog"
)

// Node is a node of the cluster, for users.
type Node struct {
	ID      raftlog.NodeID
	Name    string
	Address string // of its port, as the configuration lists it; "" = it is not listed
}

// Nodes returns all nodes of the cluster, by name: the members of its first partition, as this node knows
// them, or those that formed it.
func (m *Member) Nodes() (nodes []Node) {
	members := m.hosts[0].group.Members()
	ids := slices.Concat(members.Voters, members.Learners)
	if len(ids) == 0 {
		ids = m.identity.ids()
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
