package persistence

import (
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
	// SoftFreeBytes and HardFreeBytes are bytes of free disk. Below SoftFreeBytes, CheckDiskSpace refuses
	// new submissions; below HardFreeBytes the store fails before Badger meets a full
	// disk. Zero means a default that follows from what Badger may need at once.
	SoftFreeBytes, HardFreeBytes int64
	// SoftFreeFloor, if set, is how much of a disk of so many bytes is free at least where CheckDiskSpace
	// takes new submissions: what others leave for the store, and a little more.
	SoftFreeFloor func(total int64) int64
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

// fail makes the store failed; the first reason stays. It returns the error that
// every batch gets from now on. It is safe for concurrent use.
func (s *Badger) fail(err error) error {
	s.failMu.Lock()
	defer s.failMu.Unlock()
	if old := s.failure.Load(); old != nil {
		return *old
	}
	if !errors.Is(err, ErrFailed) {
		err = fmt.Errorf("%w: %w", ErrFailed, err)
	}
	s.failure.Store(&err)
	close(s.failed)
	s.moments.abandon()
	s.log.Error("storage failed", "dir", s.dir, "error", err)
	return err
}

// Failed is closed when the store has failed.
func (s *Badger) Failed() <-chan struct{} { return s.failed }

// Err says why the store has failed, or nil.
func (s *Badger) Err() error {
	if err := s.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// metrics are the committer's. A nil *metrics counts nothing.
type metrics struct {
	reg     prometheus.Registerer
	groups  prometheus.Histogram
	seconds prometheus.Histogram
	bytes   prometheus.Counter
	// Of the keeper.
	verified prometheus.Gauge
	damages  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	if reg == nil {
		return nil, nil
	}
	m := &metrics{
		reg: reg,
		groups: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "caravan_journal_group_batches", Help: "Batches of one commit group.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 14),
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "caravan_journal_commit_seconds", Help: "Time of one synced transaction.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16),
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "caravan_journal_bytes_total", Help: "Bytes of keys and values committed.",
		}),
		verified: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "caravan_storage_verified_timestamp_seconds", Help: "When all tables were last found whole.",
		}),
		damages: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "caravan_storage_damage_total", Help: "Damages to stored data that were found, each counted once.",
		}),
	}
	for _, c := range m.all() {
		if err := reg.Register(c); err != nil {
			m.unregister()
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.groups, m.seconds, m.bytes, m.verified, m.damages}
}

func (m *metrics) unregister() {
	if m == nil {
		return
	}
	for _, c := range m.all() {
		m.reg.Unregister(c)
	}
}

// group counts one commit group; deletions among its items count as one each.
func (m *metrics) group(items int) {
	if m != nil && items > 0 {
		m.groups.Observe(float64(items))
	}
}

func (m *metrics) commit(took time.Duration, size int64) {
	if m != nil {
		m.seconds.Observe(took.Seconds())
		m.bytes.Add(float64(size))
	}
}
