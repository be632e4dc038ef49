package client

import (
	"context"
	"net/http"
	"net/url"
)

// DeclareWorkerDead says that a worker without a node does not come back, and returns when its tasks are lost. The
// worker is given by its ID.
func (c *Client) DeclareWorkerDead(ctx context.Context, worker string) error {
	return c.callJSON(ctx, &call{method: http.MethodPost, path: "/v1/cluster/worker/dead" + encodeQuery(url.Values{"worker": {worker}})}, nil)
}
