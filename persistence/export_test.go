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
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	old := s.room.statfs
	s.room.at = time.Time{}
	s.room.statfs = func(string) (int64, int64, error) {
		s.room.statfs = old // called under mu
		return 0, 0, errors.New("injected by the test")
	}
}

// Small makes memtables and transactions as small as on the smallest disks.
func Small(c Config) Config {
	c.memory = 4 << 20
	return c
}

// Tiny is Small, as on a disk of 60 MB.
func Tiny(c Config) Config {
	c.memory = 1 << 20
	return c
}

// WithDisk makes up a disk.
func WithDisk(c Config, statfs func(string) (free, total int64, err error)) Config {
	c.statfs = statfs
	return c
}

// write gives rows to Badger as a commit that is not durable.
func write(s *Badger, ops []op, at uint64) error {
	applied := make(chan error, 1)
	<-s.local.free
	s.local.writeToBadger(ops, at, func(err error) { applied <- err })
	defer func() {
		clear(s.local.entries)
		s.local.free <- struct{}{}
	}()
	return <-applied
}

// Flatten has Badger compact all levels into one.
func Flatten(s *Badger) error { return s.db.Flatten(2) }

// Flushed tells up to which commit tables have all, and which one is the last.
func Flushed(s *Badger) (tables, last uint64) { return s.local.inTables(), s.local.log.Last() }

// Dump is all rows of the store, as text, as the newest read sees them.
func Dump(s *Badger) (rows []string, err error) {
	err = s.scan(nil, nil, false, func(key []byte, item *badger.Item) (bool, error) {
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
func KeepLog(s *Badger) { s.local.look = 1 << 60 }

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

// Later makes what CheckDiskSpace remembers old.
func Later(s *Badger) {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	s.room.at, s.room.needAt = time.Time{}, time.Time{}
}

// Impatient makes a store fail at once when the disk is full, rather than wait for
// compactions.
func Impatient(s *Badger) { s.room.pausing = func(time.Duration) {} }

// SetMeta overwrites a meta row.
func SetMeta(s *Badger, name string, n uint64) error {
	return s.deleteStep([]op{metaRow(name, n)})
}

// Meta reads a meta row.
func Meta(s *Badger, name string) (uint64, error) { return s.metaNumber(name) }

// HalfStage leaves what a crash would leave of a batch that is too big for one
// transaction: its parts, and when marked the mark too. The batch's rows set the
// shards row to 99.
func HalfStage(s *Badger, marked bool) error {
	rows := stagedParts([]op{metaRow("shards", 99)}, 1, 4)
	if marked {
		rows = append(rows, stagedMark(1, len(rows)))
	}
	return s.deleteStep(rows)
}

// HalfDelete begins the deletion of runs and ends it after n steps, as a crash would.
func HalfDelete(s *Badger, n int, runs ...messages.RunID) error {
	return s.deleteRuns(runs, 0, func(rows []op) error {
		if n--; n < 0 {
			return errors.New("crash")
		}
		return s.deleteStep(rows)
	})
}

// Rows counts the rows of a type.
func Rows(s *Badger, typ byte) (n int, err error) {
	err = s.scan([]byte{typ}, nil, false, func([]byte, *badger.Item) (bool, error) {
		n++
		return true, nil
	})
	return n, err
}

// SetBare writes a row whose value is exactly this.
func SetBare(s *Badger, key, value []byte) error { return s.deleteStep([]op{{key: key, val: value}}) }

// DeleteRow deletes a row.
func DeleteRow(s *Badger, key []byte) error { return s.deleteStep([]op{{key: key, del: true}}) }

// Lose is DeleteRow, behind the store's back, of the summary of a finished run.
func Lose(s *Badger, run messages.RunID) error {
	err := DeleteRow(s, runKey(typeFinal, run))
	s.local.settle()
	s.register.fill(finishedRun{run: run, states: anyFinal})
	return err
}

// Register has the store know that runs are finished.
func Register(s *Badger, runs ...messages.RunID) {
	for _, run := range runs {
		s.register.fill(finishedRun{run: run, states: anyFinal})
	}
}

// Registered are the runs that the store knows to be finished.
func Registered(s *Badger) []messages.RunID {
	s.local.settle()
	return s.register.between(nil, 0, 1<<64-1)
}

// FinalKey is the key of a finished run's summary, LiveKey that of an unfinished one's.
func FinalKey(run messages.RunID) []byte { return runKey(typeFinal, run) }

// LiveKey is the key of an unfinished run's summary.
func LiveKey(run messages.RunID) []byte { return runKey(typeLive, run) }

// Row returns a row as it is stored, with its checksum; nil when there is none.
func Row(s *Badger, key []byte) (v []byte) {
	_ = s.scan(key, nil, false, func(k []byte, item *badger.Item) (bool, error) {
		if string(k) == string(key) {
			v, _ = item.ValueCopy(nil)
		}
		return false, nil
	})
	return v
}

// Keys lists all rows' keys.
func Keys(s *Badger) (keys [][]byte) {
	_ = s.scan(nil, nil, false, func(k []byte, _ *badger.Item) (bool, error) {
		keys = append(keys, append([]byte(nil), k...))
		return true, nil
	})
	return keys
}

// ParseKeys has all that parses keys take one.
func ParseKeys(key []byte) {
	keyRun(key)
	_ = rowName(key)
	_, _, _ = parseExpiryKey(key)
	_, _ = decodeStaged(append(appendString([]byte{stagedDelete}, key), stagedSet))
	newMoments().advance(1, []op{{key: key, del: true}})
}
