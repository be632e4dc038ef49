package http

import (
	"context"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/messages"
)

// Repair stands for a cluster in which the replica of n3 cannot be repaired.
func (n *clusterNode) Repair(_ context.Context, partition uint64, node string) (ReplicaRepair, error) {
	if node == "n3" {
		return ReplicaRepair{}, &messages.Error{Code: messages.Conflict, Text: "1 of 3 replicas are known to be right"}
	}
	return ReplicaRepair{Partition: partition, Node: node, Source: n.id, Verification: PartitionVerification{Index: 12, Equal: true,
		Replicas: []ReplicaVerification{{Node: node, Digest: "aa", Rows: 3}}}}, nil
}

// TestRepairReplica answers with the comparison after the repair, or with the reason of the refusal.
func TestRepairReplica(t *testing.T) {
	n := newClusterRig(t, 2).node("n2")
	sameJSON(t, n.do("POST", repairPath+"?partition=7&node=n1", "").body, `{"node":"n1","source":"n2","verification":
		{"partition":7,"index":12,"equal":true,"replicas":[{"node":"n1","digest":"aa","rows":3,"differs":false,"problem":""}],"problem":""}}`)
	for query, want := range map[string]struct {
		status int
		text   string
	}{
		"?partition=0&node=n3":      {409, "are known to be right"},
		"":                          {400, "give partition and node"},
		"?partition=0":              {400, "give partition and node"},
		"?node=n1":                  {400, "give partition and node"},
		"?partition=x&node=n1":      {400, "must be a number from 0 upwards"},
		"?partition=0&node=n1&to=a": {400, "unknown query parameter"},
	} {
		if r := n.do("POST", repairPath+query, ""); r.status != want.status || !strings.Contains(string(r.body), want.text) {
			t.Errorf("%s: %d %s", query, r.status, r.body)
		}
	}
	if r := serve(t, contractEngine(t)).do("POST", repairPath+"?partition=0&node=n1", ""); r.status != 404 {
		t.Errorf("a server on its own answers %d", r.status)
	}
}
