package raftlog

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/segment"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// logStore is raft-wal with what the library expects of a log and raft-wal does not give:
//
//   - the first error of a write is latched: every later write returns it. raft-wal rolls its memory
//     forward and writes again, and after a failed sync the kernel may report success for pages that
//     it has dropped. Reads go on, because the library panics when it cannot read a committed entry,
//     and what was synced before is right;
//   - the sum of each entry is checked when it is read, and before it is stored;
//   - a trim stops at the floor: the entries that a follower is about to get (see watch.go).
//
// The writes come from the library's main loop, the trims from its goroutine of snapshots, reads from
// all of its goroutines.
type logStore struct {
	wal *wal.WAL
	// fail ends the group, with the first error of a write or with a damaged entry. It does not block.
	fail func(error)
	// clock is the watch's clock; busySince is its time when the call of StoreLogs in progress began,
	// or 0. It shows the watch a disk that does not answer. A trim that hangs holds raft-wal's lock, so
	// that the next StoreLogs hangs, too.
	clock     func() int64
	busySince atomic.Int64
	// snapshotIndex returns the entry of the replica's own snapshot: a trim leaves all later entries. It is
	// set before the store is used.
	snapshotIndex func() uint64
	// refuse, if not nil, may refuse entries before they are written. Tests set it before the store
	// is used.
	refuse func([]*raft.Log) error

	// closing keeps reads and close apart: in raft-wal a read that has begun before Close and goes on after it
	// finds no list of segments, and panics. Group.Status reads whenever its caller likes. Reads do not wait
	// for it, because close may wait for the disk.
	closing sync.RWMutex

	mu      sync.Mutex
	latched error
	floor   uint64 // the lowest index that a trim leaves; 0: any may go
	written int64  // bytes of entries stored since the store was opened
	// sizes has the value of written at some indexes, ascending, about one for each sizeStep bytes. Entries
	// that were stored before have one for each segment, below 0.
	sizes []sizeMark
}

type sizeMark struct {
	index   uint64
	written int64
}

const sizeStep = 1 << 20

var (
	_ raft.LogStore          = (*logStore)(nil)
	_ raft.MonotonicLogStore = (*logStore)(nil)
)

// openLog opens the log in an existing folder.
func openLog(fsys vfs.FS, dir string, segmentBytes int, logger hclog.Logger, clock func() int64, fail func(error)) (*logStore, error) {
	if err := finishRotation(fsys, dir, segmentBytes); err != nil {
		return nil, fmt.Errorf("log %s: %w", dir, err)
	}
	log, err := wal.Open(dir,
		wal.WithSegmentFiler(segment.NewFiler(dir, segmentFiles{fsys})),
		wal.WithMetaStore(&segmentList{fsys: fsys}),
		wal.WithSegmentSize(segmentBytes),
		wal.WithLogger(logger))
	if err != nil {
		return nil, fmt.Errorf("log %s: %w", dir, err)
	}
	s := &logStore{wal: log, clock: clock, fail: fail}
	s.sizes, err = segmentSizes(fsys, dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("log %s: %w", dir, err), log.Close())
	}
	return s, nil
}

// segmentSizes returns marks of the entries that are in a log before anything is stored. The file of the last
// segment has its full size from the beginning, so that its entries count as more than they are.
func segmentSizes(fsys vfs.FS, dir string) (sizes []sizeMark, err error) {
	state, err := (&segmentList{fsys: fsys}).Load(dir)
	if err != nil {
		return nil, err
	}
	var end int64
	for i := range state.Segments {
		info, err := fsys.Stat(filepath.Join(dir, segment.FileName(state.Segments[i])))
		if err != nil {
			return nil, err
		}
		sizes = append(sizes, sizeMark{state.Segments[i].MinIndex, end})
		end += info.Size()
	}
	for i := range sizes {
		sizes[i].written -= end
	}
	return sizes, nil
}

// close closes the files. The library must not use the store any more.
func (s *logStore) close() error {
	s.closing.Lock()
	defer s.closing.Unlock()
	return s.wal.Close()
}

// FirstIndex returns the index of the oldest entry, 0 if the log is empty.
func (s *logStore) FirstIndex() (uint64, error) {
	if !s.closing.TryRLock() {
		return 0, wal.ErrClosed
	}
	defer s.closing.RUnlock()
	return s.wal.FirstIndex()
}

// LastIndex returns the index of the newest durable entry, 0 if the log is empty.
func (s *logStore) LastIndex() (uint64, error) {
	if !s.closing.TryRLock() {
		return 0, wal.ErrClosed
	}
	defer s.closing.RUnlock()
	return s.wal.LastIndex()
}

// IsMonotonic tells the library to empty the log when it installs a snapshot. Otherwise it would leave
// TrailingEntries, and raft-wal refuses an entry that does not follow the last one. What the library
// forgets when it empties the log is in applier.Restore.
func (s *logStore) IsMonotonic() bool { return true }

// GetLog reads an entry. A missing one is raft.ErrLogNotFound itself, which the library compares by ==
// to learn that a follower needs a snapshot.
func (s *logStore) GetLog(index uint64, log *raft.Log) error {
	err := s.readEntry(index, log)
	if err == raft.ErrLogNotFound {
		return err
	}
	if err == nil && log.Type == raft.LogCommand {
		err = checkEntry(log.Data)
	}
	if err != nil {
		err = fmt.Errorf("log entry %d: %w", index, err)
		s.latchError(err)
	}
	return err
}

func (s *logStore) readEntry(index uint64, log *raft.Log) error {
	if !s.closing.TryRLock() {
		return wal.ErrClosed
	}
	defer s.closing.RUnlock()
	return s.wal.GetLog(index, log)
}

// StoreLog stores one entry, durably.
func (s *logStore) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

// StoreLogs stores entries, durably. A damaged entry is refused without an effect on the store: it is
// damaged in memory or came from a leader, which sends it again.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	size := 0
	for _, log := range logs {
		if log.Type == raft.LogCommand {
			if err := checkEntry(log.Data); err != nil {
				return fmt.Errorf("log entry %d: %w", log.Index, err)
			}
		}
		size += len(log.Data)
	}
	if s.refuse != nil {
		if err := s.refuse(logs); err != nil {
			return err
		}
	}
	s.busySince.Store(max(s.clock(), 1))
	err := s.writeLatched(func() error { return s.wal.StoreLogs(logs) })
	s.busySince.Store(0)
	if err == nil && len(logs) > 0 {
		s.countBytes(logs[0].Index, size)
	}
	return err
}

// DeleteRange removes a prefix of the log (a trim), a suffix (entries that conflict with the leader's)
// or all. A trim stops at the floor, and at the replica's own snapshot (syncedRows.Persist). The library
// takes a shorter trim for a full one, and reads the first index again before the next.
func (s *logStore) DeleteRange(low, high uint64) error {
	first, err := s.FirstIndex()
	if err != nil {
		return err
	}
	last, err := s.LastIndex()
	if err != nil {
		return err
	}
	isTrim := low <= first && high < last
	if isTrim && s.snapshotIndex != nil {
		high = min(high, s.snapshotIndex())
	}
	s.mu.Lock()
	if isTrim && s.floor > 0 && high >= s.floor {
		high = s.floor - 1
	}
	s.mu.Unlock()
	if high < low || high < first {
		return nil
	}
	return s.writeLatched(func() error { return s.wal.DeleteRange(low, high) })
}

// writeLatched runs one write of the log and latches its error.
func (s *logStore) writeLatched(f func() error) error {
	s.mu.Lock()
	err := s.latched
	s.mu.Unlock()
	if err != nil {
		return err
	}
	err = f()
	if err != nil {
		err = fmt.Errorf("write to the log: %w", err)
		s.latchError(err)
	}
	return err
}

func (s *logStore) latchError(err error) {
	s.mu.Lock()
	first := s.latched == nil
	if first {
		s.latched = err
	}
	s.mu.Unlock()
	if first {
		s.fail(err)
	}
}

// setFloor sets the lowest index that trims leave, 0 for none.
func (s *logStore) setFloor(index uint64) {
	s.mu.Lock()
	s.floor = index
	s.mu.Unlock()
}

func (s *logStore) countBytes(first uint64, size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.sizes); n > 0 && s.sizes[n-1].index >= first { // a suffix was replaced
		s.sizes = s.sizes[:sort.Search(n, func(i int) bool { return s.sizes[i].index >= first })]
	}
	if n := len(s.sizes); n == 0 || s.written-s.sizes[n-1].written >= sizeStep {
		s.sizes = append(s.sizes, sizeMark{first, s.written})
	}
	s.written += int64(size)
}

// bytesFrom estimates the bytes of the entries from index on, to about sizeStep, or a segment for entries that
// were stored before the store was opened.
func (s *logStore) bytesFrom(index uint64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := sort.Search(len(s.sizes), func(i int) bool { return s.sizes[i].index >= index })
	if i == len(s.sizes) {
		return 0
	}
	return s.written - s.sizes[i].written
}

// trailingFrom returns the lowest index from which on the entries have at most so many bytes, as far as the
// marks tell: 1 if all have.
func (s *logStore) trailingFrom(limit int64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := sort.Search(len(s.sizes), func(i int) bool { return s.written-s.sizes[i].written <= limit })
	switch {
	case i == 0:
		return 1
	case i == len(s.sizes): // the last mark alone has more
		i--
	}
	return s.sizes[i].index
}

// bytesWritten returns the bytes of entries stored since the store was opened.
func (s *logStore) bytesWritten() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.written
}

// forgetSizes drops the marks of entries that are gone, so that the list stays short.
func (s *logStore) forgetSizes() {
	first, err := s.FirstIndex()
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := sort.Search(len(s.sizes), func(i int) bool { return s.sizes[i].index >= first })
	if i > 1 { // the mark before the first entry holds its bytes
		s.sizes = append(s.sizes[:0], s.sizes[i-1:]...)
	}
}

// noFloor is the need of a follower that needs no entry.
const noFloor = uint64(math.MaxUint64)

// termOf returns the term of an entry.
func (s *logStore) termOf(index uint64) (uint64, error) {
	var log raft.Log
	err := s.GetLog(index, &log)
	return log.Term, err
}
