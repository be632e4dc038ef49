package http

import (
	"context"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/messages"
)

// Transfer stands for a cluster of one partition that n3 does not lead.
func (n *clusterNode) Transfer(_ context.Context, partition uint64, to string) (LeaderTransfer, error) {
	if to == "n3" {
		return LeaderTransfer{}, &messages.Error{Code: messages.Conflict, Text: "node n3 is not heard"}
	}
	return LeaderTransfer{Partition: partition, From: n.id, To: to}, nil
}

func (n *clusterNode) TransferAll(_ context.Context, from string) ([]LeaderTransfer, error) {
	if from == "n3" {
		return nil, nil
	}
	return []LeaderTransfer{{Partition: 0, From: from, To: "n3"}, {Partition: 4, From: from, Problem: "no other node"}}, nil
}

// TestTransferLeaders: a node is asked for one partition, or for all of another node.
func TestTransferLeaders(t *testing.T) {
	rig := newClusterRig(t, 2)
	n := rig.node("n2")
	for query, want := range map[string]string{
		"?partition=7&to=n1": `{"transfers":[{"partition":7,"from":"n2","to":"n1","problem":""}]}`,
		"?from=n1":           `{"transfers":[{"partition":0,"from":"n1","to":"n3","problem":""},{"partition":4,"from":"n1","to":"","problem":"no other node"}]}`,
		"?from=n3":           `{"transfers":[]}`,
	} {
		sameJSON(t, n.do("POST", transferPath+query, "").body, want)
	}
	for query, want := range map[string]struct {
		status int
		text   string
	}{
		"?partition=0&to=n3":       {409, "node n3 is not heard"},
		"":                         {400, "give either"},
		"?partition=0":             {400, "give either"},
		"?to=n1":                   {400, "give either"},
		"?partition=0&from=n1":     {400, "give either"},
		"?partition=0&to=a&from=b": {400, "give either"},
		"?partition=-1&to=n1":      {400, "must be a number from 0 upwards"},
		"?partition=0&too=n1":      {400, "unknown query parameter"},
	} {
		if r := n.do("POST", transferPath+query, ""); r.status != want.status || !strings.Contains(string(r.body), want.text) {
			t.Errorf("%s: %d %s", query, r.status, r.body)
		}
	}
	if r := serve(t, contractEngine(t)).do("POST", transferPath+"?from=n1", ""); r.status != 404 {
		t.Errorf("a server on its own answers %d", r.status)
	}
}
