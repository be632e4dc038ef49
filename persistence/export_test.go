package persistence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/dgraph-io/badger/v4"
)

// FailNext makes the next commit of the store fail.
func (s *RunStore) FailNext() {
	statfs, failed := s.db.disk.Statfs, false
	s.db.disk.SetStatfs(func(dir string) (int64, int64, error) {
		if !failed {
			failed = true
			return 0, 0, errors.New("injected by the test")
		}
		return statfs(dir)
	})
}

// WithSmallMemtables makes memtables and transactions as small as on the smallest disks.
func WithSmallMemtables(c Config) Config {
	c.memTable = 4 << 20
	return c
}

// WithTinyMemtables is Small, as on a disk of 60 MB.
func WithTinyMemtables(c Config) Config {
	c.memTable = 1 << 20
	return c
}

// WithoutCompaction leaves all compaction to CompactAll. Otherwise Badger merges two tables of a
// small disk as soon as their store has been open for a moment. The store may write six tables.
func WithoutCompaction(c Config) Config {
	c.keepTables = true
	return c
}

// WithDisk makes up a disk.
func WithDisk(c Config, statfs func(string) (free, total int64, err error)) Config {
	c.statfs = statfs
	return c
}

// write gives rows to Badger as a commit that is not durable.
func write(s *RunStore, ops []mutation, at uint64) error {
	applied := make(chan error, 1)
	<-s.db.writer.idle
	s.db.writer.writeToBadger(ops, at, func(err error) { applied <- err })
	defer func() {
		clear(s.db.writer.entries)
		s.db.writer.idle <- struct{}{}
	}()
	return <-applied
}

// IsClosing tells whether the store takes no further batch.
func IsClosing(s *RunStore) bool {
	s.queue.mu.Lock()
	defer s.queue.mu.Unlock()
	return s.queue.closed
}

// CompactAll has Badger compact all levels into one.
func CompactAll(s *RunStore) error { return s.db.badger.Flatten(2) }

// FlushedAndLast tells up to which commit tables have all, and which one is the last.
func FlushedAndLast(s *RunStore) (tables, last uint64) {
	return badgerguard.NewestFlushed(s.db.badger.Tables()), s.db.localLog.log.Last()
}

// Dump is all rows of the store, as text, as the newest read sees them.
func Dump(s *RunStore) (rows []string, err error) {
	err = s.scanRows(nil, nil, false, func(key []byte, item *badger.Item) (bool, error) {
		return true, item.Value(func(v []byte) error {
			if string(key) != "mopens" {
				rows = append(rows, fmt.Sprintf("%q %x", key, v))
			}
			return nil
		})
	})
	return rows, err
}

// KeepWholeLog has the commit log keep what tables have, too.
func KeepWholeLog(s *RunStore) { s.db.localLog.checkEvery = 1 << 60 }

// WithReplayFrom has the log applied behind a commit, as if tables had no more.
func WithReplayFrom(c Config, from uint64) Config {
	c.replayFrom = &from
	return c
}

// WithFS has the commit log on a file system of the test's.
func WithFS(c Config, fs vfs.FS) Config {
	c.FS = fs
	return c
}

// VerifierSchedule is when the store looks at its tables: at each tick. wait is how it keeps its
// rate.
type VerifierSchedule struct {
	Ticks  chan time.Time
	Wait   func(ctx context.Context, d time.Duration) error
	Looked func(whole bool, report *badgerguard.Report, err error)
	Bytes  int64 // of a pass that one look reads; 0 = as usual
	// Unregistered leaves out the look at which runs are finished.
	Unregistered bool
}

// WithVerifierSchedule has the store look at its tables when the test says so.
func WithVerifierSchedule(c Config, l VerifierSchedule) Config {
	c.clock = verifyClock{ticks: l.Ticks, wait: l.Wait, looked: l.Looked, bytes: l.Bytes, unregistered: l.Unregistered}
	return c
}

// VerifyEvery is the time between two passes over all tables.
const VerifyEvery = verifyEvery

// VerifyRate is how many bytes a second a look reads.
const VerifyRate = verifyRate

// ForgetDiskSpace makes the next check of the disk ask the file system.
func ForgetDiskSpace(s *RunStore) { s.db.disk.SetStatfs(s.db.disk.Statfs) }

// FailFastOnFullDisk makes a store fail at once when the disk is full, rather than wait for
// compactions.
func FailFastOnFullDisk(s *RunStore) { s.db.disk.Pause = func(time.Duration) {} }

// SetMeta overwrites a meta row.
func SetMeta(s *RunStore, name string, n uint64) error {
	return s.commitRows([]mutation{metaRow(name, n)})
}

// Meta reads a meta row.
func Meta(s interface {
	metaNumber(string) (uint64, error)
}, name string) (uint64, error) {
	return s.metaNumber(name)
}

// StageWithoutApplying leaves what a crash would leave of a batch that is too big for one
// transaction: its parts, and when marked the mark too. The batch's rows set the
// shards row to 99.
func StageWithoutApplying(s *RunStore, marked bool) error {
	rows := stagedParts([]mutation{metaRow("shards", 99)}, 1, 4)
	if marked {
		rows = append(rows, stagedMark(1, len(rows)))
	}
	return s.commitRows(rows)
}

// InterruptDelete begins the deletion of runs and ends it after n steps, as a crash would.
func InterruptDelete(s *RunStore, n int, runs ...messages.RunID) error {
	return s.deleteRuns(runs, 0, func(rows []mutation) error {
		if n--; n < 0 {
			return errors.New("crash")
		}
		return s.commitRows(rows)
	})
}

// CountRows counts the rows of a type.
func CountRows(s *RunStore, typ byte) (n int, err error) {
	err = s.scanRows([]byte{typ}, nil, false, func([]byte, *badger.Item) (bool, error) {
		n++
		return true, nil
	})
	return n, err
}

// SetRawRow writes a row whose value is exactly this.
func SetRawRow(s *RunStore, key, value []byte) error {
	return s.commitRows([]mutation{{Key: key, Value: value}})
}

// DeleteRow deletes a row.
func DeleteRow(s *RunStore, key []byte) error {
	return s.commitRows([]mutation{{Key: key, Delete: true}})
}

// LoseSummary is DeleteRow, behind the store's back, of the summary of a finished run.
func LoseSummary(s *RunStore, run messages.RunID) error {
	err := DeleteRow(s, runKey(typeFinished, run))
	_ = s.db.writer.wait()
	s.finished.addIfUnknown(finishedRun{run: run, states: anyFinal})
	return err
}

// AddToFinishedIndex has the store know that runs are finished.
func AddToFinishedIndex(s *RunStore, runs ...messages.RunID) {
	for _, run := range runs {
		s.finished.addIfUnknown(finishedRun{run: run, states: anyFinal})
	}
}

// FinishedIndexRuns are the runs that the store knows to be finished.
func FinishedIndexRuns(s *RunStore) []messages.RunID {
	_ = s.db.writer.wait()
	return s.finished.appendBetween(nil, 0, 1<<64-1)
}

// FinishedKey is the key of a finished run's summary.
func FinishedKey(run messages.RunID) []byte { return runKey(typeFinished, run) }

// UnfinishedKey is the key of an unfinished run's summary.
func UnfinishedKey(run messages.RunID) []byte { return runKey(typeUnfinished, run) }

// RawRow returns a row as it is stored, with its checksum; nil when there is none.
func RawRow(s *RunStore, key []byte) (v []byte) {
	_ = s.scanRows(key, nil, false, func(k []byte, item *badger.Item) (bool, error) {
		if string(k) == string(key) {
			v, _ = item.ValueCopy(nil)
		}
		return false, nil
	})
	return v
}

// AllKeys lists all rows' keys.
func AllKeys(s *RunStore) (keys [][]byte) {
	_ = s.scanRows(nil, nil, false, func(k []byte, _ *badger.Item) (bool, error) {
		keys = append(keys, append([]byte(nil), k...))
		return true, nil
	})
	return keys
}

// ParseKeys has all that parses keys take one.
func ParseKeys(key []byte) {
	runOfKey(key)
	_ = rowName(key)
	_, _, _ = parseExpiryKey(key)
	_, _ = decodeStaged(append(appendString([]byte{1}, key), 0))
	newReadTimestamps().publish(1, []mutation{{Key: key, Delete: true}})
}
