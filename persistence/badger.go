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
	ofLog      func(*localWAL) // tests: called before the first commit
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

	queue     commitQueue
	encoder   encoder          // the committer's
	truncator journalTruncator // the committer's
	wal       writeAheadLog    // the writer's
	localWAL  *localWAL        // commits, where that is of this machine
	stall     *stallWatch
	disk      *room
	// timestamps are the store's read and commit timestamps.
	timestamps *readTimestamps
	deletedIDs gone
	// finished is the finished runs that must be found.
	finished      finishedIndex
	keptKeys      keptKeys
	committerDone chan struct{}  // the committer has ended
	longWrites    sync.WaitGroup // long documents that are being written

	failMu  sync.Mutex
	failure atomic.Pointer[error]
	failed  chan struct{}

	readers  sync.RWMutex // held by readers; Close takes it whole
	closed   bool         // under reading
	closeMu  sync.Mutex   // one Close at a time
	deleteMu sync.Mutex   // one Delete at a time
	metrics  *metrics
	verifier tableVerifier
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
		failed: make(chan struct{}), committerDone: make(chan struct{}),
		queue:     commitQueue{wake: make(chan struct{}, 1)},
		encoder:   encoder{snapshots: map[messages.RunID]*snapshotContents{}},
		truncator: journalTruncator{truncatedBelow: map[messages.RunID]uint64{}},

		timestamps: newReadTimestamps(),
	}
	s.encoder.timestamps = s.timestamps
	s.encoder.loadContents = s.loadSnapshotContents
	s.stall = newStallWatch(func(d time.Duration) { s.fail(fmt.Errorf("a commit has not ended after %v", d)) })
	opts := badgerOptions(c)
	s.setLimits(opts)
	log, err := openCommitLog(c, int(s.maxBytes), func(err error) { s.fail(err) })
	if err != nil {
		return nil, err
	}
	if need := memoryFor(int64(log.Longest())); need > c.memory {
		c.memory = need // the log is of a larger disk
		opts = badgerOptions(c)
	}
	s.disk = newRoom(c)
	s.disk.logBytes = log.LiveBytes
	if s.db, err = s.openTables(c, log, opts); err != nil {
		return nil, errors.Join(err, log.Close(false))
	}
	s.localWAL = newLocalWAL(s.db, log, c, s.publishCommit, func(err error) { s.fail(err) })
	s.localWAL.recordTables = s.recordManifest
	if c.ofLog != nil {
		c.ofLog(s.localWAL)
	}
	s.wal = s.localWAL
	if err = s.recoverState(c, log); err != nil {
		s.localWAL.waitApplied() // Badger may still be taking a commit
		s.localWAL.stopRetiring()
		s.encoder.packer.close()
		return nil, errors.Join(err, s.db.Close(), log.Close(false))
	}
	go s.commitLoop()
	s.startVerifier()
	return s, nil
}

// openTables opens Badger's tables.
func (s *Badger) openTables(c Config, log *commitlog.Log, opts badger.Options) (db *badger.DB, err error) {
	if err := s.disk.checkOpen(); err != nil {
		return nil, err
	}
	if err := s.verifyBeforeOpen(c); err != nil {
		return nil, err
	}
	if err := removeUnused(c.Dir, log.Applied()); err != nil {
		return nil, err
	}
	if s.encoder.packer, err = newPacker(); err != nil {
		return nil, err
	}
	logs := &badgerLog{log: c.Logger, alarm: func(err error) { s.fail(err) }}
	db, err = badger.OpenManaged(opts.WithLogger(logs))
	if err != nil {
		s.encoder.packer.close()
		return nil, openError(c.Dir, err)
	}
	s.disk.tables = db.Tables
	if err := logs.corrupt(); err != nil {
		s.encoder.packer.close()
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

// setLimits follows Badger's own, with a margin: a transaction takes 15 % of the
// memtable, and as many rows as its nodes are 96 bytes.
func (s *Badger) setLimits(opts badger.Options) {
	limit := 15 * opts.MemTableSize / 100
	s.maxBytes = limit * 8 / 10
	s.maxRows = int(limit / 128)
	s.encoder.partSize = int(min(512<<10, limit/3))
	s.encoder.maxStaged = maxStaged
}

// memoryFor is the MemTableSize of which a transaction, and so a value that is kept in the
// tree, may have n bytes.
func memoryFor(n int64) int64 { return (n*100/12>>20 + 1) << 20 }

// recoverState brings Badger up to the log's last commit, reads and writes the meta rows and
// recovers.
func (s *Badger) recoverState(c Config, log *commitlog.Log) error {
	if err := s.localWAL.catchUp(s.fitsTransaction, c.replayFrom); err != nil {
		return err
	}
	s.timestamps.publish(log.Last(), nil)
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
	s.encoder.writeCount = (opens + 1) << 40
	if s.metrics, err = newMetrics(c.Registerer); err != nil {
		return err
	}
	if s.metrics != nil {
		s.verifier.verified, s.verifier.damages = s.metrics.verified, s.metrics.damages
		if !c.Unverified {
			s.verifier.verified.SetToCurrentTime()
		}
	}
	rows := []mutation{
		metaRow("format", formatVersion),
		metaRow("shards", uint64(s.shards)),
		metaRow("opens", opens+1),
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
	if err := s.checkNext(); err != nil {
		return err
	}
	s.finished.start(messages.RunID(s.encoder.nextRun.Load()))
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
	s.closeMu.Lock()
	defer s.closeMu.Unlock()
	s.verifier.close()
	s.queue.close()
	<-s.committerDone
	s.longWrites.Wait()
	s.readers.Lock()
	defer s.readers.Unlock()
	if s.db.IsClosed() {
		return nil
	}
	if !s.closed {
		s.closed = true
		s.metrics.unregister()
		s.encoder.packer.close()
		s.localWAL.stopRetiring()
	}
	if err := s.disk.checkClose(); err != nil {
		return fmt.Errorf("data folder %s: %w", s.dir, err)
	}
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("data folder %s: %w", s.dir, errors.Join(err, s.localWAL.close(false)))
	}
	// Badger has made tables of all that it had in memory.
	err := s.writeFinalInventory()
	if err = errors.Join(err, s.localWAL.close(s.Err() == nil && err == nil)); err != nil {
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
	s.timestamps.stopWaiting()
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
