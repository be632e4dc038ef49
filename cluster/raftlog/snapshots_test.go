package raftlog_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// trimmingSettings let a log of a few hundred entries be trimmed.
func trimmingSettings() raftlog.Settings {
	s := fastSettings()
	s.TrailingEntries, s.SegmentBytes = 5, 4<<10
	return s
}

// leaveBehind closes a follower and goes on until the leader's log begins after the follower's ends.
func (c *cluster) leaveBehind(leader *replica, epoch uint64, follower *replica) {
	c.t.Helper()
	last := follower.group.Status().Last
	if follower.group != nil {
		c.crash(follower)
	}
	for round := 0; leader.group.Status().First <= last+1; round++ {
		for i := range 50 {
			c.put(leader, epoch, fmt.Sprintf("key-%d", i), strings.Repeat("x", 200))
		}
		if err := leader.group.Snapshot(); err != nil {
			c.t.Fatal(err)
		}
		if round > 100 {
			c.t.Fatalf("the log is not trimmed: %+v", leader.group.Status())
		}
	}
}

// TestTrailingBytes proves that a snapshot leaves no more of large entries than their bytes allow, also of
// those that were stored before a restart.
func TestTrailingBytes(t *testing.T) {
	t.Parallel()
	const size, limit = 256 << 10, 2 << 20
	settings := fastSettings()
	settings.TrailingBytes, settings.SegmentBytes = 1<<30, 1<<20
	c := newCluster(t, 1, settings)
	check := func(bound uint64) {
		t.Helper()
		r, epoch := c.lead()
		c.put(r, epoch, "key", "value")
		if err := r.group.Snapshot(); err != nil {
			t.Fatal(err)
		}
		if s := r.group.Status(); s.Last-s.First > bound || s.Last == s.First {
			t.Errorf("the log has the entries %d to %d", s.First, s.Last)
		}
	}
	write := func() {
		t.Helper()
		r, epoch := c.lead()
		for range 20 {
			c.put(r, epoch, "key", strings.Repeat("x", size))
		}
	}
	write()
	check(100) // all are there
	if s := c.all[0].group.Status(); s.First > 2 {
		t.Fatalf("the log begins at entry %d", s.First)
	}
	c.crash(c.all[0])
	c.settings.TrailingBytes = limit
	c.open(c.all[0])
	const small = 8 // entries of the takeovers and of the checks
	check(limit/size + small)
	write()
	check((limit+1<<20)/size + small) // the bytes are known to 1 MiB
}

// TestSnapshotWithoutSpace proves that a replica whose disk is too small for a snapshot goes on without it,
// gives the space back, and catches up when there is room: at the start of the snapshot or at its end.
func TestSnapshotWithoutSpace(t *testing.T) {
	t.Parallel()
	for _, atEnd := range []bool{false, true} {
		withGroup(t, 3, trimmingSettings(), func(c *cluster) {
			leader, epoch := c.lead()
			follower := c.followers(leader)[0]
			c.leaveBehind(leader, epoch, follower)
			var refused atomic.Int64
			refuse := func(received int64) error {
				if atEnd != (received > 0) {
					return nil
				}
				refused.Add(1)
				return errors.New("no space")
			}
			follower.space.Store(&refuse)
			c.open(follower)
			c.await(leader, epoch, "the snapshot is refused", func() bool { return refused.Load() > 0 })
			if err := follower.group.Err(); err != nil {
				t.Errorf("the replica has ended: %v", err)
			}
			if s := follower.group.Status(); s.SnapshotsGotten > 0 {
				t.Errorf("the snapshot is restored: %+v", s)
			}
			testenv.EventuallyWithin(t, patience, "its file is removed", func() bool {
				_, err := os.Stat(filepath.Join(follower.dir, "group", "received"))
				return errors.Is(err, os.ErrNotExist)
			})
			if follower.released.Load() == 0 {
				t.Error("the space is not given back")
			}
			follower.space.Store(nil)
			c.converge()
		})
	}
}

// TestRestoreIsInterrupted proves that a replica recovers from a crash at each step of a received
// snapshot: the failing call stands for the crash.
func TestRestoreIsInterrupted(t *testing.T) {
	t.Parallel()
	for _, step := range []struct {
		name      string
		isAdopted bool // by Open, after the crash
		fail      func(r *replica, call string) error
	}{
		{"before the machine has the rows", false, func(_ *replica, call string) error {
			return errors.New("injected crash")
		}},
		{"before the snapshot is adopted", true, func(r *replica, _ string) error {
			r.files.Add(faults.Rule{Op: faults.Rename, Path: "incoming", Err: errors.New("injected crash")})
			return nil
		}},
		{"before the log is emptied", true, func(r *replica, _ string) error {
			r.files.Add(faults.Rule{Op: faults.Sync, Path: "segments.new", Err: errors.New("injected crash")})
			return nil
		}},
	} {
		t.Run(step.name, func(t *testing.T) {
			t.Parallel()
			withGroup(t, 3, trimmingSettings(), func(c *cluster) {
				leader, epoch := c.lead()
				follower := c.followers(leader)[0]
				for i := range 20 { // entries that its log keeps
					c.put(leader, epoch, fmt.Sprintf("once-%d", i), "x")
				}
				c.leaveBehind(leader, epoch, follower)
				follower.before = func(call string, _ uint64) error {
					if call == "restore" {
						return step.fail(follower, call)
					}
					return nil
				}
				c.open(follower)
				c.await(leader, epoch, "the replica ends", func() bool { return follower.group.Err() != nil })
				c.crash(follower)
				follower.before = nil
				follower.files.Reset()
				if step.isAdopted { // the next leader has all entries, and asks which ones the follower lacks
					c.crash(leader)
				}
				c.network.Isolate(follower.id, c.ids()...)
				c.open(follower)
				if s := follower.group.Status(); (s.Snapshot > 0) != step.isAdopted || step.isAdopted && s.Snapshot != follower.machine.Index() {
					t.Errorf("after the crash: snapshot of entry %d, machine at %d", s.Snapshot, follower.machine.Index())
				}
				c.network.HealAll()
				c.converge()
				if s := follower.group.Status(); (s.SnapshotsGotten == 0) != step.isAdopted {
					if !step.isAdopted {
						c.expectLead(leader, epoch) // the third replica has all entries
					}
					t.Errorf("%d snapshots after the crash", s.SnapshotsGotten)
				}
				c.crash(follower)
				c.open(follower)
				c.converge()
			})
		})
	}
}

// TestDivergedReplicaGetsASnapshot proves that entries which were never committed do not stand in the
// way of a snapshot. The replica has such an entry at the very index of the snapshot, and others after
// it. Without the restart of the library it would get snapshots without end: see applier.Restore.
func TestDivergedReplicaGetsASnapshot(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, trimmingSettings(), func(c *cluster) {
		old, epoch := c.lead()
		common := c.put(old, epoch, "once-a", "x") // behind it the logs differ
		c.network.Isolate(old.id, c.ids()...)
		const callers = 400
		done := make(chan error, callers)
		for i := range callers {
			go func() {
				_, err := old.group.Propose(epoch, fmt.Appendf(nil, "once-lost-%d=x\n", i))
				done <- err
			}()
		}
		for range callers {
			if lost, _ := isLost(testenv.ReceiveWithin(t, patience, "the proposals end", done)); !lost {
				t.Error("a proposal without a majority was acknowledged")
			}
		}
		next, later := c.lead(old)
		for i := range 200 {
			c.put(next, later, fmt.Sprintf("key-%d", i), strings.Repeat("x", 200))
		}
		// A request that was sent before the logs are trimmed may arrive after the partition. It has 64 entries at most.
		const behind = 100
		// The other one may lead after the partition. Entries that a follower on a busy machine still lacks stay
		// in the log.
		other := c.followers(next)[0]
		if other == old {
			other = c.followers(next)[1]
		}
		testenv.RepeatWithin(t, patience, "the logs are trimmed", func() bool {
			index := c.put(next, later, "key", "x")
			testenv.EventuallyWithin(t, patience, "the other replica has all entries", func() bool { return other.group.Status().Applied >= index })
			for _, r := range []*replica{next, other} {
				if err := r.group.Snapshot(); err != nil {
					t.Fatal(err)
				}
			}
			return next.group.Status().First > common+behind && other.group.Status().First > common+behind
		})
		if s, o := next.group.Status(), old.group.Status(); o.Last <= s.Last { // its disk was too slow for all before it gave up
			c.tryAgain(fmt.Sprintf("the old leader's log ends at %d, the new one's is from %d to %d", o.Last, s.First, s.Last))
		}
		c.network.HealAll()
		c.converge()
		// The restart cuts the connection on which the leader waits, so that it may send the snapshot once
		// more. From then on entries are enough.
		leader, epoch := c.lead()
		snapshots := func() (sent int64) {
			for _, r := range c.all {
				sent += r.group.Status().SnapshotsSent
			}
			return sent
		}
		const attempts = 5
		for range attempts {
			before := snapshots()
			for i := range 50 {
				c.put(leader, epoch, fmt.Sprintf("after-%d", i), "x")
			}
			c.converge()
			if before > 0 && snapshots() == before {
				return
			}
		}
		t.Errorf("after %d snapshots entries are still refused, or none was needed; the logs parted at %d", snapshots(), common)
		for _, r := range c.all {
			t.Logf("%s: %+v", r.id, r.group.Status())
		}
	})
}

// TestSnapshotIsOnlyASync proves that a periodic snapshot copies no rows, and that a replica begins a
// replay after it.
func TestSnapshotIsOnlyASync(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, fastSettings())
	leader, epoch := c.lead()
	for i := range 100 {
		c.put(leader, epoch, fmt.Sprintf("key-%d", i), strings.Repeat("x", 1000))
	}
	if err := leader.group.Snapshot(); err != nil {
		t.Fatal(err)
	}
	at := leader.group.Status().Snapshot
	if info, err := os.Stat(filepath.Join(leader.dir, "group", "snapshot")); err != nil || info.Size() > 1000 {
		t.Errorf("%v, %v", info, err)
	}
	c.put(leader, epoch, "after", "x")
	c.crash(leader)
	var first uint64
	leader.before = func(call string, index uint64) error {
		if call == "apply" && first == 0 {
			first = index
		}
		return nil
	}
	c.open(leader)
	c.converge()
	if first != at+1 {
		t.Errorf("the replay begins at %d, after a snapshot of %d", first, at)
	}
	if leader.machine.Row("after") != "x" {
		t.Error("a row that was not synced is lost")
	}
}

// TestMachineThatSyncsLess proves that the log keeps what a machine has not synced: its snapshots end
// where the machine does, a trim stops there, and a replay begins there.
func TestMachineThatSyncsLess(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, trimmingSettings())
	leader := c.all[0]
	c.lead()
	c.crash(leader)
	leader.lazy = true
	c.open(leader)
	_, epoch := c.lead()
	for round := range 4 {
		for i := range 100 {
			c.put(leader, epoch, fmt.Sprintf("key-%d-%d", round, i), strings.Repeat("x", 100))
		}
		if err := leader.group.Snapshot(); err != nil {
			t.Fatal(err)
		}
		if s := leader.group.Status(); s.Snapshot > s.Last-100 || s.First > s.Snapshot+1 {
			t.Fatalf("in round %d the log lacks rows that are not synced: %+v", round, s)
		}
	}
	if s := leader.group.Status(); s.First == 1 {
		t.Errorf("the log was never trimmed: %+v", s)
	}
	c.crash(leader)
	c.open(leader)
	c.converge()
	for round := range 4 {
		for i := range 100 {
			if key := fmt.Sprintf("key-%d-%d", round, i); leader.machine.Row(key) == "" {
				t.Fatalf("the row %s is lost", key)
			}
		}
	}
}

// TestDamagedEntryIsNotSent proves that a leader whose log is damaged on the disk ends, and does not give
// the damaged entry to a follower.
func TestDamagedEntryIsNotSent(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, fastSettings(), func(c *cluster) {
		leader, epoch := c.lead()
		follower := c.followers(leader)[0]
		c.crash(follower)
		c.put(leader, epoch, "once-damaged", "0123456789")
		c.put(leader, epoch, "once-after", "x")
		segments, err := filepath.Glob(filepath.Join(c.dir, string(leader.id), "group", "log", "*.wal"))
		if err != nil || len(segments) == 0 {
			t.Fatal(segments, err)
		}
		for _, path := range segments {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if at := strings.Index(string(text), "0123456789"); at >= 0 {
				f, err := os.OpenFile(path, os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := f.WriteAt([]byte("X"), int64(at)); err != nil {
					t.Fatal(err)
				}
				f.Close()
			}
		}
		c.open(follower)
		testenv.EventuallyWithin(t, patience, "the damaged replica ends", func() bool {
			if leader.group.Err() != nil {
				return true
			}
			c.expectLeadAfter(leader, epoch, raftlog.ErrNotLeader)
			return false
		})
		if err := leader.group.Err(); !strings.Contains(err.Error(), "checksum") {
			t.Error(err)
		}
		c.crash(leader)
		next, later := c.lead()
		c.put(next, later, "once-later", "x")
		c.converge()
		for _, r := range c.followers(leader) {
			if r.machine.Row("once-damaged") != "0123456789" {
				t.Errorf("%s has the damaged row", r.id)
			}
		}
		// The machine applied the entry before it was damaged, and is not asked for it again.
		leader.group = nil
	})
}
