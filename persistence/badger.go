package persistence

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence/commitlog"
	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/prometheus/client_golang/prometheus"
)

// Config says where and how a Badger store is kept.
type Config struct {
	Dir        string // created when it is not there; one process at a time
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil = no metrics
	// SoftRoom and HardRoom are bytes of free disk. Below SoftRoom, Room refuses
	// new submissions; below HardRoom the store fails before Badger meets a full
	// disk. Zero means a default that follows from what Badger may need at once.
	SoftRoom, HardRoom int64
	// SoftFloor, if set, is how much of a disk of so many bytes is free at least where Room
	// takes new submissions: what others leave for the store, and a little more.
	SoftFloor func(total int64) int64
	// Shards is fixed when the data folder is made; 0 = as the folder says, 16 for
	// a new one.
	Shards int
	// Unverified leaves the proof out that the tables are whole before they are used: for
	// emergencies.
	Unverified bool
	// FS is where the commit log lies; nil = the machine's. Badger's own files are not
	// opened by it.
	FS vfs.FS

	statfs func(dir string) (free, total int64, err error) // tests
	memory int64                                           // tests: MemTableSize
	clock  verifyClock                                     // tests: when tables are looked at
	// tests: the log is applied behind this commit, whatever tables have
	replayFrom *uint64
	ofLog      func(*localLog) // tests: called before the first commit
}

// Badger is a Store on Badger. It is safe for concurrent use.
type Badger struct {
	dir    string
	log    *slog.Logger
	db     *badger.DB
	shards int
	fresh  bool // nothing was in the folder

	maxRows  int   // of a transaction
	maxBytes int64 // of a transaction

	queue   queue
	enc     encoder   // the committer's
	cuts    cuts      // the committer's
	commits commitLog // the writer's
	local   *localLog // commits, where that is of this machine
	stall   *stallWatch
	room    *room
	// moments are the store's read and commit timestamps.
	moments *moments
	gone    gone
	// register is the finished runs that must be found.
	register register
	kept     keptKeys
	ended    chan struct{}  // the committer has ended
	staging  sync.WaitGroup // long documents that are being written

	failMu  sync.Mutex
	failure atomic.Pointer[error]
	failed  chan struct{}

	reading sync.RWMutex // held by readers; Close takes it whole
	closed  bool         // under reading
	ending  sync.Mutex   // one Close at a time
	purging sync.Mutex   // one Delete at a time
	metrics *metrics
	keeper  keeper
}

var _ Store = (*Badger)(nil)

const (
	// formatVersion is the format of a data folder. It goes up with every change that a
	// former program could not read. Since 4 finished runs are indexed by their labels.
	formatVersion = 4
	defaultShards = 16
)

// OpenBadger opens the store in c.Dir, or makes a new one, and finishes what a
// crash has left half done. The error names the folder and says when it is in use
// by another process, of another format, or on a full disk.
//
// A lock is waited for a moment: of a server that was killed, a child between fork
// and exec may hold it a little longer.
func OpenBadger(c Config) (*Badger, error) {
	const patience, pause = 2 * time.Second, 20 * time.Millisecond
	for begin := time.Now(); ; time.Sleep(pause) {
		s, err := openBadger(c)
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, errInUse) || time.Since(begin) > patience {
			return nil, fmt.Errorf("data folder %s: %w", c.Dir, err)
		}
	}
}

// errInUse: another process holds the folder's lock.
var errInUse = errors.New("in use by another server")

func openBadger(c Config) (*Badger, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.statfs == nil {
		c.statfs = statfs
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := vfs.CheckFolder(c.Dir); err != nil {
		return nil, err // Badger would wait for the other end of a FIFO
	}
	_, total, err := c.statfs(c.Dir)
	if err != nil {
		return nil, err
	}
	if c.memory == 0 {
		c.memory = memTableSize(total)
	}
	s := &Badger{
		dir: c.Dir, log: c.Logger,
		failed: make(chan struct{}), ended: make(chan struct{}),
		queue: queue{wake: make(chan struct{}, 1)},
		enc:   encoder{snapshots: map[messages.RunID]*marks{}},
		cuts:  cuts{low: map[messages.RunID]uint64{}},

		moments: newMoments(),
	}
	s.enc.moments = s.moments
	s.enc.stored = s.storedMarks
	s.stall = newStallWatch(func(d time.Duration) { s.fail(fmt.Errorf("a commit has not ended after %v", d)) })
	opts := badgerOptions(c)
	s.limits(opts)
	log, err := openLog(c, int(s.maxBytes), func(err error) { s.fail(err) })
	if err != nil {
		return nil, err
	}
	if need := memoryFor(int64(log.Longest())); need > c.memory {
		c.memory = need // the log is of a larger disk
		opts = badgerOptions(c)
	}
	s.room = newRoom(c)
	s.room.logBytes = log.LiveBytes
	if s.db, err = s.openDB(c, log, opts); err != nil {
		return nil, errors.Join(err, log.Close(false))
	}
	s.local = newLocalLog(s.db, log, c, s.readable, func(err error) { s.fail(err) })
	s.local.record = s.recordManifest
	if c.ofLog != nil {
		c.ofLog(s.local)
	}
	s.commits = s.local
	if err = s.start(c, log); err != nil {
		s.local.settle() // Badger may still be taking a commit
		s.local.stop()
		s.enc.pack.close()
		return nil, errors.Join(err, s.db.Close(), log.Close(false))
	}
	go s.commitLoop()
	s.keep()
	return s, nil
}

// openDB opens Badger's tables.
func (s *Badger) openDB(c Config, log *commitlog.Log, opts badger.Options) (db *badger.DB, err error) {
	if err := s.room.checkOpen(); err != nil {
		return nil, err
	}
	if err := s.verifyTables(c); err != nil {
		return nil, err
	}
	if err := removeUnused(c.Dir, log.Applied()); err != nil {
		return nil, err
	}
	if s.enc.pack, err = newPacker(); err != nil {
		return nil, err
	}
	logs := &badgerLog{log: c.Logger, alarm: func(err error) { s.fail(err) }}
	db, err = badger.OpenManaged(opts.WithLogger(logs))
	if err != nil {
		s.enc.pack.close()
		return nil, openError(c.Dir, err)
	}
	s.room.tables = db.Tables
	if err := logs.corrupt(); err != nil {
		s.enc.pack.close()
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// badgerOptions keep memory small (three memtables and two small caches) and every
// value in the tree.
func badgerOptions(c Config) badger.Options {
	o := badger.DefaultOptions(c.Dir).
		WithSyncWrites(false).      // the commit log is what is synced
		WithDetectConflicts(false). // one writer
		WithMetricsEnabled(false).
		WithMemTableSize(c.memory).
		WithNumMemtables(2).
		WithNumLevelZeroTables(4).
		WithNumLevelZeroTablesStall(12).
		WithNumCompactors(3). // the third one keeps the last level free of tombstones
		WithCompression(options.Snappy).
		WithChecksumVerificationMode(options.OnBlockRead). // a damaged row is missing, never another one
		WithBlockCacheSize(8 << 20).
		WithIndexCacheSize(8 << 20).
		WithValueThreshold(min(1<<20, 15*c.memory/100)). // no value ever goes to the value log
		WithValueLogFileSize(1 << 20)
	o.LmaxCompaction = true
	if c.memory < 16<<20 {
		// A small disk: keep what one compaction may need small.
		o.LmaxCompaction = false
		o.NumLevelZeroTables, o.NumLevelZeroTablesStall = 2, 6
	}
	return o
}

// limits follows Badger's own, with a margin: a transaction takes 15 % of the
// memtable, and as many rows as its nodes are 96 bytes.
func (s *Badger) limits(opts badger.Options) {
	limit := 15 * opts.MemTableSize / 100
	s.maxBytes = limit * 8 / 10
	s.maxRows = int(limit / 128)
	s.enc.partSize = int(min(512<<10, limit/3))
	s.enc.maxStaged = maxStaged
}

// memoryFor is the MemTableSize of which a transaction, and so a value that is kept in the
// tree, may have n bytes.
func memoryFor(n int64) int64 { return (n*100/12>>20 + 1) << 20 }

// start brings Badger up to the log's last commit, reads and writes the meta rows and
// recovers.
func (s *Badger) start(c Config, log *commitlog.Log) error {
	if err := s.local.catchUp(s.fits, c.replayFrom); err != nil {
		return err
	}
	s.moments.advance(log.Last(), nil)
	if err := s.checkFormat(c.Shards); err != nil {
		return err
	}
	opens, err := s.metaNumber("opens")
	if err != nil {
		return err
	}
	if opens == 0 && !s.fresh {
		return fmt.Errorf("meta row opens: %w: missing", errCorrupt)
	}
	s.enc.writes = (opens + 1) << 40
	if s.metrics, err = newMetrics(c.Registerer); err != nil {
		return err
	}
	if s.metrics != nil {
		s.keeper.verified, s.keeper.damages = s.metrics.verified, s.metrics.damages
		if !c.Unverified {
			s.keeper.verified.SetToCurrentTime()
		}
	}
	rows := []op{
		metaRow("format", formatVersion),
		metaRow("shards", uint64(s.shards)),
		metaRow("opens", opens+1),
	}
	if err := s.commitMany(rows); err != nil {
		return err
	}
	if err := s.recoverStaged(); err != nil {
		return err
	}
	if err := s.loadIndex(); err != nil {
		return err
	}
	if err := s.checkNext(); err != nil {
		return err
	}
	s.register.begin(messages.RunID(s.enc.next.Load()))
	return s.recoverDeletions()
}

func (s *Badger) checkFormat(shards int) error {
	format, err := s.metaNumber("format")
	if errors.Is(err, errCorrupt) && s.unsummed() {
		return fmt.Errorf("of a format before %d, this program reads format %d", formatVersion, formatVersion)
	}
	if err != nil {
		return err
	}
	if format != 0 && format != formatVersion {
		return fmt.Errorf("format %d, this program reads format %d", format, formatVersion)
	}
	stored, err := s.metaNumber("shards")
	if err != nil {
		return err
	}
	if format == 0 {
		empty := true
		if err := s.scan(nil, nil, false, func([]byte, *badger.Item) (bool, error) {
			empty = false
			return false, nil
		}); err != nil {
			return err
		}
		if !empty {
			return errors.New("holds data without a format row: not written by this program")
		}
		s.fresh = true
		stored = uint64(defaultShards)
		if shards != 0 {
			stored = uint64(shards)
		}
	}
	if stored == 0 {
		return fmt.Errorf("meta row shards: %w: missing", errCorrupt)
	}
	if shards != 0 && uint64(shards) != stored {
		return fmt.Errorf("made for %d shards, asked for %d", stored, shards)
	}
	s.shards = int(stored)
	return nil
}

// unsummed tells whether the row of the format has no checksum, as before format 3.
func (s *Badger) unsummed() bool {
	bare := false
	_ = s.scan(metaKey("format"), nil, false, func(_ []byte, item *badger.Item) (bool, error) {
		return false, item.Value(func(v []byte) error {
			bare = len(v) == 2 && v[0] == metaV1
			return nil
		})
	})
	return bare
}

// Shards is the number of shards the data folder was made for.
func (s *Badger) Shards() int { return s.shards }

const metaV1 = 1

func metaRow(name string, n uint64) op {
	return seal(metaKey(name), binary.AppendUvarint([]byte{metaV1}, n))
}

// metaNumber reads a meta row; 0 when there is none.
func (s *Badger) metaNumber(name string) (uint64, error) {
	v, err := s.get(metaKey(name))
	if err != nil || v == nil {
		return 0, err
	}
	d := newDecoder(v, metaV1)
	n := d.uint()
	if err := d.end(); err != nil {
		return 0, fmt.Errorf("meta row %s: %w", name, err)
	}
	return n, nil
}

func openError(dir string, err error) error {
	if strings.Contains(err.Error(), "Cannot acquire directory lock") {
		return inUse(dir)
	}
	return err
}

// inUse says which process has the folder, as far as Badger's lock file knows.
func inUse(dir string) error {
	if pid, err := vfs.ReadFile(filepath.Join(dir, "LOCK")); err == nil {
		return fmt.Errorf("%w (process %s)", errInUse, strings.TrimSpace(string(pid)))
	}
	return errInUse
}

// Close commits what was appended, answers it, and closes the files. On a disk
// without room for what Badger has in memory it returns an error and leaves the
// folder as a crash would, which loses nothing; it may be called again.
func (s *Badger) Close() error {
	s.ending.Lock()
	defer s.ending.Unlock()
	s.keeper.close()
	s.queue.close()
	<-s.ended
	s.staging.Wait()
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.db.IsClosed() {
		return nil
	}
	if !s.closed {
		s.closed = true
		s.metrics.unregister()
		s.enc.pack.close()
		s.local.stop()
	}
	if err := s.room.checkClose(); err != nil {
		return fmt.Errorf("data folder %s: %w", s.dir, err)
	}
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("data folder %s: %w", s.dir, errors.Join(err, s.local.close(false)))
	}
	// Badger has made tables of all that it had in memory.
	err := s.closeTables()
	if err = errors.Join(err, s.local.close(s.Err() == nil && err == nil)); err != nil {
		return fmt.Errorf("data folder %s: %w", s.dir, err)
	}
	return nil
}
