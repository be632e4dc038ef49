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

// writeAheadLog makes commits durable and gives each its number. The writer calls it, one
// commit at a time.
type writeAheadLog interface {
	// commit makes the rows durable as one commit and returns its number, which is higher
	// than that of the one before, when Badger has all earlier ones. After an error the log
	// is not used any more; the rows may or may not be found by the next open.
	commit(ops []mutation, size int64) (at uint64, err error)
	// applyToBadger must be called behind each commit, before the next one. It gives Badger the rows
	// and does not wait until Badger has them: then the log tells that they can be read.
	// The rows must stay until the next commit has returned without an error.
	applyToBadger()
	// waitApplied waits until Badger has all that it was given.
	waitApplied()
}

// localWAL is the log of a single machine: package commitlog in front of Badger. Its
// duties:
//
//  1. A commit is appended to the log and synced: then it has ended, and whoever appended
//     is told. Then Badger gets the same rows, unsynced, one commit at a time. A read sees
//     them when Badger has them, and waits for those whose ends were told before it began
//     (timestamps.go).
//  2. What Badger has in memory counts for nothing: it is lost with the process. Its own
//     log files (*.mem) are never read; removeUnused deletes them before Badger opens.
//     So nothing that happens to them, or to the value log, can lose or change a row.
//  3. The log keeps a commit until a table of Badger's has it. Badger makes tables of its
//     memtables in the order in which they were filled, and the rows of a commit are one
//     request to Badger, so they lie in one memtable: when a table has a commit, tables
//     have all before it. A table's content is synced before the manifest names it, and
//     the manifest before DB.Tables shows it; its name in the folder is synced here.
//     Of the newest commit that tables have they may have a part: one that is applied by
//     an open on a smaller disk may be more than one request.
//  4. The next open applies what tables may not have, each commit by its own number. Rows
//     are absolute, and whatever is applied again is applied up to the newest commit, so
//     the result is the same whatever the tables had of it.
//
// The log keeps as much as Badger has in memtables, at most three of them and one that is
// being made a table. When Badger cannot keep up, its commits wait, and so do ours.
type localWAL struct {
	db  *badger.DB
	log *commitlog.Log
	dir string
	fs  vfs.FS
	// alarm fails the store: with the disk in doubt nothing goes on.
	alarm func(error)

	record     commitlog.Group
	committed  durableCommit                   // what apply gives Badger; the writer's
	entries    []badger.Entry                  // scratch
	badgerIdle chan struct{}                   // holds a token while Badger has all that the log has
	applyErr   error                           // why Badger did not take a commit; guarded by the token
	onApplied  func(at uint64, ops []mutation) // a commit is durable, and Badger has it
	// writeRows is writeToBadger; tests put delays and errors in front of it.
	writeRows func(ops []mutation, at uint64, done func(error))

	// recordTables writes down which tables there are. It comes before the log forgets what is in
	// them: else a manifest that loses its end later would lose that in silence.
	recordTables func() error

	checkEvery int64 // bytes between two looks at the tables
	sinceCheck int64 // bytes since the last one
	checkNow   chan struct{}
	goroutines sync.WaitGroup
	stopOnce   sync.Once
}

// logFolder is where in the store's folder the commit log lies.
const logFolder = "log"

func openCommitLog(c Config, maxRows int, alarm func(error)) (*commitlog.Log, error) {
	dir := filepath.Join(c.Dir, logFolder)
	database, err := badgerguard.HoldsDatabase(c.Dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "state")); database && errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("holds a database without its commit log (%s is missing): not written by this program, or in a format before %d",
			filepath.Join(dir, "state"), formatVersion)
	}
	log, err := commitlog.Open(dir, commitlog.Options{FS: c.FS, SegmentSize: segmentSize(c.memTable), MaxRows: maxRows, Alarm: alarm})
	if errors.Is(err, vfs.ErrLocked) {
		return nil, badgerguard.InUse(c.Dir)
	}
	return log, err
}

// segmentSize suits the memtables: the log keeps what they hold, and gives space back
// segment by segment.
func segmentSize(memTable int64) int64 { return memTable / 4 }

func newLocalWAL(db *badger.DB, log *commitlog.Log, c Config, applied func(at uint64, ops []mutation), alarm func(error)) *localWAL {
	l := &localWAL{db: db, log: log, dir: c.Dir, fs: c.FS, alarm: alarm, checkEvery: c.memTable / 8, checkNow: make(chan struct{}, 1),
		onApplied: applied, badgerIdle: make(chan struct{}, 1)}
	l.badgerIdle <- struct{}{}
	l.writeRows = l.writeToBadger
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

func (l *localWAL) commit(ops []mutation, size int64) (at uint64, err error) {
	at = l.log.Last() + 1
	l.record.Reset()
	l.record.Grow(int(size))
	for i := range ops {
		if o := &ops[i]; o.Delete {
			l.record.Delete(o.Key)
		} else {
			l.record.Set(o.Key, o.Value)
		}
	}
	if err := l.log.Append(at, &l.record); err != nil {
		return 0, err
	}
	if err := l.log.Sync(); err != nil {
		return 0, err
	}
	<-l.badgerIdle
	l.committed = durableCommit{at, ops}
	if l.sinceCheck += size; l.sinceCheck >= l.checkEvery {
		l.sinceCheck = 0
		select {
		case l.checkNow <- struct{}{}:
		default:
		}
	}
	return at, nil
}

// durableCommit is a commit that the log has.
type durableCommit struct {
	number    uint64
	mutations []mutation
}

func (l *localWAL) waitApplied() {
	<-l.badgerIdle
	l.badgerIdle <- struct{}{}
}

// applyToBadger gives Badger nothing after a commit that it did not take: a table with a later one
// would have the next open skip that (3 above).
func (l *localWAL) applyToBadger() {
	c := l.committed
	if c.mutations == nil {
		return
	}
	l.committed = durableCommit{}
	if l.applyErr != nil {
		l.badgerIdle <- struct{}{}
		return
	}
	l.writeRows(c.mutations, c.number, func(err error) {
		if err != nil {
			l.applyErr = err
			l.alarm(err)
		} else {
			l.onApplied(c.number, c.mutations)
		}
		clear(l.entries)
		l.badgerIdle <- struct{}{}
	})
}

// writeToBadger gives the rows to Badger, which answers by a call of done. The rows must stay
// until then. The caller has the token.
func (l *localWAL) writeToBadger(ops []mutation, at uint64, done func(error)) {
	txn := l.db.NewTransactionAt(at-1, true)
	if cap(l.entries) < len(ops) {
		l.entries = make([]badger.Entry, 2*len(ops))
	}
	l.entries = l.entries[:len(ops)]
	for i, o := range ops {
		var err error
		if o.Delete {
			if err = txn.Delete(o.Key); err != nil {
				err = fmt.Errorf("delete of a row: %w", err)
			}
		} else {
			l.entries[i].Key, l.entries[i].Value = o.Key, o.Value
			if err = txn.SetEntry(&l.entries[i]); err != nil {
				err = fmt.Errorf("row of %d bytes, %d of %d: %w", len(o.Value), i, len(ops), err)
			}
		}
		if err != nil {
			txn.Discard()
			done(err)
			return
		}
	}
	if err := txn.CommitAt(at, done); err != nil {
		done(err)
	}
}

// retireFlushed lets the log forget what is in tables.
func (l *localWAL) retireFlushed() {
	at := min(max(badgerguard.NewestFlushed(l.db.Tables()), 1)-1, l.log.Last())
	if at <= l.log.Applied() {
		return
	}
	err := l.fs.SyncDir(l.dir)
	if err == nil && l.recordTables != nil && l.recordTables() != nil {
		return // the manifest may be read while Badger appends to it: the next look comes
	}
	if err == nil {
		err = l.log.Retire(at)
	}
	if err != nil {
		l.alarm(fmt.Errorf("what is in tables cannot be taken from the commit log: %w", err))
	}
}

// catchUp applies what tables may not have of the log.
func (l *localWAL) catchUp(limits badgerguard.Limits, test *uint64) error {
	tables, last := badgerguard.NewestFlushed(l.db.Tables()), l.log.Last()
	switch {
	case tables == 0 && l.log.Applied() > 0:
		return fmt.Errorf("there are no tables, and they had all commits up to %d", l.log.Applied())
	case tables > last+1:
		return fmt.Errorf("tables have commits up to %d, the commit log ends at %d", tables, last)
	}
	from := max(tables, 1) - 1
	if test != nil {
		from = *test
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
	if tables == last+1 {
		// Its rows came to Badger, and its record, which failed, did not reach the log. The
		// number is used; nothing was acknowledged.
		l.record.Reset()
		if err := errors.Join(l.log.Append(tables, &l.record), l.log.Sync()); err != nil {
			return err
		}
	}
	l.retireFlushed()
	return nil
}

// stopRetiring ends the looks at the tables. It may be called more than once.
func (l *localWAL) stopRetiring() {
	l.stopOnce.Do(func() { close(l.checkNow) })
	l.goroutines.Wait()
}

// close closes the log, behind Badger. All is in tables when that went well.
func (l *localWAL) close(clean bool) error {
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

// replayer applies commits to Badger, many at once. It parts the rows of one only
// when they are too many for one request: see localLog, 3.
type replayer struct {
	db       *badger.DB
	limits   badgerguard.Limits
	rows     []replayRow
	size     int64
	flushed  chan error
	flushing bool  // a flush is under way
	failed   error // of the first flush that failed: Badger gets nothing after it, see localLog, 3
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
	err := commitlog.Rows(own, func(row commitlog.Row) error {
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

// flush gives rows to Badger when it has taken those before.
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
