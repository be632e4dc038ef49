package cluster

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// TestCompareMarksTheMinority: most replicas are right, and without a majority none is known to be.
func TestCompareMarksTheMinority(t *testing.T) {
	for _, tc := range []struct {
		digests string // one letter for each replica; "-" has none
		differ  string // the places of those that differ
		equal   bool
	}{
		{"aaa", "", true}, {"aba", "1", false}, {"baa", "0", false}, {"abc", "012", false}, {"aa-", "", false}, {"ab-", "01", false},
		{"---", "", false}, {"aabb", "0123", false}, {"abbb", "0", false}, {"", "", false},
	} {
		v := PartitionVerdict{}
		for _, digest := range strings.Split(tc.digests, "") {
			r := ReplicaDigest{Digest: digest}
			if digest == "-" {
				r = ReplicaDigest{Problem: "away"}
			}
			v.Replicas = append(v.Replicas, r)
		}
		v.compare()
		differ := ""
		for i, r := range v.Replicas {
			if r.Differs {
				differ += string(rune('0' + i))
			}
		}
		if differ != tc.differ || v.IsEqual() != tc.equal {
			t.Errorf("%s: %q differ, equal %v", tc.digests, differ, v.IsEqual())
		}
	}
	if (&PartitionVerdict{Problem: "no leader", Replicas: []ReplicaDigest{{Digest: "a"}}}).IsEqual() {
		t.Error("a partition that was not compared is equal")
	}
}

// verify compares the replicas at a node, until all of them have a digest.
func (c *testCluster) verify(at *testNode) (verdict PartitionVerdict) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 3*patience)
	defer cancel()
	testenv.EventuallyWithin(c.t, 2*patience, "all replicas are compared", func() bool {
		verdicts, err := at.running().VerifyReplicas(ctx)
		if err != nil || len(verdicts) != 1 {
			c.t.Fatal(verdicts, err)
		}
		verdict = verdicts[0]
		return verdict.Problem == "" && !slices.ContainsFunc(verdict.Replicas, func(r ReplicaDigest) bool { return r.Problem != "" })
	})
	return verdict
}

// TestVerifyNamesTheReplicaThatDiffers: a replica whose disk has lost rows is found from any node, and all nodes
// know of it.
func TestVerifyNamesTheReplicaThatDiffers(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 1)
	c.reluctant = 1
	c.each((*testNode).start)
	accepted := [][]messages.RunID{c.mustSubmit(0, 5)}
	c.checkRuns(accepted)
	for _, n := range c.nodes[:2] {
		if v := c.verify(n); !v.IsEqual() || len(v.Replicas) != 3 || v.Index == 0 || v.Replicas[0].Rows == 0 {
			t.Errorf("%s: %+v", n.name, v)
		}
	}
	bad := c.nodes[2]
	bad.isLosing.Store(true)
	accepted[0] = append(accepted[0], c.mustSubmit(0, 1)...)
	testenv.EventuallyWithin(t, patience, "the disk of a node loses rows", func() bool { return bad.lost.Load() > 0 })
	bad.isLosing.Store(false)
	want := []raftlog.NodeID{bad.running().Self()}
	for _, n := range c.nodes {
		v := c.verify(n)
		if got := differing(v); !slices.Equal(got, want) || v.IsEqual() {
			t.Errorf("%s: %v differ, want %v: %+v", n.name, got, want, v)
		}
	}
	for _, n := range c.nodes {
		if v, ok := n.running().Verdict(0); !ok || !slices.Equal(differing(v), want) {
			t.Errorf("%s was told %+v", n.name, v)
		}
	}
}

func differing(v PartitionVerdict) (nodes []raftlog.NodeID) {
	for _, r := range v.Replicas {
		if r.Differs {
			nodes = append(nodes, r.Node)
		}
	}
	return nodes
}

// TestInquiriesAreAnswered with an error when they make no sense.
func TestInquiriesAreAnswered(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	m := c.nodes[0].running()
	other := c.nodes[1].running().Self()
	for want, q := range map[string]*inquiry{
		"partition 7: there are 1": {Kind: runInquiry, Partition: 7}, "partition -1": {Kind: digestInquiry, Partition: -1},
		`unknown question "why"`: {Kind: "why"}, "a verdict on another partition": {Kind: verdictInquiry},
	} {
		for _, node := range []raftlog.NodeID{m.Self(), other} {
			if _, err := m.ask(t.Context(), node, q); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v at %s: %v, want %s", q, node, err, want)
			}
		}
	}
}
