package persistence

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/persistence/commitlog"
	"github.com/dgraph-io/badger/v4"
)

// commitLog makes commits durable and gives each its number. The writer calls it, one
// commit at a time.
type commitLog interface {
	// commit makes the rows durable as one commit and returns its number, which is higher
	// than that of the one before, when Badger has all earlier ones. After an error the log
	// is not used any more; the rows may or may not be found by the next open.
	commit(ops []op, size int64) (at uint64, err error)
	// apply must be called behind each commit, before the next one. It gives Badger the rows
	// and does not wait until Badger has them: then the log tells that they can be read.
	// The rows must stay until the next commit has returned without an error.
	apply()
	// settle waits until Badger has all that it was given.
	settle()
}

// localLog is the log of a single machine: package commitlog in front of Badger. Its
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
type localLog struct {
	db  *badger.DB
	log *commitlog.Log
	dir string
	fs  vfs.FS
	// alarm fails the store: with the disk in doubt nothing goes on.
	alarm func(error)

	group   commitlog.Group
	next    durable                   // what apply gives Badger; the writer's
	entries []badger.Entry            // scratch
	free    chan struct{}             // holds a token while Badger has all that the log has
	refused error                     // why Badger did not take a commit; guarded by the token
	applied func(at uint64, ops []op) // a commit is durable, and Badger has it
	// write is writeToBadger; tests put delays and errors in front of it.
	write func(ops []op, at uint64, done func(error))

	// record writes down which tables there are. It comes before the log forgets what is in
	// them: else a manifest that loses its end later would lose that in silence.
	record func() error

	look    int64 // bytes between two looks at the tables
	unseen  int64 // bytes since the last one
	lookNow chan struct{}
	ended   sync.WaitGroup
	once    sync.Once
}

// logFolder is where in the store's folder the commit log lies.
const logFolder = "log"

func openLog(c Config, maxRows int, alarm func(error)) (*commitlog.Log, error) {
	dir := filepath.Join(c.Dir, logFolder)
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return nil, err
	}
	database := slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		return e.Name() == badger.ManifestFilename || strings.HasSuffix(e.Name(), ".sst")
	})
	if _, err := os.Stat(filepath.Join(dir, "state")); database && errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("holds a database without its commit log (%s is missing): not written by this program, or in a format before %d",
			filepath.Join(dir, "state"), formatVersion)
	}
	log, err := commitlog.Open(dir, commitlog.Options{FS: c.FS, SegmentSize: segmentSize(c.memory), MaxRows: maxRows, Alarm: alarm})
	if errors.Is(err, vfs.ErrLocked) {
		return nil, inUse(c.Dir)
	}
	return log, err
}

// segmentSize suits the memtables: the log keeps what they hold, and gives space back
// segment by segment.
func segmentSize(memTable int64) int64 { return memTable / 4 }

// removeUnused deletes the files of Badger's that hold nothing that counts: its logs and
// the statistics of the value log. The tables
// stand for all commits up to a number, so then there must be a manifest: Badger would
// begin a new one and delete them.
func removeUnused(dir string, applied uint64) error {
	manifest := filepath.Join(dir, badger.ManifestFilename)
	if _, err := os.Stat(manifest); applied > 0 && err != nil {
		return fmt.Errorf("%s: %w: the tables cannot be told from leftovers", manifest, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if !strings.HasSuffix(name, ".mem") && !strings.HasSuffix(name, ".vlog") && name != "DISCARD" {
			continue
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func newLocalLog(db *badger.DB, log *commitlog.Log, c Config, applied func(at uint64, ops []op), alarm func(error)) *localLog {
	l := &localLog{db: db, log: log, dir: c.Dir, fs: c.FS, alarm: alarm, look: c.memory / 8, lookNow: make(chan struct{}, 1),
		applied: applied, free: make(chan struct{}, 1)}
	l.free <- struct{}{}
	l.write = l.writeToBadger
	if l.fs == nil {
		l.fs = vfs.OS{}
	}
	l.ended.Go(func() {
		for range l.lookNow {
			l.retire()
		}
	})
	return l
}

func (l *localLog) commit(ops []op, size int64) (at uint64, err error) {
	at = l.log.Last() + 1
	l.group.Reset()
	l.group.Grow(int(size))
	for i := range ops {
		if o := &ops[i]; o.del {
			l.group.Delete(o.key)
		} else {
			l.group.Set(o.key, o.val)
		}
	}
	if err := l.log.Append(at, &l.group); err != nil {
		return 0, err
	}
	if err := l.log.Sync(); err != nil {
		return 0, err
	}
	<-l.free
	l.next = durable{at, ops}
	if l.unseen += size; l.unseen >= l.look {
		l.unseen = 0
		select {
		case l.lookNow <- struct{}{}:
		default:
		}
	}
	return at, nil
}

// durable is a commit that the log has.
type durable struct {
	at  uint64
	ops []op
}

func (l *localLog) settle() {
	<-l.free
	l.free <- struct{}{}
}

// apply gives Badger nothing after a commit that it did not take: a table with a later one
// would have the next open skip that (3 above).
func (l *localLog) apply() {
	c := l.next
	if c.ops == nil {
		return
	}
	l.next = durable{}
	if l.refused != nil {
		l.free <- struct{}{}
		return
	}
	l.write(c.ops, c.at, func(err error) {
		if err != nil {
			l.refused = err
			l.alarm(err)
		} else {
			l.applied(c.at, c.ops)
		}
		clear(l.entries)
		l.free <- struct{}{}
	})
}

// writeToBadger gives the rows to Badger, which answers by a call of done. The rows must stay
// until then. The caller has the token.
func (l *localLog) writeToBadger(ops []op, at uint64, done func(error)) {
	txn := l.db.NewTransactionAt(at-1, true)
	if cap(l.entries) < len(ops) {
		l.entries = make([]badger.Entry, 2*len(ops))
	}
	l.entries = l.entries[:len(ops)]
	for i, o := range ops {
		var err error
		if o.del {
			if err = txn.Delete(o.key); err != nil {
				err = fmt.Errorf("delete of a row: %w", err)
			}
		} else {
			l.entries[i].Key, l.entries[i].Value = o.key, o.val
			if err = txn.SetEntry(&l.entries[i]); err != nil {
				err = fmt.Errorf("row of %d bytes, %d of %d: %w", len(o.val), i, len(ops), err)
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

// inTables is the newest commit that tables have any row of. They have all commits before it.
func (l *localLog) inTables() (at uint64) {
	for _, t := range l.db.Tables() {
		at = max(at, t.MaxVersion)
	}
	return at
}

// retire lets the log forget what is in tables.
func (l *localLog) retire() {
	at := min(max(l.inTables(), 1)-1, l.log.Last())
	if at <= l.log.Applied() {
		return
	}
	err := l.fs.SyncDir(l.dir)
	if err == nil && l.record != nil && l.record() != nil {
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
func (l *localLog) catchUp(fits func(rows int, size int64) bool, test *uint64) error {
	tables, last := l.inTables(), l.log.Last()
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
	replay := replayer{db: l.db, fits: fits, flushed: make(chan error, 1)}
	err := l.log.Replay(func(number uint64, rows []byte) error {
		if number <= from {
			return nil
		}
		return replay.add(number, rows)
	})
	if err = errors.Join(err, replay.end()); err != nil {
		return fmt.Errorf("apply the commit log: %w", err)
	}
	if tables == last+1 {
		// Its rows came to Badger, and its record, which failed, did not reach the log. The
		// number is used; nothing was acknowledged.
		l.group.Reset()
		if err := errors.Join(l.log.Append(tables, &l.group), l.log.Sync()); err != nil {
			return err
		}
	}
	l.retire()
	return nil
}

// stop ends the looks at the tables. It may be called more than once.
func (l *localLog) stop() {
	l.once.Do(func() { close(l.lookNow) })
	l.ended.Wait()
}

// close closes the log, behind Badger. All is in tables when that went well.
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

// replayer applies commits to Badger, many at once. It parts the rows of one only
// when they are too many for one request: see localLog, 3.
type replayer struct {
	db      *badger.DB
	fits    func(rows int, size int64) bool
	next    []replayRow
	size    int64
	flushed chan error
	under   bool  // a flush is under way
	failed  error // of the first flush that failed: Badger gets nothing after it, see localLog, 3
}

type replayRow struct {
	commitlog.Row
	at uint64
}

func (r *replayer) add(number uint64, rows []byte) error {
	var own []byte // Badger keeps the rows until they are flushed
	n, size := 0, int64(0)
	own = append(own, rows...)
	begin := len(r.next)
	err := commitlog.Rows(own, func(row commitlog.Row) error {
		r.next = append(r.next, replayRow{row, number})
		n++
		size += op{key: row.Key, val: row.Value}.size()
		return nil
	})
	if err != nil {
		return fmt.Errorf("commit %d: %w", number, err)
	}
	if begin > 0 && !r.fits(len(r.next), r.size+size) {
		if err := r.flush(r.next[:begin:begin]); err != nil {
			return err
		}
		r.next, r.size = append([]replayRow(nil), r.next[begin:]...), 0
	}
	r.size += size
	return nil
}

// flush gives rows to Badger when it has taken those before.
func (r *replayer) flush(rows []replayRow) error {
	if r.under {
		r.under = false
		r.failed = <-r.flushed
	}
	if r.failed != nil || len(rows) == 0 {
		return r.failed
	}
	r.under = true
	go func() {
		batch := r.db.NewManagedWriteBatch()
		defer batch.Cancel()
		for _, row := range rows {
			var err error
			if row.Delete {
				err = batch.DeleteAt(row.Key, row.at)
			} else {
				err = batch.SetEntryAt(badger.NewEntry(row.Key, row.Value), row.at)
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

func (r *replayer) end() error {
	err := r.flush(r.next)
	r.next = nil
	return cmp.Or(err, r.flush(nil))
}
