package http

import (
	"context"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/messages"
)

// UpgradeLevel stands for a cluster in which n2 alone hears all nodes.
func (n *clusterNode) UpgradeLevel(context.Context) (from, level int, err error) {
	if !strings.HasPrefix(n.id, "n2") {
		return 0, 0, &messages.Error{Code: messages.Conflict, Text: "not heard: n3. All nodes must run to raise the feature level"}
	}
	return 0, 1, nil
}

// TestUpgradeCluster answers with both levels, or with the reason of the refusal.
func TestUpgradeCluster(t *testing.T) {
	rig := newClusterRig(t, 2)
	n := rig.node("n2")
	sameJSON(t, n.do("POST", upgradePath, "").body, `{"from":0,"level":1}`)
	if r := rig.node("n1").do("POST", upgradePath, ""); r.status != 409 || !strings.Contains(string(r.body), "not heard: n3") {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := n.do("POST", upgradePath+"?to=2", ""); r.status != 400 || !strings.Contains(string(r.body), "unknown query parameter") {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := serve(t, contractEngine(t)).do("POST", upgradePath, ""); r.status != 404 {
		t.Errorf("a server on its own answers %d", r.status)
	}
}
