package http

import "testing"

// TestVerifyCluster shows the comparison of replicas at any node, and refuses it on a server on its own.
func TestVerifyCluster(t *testing.T) {
	rig := newClusterRig(t, 2)
	rig.verified = []PartitionVerification{
		{Index: 12, Equal: true, Replicas: []ReplicaVerification{{Node: "n1", Digest: "aa", Rows: 3}}},
		{Problem: "no leader"},
		{Index: 4, Replicas: []ReplicaVerification{{Node: "n1", Digest: "ab", Rows: 3, Differs: true}, {Node: "n2", Problem: "away"}}},
	}
	sameJSON(t, rig.node("n2").do("POST", verifyPath, "").body, `{"equal":false,"partitions":[
		{"partition":0,"index":12,"equal":true,"replicas":[{"node":"n1","digest":"aa","rows":3,"differs":false,"problem":""}],"problem":""},
		{"partition":1,"index":0,"equal":false,"replicas":[],"problem":"no leader"},
		{"partition":2,"index":4,"equal":false,"replicas":[{"node":"n1","digest":"ab","rows":3,"differs":true,"problem":""},
			{"node":"n2","digest":"","rows":0,"differs":false,"problem":"away"}],"problem":""}]}`)
	rig.verified = rig.verified[:1]
	sameJSON(t, rig.node("n1").do("POST", verifyPath, "").body, `{"equal":true,"partitions":[
		{"partition":0,"index":12,"equal":true,"replicas":[{"node":"n1","digest":"aa","rows":3,"differs":false,"problem":""}],"problem":""}]}`)
	if r := serve(t, contractEngine(t)).do("POST", verifyPath, ""); r.status != 404 {
		t.Errorf("a server on its own answers %d", r.status)
	}
}
