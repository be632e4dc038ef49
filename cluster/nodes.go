package cluster

import "github.com/caravan-dag/caravan/cluster/raftlog"

// Node is a node of the cluster, for users.
type Node struct {
	ID      raftlog.NodeID
	Name    string
	Address string // of its port, as the configuration lists it; "" = it is not listed
}

// Nodes returns all nodes of the cluster, by name.
func (m *Member) Nodes() (nodes []Node) {
	for _, member := range m.identity.Members {
		place, _ := m.placeOf(member.ID)
		nodes = append(nodes, Node{ID: member.ID, Name: member.Name, Address: place.Address})
	}
	return nodes
}
