package client

import (
	"context"
	"net/http"
)

// Verification is the comparison of all replicas of a cluster.
type Verification struct {
	Equal      bool                    `json:"equal"` // all replicas were compared, and those of a partition have the same rows
	Partitions []PartitionVerification `json:"partitions"`
}

// PartitionVerification compares the replicas of a partition as of an entry of its log.
type PartitionVerification struct {
	Partition uint64                `json:"partition"`
	Index     uint64                `json:"index"` // of the entry
	Equal     bool                  `json:"equal"`
	Replicas  []ReplicaVerification `json:"replicas"`
	Problem   string                `json:"problem"` // why nothing was compared; "" = something was
}

// ReplicaVerification is what one replica says of its rows.
type ReplicaVerification struct {
	Node    string `json:"node"`   // ID
	Digest  string `json:"digest"` // hexadecimal; "" = none
	Rows    uint64 `json:"rows"`
	Differs bool   `json:"differs"` // most replicas have other rows
	Problem string `json:"problem"` // why there is no digest to compare; "" = there is one
}

// VerifyCluster compares the replicas of a cluster. Each of them reads all its rows, so ctx should leave time
// for that. A server that is not a node of a cluster is an ErrNotFound.
func (c *Client) VerifyCluster(ctx context.Context) (*Verification, error) {
	out := new(Verification)
	if err := c.callJSON(ctx, &call{method: http.MethodPost, path: "/v1/cluster/verify", isRepeatable: true}, out); err != nil {
		return nil, err
	}
	return out, nil
}
