package raftlog_test

import (
	"testing"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// TestLateAnswersGiveNoLease proves that the lease counts from the sending of a request. The answers of
// the followers reach a frozen leader when they have elected another. The library's VerifyLeader takes
// them for fresh.
func TestLateAnswersGiveNoLease(t *testing.T) {
	t.Parallel()
	settings := withoutWatch()
	settings.Request = 20 * time.Second // the connection with the late answer stays open
	withGroup(t, 3, settings, func(c *cluster) {
		leader, epoch := c.lead()
		c.put(leader, epoch, "once-a", "x")
		c.awaitLease(leader, epoch)
		release := leader.blockSync() // its main loop stops, and does not notice that it is alone
		defer release()
		done := make(chan error, 1)
		go func() {
			_, err := leader.group.Propose(epoch, []byte("once-b=x\n"))
			done <- err
		}()
		for _, r := range c.followers(leader) { // they get heartbeats, and their answers wait
			c.network.Cut(r.id, leader.id)
		}
		next, later := c.lead(leader)
		c.put(next, later, "once-c", "x")
		for _, r := range c.followers(leader) {
			if r != next {
				c.network.Heal(r.id, leader.id)
			}
		}
		// Each call waits for the library, which does not answer, so many are under way.
		leases := make(chan bool)
		const calls = 100
		for i := range calls {
			time.AfterFunc(time.Duration(i)*5*time.Millisecond, func() { leases <- leader.group.Lease(epoch) })
		}
		for range calls {
			if testenv.ReceiveWithin(t, patience, "a call of Lease ends", leases) {
				t.Error("a late answer gave a lease to a former leader")
			}
		}
		c.network.HealAll()
		release()
		if lost, _ := isLost(testenv.ReceiveWithin(t, patience, "the proposal ends", done)); !lost {
			t.Error("the former leader's proposal was acknowledged")
		}
		c.converge()
	})
}

// TestStuckReplicationRestartsTheLibrary proves the watch on followers: one that is heard, lacks entries
// and gets no request restarts the library. A follower whose disk is slow does not: it gets requests,
// and they fail.
func TestStuckReplicationRestartsTheLibrary(t *testing.T) {
	t.Parallel()
	settings := fastSettings()
	settings.Request = 300 * time.Millisecond
	settings.ReplicationStall = time.Second
	withGroup(t, 3, settings, func(c *cluster) {
		leader, epoch := c.lead()
		slow := c.followers(leader)[0]
		release := slow.blockSync()
		defer release()
		c.put(leader, epoch, "once-a", "x")
		for end := time.Now().Add(3 * c.settings.ReplicationStall); time.Now().Before(end); {
			c.put(leader, epoch, "b", "x")
		}
		if s := leader.group.Status(); s.Restarts > 0 || s.Match[slow.id] >= s.Last {
			c.expectLead(leader, epoch)
			t.Errorf("a follower with a slow disk: %+v", s)
		}
		release()
		c.converge()
		leader, epoch = c.lead()
		stuck := c.followers(leader)[0]
		c.await(leader, epoch, "the stall is found", func() bool {
			leader.group.PretendStuck(stuck.id) // until the next request to it, at the latest in 0.1 s
			return leader.group.Status().Stalls.Replication > 0
		})
		testenv.EventuallyWithin(t, patience, "the library is restarted", func() bool { return leader.group.Status().Restarts > 0 })
		c.converge()
	})
}

// TestFollowerThatWasAwayIsNotStuck: the library pauses for up to 10.24 s after appends that have failed,
// and goes on with heartbeats. A follower that comes back in that pause costs no leader its leadership.
func TestFollowerThatWasAwayIsNotStuck(t *testing.T) {
	for _, c := range []struct {
		since              time.Duration
		succeeded, isStuck bool
	}{
		{10100 * time.Millisecond, false, false},
		{20200 * time.Millisecond, false, false},
		{20300 * time.Millisecond, false, true},
		{9900 * time.Millisecond, true, false},
		{10100 * time.Millisecond, true, true},
	} {
		if isStuck := raftlog.DefaultSettings().IsStuck(c.since, c.succeeded); isStuck != c.isStuck {
			t.Errorf("the last append was %v ago, success %v: stuck is %v", c.since, c.succeeded, isStuck)
		}
	}
}

// TestTransferEndsTheLease proves that a leader whose transfer has failed answers no reads: the target
// has got the order to stand for election, or may get it late, and the others would vote for it.
func TestTransferEndsTheLease(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, withoutWatch(), func(c *cluster) {
		leader, epoch := c.lead()
		target, other := c.followers(leader)[0], c.followers(leader)[1]
		at := c.put(leader, epoch, "once-a", "x")
		c.await(leader, epoch, "the target has all entries", func() bool { return leader.group.Status().Match[target.id] >= at })
		c.network.Cut(target.id, leader.id) // it hears the order, and cannot ask for votes
		c.network.Cut(target.id, other.id)
		// On a busy machine a transfer may end before the order is sent.
		testenv.RepeatWithin(t, patience, "the lease ends", func() bool {
			if err := leader.group.Transfer(t.Context(), target.id); err == nil {
				t.Fatal("the transfer succeeds")
			}
			return !leader.group.Lease(epoch)
		})
		testenv.EventuallyWithin(t, patience, "the leader goes on", func() bool {
			_, err := leader.group.Propose(epoch, []byte("b=x\n"))
			return err == nil || !leader.leadsIn(epoch) // the machine may be too slow for a leader
		})
		if leader.group.Lease(epoch) {
			t.Error("the leader has a lease again")
		}
		c.network.HealAll()
		c.converge()
	})
}

// TestLostTransferDoesNotEndReads: a transfer whose last message is lost ends the lease of a term, and no
// election. The leader gives up, so that reads are answered in the next term.
func TestLostTransferDoesNotEndReads(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, fastSettings(), func(c *cluster) {
		leader, epoch := c.lead()
		c.awaitLease(leader, epoch)
		leader.group.PretendTransfer()
		if leader.group.Lease(epoch) {
			t.Error("the lease survives a transfer")
		}
		testenv.EventuallyWithin(t, patience, "a leader has the lease", func() bool {
			for _, r := range c.all {
				if node, term, ok := r.group.Leader(); ok && node == r.id && term > epoch && r.group.Lease(term) {
					return true
				}
			}
			return false
		})
		c.converge()
	})
}
