package http

import (
	"context"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/messages"
)

// Remove stands for a cluster in which n3 runs.
func (n *clusterNode) Remove(_ context.Context, node string) (string, error) {
	if node == "n3" {
		return "", &messages.Error{Code: messages.Conflict, Text: "node n3 runs: stop it first"}
	}
	return node + "-7", nil
}

// TestRemoveNode answers with the ID of the node, or with the reason of the refusal.
func TestRemoveNode(t *testing.T) {
	n := newClusterRig(t, 2).node("n2")
	sameJSON(t, n.do("POST", removePath+"?node=n1", "").body, `{"removed":"n1-7"}`)
	for query, want := range map[string]struct {
		status int
		text   string
	}{
		"?node=n3": {409, "node n3 runs"}, "": {400, "give node"}, "?node=": {400, "give node"}, "?node=n1&force=1": {400, "unknown query parameter"},
	} {
		if r := n.do("POST", removePath+query, ""); r.status != want.status || !strings.Contains(string(r.body), want.text) {
			t.Errorf("%s: %d %s", query, r.status, r.body)
		}
	}
	if r := serve(t, contractEngine(t)).do("POST", removePath+"?node=n1", ""); r.status != 404 {
		t.Errorf("a server on its own answers %d", r.status)
	}
}
