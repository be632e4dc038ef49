package raftlog

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// Machine holds the rows of one replica. Rows are absolute ("key = value", "key is gone"), so that
// applying entries again, in order, ends with the same rows. That is what allows a replica to apply
// without a sync: after a crash it applies again what was not synced.
//
// The group calls Apply, Verify and Restore from one goroutine at a time. Sync, and the methods of a
// Snapshot, run on other goroutines while Apply goes on, and never during Restore. An error of any of
// them except Snapshot ends the group: the rows of this replica are then in doubt.
type Machine interface {
	// Apply writes the rows of the entry at index, which the leader of term proposed. They need not be
	// durable. The same entry may come again after a restart, with all later ones. It must neither
	// keep nor change the slice.
	Apply(index, term uint64, rows []byte) error

	// Verify is called at the same index on every replica, after all earlier entries were applied. The
	// machine takes the digest of its rows as of this index and keeps it for whoever compares.
	Verify(index uint64) error

	// Sync returns the highest index such that the rows of its entry, and of all entries before it, are
	// durable: of an entry passed to Apply or to Restore. It may be lower than that of the last entry,
	// for a machine that keeps its newest rows in memory until there are many: the log keeps their
	// entries. It is never lower than what the call before returned. Open calls it first, to learn where
	// the machine stands.
	Sync() (index uint64, err error)

	// Snapshot returns the rows as of the entry at index, for another replica. A machine without
	// versions may return newer rows: the replica that receives them applies the entries after index,
	// and ends equal. But a digest at an index in between would differ.
	Snapshot(index uint64) (Snapshot, error)

	// Restore replaces all rows by those that Snapshot.WriteTo has written on another replica. It is
	// atomic and durable: after an error or a crash the machine holds the former rows. After it Sync
	// returns index.
	Restore(index uint64, r io.Reader) error
}

// Snapshot is the rows of a machine at one moment.
type Snapshot interface {
	// WriteTo writes the rows. It is called twice, the first time to learn the size, and must write
	// the same bytes. It returns soon after an error of w.
	io.WriterTo
	io.Closer
}

// applyResult is what the library's future returns for an entry.
type applyResult struct {
	index, term uint64
	fenced      bool
	err         error
}

// applier passes committed entries to the machine, and answers the library's questions about them. It
// is the library's FSM. It lives as long as the group, over restarts of the library.
type applier struct {
	machine Machine
	fail    func(error)  // ends the group; does not block
	clock   func() int64 // the watch's clock
	// busySince is the time by clock when the call of Apply, Verify or Restore in progress began, or 0.
	busySince atomic.Int64
	fenced    atomic.Int64 // entries whose rows were not written, since Open

	// applying is held during each call of Apply, Verify and Restore, and during an exchange of the rows.
	applying sync.Mutex
	// restoring excludes Sync and open snapshots during Restore and an exchange of the rows.
	restoring sync.RWMutex
	snapshots *snapshotStore
	// lastEntry returns the end of the log; restart stops the library, without waiting for it, and asks
	// for another run. See Restore.
	lastEntry func() (uint64, error)
	restart   func(reason error)

	mu sync.Mutex
	// at is the last entry that the library has passed, of any kind; rows is the last one whose rows
	// the machine got. After Open both are those of the last snapshot, though the machine may hold
	// newer rows: the library passes the entries after the snapshot again.
	at      position
	rows    uint64
	members committedMembers
	failed  error // the first error; later entries do not reach the machine
}

// position names an entry.
type position struct{ index, term uint64 }

// committedMembers is the configuration that an entry has set.
type committedMembers struct {
	configuration raft.Configuration
	index         uint64
}

var (
	_ raft.FSM                = (*applier)(nil)
	_ raft.ConfigurationStore = (*applier)(nil)
)

// Apply passes one entry. The library calls it on its goroutine for the FSM, in the order of the
// indexes. The value goes to the proposer, on the leader that has the entry in flight.
func (a *applier) Apply(log *raft.Log) any {
	result := applyResult{index: log.Index, term: log.Term}
	if result.err = a.firstError(); result.err != nil {
		return result
	}
	a.applying.Lock()
	a.busySince.Store(max(a.clock(), 1))
	wrote, fenced, err := a.applyByKind(log)
	a.busySince.Store(0)
	defer a.applying.Unlock() // the position belongs to the rows
	if err != nil {
		result.err = a.latchError(fmt.Errorf("apply entry %d: %w", log.Index, err))
		return result
	}
	result.fenced = fenced
	a.mu.Lock()
	a.at = position{log.Index, log.Term}
	if wrote {
		a.rows = log.Index
	}
	a.mu.Unlock()
	return result
}

// applyByKind carries out an entry by its kind, and reports whether the machine got rows.
func (a *applier) applyByKind(log *raft.Log) (wrote, fenced bool, err error) {
	e, err := decodeEntry(log.Data)
	if err != nil {
		return false, false, err
	}
	switch {
	case e.kind == takeoverEntry:
		return false, false, nil
	case e.isFenced(log.Term):
		a.fenced.Add(1)
		return false, true, nil
	case e.kind == verifyEntry:
		return false, false, a.machine.Verify(log.Index)
	}
	return true, false, a.machine.Apply(log.Index, log.Term, e.body)
}

// StoreConfiguration notes a committed change of members. The library calls it between calls of Apply.
// It makes the index of the library's snapshots include such entries; without it no snapshot is
// possible until the next proposal (Raft.takeSnapshot).
func (a *applier) StoreConfiguration(index uint64, configuration raft.Configuration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.members = committedMembers{configuration, index}
	if a.failed == nil {
		a.at = position{index: index} // the library does not tell the term; see snapshotStore.openStream
	}
}

func (a *applier) firstError() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failed
}

// latchError latches the first error and ends the group.
func (a *applier) latchError(err error) error {
	a.mu.Lock()
	if a.failed == nil {
		a.failed = err
	}
	err = a.failed
	a.mu.Unlock()
	a.fail(err)
	return err
}

// Snapshot begins a periodic snapshot: a sync of the machine and its index. The library calls it
// between calls of Apply, and Persist on another goroutine.
func (a *applier) Snapshot() (raft.FSMSnapshot, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return &syncedRows{applier: a, rows: a.rows}, a.failed
}

// syncedRows is a periodic snapshot. Its content is the machine itself.
type syncedRows struct {
	applier *applier
	rows    uint64 // the last entry with rows that it includes
}

// Persist syncs the machine. The sink gets no bytes: it stores the index.
//
// If the machine has synced fewer rows than it was given, the snapshot is one of the last entry that it
// has synced, and not of the entry that the library means. The library learns that when it is restarted
// and reads the record: it then begins the replay there. Until then it trims its log as if the snapshot
// were newer, and logStore.DeleteRange stops at the record.
func (s *syncedRows) Persist(sink raft.SnapshotSink) error {
	a := s.applier
	a.restoring.RLock()
	defer a.restoring.RUnlock()
	synced, err := a.machine.Sync()
	if err != nil {
		return a.latchError(fmt.Errorf("sync the machine: %w", err))
	}
	k := sink.(*snapshotSink)
	k.isSync(s.rows)
	if synced < s.rows {
		if err := k.endAt(synced); err != nil {
			return err
		}
	}
	return sink.Close()
}

// Release is part of the interface. A sync holds no resource.
func (s *syncedRows) Release() {}

// Restore replaces the machine's rows by a received snapshot. The library calls it between calls of
// Apply. A crash at any step leaves a replica that Open accepts:
//
//  1. the sink has written the file "incoming" with the snapshot's index;
//  2. the machine replaces its rows, atomically;
//  3. the snapshot becomes the replica's own.
//
// After a crash between 2 and 3 the machine stands at the index of "incoming", and Open does step 3.
// Without the file the library would take the entries of its old log for the next ones.
//
// If the log reaches beyond the snapshot, its entries are of no use: a leader sends a snapshot only
// where the logs do not meet. The library empties the log then and goes on with the former end of the
// log in its memory (Raft.installSnapshot does not set it). It would compare every new entry with
// entries that are gone, refuse it, and get snapshots without end, much as in hashicorp/raft issue 697.
// Worse, it would vote by the former end: for a candidate that lacks entries which the snapshot holds.
// So the library is stopped before it learns of the restore, and reads the end of the log again when it
// is restarted.
func (a *applier) Restore(r io.ReadCloser) error {
	if err := a.firstError(); err != nil {
		return err
	}
	a.applying.Lock()
	defer a.applying.Unlock()
	received := a.snapshots.receivedRecord()
	a.snapshots.abortStreams() // they hold restoring, and their receiver asks again
	a.restoring.Lock()
	defer a.restoring.Unlock()
	a.busySince.Store(0) // the size of a snapshot bounds it, not the time of a commit
	if err := a.machine.Restore(received.Index, r); err != nil {
		return a.latchError(fmt.Errorf("restore the snapshot of entry %d: %w", received.Index, err))
	}
	if err := a.snapshots.adoptIncoming(); err != nil {
		return a.latchError(fmt.Errorf("adopt the snapshot of entry %d: %w", received.Index, err))
	}
	a.setPosition(received)
	a.snapshots.gotten.Add(1)
	last, err := a.lastEntry()
	if err != nil {
		return a.latchError(err)
	}
	if last >= received.Index {
		a.restart(fmt.Errorf("log reached up to entry %d, beyond the snapshot of entry %d", last, received.Index))
	}
	return nil
}

// setPosition sets the position to that of a snapshot.
func (a *applier) setPosition(s snapshotRecord) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at, a.rows, a.members = position{s.Index, s.Term}, s.Rows, s.members()
}

// currentPosition returns what a snapshot of this moment has to say of itself.
func (a *applier) currentPosition() (at position, rows uint64, m committedMembers) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.at, a.rows, a.members
}
