package persistence

import (
	"errors"
	"time"

	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// FailNext makes the next commit of the store fail.
func (s *Badger) FailNext() {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	old := s.room.statfs
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

// WithDisk makes up a disk.
func WithDisk(c Config, statfs func(string) (free, total int64, err error)) Config {
	c.statfs = statfs
	return c
}

// Later makes what Room remembers old.
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
	return s.deleteStep([]op{{key: metaKey(name), val: metaValue(n)}})
}

// Meta reads a meta row.
func Meta(s *Badger, name string) (uint64, error) { return s.metaNumber(name) }

// HalfStage leaves what a crash would leave of a batch that is too big for one
// transaction: its parts, and when marked the mark too. The batch's rows set the
// shards row to 99.
func HalfStage(s *Badger, marked bool) error {
	rows := stagedParts([]op{{key: metaKey("shards"), val: metaValue(99)}}, 1, 4)
	if marked {
		rows = append(rows, op{key: markKey(typeStaged, 1), val: []byte{stagedV1}})
	}
	return s.deleteStep(rows)
}

// HalfDelete begins the deletion of runs and ends it after n steps, as a crash would.
func HalfDelete(s *Badger, n int, runs ...messages.RunID) error {
	return s.deleteRuns(runs, func(rows []op) error {
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
