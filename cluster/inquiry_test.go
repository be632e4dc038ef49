package cluster

import (
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/testenv"
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
		var deleted []messages.RunID
		testenv.EventuallyWithin(t, patience, n.name+" has the leader's answer", func() bool {
			var err error
			if deleted, err = n.running().DeletedRuns(t.Context(), 1, slices.Concat(gone, runs)); err != nil {
				t.Log(err) // another election
			}
			return err == nil
		})
		if !slices.Equal(deleted, gone) {
			t.Errorf("%s: %d runs, want %d", n.name, len(deleted), len(gone))
		}
	}
	testenv.EventuallyWithin(t, patience, "the leader refuses a run of another partition", func() bool {
		leader, _ := c.leaderOf(1)
		deleted, err := leader.running().deletedRunsHere(t.Context(), 1, []messages.RunID{2})
		return deleted == nil && err != nil && strings.Contains(err.Error(), "run 2 is not of partition 1")
	})
	testenv.EventuallyWithin(t, patience, "a node that does not lead says so", func() bool {
		leader, _ := c.leaderOf(1)
		deleted, err := c.others(leader)[0].running().deletedRunsHere(t.Context(), 1, gone)
		return deleted == nil && err == errNotLeader
	})
}
