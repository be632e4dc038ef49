package raftlog_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// rowsOf returns a copy of a replica's rows, and the entry that they are of.
func rowsOf(t *testing.T, r *replica) (index uint64, rows []byte) {
	t.Helper()
	index = r.group.Status().Applied
	snapshot, err := r.machine.Snapshot(index)
	if err != nil {
		t.Fatal(err)
	}
	var buffer bytes.Buffer
	if _, err := snapshot.WriteTo(&buffer); err != nil {
		t.Fatal(err)
	}
	return index, buffer.Bytes()
}

// exchange replaces the rows of a replica by a copy.
func exchange(r *replica, from uint64, rows []byte) (replayed int, err error) {
	err = r.group.Exchange(from, func(replay raftlog.Replay) error {
		if err := r.machine.Restore(from, bytes.NewReader(rows)); err != nil {
			return err
		}
		return replay(func(index, term uint64, rows []byte) error {
			replayed++
			return r.machine.Apply(index, term, rows)
		})
	})
	return replayed, err
}

// TestRowsAreExchanged: a replica whose rows are wrong gets those of another one under load, and with the entries
// since then it is equal again, also after a restart. It stays a voter throughout.
func TestRowsAreExchanged(t *testing.T) {
	t.Parallel()
	withGroup(t, 3, trimmingSettings(), func(c *cluster) {
		leader, epoch := c.lead()
		bad := c.followers(leader)[0]
		for i := range 40 {
			c.put(leader, epoch, fmt.Sprintf("key-%d", i), "value")
		}
		last := c.put(leader, epoch, "key-7", "right")
		testenv.EventuallyWithin(t, patience, "it applies the last entry", func() bool { return bad.group.Status().Applied >= last })
		if err := bad.machine.Apply(last, 0, []byte("key-7=wrong\n")); err != nil { // no entry says so
			t.Fatal(err)
		}
		if bad.machine.Digest() == leader.machine.Digest() {
			t.Fatal("the rows are equal")
		}
		applied, release := bad.group.HoldLog()
		from, rows := rowsOf(t, leader)
		if from < applied {
			t.Fatalf("the leader has applied %d entries, a follower %d", from, applied)
		}
		stop, wait := make(chan struct{}), sync.WaitGroup{}
		end := sync.OnceFunc(func() { close(stop); wait.Wait() })
		defer end()
		var failure error // of a proposal; read it after end
		wait.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					if _, failure = leader.group.Propose(epoch, fmt.Appendf(nil, "key-%d=%d\n", i%50, i)); failure != nil {
						return
					}
				}
			}
		})
		c.await(leader, epoch, "later entries come", func() bool { return bad.group.Status().Applied >= from+20 })
		replayed, err := exchange(bad, from, rows)
		end()
		release()
		if failure != nil {
			c.expectLeadAfter(leader, epoch, failure)
			t.Error(failure)
		}
		if err != nil || replayed < 20 {
			t.Fatalf("%d entries were replayed, %v", replayed, err)
		}
		c.converge()
		c.crash(bad)
		c.open(bad)
		c.converge()
	})
}

// TestLogIsHeld: there is no periodic snapshot while the log is held, and one that is due comes afterwards.
func TestLogIsHeld(t *testing.T) {
	t.Parallel()
	settings := trimmingSettings()
	settings.SnapshotBytes, settings.SnapshotInterval = 1<<10, time.Millisecond
	c := newCluster(t, 1, settings)
	leader, epoch := c.lead()
	_, release := leader.group.HoldLog()
	c.put(leader, epoch, "key", "value")
	if err := leader.group.Snapshot(); err != nil { // it waits for one that is under way
		t.Fatal(err)
	}
	hold := leader.group.Status().Snapshot
	for i := range 60 {
		c.put(leader, epoch, fmt.Sprintf("key-%d", i), string(bytes.Repeat([]byte("x"), 200)))
	}
	if s := leader.group.Status(); s.Snapshot != hold {
		t.Errorf("a snapshot of entry %d was made, and the log is held since entry %d", s.Snapshot, hold)
	}
	release()
	testenv.EventuallyWithin(t, patience, "a snapshot is made", func() bool { return leader.group.Status().Snapshot >= hold+60 })
}

// TestHoldWaitsForASnapshot: a snapshot that has begun may remove entries at its end, so the log counts as held only
// after that.
func TestHoldWaitsForASnapshot(t *testing.T) {
	t.Parallel()
	settings := trimmingSettings()
	settings.SnapshotBytes, settings.SnapshotInterval = 1<<10, time.Millisecond
	c := newCluster(t, 0, settings)
	r := c.add("n1")
	var isSlow atomic.Bool
	begun, answers := make(chan struct{}), make(chan struct{})
	begin, answer := sync.OnceFunc(func() { close(begun) }), sync.OnceFunc(func() { close(answers) })
	defer answer()
	r.before = func(call string, _ uint64) error {
		if call == "sync" && isSlow.Load() {
			begin()
			<-answers
		}
		return nil
	}
	c.open(r, r.id)
	_, epoch := c.lead()
	isSlow.Store(true)
	c.put(r, epoch, "key", "value")
	testenv.ReceiveWithin(t, patience, "a snapshot begins", begun)
	held := make(chan func(), 1)
	go func() {
		_, release := r.group.HoldLog()
		held <- release
	}()
	timer := time.NewTimer(100 * time.Millisecond)
	select {
	case <-held:
		t.Fatal("the log is held while a snapshot is under way")
	case <-timer.C:
	}
	answer()
	release := testenv.ReceiveWithin(t, patience, "the log is held", held)
	defer release()
	hold := r.group.Status().Snapshot
	for i := range 60 {
		c.put(r, epoch, fmt.Sprintf("key-%d", i), string(bytes.Repeat([]byte("x"), 200)))
	}
	if s := r.group.Status(); s.Snapshot != hold {
		t.Errorf("a snapshot of entry %d was made, and the log is held since entry %d", s.Snapshot, hold)
	}
}

// TestExchangeIsRefused with a copy that the log does not follow, and with one of an entry that has not come. An
// error of the caller leaves the group as it is.
func TestExchangeIsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, trimmingSettings())
	leader, epoch := c.lead()
	from, rows := rowsOf(t, leader)
	for i := range 60 {
		c.put(leader, epoch, fmt.Sprintf("key-%d", i), string(bytes.Repeat([]byte("x"), 200)))
	}
	if err := leader.group.Snapshot(); err != nil {
		t.Fatal(err)
	}
	if _, err := exchange(leader, from, rows); !errors.Is(err, raftlog.ErrNotReplayable) {
		t.Errorf("a copy of entry %d: %v", from, err)
	}
	if _, err := exchange(leader, leader.group.Status().Applied+1, rows); err == nil || errors.Is(err, raftlog.ErrNotReplayable) {
		t.Errorf("a copy of a later entry: %v", err)
	}
	now := leader.group.Status().Applied
	failure := errors.New("the disk is full")
	if err := leader.group.Exchange(now, func(raftlog.Replay) error { return failure }); !errors.Is(err, failure) {
		t.Error(err)
	}
	c.put(leader, epoch, "key", "value")
	if got := leader.machine.Row("key"); got != "value" || leader.group.Err() != nil {
		t.Errorf("the key is %q, %v", got, leader.group.Err())
	}
	if err := leader.group.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := exchange(leader, now, rows); !errors.Is(err, raftlog.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}
