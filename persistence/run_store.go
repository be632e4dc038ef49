package persistence

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
)

// RunStore is a Store over a DB. It turns batches into commits and knows in memory what the rows of
// runs say: which are unfinished, finished or deleted. It lives for one term: a single node has one
// from its start to its end. A DB has one store at a time, and a store that was closed or has
// failed is not used again. It is safe for concurrent use.
//
// Lock order: closeMu, deleteMu, readers, then that of DB, then one of the leaves, under which no
// other lock is taken: those of queue, deletedIDs and finished.
type RunStore struct {
	runReader
	ordinal    uint64             // tells the stores over one DB apart, from 1
	epoch      uint64             // see epochShift
	numbering  messages.Numbering // of its runs
	replicated bool               // the DB is a replica, and the epoch is the term that the store leads
	shards     int
	fresh      bool               // the DB was empty
	limits     badgerguard.Limits // of a commit

	// The commit path, see commit.go.
	queue         commitQueue
	encoder       encoder          // owned by the committer
	truncator     journalTruncator // owned by the committer
	commits       commitLog        // owned by the writer
	stall         *stallWatch
	committerDone chan struct{}  // closed when the committer has ended
	longWrites    sync.WaitGroup // long documents that are being written
	metrics       *commitMetrics

	// Runs that finished before the store was opened are indexed in the background.
	stopLoading context.CancelFunc
	loaded      chan struct{} // closed when all are indexed, or the store closes

	ownsDB   bool       // Close closes the DB, too
	closeMu  sync.Mutex // one Close at a time
	deleteMu sync.Mutex // one Delete at a time
}

var _ Store = (*RunStore)(nil)

// OpenStore opens the store of a single node in c.Dir, or makes a new one, and finishes what a
// crash has left half done. The error names the folder, and says when another process has it, when
// its row format is not this program's, and when the disk is full. Close closes all of it.
func OpenStore(c Config) (*RunStore, error) {
	db, err := openDB(c, true)
	if err != nil {
		return nil, err
	}
	s, err := db.openStore(c)
	if err != nil {
		return nil, fmt.Errorf("data folder %s: %w", c.Dir, errors.Join(err, db.abandon()))
	}
	s.ownsDB = true
	db.startVerifier()
	return s, nil
}

// openStore opens a store over the DB of a single node: its commits go to the local log. The server
// does so once; tests close a store and open the next one over the same DB.
func (db *DB) openStore(c Config) (*RunStore, error) {
	s, err := db.newStore(db.limits)
	if err != nil {
		return nil, err
	}
	s.commits = db.localLog
	return s, s.start(c)
}

// newStore makes a store over a DB. The caller sets its commit log, and starts it. The limits are
// those of the transaction that each commit becomes somewhere: here, or on the smallest replica.
func (db *DB) newStore(limits badgerguard.Limits) (*RunStore, error) {
	s := &RunStore{
		ordinal:       db.storeCount.Add(1),
		committerDone: make(chan struct{}), loaded: make(chan struct{}),
		queue:     commitQueue{wake: make(chan struct{}, 1)},
		truncator: journalTruncator{truncatedBelow: map[messages.RunID]uint64{}},
		limits:    limits,
	}
	if err := s.runReader.init(db); err != nil {
		return nil, err
	}
	s.awaitAppended = s.waitDurable
	s.encoder = encoder{
		packer: s.packer, nextRun: &s.nextRun, partSize: limits.Value, maxStaged: maxStaged, timestamps: s.timestamps,
		snapshots: map[messages.RunID]*snapshotContents{}, loadContents: s.loadSnapshotContents,
	}
	s.stall = newStallWatch(func(d time.Duration) {
		err := fmt.Errorf("a commit has not ended after %v", d)
		if s.replicated { // the other replicas may be away; this disk may be whole
			err = fmt.Errorf("%w: %w", ErrLost, err)
		}
		_ = s.fail(err)
	})
	return s, nil
}

// start reads what the rows say, finishes what a crash has left half done, and starts the
// goroutines. After an error the store is closed, and the DB is as a crash would leave it.
func (s *RunStore) start(c Config) error {
	if err := s.db.attachStore(s); err != nil {
		s.packer.close()
		return err
	}
	s.timestamps.beginStore(s.ordinal, c.Numbering)
	err := s.db.Err()
	if err == nil && s.replicated {
		err = s.db.verifyIndexTables()
	}
	if err == nil {
		err = s.recover(c)
	}
	if err != nil {
		s.commits.waitApplied() // it may still be given to Badger
		s.metrics.unregister()
		s.packer.close()
		s.handBack()
		// The verifier may have this store, and wait until it has indexed its runs, and then for the
		// committer, which does not run.
		s.queue.close()
		close(s.loaded)
		return err
	}
	go s.commitLoop()
	ctx, cancel := context.WithCancel(context.Background())
	s.stopLoading = cancel
	go func() {
		defer close(s.loaded)
		if c.clock.unregistered {
			return
		}
		if err := s.loadFinishedIndex(ctx); err != nil && ctx.Err() == nil && s.Err() == nil {
			s.db.log.Warn("finished runs were not registered: those whose summaries vanish are not noticed", "err", err)
		}
	}()
	return nil
}

// recover reads and writes the meta rows, and finishes what a crash has left half done. The order
// counts:
//
//  1. The format and the partition, before any other row is decoded.
//  2. The opening rows, before any row of this epoch: else a crash could repeat its write numbers.
//  3. Staged batches, before the index reads the runs that they bring.
//  4. The index of runs, and the comparison of the highest run ID with the inventory.
//  5. Deletions, which may take long.
//
// The committer does not run yet, so each step commits by itself.
func (s *RunStore) recover(c Config) error {
	if err := s.checkFormat(c.Shards); err != nil {
		return err
	}
	if err := s.checkNumbering(c.Numbering); err != nil {
		return err
	}
	rows, err := s.openingRows()
	if err != nil {
		return err
	}
	s.encoder.writeCount = max(s.epoch<<epochShift, s.db.replica.lastWrite)
	if s.metrics, err = newCommitMetrics(c.Registerer); err != nil {
		return err
	}
	if err := s.commitSplit(rows); err != nil {
		return err
	}
	if err := s.recoverStaged(); err != nil {
		return err
	}
	if err := s.loadIndex(); err != nil {
		return err
	}
	if err := s.checkNextRun(); err != nil {
		return err
	}
	s.finished.start(messages.RunID(s.nextRun.Load()))
	return s.recoverDeletions()
}

// openingRows returns the rows that the start of the store writes. The start on a replica writes
// only those of a new one; the log has already counted the term. A single node counts its opens:
// that is its epoch.
func (s *RunStore) openingRows() ([]mutation, error) {
	rows := []mutation{
		metaRow("format", rowFormat),
		metaRow("shards", uint64(s.shards)),
	}
	rows = append(rows, numberingRows(s.numbering)...)
	if s.replicated {
		if !s.fresh {
			rows = nil
		}
		return rows, nil
	}
	opens, err := s.metaNumber("opens")
	if err != nil {
		return nil, err
	}
	if opens == 0 && !s.fresh {
		return nil, fmt.Errorf("meta row opens: %w: missing", errCorrupt)
	}
	s.epoch = opens + 1
	return append(rows, metaRow("opens", s.epoch)), nil
}

// epochShift makes the first write number of a store from its epoch: a store writes fewer than 2^40
// batches, so write numbers never repeat in a data folder. A single node's epoch counts its opens.
const epochShift = 40

// CheckDiskSpace returns nil when new work may be accepted, or says that the store has failed or was
// closed, or that the disk is nearly full.
func (s *RunStore) CheckDiskSpace() error {
	if err := s.Err(); err != nil {
		return err
	}
	s.readers.RLock() // Badger must be open: the check asks it for its tables
	defer s.readers.RUnlock()
	if s.closed {
		return ErrClosed
	}
	return s.db.disk.CheckNewWork()
}

// Close commits and answers what was appended, and ends the store. The store of a single node
// closes its DB, too; when the disk lacks space for that, it returns an error, and may be called
// again (DB.Close).
func (s *RunStore) Close() error {
	s.closeMu.Lock()
	defer s.closeMu.Unlock()
	if s.ownsDB {
		s.db.verifier.close() // it waits for batches
	}
	s.stopLoading()
	<-s.loaded
	s.queue.close()
	<-s.committerDone
	s.longWrites.Wait()
	s.closeReads()
	if s.ownsDB {
		return s.db.Close()
	}
	return nil
}

// closeReads waits for the reads that are under way, refuses later ones, and gives the DB back.
func (s *RunStore) closeReads() {
	s.readers.Lock()
	defer s.readers.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	s.metrics.unregister()
	s.packer.close()
	if s.Err() == nil { // else the newest run may not be durable
		s.db.verifier.noteNextRun(s.nextRun.Load())
	}
	s.handBack()
}

// handBack gives the DB back, for the next store. One of the same term goes on with the write
// numbers. The number of a store whose opening failed may still be 0.
func (s *RunStore) handBack() {
	s.db.replica.lastWrite = max(s.db.replica.lastWrite, s.encoder.writeCount)
	s.db.store.CompareAndSwap(s, nil)
}

// fail makes the store failed, and its DB: after a failed commit the disk is in doubt. A lost
// leadership ends the store alone. The first reason stays. It returns the error that every batch
// gets from now on. It is safe for concurrent use.
func (s *RunStore) fail(err error) error {
	if s.replicated && errors.Is(err, ErrLost) {
		err, first := s.end(err)
		if first {
			s.db.log.Warn("the store ends", "dir", s.db.dir, "err", err)
		}
		return err
	}
	err, _ = s.end(s.db.fail(err))
	return err
}

// end makes the store failed. Batches get the reason, and reads that wait for a commit stop
// waiting. It returns the reason that counts, and whether that is this one.
func (s *RunStore) end(err error) (reason error, first bool) {
	if reason, first = s.failure.set(err); first {
		s.timestamps.stopWaiting(s.ordinal)
	}
	return reason, first
}
