package client

import (
	"context"
	"net/http"
)

// UpgradeCluster raises the feature level of a cluster to the highest one that all nodes support, and returns the
// former and the present level. They are equal if there was nothing to raise.
func (c *Client) UpgradeCluster(ctx context.Context) (from, level int, err error) {
	var out struct {
		From  int `json:"from"`
		Level int `json:"level"`
	}
	err = c.callJSON(ctx, &call{method: http.MethodPost, path: "/v1/cluster/upgrade"}, &out)
	return out.From, out.Level, err
}
