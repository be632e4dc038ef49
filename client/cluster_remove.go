package client

import (
	"context"
	"net/http"
	"net/url"
)

// RemoveNode takes a node that does not run out of a cluster, and returns its ID. The node is given by its name or
// ID.
func (c *Client) RemoveNode(ctx context.Context, node string) (id string, err error) {
	var out struct {
		Removed string `json:"removed"`
	}
	err = c.callJSON(ctx, &call{method: http.MethodPost, path: "/v1/cluster/remove" + encodeQuery(url.Values{"node": {node}})}, &out)
	return out.Removed, err
}
