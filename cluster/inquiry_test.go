package cluster

import (
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/messages"
)

// TestDeletedRuns: each node learns from the leader of a partition which of some runs do not exist, as many as
// one question may have.
func TestDeletedRuns(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2)
	runs := c.mustSubmit(1, 3)
	var gone []messages.RunID
	for n := uint64(1 << 50); len(runs)+len(gone) < MaxDeletedRuns; n += 2 { // long IDs: the line is as long as it gets
		gone = append(gone, messages.RunID(n+1))
	}
	for _, n := range c.nodes {
		deleted, err := n.running().DeletedRuns(t.Context(), 1, slices.Concat(gone, runs))
		if err != nil || !slices.Equal(deleted, gone) {
			t.Errorf("%s: %d runs, %v, want %d", n.name, len(deleted), err, len(gone))
		}
	}
	leader, _ := c.leaderOf(1)
	if deleted, err := leader.running().deletedRunsHere(t.Context(), 1, []messages.RunID{2}); deleted != nil || err == nil ||
		!strings.Contains(err.Error(), "run 2 is not of partition 1") {
		t.Errorf("a run of another partition: %v, %v", deleted, err)
	}
	other := c.nodes[0]
	if other == leader {
		other = c.nodes[1]
	}
	if deleted, err := other.running().deletedRunsHere(t.Context(), 1, gone); deleted != nil || err != errNotLeader {
		t.Errorf("a node that does not lead: %v, %v", deleted, err)
	}
}
