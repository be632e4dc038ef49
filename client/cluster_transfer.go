package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// LeaderTransfer is a change of the leader of a partition.
type LeaderTransfer struct {
	Partition uint64 `json:"partition"`
	From      string `json:"from"` // IDs of nodes
	To        string `json:"to"`   // "" when no node was found
	Problem   string `json:"problem"`
}

// TransferLeader makes a node, given by its name or ID, the leader of a partition, and returns when it serves.
func (c *Client) TransferLeader(ctx context.Context, partition uint64, node string) (*LeaderTransfer, error) {
	all, err := c.transferLeaders(ctx, url.Values{"partition": {strconv.FormatUint(partition, 10)}, "to": {node}})
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return &all[0], nil
}

// TransferAllLeaders gives the leaderships of a node to others, and returns when those serve. A leadership that
// did not move has a Problem.
func (c *Client) TransferAllLeaders(ctx context.Context, from string) ([]LeaderTransfer, error) {
	return c.transferLeaders(ctx, url.Values{"from": {from}})
}

func (c *Client) transferLeaders(ctx context.Context, query url.Values) ([]LeaderTransfer, error) {
	var out struct {
		Transfers []LeaderTransfer `json:"transfers"`
	}
	if err := c.callJSON(ctx, &call{method: http.MethodPost, path: "/v1/cluster/transfer" + encodeQuery(query)}, &out); err != nil {
		return nil, err
	}
	return out.Transfers, nil
}
