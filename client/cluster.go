package client

import (
	"context"
	"net/http"
)

// Cluster is a cluster as the node that answers sees it. A node that is cut off from the others answers,
// too.
type Cluster struct {
	ID         string             `json:"id"`
	Node       string             `json:"node"` // the ID of the node that answers
	Nodes      []ClusterNode      `json:"nodes"`
	Partitions []ClusterPartition `json:"partitions"` // by number
	Workers    []ClusterWorker    `json:"workers"`    // those without a node, by their IDs
	Level      int                `json:"level"`      // the feature level
}

// ClusterNode is a node of a cluster. Its ID is that of its folder, its name that of the configuration.
type ClusterNode struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"` // host:port for other nodes; "" = unknown
	// Slots is what the node has for tasks, and Taken what tasks take of it. Both are zero until the answering node
	// has heard of the node.
	Slots    ClusterSlots `json:"slots"`
	Taken    ClusterSlots `json:"taken"`
	Running  int          `json:"running"`  // tasks
	Waiting  int          `json:"waiting"`  // tasks whose orders wait there
	Draining bool         `json:"draining"` // the node starts no more tasks
	// ClockSkewSeconds is how far the clock of the node is ahead (+) of or behind (-) that of the answering one, at
	// least. 0 is unknown, or no more than the delay of an answer can explain.
	ClockSkewSeconds float64 `json:"clockSkewSeconds"`
}

// ClusterWorker is a worker without a node. Its ID is that of its folder, its name that of its certificate.
type ClusterWorker struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"` // from which it has connected to the answering node; "" = unknown
	// State is "connected", "draining", or "silent" for a worker that is not connected to the answering node, while a
	// partition that this node leads may have tasks there.
	State   string       `json:"state"`
	Slots   ClusterSlots `json:"slots"`
	Taken   ClusterSlots `json:"taken"`
	Running int          `json:"running"` // tasks
	Waiting int          `json:"waiting"` // tasks whose orders wait there
}

// ClusterSlots is an amount of a node.
type ClusterSlots struct {
	Cores    float64 `json:"cores"`
	MemoryMB int64   `json:"memoryMB"`
}

// ClusterPartition is a partition of the runs, as the answering node knows it.
type ClusterPartition struct {
	Partition uint64 `json:"partition"`
	Replica   bool   `json:"replica"` // the node has a replica; Applied and Lag are 0 without one
	Leader    string `json:"leader"`  // the ID of a node; "" = unknown
	Term      uint64 `json:"term"`    // of that leader
	Applied   uint64 `json:"applied"` // the log entry up to which the replica has the rows
	Lag       uint64 `json:"lag"`     // committed entries that the replica has yet to apply
	Lease     bool   `json:"lease"`   // the answering node leads, and may answer reads
	// Verified is the entry as of which the replicas were compared last, as far as the node knows; 0 = never.
	Verified  uint64   `json:"verified"`
	Differing []string `json:"differing"` // IDs of nodes whose replicas had other rows than most
}

// NameOf returns the name of a node, or its ID when the cluster does not list it.
func (c *Cluster) NameOf(id string) string {
	for _, n := range c.Nodes {
		if n.ID == id && n.Name != "" {
			return n.Name
		}
	}
	return id
}

// Cluster returns the cluster of the server. A server that is not a node of one is an ErrNotFound.
func (c *Client) Cluster(ctx context.Context) (*Cluster, error) {
	out := new(Cluster)
	if err := c.callJSON(ctx, &call{method: http.MethodGet, path: "/v1/cluster", isRepeatable: true}, out); err != nil {
		return nil, err
	}
	return out, nil
}
