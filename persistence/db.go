package persistence

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/caravan-dag/caravan/persistence/commitlog"
	"github.com/dgraph-io/badger/v4"
	"github.com/prometheus/client_golang/prometheus"
)

// Config says where and how a DB is kept.
type Config struct {
	Dir        string // created when it is missing; one process at a time
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil = no metrics
	// SoftFreeBytes and HardFreeBytes are bytes of free disk. Below SoftFreeBytes, CheckDiskSpace
	// refuses new submissions. Below HardFreeBytes the store fails, before Badger meets a full
	// disk. Zero means a default that follows from what Badger may need at once.
	SoftFreeBytes, HardFreeBytes int64
	// SoftFreeFloor, if set, returns the least that must be free on a disk of this size where
	// CheckDiskSpace accepts new submissions: what others leave for the store, and a little more.
	SoftFreeFloor func(total int64) int64
	// Shards is fixed when the data folder is made; 0 = as the folder says, 16 for a new one.
	Shards int
	// Numbering says which partition the runs are of. It is fixed when the rows are made. The zero
	// value is a server without partitions.
	Numbering messages.Numbering
	// Unverified opens the tables without a proof that they are whole: for emergencies.
	Unverified bool
	// Synced is for a replica: tables have all rows up to this moment, because the log may no
	// longer have them (DB.Sync).
	Synced uint64
	// HasSmallMemTables makes memtables as small as on a disk of 500 MB. To open a store clears the memory of a
	// memtable: tests that open many spend most of their time on that otherwise.
	HasSmallMemTables bool
	// FS is where the commit log lies; nil = the machine's. Badger opens its own files without it.
	FS vfs.FS

	// Seams of tests.
	statfs     func(dir string) (free, total int64, err error)
	memTable   int64           // Badger's MemTableSize, in bytes; 0 = by the size of the disk
	keepTables bool            // Badger compacts only when it is told to
	clock      verifyClock     // when tables are verified
	replayFrom *uint64         // the log is applied from the commit after this one, whatever tables have
	onLog      func(*localLog) // called before the first commit
}

// DB holds the rows: Badger, its files, the disk space that they may need, the verification of
// tables, and the moments as of which rows are read. It knows keys and checksums of rows, and
// nothing of runs. A RunStore is the other half. A single node opens both together (OpenStore), and
// they end together.
//
// It is safe for concurrent use.
//
// Lock order: that of RunStore, then closeMu, users, the token of writer, syncMu, readers, failure,
// then one of the leaves, under which no other lock is taken: those of timestamps, disk and verifier.
type DB struct {
	dir      string
	log      *slog.Logger
	badger   *badger.DB
	limits   badgerguard.Limits // of a transaction
	memTable int64              // Badger's MemTableSize, in bytes
	disk     *badgerguard.DiskSpace

	failure
	timestamps *readTimestamps
	verifier   tableVerifier
	metrics    *verifyMetrics
	unverified bool // Config.Unverified

	writer   *rowWriter
	localLog *localLog // the commit log of a single node; nil for a replica
	lock     io.Closer // of a replica's folder; the commit log of a single node has its own
	replica  replicaState
	syncMu   sync.Mutex // one Sync at a time

	store      atomic.Pointer[RunStore] // the store that is open over this DB; nil between two
	storeCount atomic.Uint64            // stores so far, see RunStore.ordinal

	// users is read-locked by Apply, Sync, attachStore and beginView, and locked by Close for a moment.
	// It is not readers: a goroutine with a view may apply entries, while a Close waits for the view.
	users   sync.RWMutex
	closing bool         // Close has begun; guarded by users
	readers sync.RWMutex // read-locked by views, locked by Close
	closed  bool         // no view is left; guarded by readers
	closeMu sync.Mutex   // one Close at a time
}

// openPatience bounds the wait for a folder that another process has, and openPause is between two
// attempts. A process that was killed may hold the lock a little longer: the kernel releases it
// when the process is gone.
const (
	openPatience = 2 * time.Second
	openPause    = 20 * time.Millisecond
)

// openDB opens the rows in c.Dir, or makes an empty folder. local says that the folder has a commit
// log, that of a single node, and it is applied. The caller starts the verifier.
func openDB(c Config, local bool) (*DB, error) {
	for begin := time.Now(); ; time.Sleep(openPause) {
		db, err := openDBOnce(c, local)
		if err == nil {
			return db, nil
		}
		if !errors.Is(err, badgerguard.ErrInUse) || time.Since(begin) > openPatience {
			return nil, fmt.Errorf("data folder %s: %w", c.Dir, err)
		}
	}
}

// openDBOnce has an order: the lock of the log, or of the replica, comes first. The log tells how
// large memtables must be, and no file is removed without the lock. The folder is verified before
// Badger opens it, and Badger's own logs are removed in between (localLog, duty 2).
func openDBOnce(c Config, local bool) (*DB, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.statfs == nil {
		c.statfs = vfs.Statfs
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := vfs.CheckRegularFiles(c.Dir); err != nil {
		return nil, err // Badger would wait for the other end of a FIFO
	}
	_, total, err := c.statfs(c.Dir)
	if err != nil {
		return nil, err
	}
	if c.memTable == 0 {
		if c.HasSmallMemTables {
			total = min(total, 500<<20)
		}
		c.memTable = badgerguard.MemTableSize(total)
	}
	if !local {
		c.memTable = max(c.memTable, replicaMemTable)
	}
	db := &DB{
		dir: c.Dir, log: c.Logger, failure: newFailure(), timestamps: newReadTimestamps(),
		limits: badgerguard.TransactionLimits(c.memTable), unverified: c.Unverified,
	}
	var log *commitlog.Log
	logBytes, flushed := db.memTableBytes, c.Synced > 0
	if local {
		log, err = openCommitLog(c, int(db.limits.Bytes), func(err error) { _ = db.fail(err) })
		if err != nil {
			return nil, err
		}
		if need := badgerguard.MemTableSizeFor(int64(log.LongestBytes())); need > c.memTable {
			c.memTable = need // a server on a larger disk wrote the log
		}
		logBytes, flushed = log.LiveBytes, log.Applied() > 0
	} else if db.lock, err = lockReplica(c.Dir); err != nil {
		return nil, err
	}
	closeLog := func() error { return db.lock.Close() }
	if local {
		closeLog = func() error { return log.Close(false) }
	}
	db.memTable = c.memTable
	db.disk = badgerguard.NewDiskSpace(badgerguard.DiskSpaceConfig{
		Dir: c.Dir, Soft: c.SoftFreeBytes, Hard: c.HardFreeBytes, SoftFloor: c.SoftFreeFloor,
		MemTable: c.memTable, Segment: segmentSize(c.memTable), LogBytes: logBytes, Statfs: c.statfs,
	})
	if err := db.openTables(c, flushed); err != nil {
		return nil, errors.Join(err, closeLog())
	}
	db.writer = newRowWriter(db.badger, db.publish, func(err error) { _ = db.fail(err) })
	if local {
		db.localLog = newLocalLog(db, log, c)
		if c.onLog != nil {
			c.onLog(db.localLog)
		}
		err = db.catchUp(c)
	} else {
		err = db.openReplica(c)
	}
	if err == nil {
		err = db.registerMetrics(c)
	}
	if err != nil {
		return nil, errors.Join(err, db.abandon())
	}
	return db, nil
}

// memTableBytes returns what Badger may have in memory and nowhere else, at most, in bytes. The log
// of a replica is somewhere else, and does not tell.
func (db *DB) memTableBytes() int64 { return 3 * db.memTable }

// openTables verifies the folder and opens Badger on it. flushed says that tables have rows which
// the log no longer has.
func (db *DB) openTables(c Config, flushed bool) error {
	if err := db.disk.CheckOpen(); err != nil {
		return err
	}
	if err := db.verifyBeforeOpen(c); err != nil {
		return err
	}
	if err := badgerguard.RemoveUnsyncedFiles(c.Dir, flushed); err != nil {
		return err
	}
	logger := badgerguard.NewLogger(c.Logger, func(err error) { _ = db.fail(err) })
	options := badgerguard.Options(c.Dir, c.memTable).WithLogger(logger)
	if c.keepTables {
		options = options.WithNumCompactors(0)
	}
	var err error
	if db.badger, err = badger.OpenManaged(options); err != nil {
		return badgerguard.OpenError(c.Dir, err)
	}
	db.disk.WatchTables(db.badger.Tables)
	if err := logger.CorruptTable(); err != nil {
		return errors.Join(err, db.badger.Close())
	}
	return nil
}

// catchUp brings Badger up to the last commit of the log of a single node. Reads then begin at that
// commit.
func (db *DB) catchUp(c Config) error {
	if err := db.localLog.catchUp(db.limits, c.replayFrom); err != nil {
		return err
	}
	db.timestamps.publish(db.localLog.log.Last(), nil)
	return nil
}

// registerMetrics counts the verification of the open as the first one, unless it was left out.
func (db *DB) registerMetrics(c Config) (err error) {
	if db.metrics, err = newVerifyMetrics(c.Registerer); err != nil || db.metrics == nil {
		return err
	}
	db.verifier.verified, db.verifier.damages = db.metrics.verified, db.metrics.damages
	if !c.Unverified {
		db.verifier.verified.SetToCurrentTime()
	}
	return nil
}

// abandon closes what an open that fails has opened. The folder stays as a crash would leave it.
func (db *DB) abandon() error {
	_ = db.writer.wait() // Badger may still be taking a commit
	db.metrics.unregister()
	if db.localLog == nil {
		return errors.Join(db.badger.Close(), db.lock.Close())
	}
	db.localLog.stopRetiring()
	return errors.Join(db.badger.Close(), db.localLog.log.Close(false))
}

// publish is called for each commit that is durable and in Badger, in order, while the writer's
// token is taken. The store over the DB learns the rows; Badger learns which versions no read uses
// any more.
func (db *DB) publish(number uint64, mutations []mutation) {
	// On a replica a store knows the rows of its own term; those of other terms it never encoded.
	// Rows of another term end it before a read can see them: its indexes lack what they change, so
	// it would take a run that the next leader has deleted for one whose rows are lost.
	if s := db.store.Load(); s != nil {
		if !s.replicated || s.epoch == db.replica.term {
			s.publishCommit(number, mutations)
			return
		}
		// No log line: its reader may block, and the entry waits. The store's owner logs why it ends.
		s.end(fmt.Errorf("%w: moment %d has rows of term %d", ErrLost, number, db.replica.term))
	}
	db.badger.SetDiscardTs(db.timestamps.publish(number, nil))
}

// attachStore makes a store the one that is open over the DB, or says why not. It holds the writer's
// token: publish tells the store of each later entry, and none is half applied that it would miss.
func (db *DB) attachStore(s *RunStore) error {
	db.users.RLock()
	defer db.users.RUnlock()
	if db.closing {
		return ErrClosed
	}
	db.writer.begin()
	defer db.writer.end()
	if log, ok := s.commits.(*proposedLog); ok && log.lead.At < db.timestamps.newest() {
		return fmt.Errorf("the replica has rows of moment %d", db.timestamps.newest())
	}
	if !db.store.CompareAndSwap(nil, s) {
		return errors.New("another store is open over the same rows")
	}
	return nil
}

// beginView read-locks readers, or says why no view may begin. It refuses at once while a Close waits
// for other views: one of them may be the caller's.
func (db *DB) beginView() error {
	db.users.RLock()
	defer db.users.RUnlock()
	if db.closing {
		return ErrClosed
	}
	if err := db.Err(); err != nil {
		return err
	}
	db.readers.RLock() // only a Close locks it, after it has set closing
	return nil
}

// beginClose refuses uses of Badger that begin later, and waits for those that are under way, other
// than views. It fails while a store is open.
func (db *DB) beginClose() error {
	db.users.Lock()
	defer db.users.Unlock()
	if db.store.Load() != nil {
		return fmt.Errorf("data folder %s: a store is open over it", db.dir)
	}
	db.closing = true
	return nil
}

// Close closes the files, after the store over the DB. It waits for the views that are open. On a
// disk without space for what Badger has in memory it returns an error and leaves the folder as a
// crash would, which loses no commit; it may be called again.
func (db *DB) Close() error {
	db.closeMu.Lock()
	defer db.closeMu.Unlock()
	if err := db.beginClose(); err != nil {
		return err
	}
	db.verifier.close()
	db.readers.Lock()
	defer db.readers.Unlock()
	if db.badger.IsClosed() {
		return nil
	}
	if !db.closed {
		db.closed = true
		db.metrics.unregister()
		if db.localLog != nil {
			db.localLog.stopRetiring()
		}
	}
	if err := db.disk.CheckClose(); err != nil {
		return fmt.Errorf("data folder %s: %w", db.dir, err)
	}
	closeLog := func(bool) error { return db.lock.Close() }
	if db.localLog != nil {
		closeLog = db.localLog.close
	}
	if err := db.badger.Close(); err != nil {
		return fmt.Errorf("data folder %s: %w", db.dir, errors.Join(err, closeLog(false)))
	}
	// Badger has written all that it had in memory into tables.
	err := db.writeFinalInventory()
	if err = errors.Join(err, closeLog(db.Err() == nil && err == nil)); err != nil {
		return fmt.Errorf("data folder %s: %w", db.dir, err)
	}
	return nil
}

// fail makes the DB failed, and the store over it: the disk, or what Badger did with it, is in
// doubt. The first reason stays. It returns the error that every batch gets from now on.
func (db *DB) fail(err error) error {
	err, first := db.failure.set(err)
	if first {
		if s := db.store.Load(); s != nil {
			s.end(err) // before the log line, whose reader may block
		}
		db.log.Error("storage failed", "dir", db.dir, "err", err)
	}
	return err
}
