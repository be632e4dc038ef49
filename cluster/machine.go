package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// machine is the rows of one replica: raftlog.Machine over a persistence.DB. Entries of the log become
// moments of the DB: moment = base + index.
//
// # Generations
//
// The rows lie in a folder of their own, db-<n>. A snapshot of another replica makes the next one, and
// replica.json says which counts:
//
//  1. db-<n+1> is made of the copy, durable (persistence.InstallCopy), and opened;
//  2. replica.json names n+1: from here on the replica has the new rows, also after a crash;
//  3. the DB of db-<n+1> takes the place of the former one;
//  4. the former DB is closed, when its last view is, and db-<n> is removed. Several may wait for that, so
//     each of them removes its own folder. The open removes every other generation, whatever a crash has
//     left.
//
// A view that is asked of the former DB at this moment is errReplaced. An engine ends before 1
// (evictEngine): its store is open over the DB.
//
// # What is durable
//
// The DB knows moments, and the log wants an index. Where entries were applied one after the other the
// two differ by base. A copy differs: it is of one entry, and its newest rows may be older (entries
// without rows follow them) or newer (entries that the other replica applied while it opened the view,
// and that this replica's log does not have yet). So replica.json keeps the pair, index and moment, and
// a later pair follows only from a later moment, which an entry of this replica's own log has made.
//
// writing covers the writes of replica.json, and is taken before mu, which is a leaf: every commit asks
// isWritten, and must not wait for a disk.
type machine struct {
	dir    string // of the partition
	fsys   vfs.FS
	base   uint64
	config persistence.Config // of each DB, but for Dir and Synced
	logger *slog.Logger
	// evictEngine ends the engine over the DB, and returns when its store is closed; allow lets the next one
	// begin. Set before the group is opened.
	evictEngine func() (allow func())
	// space is that of all replicas of the node. Nil: the replica is alone.
	space *copySpace
	// statfs returns the free bytes and the size of the disk of a folder. Nil: vfs.Statfs.
	statfs func(dir string) (free, total int64, err error)
	// findDamage stands for a damage of the DB. Nil but in tests.
	findDamage func() error
	// loseEntry reports whether the disk loses the rows of an entry. Nil but in tests.
	loseEntry func(index uint64) bool
	// afterStep is called after each step of Restore, by its number: its error stands for a crash there.
	// Nil but in tests.
	afterStep func(step int) error

	db         atomic.Pointer[persistence.DB]
	registerer *ownedRegisterer // of the DB; the goroutine of Apply and Restore owns it
	background sync.WaitGroup   // digests that are computed, and former DBs that are closed
	// comparableFrom is the first entry as of which this replica has a digest. See Verification.
	comparableFrom atomic.Uint64

	writing sync.Mutex
	// exchanging is held during an exchange of the rows, which close must not overtake.
	exchanging sync.Mutex

	mu     sync.Mutex
	record replicaRecord // changes under both locks
	// term is that of this node's engine. unwritten has the entries of that term whose rows the DB has not
	// written: their proposer must not take them for stored.
	term      uint64
	unwritten map[uint64]struct{}
	verified  map[uint64]Verification
	computing map[uint64]struct{} // entries whose digests are being computed
}

// replicaRecord is the content of replica.json.
type replicaRecord struct {
	Format     int    `json:"format"`
	Generation uint64 `json:"generation"`
	// The rows are durable up to the entry Index, and the DB up to Moment. See machine.
	Index  uint64 `json:"index"`
	Moment uint64 `json:"moment"`
}

// Verification is the digest of a replica's rows as of one entry of the log.
type Verification struct {
	Digest [32]byte
	Rows   uint64
	// IsIncomparable says that the replica did not have exactly the rows of that entry: it had newer ones
	// from a copy; or it was applying entries again that it had before its open, and the tables may lack
	// rows that later ones of these entries delete. It is also set if there is no digest: Err says why.
	IsIncomparable bool
	Err            error
}

// keptVerifications bounds the digests that a replica keeps.
const keptVerifications = 16

// maxDigests bounds the digests that a replica computes at a time. Each reads all rows, and keeps its view of
// them open.
const maxDigests = 2

var errManyDigests = fmt.Errorf("%d other digests are being computed", maxDigests)

var (
	// errReplaced answers reads of a replica whose rows are being replaced.
	errReplaced error = &messages.Error{Code: messages.Unavailable, Text: "the rows are being replaced by a copy of another replica: repeat the request"}
	// errStopped answers reads of a replica that was closed.
	errStopped error = &messages.Error{Code: messages.Unavailable, Text: "this node stops: repeat the request at another one"}
)

var _ raftlog.Machine = (*machine)(nil)

// openMachine opens the rows of a replica. A new replica begins without rows; isNew says that it may be
// one.
func openMachine(m *machine, isNew bool) error {
	err := readJSON(m.fsys, filepath.Join(m.dir, replicaFile), &m.record)
	switch {
	case errors.Is(err, fs.ErrNotExist) && isNew:
		m.record = replicaRecord{Format: folderFormat, Generation: 1}
		err = m.createReplica()
	case err == nil && m.record.Format != folderFormat:
		err = fmt.Errorf("%s has format %d, this program reads format %d", replicaFile, m.record.Format, folderFormat)
	}
	if err != nil {
		return fmt.Errorf("replica %s: %w", m.dir, err)
	}
	m.unwritten, m.verified, m.computing = map[uint64]struct{}{}, map[uint64]Verification{}, map[uint64]struct{}{}
	if err := m.removeOtherGenerations(m.record); err != nil {
		return fmt.Errorf("replica %s: %w", m.dir, err)
	}
	db, registerer, err := m.openDB(m.record)
	if err != nil {
		return err
	}
	m.db.Store(db)
	m.registerer = registerer
	if err := registerer.release(); err != nil {
		return errors.Join(err, m.close())
	}
	return nil
}

// createReplica makes a new replica, without rows.
func (m *machine) createReplica() error {
	if err := m.fsys.MkdirAll(m.dir, 0o700); err != nil {
		return err
	}
	if list, err := m.fsys.ReadDir(m.dir); err != nil || len(list) > 0 && list[0].Name() != replicaFile+".new" {
		if err == nil {
			err = fmt.Errorf("%s is missing, and there is %s", replicaFile, list[0].Name())
		}
		return err
	}
	for _, dir := range []string{m.dir, filepath.Dir(m.dir), filepath.Dir(filepath.Dir(m.dir))} { // p/<p>, p and the member's folder
		if err := m.fsys.SyncDir(dir); err != nil {
			return err
		}
	}
	return writeJSON(m.fsys, m.dir, replicaFile, m.record)
}

// generationFolder returns the folder of a generation.
func (m *machine) generationFolder(n uint64) string {
	return filepath.Join(m.dir, fmt.Sprintf("db-%d", n))
}

// removeOtherGenerations removes the rows of all generations but that of a record.
func (m *machine) removeOtherGenerations(record replicaRecord) error {
	list, err := m.fsys.ReadDir(m.dir)
	if err != nil {
		return err
	}
	current := filepath.Base(m.generationFolder(record.Generation))
	for _, entry := range list {
		if strings.HasPrefix(entry.Name(), "db-") && entry.Name() != current {
			if err := os.RemoveAll(filepath.Join(m.dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// openDB opens the DB of a record. Its metrics are held back: two DBs are open for a while in a Restore.
func (m *machine) openDB(record replicaRecord) (*persistence.DB, *ownedRegisterer, error) {
	c, registerer := m.config, newHeldRegisterer(m.config.Registerer)
	c.Dir, c.Synced, c.Registerer = m.generationFolder(record.Generation), record.Moment, registerer
	db, err := persistence.OpenDB(c)
	return db, registerer, err
}

// close closes the DB. The group is closed before.
func (m *machine) close() error {
	m.exchanging.Lock()
	db := m.db.Swap(nil)
	m.exchanging.Unlock()
	m.background.Wait()
	if db == nil {
		return nil
	}
	defer m.registerer.unregisterAll()
	return db.Close()
}

// dbFailed returns a channel that is closed when the DB fails, and what Err then says. Another DB may be in
// its place after a Restore.
func (m *machine) dbFailed() (<-chan struct{}, func() error) {
	db := m.db.Load()
	return db.Failed(), db.Err
}

// openRows returns the DB; after close the error is persistence.ErrClosed.
func (m *machine) openRows() (*persistence.DB, error) {
	if db := m.db.Load(); db != nil {
		return db, nil
	}
	return nil, persistence.ErrClosed
}

// damage returns the first damage that was found in the DB, nil without damage. After close it is errStopped.
func (m *machine) damage() error {
	if m.findDamage != nil {
		if err := m.findDamage(); err != nil {
			return err
		}
	}
	db := m.db.Load()
	if db == nil {
		return errStopped
	}
	return db.Damaged()
}

// View returns the rows as of the newest moment. The error is errReplaced when a copy of another replica
// takes their place at this moment, and errStopped after close.
func (m *machine) View() (*persistence.ReadView, error) {
	view, err := m.newestView()
	switch {
	case !errors.Is(err, persistence.ErrClosed):
		return view, err
	case m.db.Load() == nil:
		return nil, errStopped
	}
	return nil, errReplaced
}

func (m *machine) newestView() (*persistence.ReadView, error) {
	db, err := m.openRows()
	if err != nil {
		return nil, err
	}
	return db.View()
}

// watchTerm begins to note which entries of a term are not written: the term of this node's engine. Term 0
// ends that.
func (m *machine) watchTerm(term uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.term = term
	clear(m.unwritten)
}

// isWritten reports whether the DB has written the rows of an entry of the watched term.
func (m *machine) isWritten(index uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, unwritten := m.unwritten[index]
	return !unwritten
}

// Apply writes the rows of an entry.
func (m *machine) Apply(index, term uint64, rows []byte) error {
	db, err := m.openRows()
	if err != nil {
		return err
	}
	if m.loseEntry != nil && m.loseEntry(index) {
		return nil
	}
	written, err := db.Apply(m.base+index, term, rows)
	if err != nil || written {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if term == m.term {
		m.unwritten[index] = struct{}{}
	}
	return nil
}

// Verify takes the digest of the rows as of an entry. It is computed on a goroutine of its own, from a view
// of this moment, while later entries are applied.
func (m *machine) Verify(index uint64) error {
	if !m.beginDigest(index) {
		m.keepVerification(index, Verification{IsIncomparable: true, Err: errManyDigests})
		return nil
	}
	view, err := m.newestView()
	if err != nil {
		m.endDigest(index)
		return err
	}
	m.background.Go(func() {
		v := Verification{IsIncomparable: view.CommitNumber() > m.base+index || index < m.comparableFrom.Load()}
		v.Digest, v.Rows, v.Err = view.Digest()
		view.Close()
		m.keepVerification(index, v)
	})
	return nil
}

// beginDigest notes a digest that begins, unless maxDigests are being computed. keepVerification or endDigest
// follows.
func (m *machine) beginDigest(index uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.computing) >= maxDigests {
		return false
	}
	m.computing[index] = struct{}{}
	return true
}

func (m *machine) endDigest(index uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.computing, index)
}

// isComputing reports whether the digest as of an entry is being computed.
func (m *machine) isComputing(index uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.computing[index]
	return ok
}

// keepVerification keeps the newest verifications. The digest is not being computed any more when a caller can
// learn of it.
func (m *machine) keepVerification(index uint64, v Verification) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.computing, index)
	m.verified[index] = v
	for len(m.verified) > keptVerifications {
		oldest := index
		for i := range m.verified {
			oldest = min(oldest, i)
		}
		delete(m.verified, oldest)
	}
}

// verification returns the digest as of an entry, once it is computed.
func (m *machine) verification(index uint64) (v Verification, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok = m.verified[index]
	return v, ok
}

// Sync returns the entry up to which all rows are durable. It is lower than the last one as long as the DB
// has rows in memory alone.
func (m *machine) Sync() (index uint64, err error) {
	db, err := m.openRows()
	if err != nil {
		return 0, err
	}
	moment, err := db.Sync()
	if err != nil {
		return 0, err
	}
	m.writing.Lock()
	defer m.writing.Unlock()
	next := m.currentRecord()
	if moment <= max(next.Moment, m.base) {
		return next.Index, nil
	}
	next.Index, next.Moment = moment-m.base, moment
	// Durable before the log forgets entries: the next open must know that tables have their rows.
	return next.Index, m.writeRecord(next)
}

// currentRecord returns what replica.json says.
func (m *machine) currentRecord() replicaRecord {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record
}

// writeRecord replaces replica.json, durably. It needs the lock writing.
func (m *machine) writeRecord(next replicaRecord) error {
	if err := writeJSON(m.fsys, m.dir, replicaFile, next); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.record = next
	return nil
}

// A snapshot is a head and a copy of the rows (persistence.ReadView.WriteCopy). The head has the magic
// bytes, the base and the index, in big-endian.
const (
	snapshotMagic = "CRVNSNAP"
	snapshotHead  = len(snapshotMagic) + 16
)

// rowSnapshot is a view of the rows that is sent to another replica.
type rowSnapshot struct {
	view *persistence.ReadView
	head []byte
}

// Snapshot returns the rows of this moment. They are those of the entry at index, or newer by the entries
// that were applied since the log asked.
func (m *machine) Snapshot(index uint64) (raftlog.Snapshot, error) {
	view, err := m.View()
	if err != nil {
		return nil, err
	}
	head := binary.BigEndian.AppendUint64([]byte(snapshotMagic), m.base)
	return &rowSnapshot{view, binary.BigEndian.AppendUint64(head, index)}, nil
}

// WriteTo writes the rows.
func (s *rowSnapshot) WriteTo(w io.Writer) (int64, error) {
	counted := &countingWriter{w: w}
	_, err := counted.Write(s.head)
	if err == nil {
		err = s.view.WriteCopy(context.Background(), counted) // ends soon after an error of w
	}
	return counted.n, err
}

// Close gives the view back.
func (s *rowSnapshot) Close() error {
	s.view.Close()
	return nil
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// copyReserve is what a copy of the rows leaves free on the disk, in bytes. The other partitions write to it
// at the same time, and end when it is full. It is more than persistence.InstallCopy and OpenDB ask for, 82
// MiB with their memtables of 9 MiB: their refusals end the replica.
const copyReserve = 128 << 20

// copySpace counts the space that the replicas of a node have promised to the copies that they receive: they
// share a disk, and a new node gets the copies of all partitions at once.
type copySpace struct {
	mu       sync.Mutex         // a leaf
	promised map[*machine]int64 // in bytes
}

// promise notes the space of a replica's copy in place of what it was, and returns that of the others. It
// may be called on nil.
func (s *copySpace) promise(m *machine, bytes int64) (others int64) {
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.promised == nil {
		s.promised = map[*machine]int64{}
	}
	s.promised[m] = bytes
	for other, bytes := range s.promised {
		if other != m {
			others += bytes
		}
	}
	return others
}

// checkSpace refuses a copy of another replica of which so many bytes are received, if the disk has too
// little space. The copy needs twice its bytes, for its rows and for Badger to sort them, and other copies
// that arrive at the same time have space of their own. The space is promised until Restore ends, or releaseSpace is called.
func (m *machine) checkSpace(received int64) (err error) {
	defer func() {
		if err != nil {
			m.releaseSpace()
		}
	}()
	others := m.space.promise(m, 2*received) // before the look at the disk: of two replicas one sees the other
	statfs := m.statfs
	if statfs == nil {
		statfs = vfs.Statfs
	}
	free, _, err := statfs(m.dir)
	if err != nil {
		return err
	}
	if need := 2*received + others + copyReserve; free < need {
		return fmt.Errorf("the disk has %d MiB free, and a copy of the rows needs at least %d MiB, %d MiB of them for the copies of other partitions", free>>20, need>>20, others>>20)
	}
	return nil
}

// releaseSpace takes the promise for a copy back.
func (m *machine) releaseSpace() { m.space.promise(m, 0) }

// Restore replaces the rows by those of another replica.
func (m *machine) Restore(index uint64, r io.Reader) error {
	defer m.releaseSpace()
	allow := m.evictEngine()
	defer allow()
	var head [snapshotHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("head of the snapshot: %w", err)
	}
	numbers := head[len(snapshotMagic):]
	base, of := binary.BigEndian.Uint64(numbers), binary.BigEndian.Uint64(numbers[8:])
	if string(head[:len(snapshotMagic)]) != snapshotMagic || base != m.base || of != index {
		return fmt.Errorf("the snapshot begins with %q, base %d and entry %d: not with base %d and entry %d", head[:len(snapshotMagic)], base, of, m.base, index)
	}
	next := m.currentRecord() // this goroutine alone changes the generation, and no Sync runs
	next.Generation++
	next.Index = index
	dir := m.generationFolder(next.Generation)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	var err error
	if next.Moment, err = persistence.InstallCopy(dir, r); err != nil {
		return err
	}
	db, registerer, err := m.openDB(next)
	if err != nil {
		return err
	}
	if err := m.replaceRows(next, db, registerer); err != nil {
		return err
	}
	m.logger.Info("the rows were replaced by a copy of another replica", "entry", index)
	return nil
}

func (m *machine) stepDone(step int) error {
	if m.afterStep == nil {
		return nil
	}
	return m.afterStep(step)
}
