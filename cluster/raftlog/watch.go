package raftlog

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Stalls counts what the watch has found since Open.
type Stalls struct {
	Disk        int64 // this node's disk did not answer: the group has ended
	Commit      int64 // proposals in flight, though the disk answers: restarted
	Replication int64 // a follower got no entries: restarted
	Transfer    int64 // a transfer did not end, or left a leader without a read lease: restarted
}

// watch looks after what the library does not notice. Group.supervise calls advanceClock, findStall and
// snapshotIfDue at each Settings.Tick; the proposers call beginFlight, endFlight and transferRefused.
//
//   - A disk that does not answer stops the library's main loop, while its heartbeats go on from other
//     goroutines: the leader keeps leading without committing (hashicorp/raft issues 503 and 666).
//     The group cuts its connections, so that the others elect, and ends.
//   - Proposals in flight for as long with a disk that answers: the library is stuck, or the followers'
//     disks are. A restart of the library gives another node a turn.
//   - A follower that answers heartbeats, lacks entries and gets no request (issues 611 and 612, which
//     drainedPipeline cures, or something like them): restart.
//   - A transfer that never ends makes the library refuse all proposals, even when the node is elected
//     again (issue 696): restart.
//   - A transfer that fails after its last message, TimeoutNow, leaves a leader without a read lease (see
//     lease.go), which would refuse reads for as long as it leads: restart.
//
// It also asks for snapshots, and sets the floor of the log below what followers are about to get:
// without it, entries that a follower needs after a long snapshot may be gone before it has them, and
// it needs another one.
type watch struct {
	settings *Settings

	// awake is the time by which the watch measures, in nanoseconds: it stands still while the process
	// does not run. After SIGSTOP and SIGCONT a monotonic timer has passed all limits at once, and
	// would take a healthy disk for a stalled one.
	awake    atomic.Int64
	lastTick time.Time // the goroutine of supervise owns it

	mu      sync.Mutex
	flights map[*flight]struct{}
	// progress is the time, by awake, of the last proposal that was applied.
	progress int64
	// refusedSince is the time, by awake, of the first proposal that was refused because of a transfer,
	// 0 if a later one was not.
	refusedSince int64

	disk, commit, replication, transfer atomic.Int64

	// The goroutine of supervise owns the rest.
	snapshotBytes int64 // logStore.bytesWritten at the last snapshot
	snapshotTime  int64 // awake at the last snapshot
	// voidSince is the time, by awake, since when this node leads without a read lease, 0 if it does not.
	voidSince int64
}

// flight is a proposal whose outcome is not known yet.
type flight struct{ since int64 }

func newWatch(settings *Settings) *watch {
	w := &watch{settings: settings, flights: map[*flight]struct{}{}, lastTick: time.Now()}
	w.awake.Store(1)
	return w
}

func (w *watch) clock() int64 { return w.awake.Load() }

// advanceClock moves the clock by the time since the last tick, at most by two ticks.
func (w *watch) advanceClock(now time.Time) {
	elapsed := min(now.Sub(w.lastTick), 2*w.settings.Tick)
	w.lastTick = now
	w.awake.Add(int64(elapsed))
}

func (w *watch) beginFlight() *flight {
	f := &flight{since: w.clock()}
	w.mu.Lock()
	w.flights[f] = struct{}{}
	w.mu.Unlock()
	return f
}

func (w *watch) endFlight(f *flight, isApplied bool) {
	now := w.clock()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.flights, f)
	if isApplied {
		w.progress = now
	}
}

// stillFor returns how long proposals have been in flight without one that was applied, in nanoseconds. The
// age of the oldest one alone would take a long queue for a stall.
func (w *watch) stillFor() int64 {
	now := w.clock()
	w.mu.Lock()
	defer w.mu.Unlock()
	oldest := now
	for f := range w.flights {
		oldest = min(oldest, f.since)
	}
	return now - max(oldest, w.progress)
}

// transferRefused notes whether a proposal was refused because of a transfer.
func (w *watch) transferRefused(refused bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !refused:
		w.refusedSince = 0
	case w.refusedSince == 0:
		w.refusedSince = w.clock()
	}
}

func (w *watch) stalls() Stalls {
	return Stalls{w.disk.Load(), w.commit.Load(), w.replication.Load(), w.transfer.Load()}
}

// verdict is what a tick has found.
type verdict struct {
	end, restart error // at most one is set
}

// findStall looks at the group. It is called after advanceClock.
func (w *watch) findStall(g *Group, inc *incarnation) verdict {
	now, s := w.clock(), w.settings
	leads, term := inc.leadership()
	w.mu.Lock()
	if !leads { // a transfer that succeeded
		w.refusedSince = 0
	}
	refusedSince := w.refusedSince
	w.mu.Unlock()
	switch isVoid := leads && inc.followers.isVoid(term); {
	case !isVoid:
		w.voidSince = 0
	case w.voidSince == 0:
		w.voidSince = now
	}
	isStill := leads && w.stillFor() >= int64(s.CommitStall)

	busy := func(since *atomic.Int64) bool {
		t := since.Load()
		return t > 0 && now-t >= int64(s.CommitStall)/2
	}
	switch {
	case isStill && (busy(&g.logs.busySince) || busy(&g.applier.busySince)):
		w.disk.Add(1)
		return verdict{end: fmt.Errorf("%w for %v", ErrDiskStalled, s.CommitStall)}
	case isStill:
		w.commit.Add(1)
		return verdict{restart: fmt.Errorf("proposals are in flight for %v", s.CommitStall)}
	case refusedSince > 0 && now-refusedSince >= int64(s.TransferStall):
		w.transfer.Add(1)
		return verdict{restart: fmt.Errorf("a transfer of leadership does not end for %v", s.TransferStall)}
	case w.voidSince > 0 && now-w.voidSince >= int64(s.TransferStall):
		w.transfer.Add(1)
		w.voidSince = 0
		return verdict{restart: errors.New("a transfer of leadership has left the leader without a read lease")}
	}
	if !leads {
		g.logs.setFloor(0)
		return verdict{}
	}
	return w.findStuckFollower(g, inc, term)
}

// findStuckFollower looks for a follower that is heard and gets no entries, and sets the floor of the log.
func (w *watch) findStuckFollower(g *Group, inc *incarnation, term uint64) (v verdict) {
	now, s := w.clock(), w.settings
	last := inc.raft.LastIndex()
	floor := noFloor
	members := inc.members()
	inc.followers.forEach(term, members.others(g.config.Node), func(node NodeID, n followerProgress) {
		if n.isStuck(now, last, s) {
			w.replication.Add(1)
			v.restart = fmt.Errorf("node %s is heard and gets no entries for %v", node, n.stuckAfter(s))
		}
		// The library reads the term of the entry before the first one that it sends.
		if (n.isHeard(now, s) || n.sending) && g.logs.bytesFrom(n.match) <= s.HeldBytes {
			floor = min(floor, max(n.match, 1))
		}
	})
	if floor == noFloor {
		floor = 0
	}
	g.logs.setFloor(floor)
	return v
}

// snapshotIfDue starts a snapshot when enough was written, or long ago. It runs on a goroutine of its
// own: the sync of the machine may take seconds. While the log is held it waits (Group.HoldLog).
func (w *watch) snapshotIfDue(g *Group, inc *incarnation) {
	if !g.snapshotting.TryLock() {
		return // one is under way, or the log is about to be held
	}
	written, now := g.logs.bytesWritten(), w.clock()
	isDue := written-w.snapshotBytes >= w.settings.SnapshotBytes ||
		written > w.snapshotBytes && now-w.snapshotTime >= int64(w.settings.SnapshotInterval)
	if !isDue || g.held.Load() > 0 {
		g.snapshotting.Unlock()
		return
	}
	w.snapshotBytes, w.snapshotTime = written, now
	g.background.Go(func() {
		defer g.snapshotting.Unlock()
		if err := g.snapshot(inc); err != nil {
			g.logger.Debug("no snapshot of the replica", "err", err)
		}
		g.logs.forgetSizes()
	})
}
