package cluster

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// openViews opens views at a node. On a busy machine a partition may be without a leader for a while.
func (n *testNode) openViews() (views []*PartitionView) {
	n.cluster.t.Helper()
	var err error
	testenv.EventuallyWithin(n.cluster.t, patience, n.name+" opens views", func() bool {
		views, err = n.running().OpenViews(n.cluster.t.Context())
		if err != nil && code(err) != messages.Unavailable {
			n.cluster.t.Fatal(err)
		}
		return err == nil
	})
	return views
}

func closeViews(views []*PartitionView) {
	for _, v := range views {
		v.Close()
	}
}

// checkViews reports runs that views lack.
func checkViews(t *testing.T, where string, views []*PartitionView, accepted [][]messages.RunID) {
	t.Helper()
	for p, ids := range accepted {
		for _, id := range ids {
			if ok, err := views[p].HasRun(id); !ok || err != nil {
				t.Errorf("%s: the view of partition %d, of entry %d and moment %d, lacks run %d: %v", where, p, views[p].Index, views[p].CommitNumber(), id, err)
			}
		}
	}
}

// acceptedSoFar returns the runs that were accepted so far.
func (l *load) acceptedSoFar() (accepted [][]messages.RunID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ids := range l.accepted {
		accepted = append(accepted, ids[:len(ids):len(ids)])
	}
	return accepted
}

// TestViewsHaveAllThatWasAcknowledged: whichever node is asked, under load, and also right after it was killed
// and applies its log again. At rest the views of all nodes are equal.
func TestViewsHaveAllThatWasAcknowledged(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2)
	load := c.startLoad(6)
	check := func(n *testNode) {
		load.awaitAccepted(0, 20)
		accepted := load.acceptedSoFar()
		views := n.openViews()
		defer closeViews(views)
		checkViews(t, n.name, views, accepted)
		for p, v := range views {
			if status := n.running().Status(p); v.Partition != p || v.Index == 0 || v.Term == 0 || v.Term > status.Term {
				t.Errorf("%s: view %d is of partition %d, entry %d and term %d: %+v", n.name, p, v.Partition, v.Index, v.Term, status)
			}
		}
	}
	for _, n := range c.nodes {
		check(n)
		n.kill()
		n.start()
		check(n)
	}
	accepted := load.stop()
	c.checkRuns(accepted)
	var first []*PartitionView
	for _, n := range c.nodes {
		views := n.openViews()
		defer closeViews(views)
		checkViews(t, n.name, views, accepted)
		if first == nil {
			first = views
			continue
		}
		for p, v := range views {
			digest, rows, err := v.Digest()
			want, wantRows, wantErr := first[p].Digest()
			// A change of leader between two views makes an entry that may change a row.
			if v.CommitNumber() == first[p].CommitNumber() && (digest != want || rows != wantRows) || err != nil || wantErr != nil {
				t.Errorf("%s: partition %d: %d rows, %x, %v; n1 has %d, %x, %v", n.name, p, rows, digest, err, wantRows, want, wantErr)
			}
		}
	}
}

// TestNoViewsOfAWrongReplica: a node whose replica is damaged, or differs from the others, opens no views until that is over.
func TestNoViewsOfAWrongReplica(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	c.mustSubmit(0, 1)
	bad, good := c.nodes[0], c.nodes[1]
	refused := func(want string) {
		t.Helper()
		var views []*PartitionView
		var err error
		testenv.Poll(patience, func() bool { // an election may come in between
			views, err = bad.running().OpenViews(t.Context())
			closeViews(views)
			return err == nil || strings.Contains(err.Error(), want)
		})
		if code(err) != messages.Unavailable || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "ask another node") || views != nil {
			t.Errorf("%v, %v; want %s", views, err, want)
		}
		closeViews(good.openViews())
	}
	verdict := func(index uint64, differs bool) {
		bad.running().noteVerdict(&PartitionVerdict{Index: index, Replicas: []ReplicaDigest{{Node: bad.running().Self(), Differs: differs}}})
	}
	verdict(5, true)
	refused("differed from the others at entry 5")
	verdict(6, false)
	closeViews(bad.openViews())
	damage := errors.New("a table has lost its checksums")
	bad.damage.Store(&damage)
	refused(damage.Error())
	bad.damage.Store(nil)
	closeViews(bad.openViews())
}

// TestViewsNeedALeader: without one it is unknown whether this replica has all that was acknowledged.
func TestViewsNeedALeader(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	c.mustSubmit(0, 1)
	c.nodes[1].close()
	c.nodes[2].close()
	var views []*PartitionView
	var err error
	testenv.EventuallyWithin(t, patience, "no leader answers", func() bool { // a leader has its lease for a moment
		views, err = c.nodes[0].running().OpenViews(t.Context())
		closeViews(views)
		return err != nil
	})
	if code(err) != messages.Unavailable || !strings.Contains(err.Error(), "partition 0 has no leader that answers") || views != nil {
		t.Errorf("%v, %v", views, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.nodes[0].running().OpenViews(ctx); err == nil || code(err) == messages.Unavailable {
		t.Errorf("after the end of the context: %v", err)
	}
}
