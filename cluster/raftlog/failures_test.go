package raftlog_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// load proposes rows at a leader from several goroutines until it is stopped. It takes over again when
// an epoch ends, wherever the leader is.
func (c *cluster) load(leader *replica, epoch uint64, callers, bytes int) (stop func() (acknowledged int64)) {
	done := make(chan struct{})
	var wait sync.WaitGroup
	var count, number atomic.Int64
	value := strings.Repeat("x", bytes)
	group := leader.group
	for range callers {
		wait.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				_, err := group.Propose(epoch, fmt.Appendf(nil, "load-%d=%s\n", number.Add(1)%100, value))
				if err != nil {
					return
				}
				count.Add(1)
			}
		})
	}
	return func() int64 {
		close(done)
		wait.Wait()
		return count.Load()
	}
}

// TestFollowerIsFedAfterRefusals is the second kind of failure: after a refused append the library may
// never send entries to that follower again, while heartbeats go on. Without the goroutine that drains
// the pipeline the follower never catches up.
func TestFollowerIsFedAfterRefusals(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, withoutWatch(), func(c *cluster) {
		leader, epoch := c.lead()
		follower := c.followers(leader)[0]
		stop := c.load(leader, epoch, 16, 100)
		var refused atomic.Int64
		var calls atomic.Int64
		refuse := func() error {
			if calls.Add(1)%8 == 0 {
				refused.Add(1)
				return errors.New("refused by the test")
			}
			return nil
		}
		follower.refuse.Store(&refuse)
		c.await(leader, epoch, "40 refusals", func() bool { return refused.Load() >= 40 })
		follower.refuse.Store(nil)
		before := leader.group.Status().Committed
		c.await(leader, epoch, "the follower is fed under load", func() bool { return follower.group.Status().Applied >= before })
		t.Logf("%d proposals, %d refusals", stop(), refused.Load())
		c.expectLead(leader, epoch) // a new term hides what this test looks for
		c.converge()
	})
}

// TestLeaderWithStalledDiskEnds is the third kind: the leader's disk does not answer, and its heartbeats
// would keep it leader. The watch cuts its connections and ends it; the others go on.
func TestLeaderWithStalledDiskEnds(t *testing.T) {
	t.Parallel()
	settings := fastSettings()
	settings.CommitStall = time.Second
	withGroup(t, 3, settings, func(c *cluster) {
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
		testenv.EventuallyWithin(t, patience, "the group ends", func() bool {
			if leader.group.Err() != nil {
				return true
			}
			c.expectLeadAfter(leader, epoch, raftlog.ErrNotLeader) // it may have lost its leadership before
			return false
		})
		testenv.ReceiveWithin(t, patience, "the group says so", leader.group.Failed())
		if err := leader.group.Err(); !errors.Is(err, raftlog.ErrDiskStalled) {
			t.Errorf("the group ends with %v", err)
		}
		if lost, unknown := isLost(testenv.ReceiveWithin(t, patience, "the proposal ends", done)); !lost || !unknown {
			t.Error("the proposal has the wrong outcome")
		}
		if s := leader.group.Status().Stalls; s.Disk != 1 {
			t.Errorf("%+v", s)
		}
		next, later := c.lead(leader) // while the disk still stalls
		c.put(next, later, "once-after", "x")
		release()
		c.crash(leader)
		c.open(leader)
		c.converge()
	})
}

// TestCommitStallRestartsTheLibrary: proposals in flight with a healthy disk of the leader restart
// its library, which gives another node a turn.
func TestCommitStallRestartsTheLibrary(t *testing.T) {
	t.Parallel()
	settings := fastSettings()
	settings.CommitStall = time.Second
	settings.Request = 2500 * time.Millisecond
	withGroup(t, 3, settings, func(c *cluster) {
		leader, epoch := c.lead()
		var releases []func()
		for _, r := range c.followers(leader) {
			release := r.blockSync()
			defer release()
			releases = append(releases, release)
		}
		_, err := leader.group.Propose(epoch, []byte("once-during=x\n"))
		if lost, unknown := isLost(err); !lost || !unknown {
			t.Errorf("proposal without followers' disks: %v", err)
		}
		if leader.group.Status().Stalls.Commit == 0 {
			c.expectLeadAfter(leader, epoch, err)
		}
		testenv.EventuallyWithin(t, patience, "the library is restarted", func() bool { return leader.group.Status().Restarts > 0 })
		if s := leader.group.Status().Stalls; s.Commit != 1 || s.Disk != 0 {
			t.Errorf("%+v", s)
		}
		for _, release := range releases {
			release()
		}
		next, later := c.lead()
		c.put(next, later, "once-after", "x")
		c.converge()
	})
}

// TestTransferThatHangs is the fourth kind: two transfers to a follower that does not answer, then a loss
// of leadership, may leave the library with a transfer "in progress" for ever, so that it refuses all
// proposals when it is elected again. The watch restarts it. Two goroutines of the library stay.
//
// Which of several ready channels the library reads first decides whether its transfer hangs. So the test makes
// proposals look refused to see the restart, and does what may hang a transfer to see that the group goes on
// whatever the library did.
func TestTransferThatHangs(t *testing.T) {
	t.Parallel()
	settings := fastSettings()
	settings.Heartbeat, settings.Election, settings.LeaderLease, settings.ReadLease = 200*time.Millisecond, 200*time.Millisecond, 200*time.Millisecond, 120*time.Millisecond
	settings.TransferStall = 600 * time.Millisecond
	settings.Request = 2900 * time.Millisecond
	c := newCluster(t, 3, settings)
	testenv.RepeatWithin(t, patience, "a leader that refuses all proposals restarts its library", func() bool {
		leader, epoch := c.lead()
		testenv.EventuallyWithin(t, patience, "the leader no longer leads", func() bool {
			leader.group.PretendRefused()
			return !leader.leadsIn(epoch)
		})
		s := leader.group.Status() // a busy machine may change the leader before
		return s.Stalls.Transfer > 0 && s.Restarts > 0
	})
	c.converge()
	const attempts = 2
	for range attempts {
		c.hangTransfer()
	}
	for _, r := range c.all {
		if n := r.group.Status().Stalls.Transfer; n > 0 {
			t.Logf("node %s: the watch has restarted the library %d times", r.id, n)
		}
	}
	c.converge()
}

// TestRefusalsEndWithATransfer: a transfer that ends in time restarts nothing. The next proposal is accepted, and
// refusals of a later transfer count from their own begin.
func TestRefusalsEndWithATransfer(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, withoutWatch(), func(c *cluster) {
		leader, epoch := c.lead()
		leader.group.PretendRefused()
		c.put(leader, epoch, "once-a", "x")
		if leader.group.RefusesProposals() {
			t.Error("proposals count as refused after one that was accepted")
		}
	})
}

// hangTransfer makes the leader lose its leadership during a transfer and win it again, and proposes until a
// leader accepts it. It does nothing when the leader has lost its leadership before.
func (c *cluster) hangTransfer() {
	c.t.Helper()
	leader, epoch := c.lead()
	target := c.followers(leader)[0]
	c.network.Cut(leader.id, target.id)
	for range 4 { // the follower lacks entries, and the library waits in a request to it
		if _, err := leader.group.Propose(epoch, []byte("before=x\n")); err != nil {
			c.network.HealAll()
			return
		}
	}
	for transfers := 0; transfers < 2; {
		switch err := leader.group.Transfer(c.t.Context(), target.id); {
		case err == nil:
			c.t.Fatal("a transfer to a follower that is cut off succeeds")
		case strings.Contains(err.Error(), "timeout"):
			transfers++ // not those that are refused because the first one is still ending
		case !leader.leadsIn(epoch):
			c.network.HealAll()
			return
		}
	}
	c.network.Isolate(leader.id, c.ids()...)
	other, _ := c.lead(leader)
	testenv.EventuallyWithin(c.t, patience, "the leader gives up", func() bool { return !leader.group.Status().Leads })
	c.network.HealAll()
	// Back to the first leader. The present one may have to wait until it has caught up.
	testenv.RepeatWithin(c.t, patience, "the first leader leads again", func() bool {
		if leader.group.Status().Leads {
			return true
		}
		if node, _, ok := other.group.Leader(); ok && node == other.id {
			_ = other.group.Transfer(c.t.Context(), leader.id) // false: the next look tries again
		}
		return leader.group.Status().Leads
	})
	testenv.RepeatWithin(c.t, patience, "a leader accepts proposals", func() bool {
		next, later := c.lead()
		_, err := next.group.Propose(later, []byte("after=x\n"))
		return err == nil
	})
}

// TestFollowerCatchesUpWhileTheLogIsTrimmed is the fifth kind: a follower needs long for a snapshot,
// and the leader writes and trims all the time. The entries after the snapshot stay until the follower
// has them. Without the floor each snapshot would be too old when it is restored.
func TestFollowerCatchesUpWhileTheLogIsTrimmed(t *testing.T) {
	t.Parallel()
	const attempts = 5
	for range attempts {
		if catchUpWhileTrimmed(t) {
			return
		}
	}
	t.Errorf("the machine was too slow for one leader in %d attempts", attempts)
}

// catchUpWhileTrimmed reports false when the leader has lost its leadership before the end.
func catchUpWhileTrimmed(t *testing.T) bool {
	settings := withoutWatch()
	settings.TrailingEntries, settings.SnapshotBytes, settings.SegmentBytes = 20, 20<<10, 4<<10
	settings.Request = patience // of the restore
	c := newCluster(t, 3, settings)
	leader, epoch := c.lead()
	await := func(what string, condition func() bool) (isLed bool) {
		testenv.EventuallyWithin(t, patience, what, func() bool { return condition() || !leader.leadsIn(epoch) })
		return leader.leadsIn(epoch)
	}
	follower := c.followers(leader)[0]
	c.crash(follower)
	follower.before = func(call string, index uint64) error {
		// A restore takes as long as the leader needs for snapshots far beyond the one that is restored.
		if call == "restore" && !testenv.Poll(patience, func() bool {
			return leader.group.Status().Snapshot > index+100 || !leader.leadsIn(epoch)
		}) {
			return errors.New("the leader made no snapshot")
		}
		return nil
	}
	stop := sync.OnceValue(c.load(leader, epoch, 4, 500))
	defer stop()
	last := leader.group.Status().Last
	if !await("the log is trimmed", func() bool { return leader.group.Status().First > last+100 }) {
		return false
	}
	c.open(follower)
	if !await("the follower catches up under load", func() bool {
		s := leader.group.Status()
		return s.Match[follower.id] > 0 && s.Match[follower.id]+50 > s.Last && follower.group.Status().SnapshotsGotten > 0
	}) {
		return false
	}
	if s := follower.group.Status(); s.SnapshotsGotten > 1 {
		t.Errorf("%d snapshots were needed", s.SnapshotsGotten)
	}
	held := leader.group.Status().First
	if !await("the log is trimmed again", func() bool { return leader.group.Status().First > held }) {
		return false
	}
	t.Logf("%d proposals", stop())
	c.converge()
	return true
}

// TestFailedSyncIsNotRetried is the sixth kind: after one failed sync of the log the replica ends,
// although the disk answers again at once. The others go on, and the replica comes back.
func TestFailedSyncIsNotRetried(t *testing.T) {
	t.Parallel()
	for _, role := range []string{"leader", "follower"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			withGroup(t, 3, fastSettings(), func(c *cluster) {
				leader, epoch := c.lead()
				failing := leader
				if role == "follower" {
					failing = c.followers(leader)[0]
				}
				failing.files.Reset()
				failing.files.Add(faults.Rule{Op: faults.Sync, Path: "*.wal", N: 1, Err: errors.New("injected EIO")})
				_, err := leader.group.Propose(epoch, []byte("once-during=x\n"))
				lost, unknown := isLost(err)
				if role == "follower" || lost && !unknown {
					c.expectLeadAfter(leader, epoch, err)
				}
				if role == "leader" && (!lost || !unknown) || role == "follower" && err != nil {
					t.Errorf("proposal: %v", err)
				}
				testenv.ReceiveWithin(t, patience, "the replica ends", failing.group.Failed())
				if err := failing.group.Err(); err == nil || !strings.Contains(err.Error(), "injected EIO") {
					t.Errorf("the replica ends with %v", err)
				}
				var writes int
				seen := false
				for _, call := range failing.files.Calls() {
					isLog := strings.HasSuffix(call.Path, ".wal")
					if isLog && seen && (call.Op == faults.Write || call.Op == faults.Sync) {
						writes++
					}
					seen = seen || isLog && call.Op == faults.Sync
				}
				if writes > 0 {
					t.Errorf("%d writes to the log after the failed sync", writes)
				}
				next, later := c.lead(failing)
				c.put(next, later, "once-after", "x")
				c.crash(failing)
				c.open(failing)
				c.converge()
			})
		})
	}
}

// TestFailedTermEndsTheReplica proves that a term that cannot be stored ends the replica and not the
// process. The library panics on such an error.
func TestFailedTermEndsTheReplica(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, fastSettings(), func(c *cluster) {
		leader, epoch := c.lead()
		c.put(leader, epoch, "once-before", "x")
		failing, other := c.followers(leader)[0], c.followers(leader)[1]
		failing.files.Add(faults.Rule{Op: faults.Sync, Path: "vote.new", Err: errors.New("injected EIO")})
		c.crash(leader)
		other.group.Nominate() // an election raises the term, also if the leadership has moved in the meantime
		testenv.ReceiveWithin(t, patience, "the replica ends", failing.group.Failed())
		if err := failing.group.Err(); err == nil || !strings.Contains(err.Error(), "injected EIO") {
			t.Errorf("the replica ends with %v", err)
		}
		c.open(leader)
		next, later := c.lead(failing)
		c.put(next, later, "once-after", "x")
		failing.files.Reset()
		c.crash(failing)
		c.open(failing)
		c.converge()
	})
}

// TestMachineErrorEndsTheReplica proves that no later entry reaches a machine that has refused one.
func TestMachineErrorEndsTheReplica(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, fastSettings(), func(c *cluster) {
		leader, epoch := c.lead()
		failing := c.followers(leader)[0]
		c.crash(failing)
		failing.before = func(call string, index uint64) error {
			if call == "apply" {
				return errors.New("injected")
			}
			return nil
		}
		c.open(failing)
		at := c.put(leader, epoch, "once-a", "x")
		c.put(leader, epoch, "once-b", "x")
		testenv.ReceiveWithin(t, patience, "the replica ends", failing.group.Failed())
		if err := failing.group.Err(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("apply entry %d: injected", at)) {
			t.Errorf("the replica ends with %v", err)
		}
		c.crash(failing)
		failing.before = nil
		c.open(failing)
		c.converge()
	})
}
