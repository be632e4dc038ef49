package persistence

import (
	"errors"
	"fmt"
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

// Config says where and how a Badger store is kept.
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
	// Unverified opens the tables without a proof that they are whole: for emergencies.
	Unverified bool
	// FS is where the commit log lies; nil = the machine's. Badger opens its own files without it.
	FS vfs.FS

	// Seams of tests.
	statfs     func(dir string) (free, total int64, err error)
	memTable   int64           // Badger's MemTableSize, in bytes; 0 = by the size of the disk
	clock      verifyClock     // when tables are verified
	replayFrom *uint64         // the log is applied from the commit after this one, whatever tables have
	onWAL      func(*localWAL) // called before the first commit
}

// Badger is a Store on Badger. It is safe for concurrent use.
//
// Lock order: closeMu, deleteMu, readers, failMu, then one of the leaves, under which no other lock
// is taken: those of queue, timestamps, deletedIDs, finished, disk and verifier.
type Badger struct {
	dir    string
	log    *slog.Logger
	db     *badger.DB
	shards int
	fresh  bool               // the folder was empty
	limits badgerguard.Limits // of a transaction

	// The commit path, see commit.go.
	queue         commitQueue
	encoder       encoder          // owned by the committer
	truncator     journalTruncator // owned by the committer
	wal           writeAheadLog    // owned by the writer
	localWAL      *localWAL        // is wal, when that is the log of this machine
	stall         *stallWatch
	disk          *badgerguard.DiskSpace
	committerDone chan struct{}  // closed when the committer has ended
	longWrites    sync.WaitGroup // long documents that are being written

	// What the store knows in memory of its rows.
	timestamps *readTimestamps
	deletedIDs badgerguard.DeletedIDs
	finished   finishedIndex
	keptKeys   keptKeys

	failMu  sync.Mutex
	failure atomic.Pointer[error]
	failed  chan struct{}

	readers  sync.RWMutex // read-locked by readers, locked by Close
	closed   bool         // guarded by readers
	closeMu  sync.Mutex   // one Close at a time
	deleteMu sync.Mutex   // one Delete at a time
	metrics  *metrics
	verifier tableVerifier
}

var _ Store = (*Badger)(nil)

// OpenBadger opens the store in c.Dir, or makes a new one, and finishes what a crash has left half
// done. The error names the folder, and says when another process has it, when its row format is
// not this program's, and when the disk is full.
//
// It waits a moment for a locked folder: a child of a killed server, between fork and exec, may
// hold the lock a little longer.
func OpenBadger(c Config) (*Badger, error) {
	const patience, pause = 2 * time.Second, 20 * time.Millisecond
	for begin := time.Now(); ; time.Sleep(pause) {
		s, err := openBadger(c)
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, badgerguard.ErrInUse) || time.Since(begin) > patience {
			return nil, fmt.Errorf("data folder %s: %w", c.Dir, err)
		}
	}
}

func openBadger(c Config) (*Badger, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.statfs == nil {
		c.statfs = badgerguard.Statfs
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
		c.memTable = badgerguard.MemTableSize(total)
	}
	s := &Badger{
		dir: c.Dir, log: c.Logger,
		failed: make(chan struct{}), committerDone: make(chan struct{}),
		queue:      commitQueue{wake: make(chan struct{}, 1)},
		truncator:  journalTruncator{truncatedBelow: map[messages.RunID]uint64{}},
		timestamps: newReadTimestamps(),
		limits:     badgerguard.TransactionLimits(c.memTable),
	}
	s.encoder = encoder{
		partSize: s.limits.Value, maxStaged: maxStaged, timestamps: s.timestamps,
		snapshots: map[messages.RunID]*snapshotContents{}, loadContents: s.loadSnapshotContents,
	}
	s.stall = newStallWatch(func(d time.Duration) { s.fail(fmt.Errorf("a commit has not ended after %v", d)) })
	log, err := openCommitLog(c, int(s.limits.Bytes), func(err error) { s.fail(err) })
	if err != nil {
		return nil, err
	}
	if need := badgerguard.MemTableSizeFor(int64(log.Longest())); need > c.memTable {
		c.memTable = need // a server on a larger disk wrote the log
	}
	s.disk = badgerguard.NewDiskSpace(badgerguard.DiskSpaceConfig{
		Dir: c.Dir, Soft: c.SoftFreeBytes, Hard: c.HardFreeBytes, SoftFloor: c.SoftFreeFloor,
		MemTable: c.memTable, Segment: segmentSize(c.memTable), LogBytes: log.LiveBytes, Statfs: c.statfs,
	})
	if s.db, err = s.openTables(c, log); err != nil {
		return nil, errors.Join(err, log.Close(false))
	}
	s.localWAL = newLocalWAL(s.db, log, c, s.publishCommit, func(err error) { s.fail(err) })
	s.localWAL.recordTables = s.recordManifest
	if c.onWAL != nil {
		c.onWAL(s.localWAL)
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

// openTables verifies the folder and opens Badger on it.
func (s *Badger) openTables(c Config, log *commitlog.Log) (db *badger.DB, err error) {
	if err := s.disk.CheckOpen(); err != nil {
		return nil, err
	}
	if err := s.verifyBeforeOpen(c); err != nil {
		return nil, err
	}
	if err := badgerguard.RemoveUnsyncedFiles(c.Dir, log.Applied() > 0); err != nil {
		return nil, err
	}
	if s.encoder.packer, err = newPacker(); err != nil {
		return nil, err
	}
	logger := badgerguard.NewLogger(c.Logger, func(err error) { s.fail(err) })
	db, err = badger.OpenManaged(badgerguard.Options(c.Dir, c.memTable).WithLogger(logger))
	if err != nil {
		s.encoder.packer.close()
		return nil, badgerguard.OpenError(c.Dir, err)
	}
	s.disk.WatchTables(db.Tables)
	if err := logger.CorruptTable(); err != nil {
		s.encoder.packer.close()
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// recoverState brings Badger up to the log's last commit, reads and writes the meta rows, and
// finishes what a crash has left half done.
func (s *Badger) recoverState(c Config, log *commitlog.Log) error {
	if err := s.localWAL.catchUp(s.limits, c.replayFrom); err != nil {
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
		metaRow("format", rowFormat),
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
	if err := s.checkNextRun(); err != nil {
		return err
	}
	s.finished.start(messages.RunID(s.encoder.nextRun.Load()))
	return s.recoverDeletions()
}

// CheckDiskSpace returns nil when new work may be accepted, or says that the store has failed or
// that the disk is nearly full.
func (s *Badger) CheckDiskSpace() error {
	if err := s.Err(); err != nil {
		return err
	}
	return s.disk.CheckNewWork()
}

// Close commits and answers what was appended, and closes the files. On a disk without space for
// what Badger has in memory it returns an error and leaves the folder as a crash would, which loses
// no commit; it may be called again.
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
	if err := s.disk.CheckClose(); err != nil {
		return fmt.Errorf("data folder %s: %w", s.dir, err)
	}
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("data folder %s: %w", s.dir, errors.Join(err, s.localWAL.close(false)))
	}
	// Badger has written all that it had in memory into tables.
	err := s.writeFinalInventory()
	if err = errors.Join(err, s.localWAL.close(s.Err() == nil && err == nil)); err != nil {
		return fmt.Errorf("data folder %s: %w", s.dir, err)
	}
	return nil
}

// fail makes the store failed; the first reason stays. It returns the error that every batch gets
// from now on. It is safe for concurrent use.
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
	s.log.Error("storage failed", "dir", s.dir, "err", err)
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

// metrics are those of the commit path and of verification. A nil *metrics is valid.
type metrics struct {
	reg     prometheus.Registerer
	groups  prometheus.Histogram
	seconds prometheus.Histogram
	bytes   prometheus.Counter
	// Set by the tableVerifier.
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
			Name: "caravan_journal_commit_seconds", Help: "Time of one commit, its sync included.",
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

// observeGroup counts one commit group; each deletion in it counts as one batch.
func (m *metrics) observeGroup(items int) {
	if m != nil && items > 0 {
		m.groups.Observe(float64(items))
	}
}

func (m *metrics) observeCommit(took time.Duration, size int64) {
	if m != nil {
		m.seconds.Observe(took.Seconds())
		m.bytes.Add(float64(size))
	}
}
