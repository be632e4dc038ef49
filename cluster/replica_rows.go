package cluster

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/persistence"
)

// replaceRows puts the rows of the next generation, which are open, in place of the present ones, durably. After an
// error they are closed, or the machine has them and the error is one of its metrics.
func (m *machine) replaceRows(next replicaRecord, db *persistence.DB, registerer *ownedRegisterer) (err error) {
	if err = m.stepDone(1); err == nil {
		m.writing.Lock()
		err = m.writeRecord(next)
		m.writing.Unlock()
	}
	if err == nil {
		err = m.stepDone(2)
	}
	if err != nil {
		return errors.Join(err, db.Close())
	}
	former := m.db.Swap(db)
	m.registerer.unregisterAll()
	m.registerer = registerer
	formerDir := m.generationFolder(next.Generation - 1)
	m.background.Go(func() {
		// A later one may be at work by then, or be done: no other folder is this goroutine's.
		if err := errors.Join(former.Close(), os.RemoveAll(formerDir)); err != nil {
			m.logger.Warn("the former rows of the replica stay until the next start", "err", err)
		}
	})
	if err := m.stepDone(3); err != nil {
		return err
	}
	return registerer.release()
}

// A repair replaces the rows of a replica that goes on with its vote and its log (repair.go). Its copy arrives in a
// folder of its own, which the open removes like other generations, while entries are applied to the present rows:
//
//  1. receiveCopy makes db-copy of the copy, durable;
//  2. exchangeRows, while no entry is applied, gives it the name of the next generation and opens it,
//  3. applies the entries to it that the replica has applied since the copy,
//  4. and does the steps of a Restore from replica.json on.
const receivedRows = "db-copy"

// copyCheckBytes of a copy arrive between two checks of the space.
const copyCheckBytes = 16 << 20

// receiveCopy makes rows of a copy, and returns their moment. dropCopy takes them back.
func (m *machine) receiveCopy(r io.Reader) (moment uint64, err error) {
	dir := filepath.Join(m.dir, receivedRows)
	if err := os.RemoveAll(dir); err != nil {
		return 0, err
	}
	return persistence.InstallCopy(dir, &spaceCheckedReader{machine: m, r: r})
}

// dropCopy removes what receiveCopy has left, and gives its space back.
func (m *machine) dropCopy() {
	if err := os.RemoveAll(filepath.Join(m.dir, receivedRows)); err != nil {
		m.logger.Warn("the copy of another replica stays until the next start", "err", err)
	}
	m.releaseSpace()
}

// spaceCheckedReader ends a copy for which the disk is too small, before it is full.
type spaceCheckedReader struct {
	machine           *machine
	r                 io.Reader
	received, checkAt int64
}

func (s *spaceCheckedReader) Read(p []byte) (n int, err error) {
	if s.received >= s.checkAt {
		if err := s.machine.checkSpace(s.received); err != nil {
			return 0, err
		}
		s.checkAt = s.received + copyCheckBytes
	}
	n, err = s.r.Read(p)
	s.received += int64(n)
	return n, err
}

// rowsError is an error of rows that are in doubt: the replica ends.
type rowsError struct{ error }

func (e rowsError) Unwrap() error { return e.error }

// exchangeRows puts the copy, which has the rows of all entries up to index and is of a moment, in place of the rows.
// The group calls it while no entry is applied. An error is a rowsError once the replica cannot go on with its
// former rows.
func (m *machine) exchangeRows(index, moment uint64, replay raftlog.Replay) error {
	m.exchanging.Lock()
	defer m.exchanging.Unlock()
	if m.db.Load() == nil {
		return errStopped
	}
	next := m.currentRecord()
	if next.Index > index {
		return fmt.Errorf("%w: the rows are durable up to entry %d", raftlog.ErrNotReplayable, next.Index)
	}
	next.Generation++
	next.Index, next.Moment = index, moment
	dir := m.generationFolder(next.Generation)
	err := os.RemoveAll(dir)
	if err == nil {
		err = m.fsys.Rename(filepath.Join(m.dir, receivedRows), dir)
	}
	if err == nil {
		err = m.fsys.SyncDir(m.dir)
	}
	if err != nil {
		return err
	}
	db, registerer, err := m.openDB(next)
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	err = replay(func(index, term uint64, rows []byte) error {
		_, err := db.Apply(m.base+index, term, rows)
		return err
	})
	if err != nil {
		return errors.Join(err, db.Close(), os.RemoveAll(dir))
	}
	if err := m.replaceRows(next, db, registerer); err != nil {
		return rowsError{err}
	}
	return nil
}
