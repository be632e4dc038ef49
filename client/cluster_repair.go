package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// ReplicaRepair is a replica whose rows were replaced by those of another one, and the comparison after that.
type ReplicaRepair struct {
	Node         string                `json:"node"`   // IDs of nodes
	Source       string                `json:"source"` // the leader
	Verification PartitionVerification `json:"verification"`
}

// RepairReplica replaces the rows of a replica by those of the leader. The node is given by its name or ID. All
// replicas read their rows before and after, so ctx should leave time for that.
func (c *Client) RepairReplica(ctx context.Context, partition uint64, node string) (*ReplicaRepair, error) {
	query := url.Values{"partition": {strconv.FormatUint(partition, 10)}, "node": {node}}
	out := new(ReplicaRepair)
	if err := c.callJSON(ctx, &call{method: http.MethodPost, path: "/v1/cluster/repair" + encodeQuery(query)}, out); err != nil {
		return nil, err
	}
	return out, nil
}
