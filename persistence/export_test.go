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
func (s *Badger) FailNext() {
	statfs, failed := s.disk.Statfs, false
	s.disk.SetStatfs(func(dir string) (int64, int64, error) {
		if !failed {
			failed = true
			return 0, 0, errors.New("injected by the test")
		}
		return statfs(dir)
	})
}

// Small makes memtables and transactions as small as on the smallest disks.
func Small(c Config) Config {
	c.memTable = 4 << 20
	return c
}

// Tiny is Small, as on a disk of 60 MB.
func Tiny(c Config) Config {
	c.memTable = 1 << 20
	return c
}

// WithDisk makes up a disk.
func WithDisk(c Config, statfs func(string) (free, total int64, err error)) Config {
	c.statfs = statfs
	return c
}

// write gives rows to Badger as a commit that is not durable.
func write(s *Badger, ops []mutation, at uint64) error {
	applied := make(chan error, 1)
	<-s.localWAL.badgerIdle
	s.localWAL.writeToBadger(ops, at, func(err error) { applied <- err })
	defer func() {
		clear(s.localWAL.entries)
		s.localWAL.badgerIdle <- struct{}{}
	}()
	return <-applied
}

// Flatten has Badger compact all levels into one.
func Flatten(s *Badger) error { return s.db.Flatten(2) }

// Flushed tells up to which commit tables have all, and which one is the last.
func Flushed(s *Badger) (tables, last uint64) {
	return badgerguard.NewestFlushed(s.db.Tables()), s.localWAL.log.Last()
}

// Dump is all rows of the store, as text, as the newest read sees them.
func Dump(s *Badger) (rows []string, err error) {
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

// KeepLog has the commit log keep what tables have, too.
func KeepLog(s *Badger) { s.localWAL.checkEvery = 1 << 60 }

// ReplayFrom has the log applied behind a commit, as if tables had no more.
func ReplayFrom(c Config, from uint64) Config {
	c.replayFrom = &from
	return c
}

// OnFS has the commit log on a file system of the test's.
func OnFS(c Config, fs vfs.FS) Config {
	c.FS = fs
	return c
}

// Looks is when the store looks at its tables: at each tick. wait is how it keeps its rate.
type Looks struct {
	Ticks  chan time.Time
	Wait   func(ctx context.Context, d time.Duration) error
	Looked func(whole bool, report *badgerguard.Report, err error)
	Bytes  int64 // of a pass that one look reads; 0 = as usual
	// Unregistered leaves out the look at which runs are finished.
	Unregistered bool
}

// WithLooks has the store look at its tables when the test says so.
func WithLooks(c Config, l Looks) Config {
	c.clock = verifyClock{ticks: l.Ticks, wait: l.Wait, looked: l.Looked, bytes: l.Bytes, unregistered: l.Unregistered}
	return c
}

// VerifyEvery is the time between two passes over all tables.
const VerifyEvery = verifyEvery

// VerifyRate is how many bytes a second a look reads.
const VerifyRate = verifyRate

// ForgetDiskSpace makes the next check of the disk ask the file system.
func ForgetDiskSpace(s *Badger) { s.disk.SetStatfs(s.disk.Statfs) }

// FailFastOnFullDisk makes a store fail at once when the disk is full, rather than wait for
// compactions.
func FailFastOnFullDisk(s *Badger) { s.disk.Pause = func(time.Duration) {} }

// SetMeta overwrites a meta row.
func SetMeta(s *Badger, name string, n uint64) error {
	return s.commitRows([]mutation{metaRow(name, n)})
}

// Meta reads a meta row.
func Meta(s *Badger, name string) (uint64, error) { return s.metaNumber(name) }

// HalfStage leaves what a crash would leave of a batch that is too big for one
// transaction: its parts, and when marked the mark too. The batch's rows set the
// shards row to 99.
func HalfStage(s *Badger, marked bool) error {
	rows := stagedParts([]mutation{metaRow("shards", 99)}, 1, 4)
	if marked {
		rows = append(rows, stagedMark(1, len(rows)))
	}
	return s.commitRows(rows)
}

// HalfDelete begins the deletion of runs and ends it after n steps, as a crash would.
func HalfDelete(s *Badger, n int, runs ...messages.RunID) error {
	return s.deleteRuns(runs, 0, func(rows []mutation) error {
		if n--; n < 0 {
			return errors.New("crash")
		}
		return s.commitRows(rows)
	})
}

// Rows counts the rows of a type.
func Rows(s *Badger, typ byte) (n int, err error) {
	err = s.scanRows([]byte{typ}, nil, false, func([]byte, *badger.Item) (bool, error) {
		n++
		return true, nil
	})
	return n, err
}

// SetBare writes a row whose value is exactly this.
func SetBare(s *Badger, key, value []byte) error {
	return s.commitRows([]mutation{{Key: key, Value: value}})
}

// DeleteRow deletes a row.
func DeleteRow(s *Badger, key []byte) error {
	return s.commitRows([]mutation{{Key: key, Delete: true}})
}

// Lose is DeleteRow, behind the store's back, of the summary of a finished run.
func Lose(s *Badger, run messages.RunID) error {
	err := DeleteRow(s, runKey(typeFinished, run))
	s.localWAL.waitApplied()
	s.finished.addIfUnknown(finishedRun{run: run, states: anyFinal})
	return err
}

// Register has the store know that runs are finished.
func Register(s *Badger, runs ...messages.RunID) {
	for _, run := range runs {
		s.finished.addIfUnknown(finishedRun{run: run, states: anyFinal})
	}
}

// Registered are the runs that the store knows to be finished.
func Registered(s *Badger) []messages.RunID {
	s.localWAL.waitApplied()
	return s.finished.appendBetween(nil, 0, 1<<64-1)
}

// FinalKey is the key of a finished run's summary, LiveKey that of an unfinished one's.
func FinalKey(run messages.RunID) []byte { return runKey(typeFinished, run) }

// LiveKey is the key of an unfinished run's summary.
func LiveKey(run messages.RunID) []byte { return runKey(typeUnfinished, run) }

// Row returns a row as it is stored, with its checksum; nil when there is none.
func Row(s *Badger, key []byte) (v []byte) {
	_ = s.scanRows(key, nil, false, func(k []byte, item *badger.Item) (bool, error) {
		if string(k) == string(key) {
			v, _ = item.ValueCopy(nil)
		}
		return false, nil
	})
	return v
}

// Keys lists all rows' keys.
func Keys(s *Badger) (keys [][]byte) {
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
