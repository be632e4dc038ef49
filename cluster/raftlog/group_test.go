package raftlog_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// TestReplicasAgree proves that a proposal is applied on the leader when it returns, on all replicas
// soon after, and that all of them verify the same digest at the same index.
func TestReplicasAgree(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, fastSettings(), func(c *cluster) {
		leader, epoch := c.lead()
		for i := range 100 {
			key := fmt.Sprintf("once-%d", i)
			c.put(leader, epoch, key, "x")
			if leader.machine.Row(key) != "x" {
				t.Fatalf("%s is not applied", key)
			}
		}
		if _, err := leader.group.Propose(epoch, make([]byte, raftlog.MaxRows+1)); !errors.Is(err, raftlog.ErrTooBig) {
			t.Error(err)
		}
		c.awaitLease(leader, epoch)
		for _, r := range c.followers(leader) {
			if _, err := r.group.Propose(epoch, []byte("a=b\n")); !errors.Is(err, raftlog.ErrNotLeader) {
				t.Error(err)
			}
			if _, _, err := r.group.Takeover(); !errors.Is(err, raftlog.ErrNotLeader) {
				t.Error(err)
			}
			if r.group.Lease(epoch) {
				t.Error("a follower has a lease")
			}
		}
		index, err := leader.group.Verify(epoch)
		if err != nil {
			c.expectLead(leader, epoch)
			t.Fatal(err)
		}
		c.converge()
		want, _ := leader.machine.Verified(index)
		for _, r := range c.all {
			if got, ok := r.machine.Verified(index); !ok || got != want {
				t.Errorf("%s: digest %x, %v", r.id, got, ok)
			}
		}
	})
}

// TestLeaderLost proves that what was acknowledged survives the loss of the leader, and that the lost
// one catches up from the log.
func TestLeaderLost(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, fastSettings(), func(c *cluster) {
		leader, epoch := c.lead()
		for i := range 50 {
			c.put(leader, epoch, fmt.Sprintf("once-a%d", i), "x")
		}
		c.crash(leader)
		next, later := c.lead()
		if later <= epoch {
			t.Errorf("epoch %d after %d", later, epoch)
		}
		for i := range 50 {
			if key := fmt.Sprintf("once-a%d", i); next.machine.Row(key) != "x" {
				t.Errorf("%s is lost", key)
			}
			c.put(next, later, fmt.Sprintf("once-b%d", i), "x")
		}
		c.open(leader)
		c.converge()
	})
}

// TestPartitionedLeader proves that a leader that is cut off acknowledges no proposal and answers no
// read, and that its entries are fenced or replaced when it returns.
func TestPartitionedLeader(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, fastSettings(), func(c *cluster) {
		leader, epoch := c.lead()
		c.put(leader, epoch, "once-before", "x")
		c.awaitLease(leader, epoch)
		c.network.Isolate(leader.id, c.ids()...)
		_, err := leader.group.Propose(epoch, []byte("once-during=x\n"))
		switch lost, unknown := isLost(err); {
		case !lost:
			t.Errorf("proposal on a leader that is cut off: %v", err)
		case !unknown: // it had noticed before
			c.tryAgain(err.Error())
		}
		testenv.EventuallyWithin(t, patience, "the lease ends", func() bool { return !leader.group.Lease(epoch) })
		next, later := c.lead(leader)
		c.put(next, later, "once-after", "x")
		if leader.group.Lease(epoch) {
			t.Error("two leaders answer reads")
		}
		c.network.HealAll()
		c.converge()
		for _, r := range c.all {
			if r.machine.Row("once-before") == "" || r.machine.Row("once-after") == "" || r.machine.Row("once-during") != "" {
				t.Errorf("%s has the wrong rows", r.id)
			}
		}
	})
}

// TestFrozenLeader proves that a leader that neither sends nor writes for a while, as a process that is
// stopped, does no harm when it goes on: its lease is over, and its proposals are lost.
func TestFrozenLeader(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, withoutWatch(), func(c *cluster) {
		leader, epoch := c.lead()
		c.put(leader, epoch, "once-before", "x")
		release := leader.blockSync()
		defer release()
		done := make(chan error, 1)
		group := leader.group
		go func() {
			_, err := group.Propose(epoch, []byte("once-during=x\n"))
			done <- err
		}()
		c.await(leader, epoch, "the leader is about to sync", func() bool { return len(leader.files.Calls()) > 0 })
		c.network.Isolate(leader.id, c.ids()...)
		next, later := c.lead(leader)
		c.put(next, later, "once-after", "x")
		// Its library still believes that it leads: the main loop waits for the disk.
		if leader.group.Lease(epoch) {
			t.Error("two leaders answer reads")
		}
		c.network.HealAll()
		release()
		if lost, _ := isLost(testenv.ReceiveWithin(t, patience, "the proposal ends", done)); !lost {
			t.Error("a frozen leader's proposal was acknowledged")
		}
		c.converge()
		for _, r := range c.all {
			if r.machine.Row("once-before") == "" || r.machine.Row("once-after") == "" || r.machine.Row("once-during") != "" {
				t.Errorf("%s has the wrong rows", r.id)
			}
		}
	})
}

// TestLateProposalIsFenced proves that an entry of an older epoch that reaches the log changes no row on
// any replica, at once and in a replay.
func TestLateProposalIsFenced(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, fastSettings(), func(c *cluster) {
		leader, epoch := c.lead()
		c.put(leader, epoch, "key", "new")
		index, err := leader.group.ProposeUnchecked(epoch-1, []byte("key=old\nonce-late=x\n"))
		if !errors.Is(err, raftlog.ErrFenced) {
			c.expectLeadAfter(leader, epoch, err)
		}
		if lost, unknown := isLost(err); !lost || unknown || !errors.Is(err, raftlog.ErrFenced) {
			t.Errorf("late proposal: %v", err)
		}
		if index == 0 {
			t.Error("the entry is not in the log")
		}
		if _, err := leader.group.Propose(epoch-1, []byte("key=old\n")); !errors.Is(err, raftlog.ErrNotLeader) {
			t.Error(err)
		}
		c.converge()
		replayed := c.followers(leader)[0]
		c.crash(replayed)
		c.open(replayed)
		c.converge()
		for _, r := range c.all {
			if r.machine.Row("key") != "new" || r.machine.Row("once-late") != "" {
				t.Errorf("%s wrote the rows of a late proposal", r.id)
			}
			if r.group.Status().Fenced != 1 {
				t.Errorf("%s: %d fenced entries", r.id, r.group.Status().Fenced)
			}
		}
	})
}

// TestUnknownKindStopsTheReplica proves that a replica does not go past an entry that it does not
// understand. The entry does not end the process.
func TestUnknownKindStopsTheReplica(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, fastSettings(), func(c *cluster) {
		leader, epoch := c.lead()
		at := c.put(leader, epoch, "before", "x")
		err := leader.group.ProposeUnknownKind(epoch)
		switch lost, unknown := isLost(err); {
		case !lost:
			t.Errorf("entry of an unknown kind: %v", err)
		case !unknown: // the leader had lost its leadership before
			c.tryAgain(err.Error())
		}
		// The leader stops, and so does the next one when it commits the entry. The last replica has no
		// majority to tell it that the entry is committed.
		stopped := 0
		testenv.EventuallyWithin(t, patience, "two replicas stop", func() bool {
			stopped = 0
			for _, r := range c.all {
				if err := r.group.Err(); err != nil && strings.Contains(err.Error(), fmt.Sprintf("apply entry %d", at+1)) {
					stopped++
				}
			}
			return stopped >= 2
		})
		for _, r := range c.all {
			if r.machine.Index() != at {
				t.Errorf("%s: machine at %d", r.id, r.machine.Index())
			}
			if _, _, err := r.group.Takeover(); err == nil {
				t.Errorf("%s takes over", r.id)
			}
		}
	})
}

// TestReplacedReplica proves the way of a new node into a group: learner, snapshot, log, voter; and that
// the removed one does no harm.
func TestReplacedReplica(t *testing.T) {
	t.Parallel()
	settings := fastSettings()
	settings.TrailingEntries = 10
	withGroup(t, 3, settings, func(c *cluster) {
		leader, epoch := c.lead()
		gone := c.followers(leader)[0]
		c.crash(gone)
		for i := range 400 {
			c.put(leader, epoch, fmt.Sprintf("key-%d", i%150), strings.Repeat("x", 200))
		}
		// The leader keeps what the dead replica lacks until it has not heard it for some time.
		testenv.RepeatWithin(t, patience, "the log is trimmed", func() bool {
			c.put(leader, epoch, "later", "x") // the library takes no snapshot where nothing is new
			if err := leader.group.Snapshot(); err != nil {
				t.Fatal(err)
			}
			return leader.group.Status().First >= 150
		})
		added := c.add("n4")
		c.open(added)
		members := leader.group.Members()
		members.Learners = append(members.Learners, added.id)
		c.change(leader, epoch, members)
		for i := range 50 {
			c.put(leader, epoch, fmt.Sprintf("more-%d", i), "x")
		}
		promoted := raftlog.Membership{Voters: append(members.Voters, added.id)}
		c.await(leader, epoch, "the learner becomes a voter", func() bool { return leader.group.Change(promoted) == nil })
		var rest raftlog.Membership
		for _, node := range promoted.Voters {
			if node != gone.id {
				rest.Voters = append(rest.Voters, node)
			}
		}
		c.change(leader, epoch, rest)
		c.converge()
		if s := added.group.Status(); s.SnapshotsGotten == 0 {
			t.Errorf("the new replica got no snapshot: %+v", s)
		}
		// The removed one comes back, and can neither win nor disturb.
		c.open(gone)
		for range 20 {
			c.put(leader, epoch, "after", "x")
		}
		if _, err := gone.group.Propose(epoch, nil); err == nil {
			t.Error("a removed replica proposes")
		}
		c.crash(gone)
		c.converge()
	})
}

// TestTransfer proves that the leadership goes where it is sent, and that the read lease of the former
// leader ends before.
func TestTransfer(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, fastSettings())
	leader, epoch := c.lead()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := leader.group.Transfer(ctx, ""); !errors.Is(err, context.Canceled) && !errors.Is(err, raftlog.ErrNotLeader) {
		t.Errorf("a transfer without time for it: %v", err)
	}
	// A busy machine may be too slow for one transfer.
	testenv.RepeatWithin(t, patience, "the target leads", func() bool {
		leader, epoch = c.lead()
		target := c.followers(leader)[1]
		if leader.group.Transfer(t.Context(), target.id) != nil {
			return false
		}
		if leader.group.Lease(epoch) {
			t.Error("the former leader has a lease")
		}
		next, _ := c.lead()
		return next == target
	})
	testenv.RepeatWithin(t, patience, "any other node leads", func() bool {
		next, later := c.lead()
		if later <= epoch {
			t.Errorf("epoch %d after %d", later, epoch)
		}
		_, err := next.group.Propose(later, []byte("a=x\n"))
		return err == nil && next.group.Transfer(t.Context(), "") == nil
	})
	c.converge()
}

// TestTransferFindsAVoter proves that a leader which gives its leadership to any voter does not depend on
// one that is cut off: neither at once, when the leader has just heard it, nor later.
func TestTransferFindsAVoter(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, withoutWatch())
	// A busy machine may change the leader before the transfer: then all begins again.
	testenv.RepeatWithin(t, patience, "a leader gives its leadership to the voter that is left", func() bool {
		c.network.HealAll()
		leader, epoch := c.lead()
		leads := func() bool {
			node, term, ok := leader.group.Leader()
			return ok && node == leader.id && term == epoch
		}
		away := c.followers(leader)[0] // the first of two with the same entries
		isFirst := func() bool {
			targets := leader.group.TransferTargets()
			return len(targets) == 2 && targets[0] == away.id
		}
		await := func(what string, condition func() bool) {
			t.Helper()
			testenv.EventuallyWithin(t, patience, what, func() bool { return condition() || !leads() })
		}
		await("the followers have the same entries", isFirst)
		c.network.Isolate(away.id, c.ids()...)
		await("the leader prefers the voter that it hears", func() bool { return !isFirst() })
		await("only that one is caught up", func() bool {
			voters := leader.group.CaughtUpVoters()
			return len(voters) == 1 && voters[0] != away.id
		})
		c.network.HealAll()
		await("the leader hears both", isFirst)
		c.network.Isolate(away.id, c.ids()...)
		return leads() && leader.group.Transfer(t.Context(), "") == nil
	})
}

// TestRestartedReplicaIsDeaf: see lease.go. A replica is deaf for the leader's lease
// after a restart, and takes no request for a vote.
func TestRestartedReplicaIsDeaf(t *testing.T) {
	t.Parallel()
	settings := fastSettings()
	settings.Heartbeat, settings.Election, settings.LeaderLease = time.Second, time.Second, 900*time.Millisecond
	settings.TransferStall = 3 * time.Second
	withGroup(t, 3, settings, func(c *cluster) {
		leader, epoch := c.lead()
		c.put(leader, epoch, "a", "x")
		follower := c.followers(leader)[0]
		c.crash(follower)
		at := c.put(leader, epoch, "b", "x")
		opened := time.Now()
		c.open(follower)
		testenv.EventuallyWithin(t, patience, "the follower catches up", func() bool { return follower.group.Status().Applied >= at })
		if took := time.Since(opened); took < c.settings.LeaderLease {
			t.Errorf("the follower listened after %v", took)
		}
	})
}

// TestPartsThatDoNotBelongTogether proves that Open refuses a replica that has lost its vote, its log
// or its rows, or has older ones than its log.
func TestPartsThatDoNotBelongTogether(t *testing.T) {
	t.Parallel()
	settings := fastSettings()
	settings.TrailingEntries = 5
	for _, lost := range []struct{ path, want string }{
		{"group/vote", "the vote was lost"},
		{"group/log", "entries were lost"},
		{"group/snapshot", "entries were lost"},
		{"rows/rows", "rows were lost"},
	} {
		t.Run(filepath.Base(lost.path), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 1, settings)
			leader, epoch := c.lead()
			for i := range 50 {
				c.put(leader, epoch, fmt.Sprint(i), "x")
			}
			if err := leader.group.Snapshot(); err != nil {
				t.Fatal(err)
			}
			c.put(leader, epoch, "last", "x")
			if _, err := leader.machine.Sync(); err != nil {
				t.Fatal(err)
			}
			c.crash(leader)
			if err := os.RemoveAll(filepath.Join(leader.dir, lost.path)); err != nil {
				t.Fatal(err)
			}
			if err := c.tryOpen(leader); err == nil || !strings.Contains(err.Error(), lost.want) {
				t.Errorf("%s is lost: %v", lost.path, err)
			}
			leader.group = nil
		})
	}
}

// TestReturningFollowerRaisesNoTerm proves that pre-votes are on: a follower that is cut off raises no
// term, and does not disturb the leader when it returns. The library goes without pre-votes, with a line
// in its log, if the transport hides its methods.
func TestReturningFollowerRaisesNoTerm(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, fastSettings(), func(c *cluster) {
		leader, epoch := c.lead()
		follower := c.followers(leader)[0]
		c.network.Isolate(follower.id, c.ids()...)
		testenv.EventuallyWithin(t, patience, "the follower misses the leader", func() bool {
			_, _, ok := follower.group.Leader()
			return !ok
		})
		for end := time.Now().Add(time.Second); time.Now().Before(end); { // several elections
			c.put(leader, epoch, "a", "x")
		}
		c.network.HealAll()
		c.put(leader, epoch, "once-b", "x")
		c.converge()
		c.expectLead(leader, epoch) // in one of the attempts
	})
}

// TestOneWayCutRaisesNoTerm proves that a follower that hears nothing from its leader, or is not heard by it, raises no
// term: the third replica, which hears both, gives it no pre-vote. So the leader stays, and accepts proposals during
// the cut and after it. The term is compared at the end: a follower that is a candidate by itself is not heard of
// before the links are whole.
func TestOneWayCutRaisesNoTerm(t *testing.T) {
	t.Parallel()
	for _, fromLeader := range []bool{true, false} {
		t.Run(fmt.Sprintf("from the leader=%v", fromLeader), func(t *testing.T) {
			t.Parallel()
			withGroup(t, 3, fastSettings(), func(c *cluster) {
				leader, epoch := c.lead()
				follower := c.followers(leader)[0]
				if fromLeader {
					c.network.Cut(leader.id, follower.id)
				} else {
					c.network.Cut(follower.id, leader.id)
				}
				// A connection that gets no answers ends after the limit of a request, and the next one cannot
				// be made: so the follower misses the leader either way.
				c.await(leader, epoch, "the follower misses the leader", func() bool {
					c.put(leader, epoch, "during", "x")
					_, _, ok := follower.group.Leader()
					return !ok
				})
				pause := time.NewTicker(c.settings.Election / 4)
				defer pause.Stop()
				for range 5 * 4 { // two elections and more
					c.put(leader, epoch, "during", "x")
					<-pause.C
				}
				c.network.HealAll()
				c.put(leader, epoch, "once-after", "x")
				c.converge()
				c.expectLead(leader, epoch) // in one of the attempts
				if term := follower.group.Status().Term; term != epoch {
					t.Errorf("the follower has seen term %d, the leader leads in %d", term, epoch)
				}
			})
		})
	}
}

// TestPowerFailureOfAReplica proves that what a replica needs is on the disk when a proposal is
// acknowledged: the vote, the list of segments, the log and their names.
func TestPowerFailureOfAReplica(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 0, fastSettings())
	r := c.add("n1")
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	disk, err := faults.NewDisk(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	r.files = faults.New(disk)
	c.open(r, "n1")
	_, epoch := c.lead()
	for i := range 40 { // over several segments
		c.put(r, epoch, fmt.Sprintf("once-%d", i), strings.Repeat("x", 1000))
		if i%8 > 0 {
			continue
		}
		after := newCluster(t, 0, fastSettings())
		found := after.add("n1")
		if err := disk.PowerCut(found.dir, nil); err != nil {
			t.Fatal(err)
		}
		after.open(found)
		after.converge()
		for j := range i + 1 {
			if found.machine.Row(fmt.Sprintf("once-%d", j)) == "" {
				t.Errorf("after proposal %d: row %d is lost", i, j)
			}
		}
		after.crash(found)
	}
}

// TestChangeReturnsWhenItIsCommitted: the same change, asked for again while it is not committed, has no other
// outcome than the first one.
func TestChangeReturnsWhenItIsCommitted(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, withoutWatch(), func(c *cluster) {
		leader, epoch := c.lead()
		followers := c.followers(leader)
		for _, r := range followers { // they answer heartbeats and confirm no entry
			defer r.blockSync()()
		}
		want := raftlog.Membership{Voters: []raftlog.NodeID{leader.id, followers[0].id}}
		outcomes := make(chan error, 2)
		group := leader.group
		go func() { outcomes <- group.Change(want) }()
		c.await(leader, epoch, "the change is in the leader's log", func() bool { return len(leader.group.Members().Voters) == 2 })
		go func() { outcomes <- group.Change(want) }()
		c.network.Isolate(leader.id, c.ids()...)
		for range 2 {
			if testenv.ReceiveWithin(t, patience, "the change ends", outcomes) == nil {
				t.Error("a change is reported that no other member has")
			}
		}
		c.network.HealAll()
	})
}
