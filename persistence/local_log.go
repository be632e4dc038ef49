package persistence

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/caravan-dag/caravan/persistence/commitlog"
	"github.com/dgraph-io/badger/v4"
)

// commitLog makes the commits of one store durable and numbers them. The writer calls it, one
// commit at a time (commit.go). localLog is that of a single node.
type commitLog interface {
	// commit makes the rows durable as one commit, and waits until Badger has all earlier ones. It
	// returns the commit's number, which is higher than that of the commit before. After an error
	// the store does not use the log any more, and it is unknown whether the rows are in it.
	commit(mutations []mutation, size int64) (number uint64, err error)
	// applyToBadger is called after each commit, and before the next one. Badger gets the rows, if
	// it does not have them yet, and is not waited for. The rows must stay unchanged until the next
	// commit has returned without an error.
	applyToBadger()
	// waitApplied waits until Badger has all that it was given.
	waitApplied()
}

// localLog is the write-ahead log of a single machine: package commitlog in front of Badger. Its
// duties:
//
//  1. A commit is appended to the log and synced. Then it is durable, and its batches are answered.
//     Then Badger gets the same rows, unsynced, one commit at a time. Reads see them when Badger
//     has them, and wait for the commits that were announced before the read began (timestamps.go).
//  2. The content of Badger's memory does not count: it is lost with the process. Badger's own log
//     files (*.mem) are never read: badgerguard.RemoveUnsyncedFiles deletes them before Badger
//     opens. So damage to them, or to the value log, cannot lose or change a row.
//  3. The log keeps a commit until a table of Badger has it. Badger makes tables of its memtables
//     in the order in which it filled them, and the rows of a commit are one request to Badger, so
//     they lie in one memtable. Hence when a table has a commit, tables have all commits before it.
//     A table's content is synced before the manifest names it, and the manifest before DB.Tables
//     shows it; the table's name in the folder is synced here. Of the newest commit in tables they
//     may have a part only: a commit that is applied by an open on a smaller disk may be more than
//     one request.
//  4. The next open applies what tables may not have, each commit with its own number. Rows are
//     absolute, and a replay always ends with the newest commit. So the result does not depend on
//     what tables had of it. A commit that tables have whole is never applied again: compactions
//     may have dropped the tombstone of a row that it sets, and a crash before a table has that
//     tombstone again would bring the row back (TestInterruptedReplayBringsRowsBack).
//
// The log keeps as much as Badger has in memtables: at most three of them, and one that is being
// written to a table. When Badger cannot keep up, commits wait for it.
type localLog struct {
	db     *badger.DB
	writer *rowWriter
	log    *commitlog.Log
	dir    string
	fs     vfs.FS
	// alarm fails the DB: it stops while the disk is in doubt.
	alarm func(error)

	record    commitlog.RecordBuilder
	committed durableCommit // what applyToBadger gives Badger; owned by the writer

	// recordTables writes the inventory of tables. It comes before the log forgets what they hold:
	// else a manifest that loses its end later would lose those commits silently.
	recordTables func() error

	checkEvery int64 // bytes between two checks of what tables have
	sinceCheck int64 // bytes since the last one
	checkNow   chan struct{}
	goroutines sync.WaitGroup
	stopOnce   sync.Once
}

// durableCommit is a commit that the log has.
type durableCommit struct {
	number    uint64
	mutations []mutation
}

// logFolder is the folder of the commit log, within the store's folder.
const logFolder = "log"

func openCommitLog(c Config, maxRowsBytes int, alarm func(error)) (*commitlog.Log, error) {
	dir := filepath.Join(c.Dir, logFolder)
	database, err := badgerguard.HoldsDatabase(c.Dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "state")); database && errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("holds a database without its commit log (%s is missing): not written by this program, or in a row format before %d",
			filepath.Join(dir, "state"), rowFormat)
	}
	log, err := commitlog.Open(dir, commitlog.Options{FS: c.FS, SegmentSize: segmentSize(c.memTable), MaxRowsBytes: maxRowsBytes, Alarm: alarm})
	if errors.Is(err, vfs.ErrLocked) {
		return nil, badgerguard.InUse(c.Dir)
	}
	return log, err
}

// segmentSize returns the size of the log's segments, in bytes. The log keeps what memtables hold,
// and gives space back segment by segment.
func segmentSize(memTable int64) int64 { return memTable / 4 }

func newLocalLog(db *DB, log *commitlog.Log, c Config) *localLog {
	l := &localLog{db: db.badger, writer: db.writer, log: log, dir: c.Dir, fs: c.FS, alarm: db.writer.alarm, recordTables: db.recordManifest,
		checkEvery: c.memTable / 8, checkNow: make(chan struct{}, 1)}
	if l.fs == nil {
		l.fs = vfs.OS{}
	}
	l.goroutines.Go(func() {
		for range l.checkNow {
			l.retireFlushed()
		}
	})
	return l
}

func (l *localLog) commit(mutations []mutation, size int64) (number uint64, err error) {
	number = l.log.Last() + 1
	l.record.Reset()
	l.record.Grow(int(size))
	appendRows(&l.record, mutations)
	if err := l.log.Append(number, &l.record); err != nil {
		return 0, err
	}
	if err := l.log.Sync(); err != nil {
		return 0, err
	}
	l.writer.begin()
	l.committed = durableCommit{number, mutations}
	if l.sinceCheck += size; l.sinceCheck >= l.checkEvery {
		l.sinceCheck = 0
		select {
		case l.checkNow <- struct{}{}:
		default:
		}
	}
	return number, nil
}

// appendRows encodes the rows of a commit.
func appendRows(r *commitlog.RecordBuilder, mutations []mutation) {
	for i := range mutations {
		if m := &mutations[i]; m.Delete {
			r.Delete(m.Key)
		} else {
			r.Set(m.Key, m.Value)
		}
	}
}

func (l *localLog) waitApplied() { _ = l.writer.wait() } // the alarm has told of an error

func (l *localLog) applyToBadger() {
	c := l.committed
	if c.mutations == nil {
		return
	}
	l.committed = durableCommit{}
	l.writer.apply(c.number, c.mutations)
}

// retireFlushed lets the log forget what tables have.
func (l *localLog) retireFlushed() {
	flushed := min(max(badgerguard.NewestFlushed(l.db.Tables()), 1)-1, l.log.Last())
	if flushed <= l.log.Applied() {
		return
	}
	err := l.fs.SyncDir(l.dir)
	if err == nil && l.recordTables != nil && l.recordTables() != nil {
		return // the manifest may be read while Badger appends to it: the next check comes
	}
	if err == nil {
		err = l.log.Retire(flushed)
	}
	if err != nil {
		l.alarm(fmt.Errorf("retire flushed commits from the commit log: %w", err))
	}
}

// catchUp applies the commits of the log that tables may not have. replayFrom, if set, applies all
// commits after this one.
func (l *localLog) catchUp(limits badgerguard.Limits, replayFrom *uint64) error {
	flushed, last := badgerguard.NewestFlushed(l.db.Tables()), l.log.Last()
	switch {
	case flushed == 0 && l.log.Applied() > 0:
		return fmt.Errorf("all tables are missing, and they had all commits up to %d", l.log.Applied())
	case flushed > last+1:
		return fmt.Errorf("tables have commits up to %d, the commit log ends at %d", flushed, last)
	}
	from := max(flushed, 1) - 1
	if replayFrom != nil {
		from = *replayFrom
	}
	replay := replayer{db: l.db, limits: limits, flushed: make(chan error, 1)}
	err := l.log.Replay(func(number uint64, rows []byte) error {
		if number <= from {
			return nil
		}
		return replay.addCommit(number, rows)
	})
	if err = errors.Join(err, replay.finish()); err != nil {
		return fmt.Errorf("apply the commit log: %w", err)
	}
	if flushed == last+1 {
		// Badger got the rows of a commit whose record, which failed, did not reach the log. The
		// number is used; the commit was never acknowledged.
		l.record.Reset()
		if err := errors.Join(l.log.Append(flushed, &l.record), l.log.Sync()); err != nil {
			return err
		}
	}
	l.retireFlushed()
	return nil
}

// stopRetiring ends the checks of what tables have. It may be called more than once.
func (l *localLog) stopRetiring() {
	l.stopOnce.Do(func() { close(l.checkNow) })
	l.goroutines.Wait()
}

// close closes the log, after Badger. clean says that tables have all commits.
func (l *localLog) close(clean bool) error {
	if clean {
		if err := l.fs.SyncDir(l.dir); err != nil {
			return errors.Join(err, l.log.Close(false))
		}
		if err := l.log.Retire(l.log.Last()); err != nil {
			return errors.Join(err, l.log.Close(false))
		}
	}
	return l.log.Close(clean)
}

// replayer applies commits to Badger, many in one request. It divides the rows of a commit only
// when they are too many for one request (localLog, duty 3).
type replayer struct {
	db       *badger.DB
	limits   badgerguard.Limits
	rows     []replayRow
	size     int64 // of rows, in bytes
	flushed  chan error
	flushing bool
	failed   error // of the first flush that failed: Badger gets no rows after it (localLog, duty 3)
}

type replayRow struct {
	commitlog.Row
	number uint64
}

func (r *replayer) addCommit(number uint64, rows []byte) error {
	var own []byte // Badger keeps the rows until they are flushed
	n, size := 0, int64(0)
	own = append(own, rows...)
	begin := len(r.rows)
	err := commitlog.EachRow(own, func(row commitlog.Row) error {
		r.rows = append(r.rows, replayRow{row, number})
		n++
		size += mutation{Key: row.Key, Value: row.Value}.Size()
		return nil
	})
	if err != nil {
		return fmt.Errorf("commit %d: %w", number, err)
	}
	if begin > 0 && !r.limits.Fits(len(r.rows), r.size+size) {
		if err := r.flush(r.rows[:begin:begin]); err != nil {
			return err
		}
		r.rows, r.size = append([]replayRow(nil), r.rows[begin:]...), 0
	}
	r.size += size
	return nil
}

// flush gives rows to Badger once Badger has taken the rows before.
func (r *replayer) flush(rows []replayRow) error {
	if r.flushing {
		r.flushing = false
		r.failed = <-r.flushed
	}
	if r.failed != nil || len(rows) == 0 {
		return r.failed
	}
	r.flushing = true
	go func() {
		batch := r.db.NewManagedWriteBatch()
		defer batch.Cancel()
		for _, row := range rows {
			var err error
			if row.Delete {
				err = batch.DeleteAt(row.Key, row.number)
			} else {
				err = batch.SetEntryAt(badger.NewEntry(row.Key, row.Value), row.number)
			}
			if err != nil {
				r.flushed <- err
				return
			}
		}
		r.flushed <- batch.Flush()
	}()
	return nil
}

func (r *replayer) finish() error {
	err := r.flush(r.rows)
	r.rows = nil
	return cmp.Or(err, r.flush(nil))
}
