package clustertest

import (
	"context"
	"fmt"
	"time"

	"github.com/caravan-dag/caravan/internal/clustertest/history"
)

// Digests returns the digests of all replicas, which a node collects, for History. All nodes must be ready.
func (c *Cluster) Digests(node string) (all []history.Digest, err error) {
	reader := c.NewClient(-1)
	defer reader.Close()
	api := reader.apiOf(node)
	ctx, cancel := context.WithTimeout(context.Background(), 2*Patience)
	defer cancel()
	for { // an election that has just begun must not end the test
		all, err = nil, nil
		found, verr := api.VerifyCluster(ctx)
		if verr != nil {
			err = fmt.Errorf("digests of all replicas, from node %s: %w", node, verr)
		} else {
			for _, p := range found.Partitions {
				if p.Problem != "" {
					err = fmt.Errorf("digests of partition %d, from node %s: %s", p.Partition, node, p.Problem)
				}
				for _, r := range p.Replicas {
					if r.Problem != "" {
						err = fmt.Errorf("digest of partition %d on node %s: %s", p.Partition, r.Node, r.Problem)
					}
					all = append(all, history.Digest{Node: r.Node, Partition: int(p.Partition), Position: p.Index, Sum: r.Digest})
				}
			}
		}
		if err == nil || ctx.Err() != nil {
			return all, err
		}
		sleepContext(ctx, 200*time.Millisecond)
	}
}
