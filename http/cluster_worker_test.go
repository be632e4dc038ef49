package http

import (
	"context"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/messages"
)

// DeclareWorkerDead stands for a cluster with the worker gpu.1.
func (n *clusterNode) DeclareWorkerDead(_ context.Context, worker string) error {
	if worker != "gpu.1" {
		return &messages.Error{Code: messages.NotFound, Text: "no partition has attempts of a worker " + worker}
	}
	return nil
}

// TestDeclareWorkerDead answers with the ID of the worker, or with the reason of the refusal.
func TestDeclareWorkerDead(t *testing.T) {
	n := newClusterRig(t, 2).node("n2")
	sameJSON(t, n.do("POST", deadWorkerPath+"?worker=gpu.1", "").body, `{"dead":"gpu.1"}`)
	for query, want := range map[string]struct {
		status int
		text   string
	}{
		"?worker=gpu.2": {404, "no partition"}, "": {400, "give worker"}, "?worker=": {400, "give worker"}, "?id=gpu.1": {400, "unknown query parameter"},
	} {
		if r := n.do("POST", deadWorkerPath+query, ""); r.status != want.status || !strings.Contains(string(r.body), want.text) {
			t.Errorf("%s: %d %s", query, r.status, r.body)
		}
	}
}

// TestLargestTask proves that a submission is compared with what the cluster has at present.
func TestLargestTask(t *testing.T) {
	largest := int64(2000)
	rig := newClusterRig(t, 1, func(c *Config) {
		c.Limits.MaxCPUMillis = 1000
		c.LargestTask = func() (int64, int64) { return largest, 0 }
	})
	validate := func() int {
		return rig.node("n1").do("POST", "/v1/dagrun/validate", `{"tasks":{"a":{"job":{"command":["true"],"cores":4}}}}`).status
	}
	if got := validate(); got != 400 {
		t.Errorf("too large: %d", got)
	}
	largest = 8000
	if got := validate(); got != 200 {
		t.Errorf("large enough: %d", got)
	}
}
