package persistence

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/caravan-dag/caravan/persistence/commitlog"
)

// This file is a DB as one replica of a replicated log. The log orders groups of rows; each replica
// applies them. The log lies elsewhere. The duties of the owner of the log:
//
//  1. OpenDB, with Config.Synced: the highest moment that Sync or InstallCopy has returned for this
//     folder. It is written down before the log forgets entries. Tables alone may tell less later:
//     compactions drop the newest rows of tables if these are deletions. Two DBs are open at once
//     during duty 7, so each has a Registerer of its own.
//  2. Apply each committed entry, in the order of moments, beginning with the one after Synced or an
//     earlier one. Entries that come again change nothing: Apply skips those that tables had at the
//     open. Unlike localLog (duty 4 there) it also skips the newest one of these, which tables have
//     whole.
//  3. Forget entries only up to the moment that Sync returns. Later entries come again by duty 2. Sync
//     makes nothing durable by itself: its moment stays behind the newest entry, and stands still
//     while few entries come. The log keeps as many as three memtables hold.
//  4. As the leader of a term: apply all entries before the entry that begins the term, Lead, and
//     close the store when the term is over. A second store in a term begins when the first one is
//     closed and the log has answered its last proposal. A store that is still open when Apply
//     writes rows of a later term fails (ErrLost). After a proposal whose outcome the log does not
//     know, the term is over for this node: the next store leads a later term. So the group is either
//     applied before that store begins, or never.
//  5. End the process when Failed is closed: the disk is in doubt. Do not lead with a replica that is
//     Damaged, if another one can: reads miss the rows of a damaged block.
//  6. Where several DBs share a disk, set Config.HardFreeBytes of each to what all of them may need
//     at once. By default a DB reserves only what it needs itself, and so does InstallCopy.
//  7. To replace a replica by a copy: close its store; InstallCopy in a folder of another name; OpenDB
//     there; write down, durably and in one step, that this folder is the replica now, and its Synced
//     (duty 1); Apply, Sync and View there. Then Close the former DB, which waits for the views that
//     are open on it, and remove its folder. A folder is never renamed while its DB is open: Badger
//     opens its files by path. A start removes folders that are not the replica.
//
// A moment is the number of a commit: the index of its entry in the log, and the version of its
// rows in Badger. Rows are absolute and Apply reads neither clock nor row, so the rows of a replica
// follow from the log alone, and TestReplicasEndEqual compares the digests of several.
//
// # The fence
//
// A group carries the epoch of the store that made it: the term that this store leads. A replica
// writes the rows of a group only if the log put it into an entry of that term. So a store that has
// lost its leadership, and proposes when its node leads again, changes nothing. The rule works
// without state, so a replay decides as the first time.

// A group is
//
//	format u8, epoch u64, rows as package commitlog encodes them, checksum u32
//
// in big-endian. The checksum (CRC32C) covers all bytes before it.
const (
	groupFormat = 1
	groupHead   = 1 + 8
	groupTail   = 4
)

// errGroup marks bytes of the log that this program did not write, or cannot read.
var errGroup = errors.New("the group of a log entry cannot be decoded")

// maxGroup is the limit of a group, in bytes: an entry of that size is one message of the log.
const maxGroup = 1 << 20

// replicaMemTable is the smallest memtable of a replica, in bytes. Groups and values have the
// limits of this memtable whatever the disk of their maker is. So each replica can take each group
// as one transaction, and keeps each value in the tree.
var replicaMemTable = badgerguard.MemTableSizeFor(maxGroup)

// replicaLimits returns the limits of a group.
func replicaLimits() badgerguard.Limits {
	l := badgerguard.TransactionLimits(replicaMemTable)
	l.Bytes = min(l.Bytes, maxGroup-groupHead-groupTail)
	return l
}

// appendGroup encodes a group. rows are encoded by a RecordBuilder.
func appendGroup(dst []byte, epoch uint64, rows []byte) []byte {
	at := len(dst)
	dst = binary.BigEndian.AppendUint64(append(dst, groupFormat), epoch)
	dst = append(dst, rows...)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[at:], castagnoli))
}

// parseGroup is the inverse of appendGroup. The rows refer to the group.
func parseGroup(group []byte) (epoch uint64, rows []byte, err error) {
	n := len(group) - groupTail
	switch {
	case n < groupHead:
		return 0, nil, fmt.Errorf("%w: %d bytes", errGroup, len(group))
	case group[0] != groupFormat:
		return 0, nil, fmt.Errorf("%w: format %d, this program reads format %d", errGroup, group[0], groupFormat)
	case binary.BigEndian.Uint32(group[n:]) != crc32.Checksum(group[:n], castagnoli):
		return 0, nil, fmt.Errorf("%w: wrong checksum", errGroup)
	}
	return binary.BigEndian.Uint64(group[1:]), group[groupHead:n], nil
}

// replicaState is what a DB knows as a replica. Its zero value is for a single node.
type replicaState struct {
	applied   atomic.Uint64 // the newest moment whose rows Badger has; Apply raises it
	term      uint64        // of the entry that is being applied; guarded by the writer's token
	mutations []mutation    // of that entry; reused
	synced    uint64        // as Sync returned it; guarded by syncMu
	lastWrite uint64        // the newest write number of the stores before; the open store owns it
}

// OpenDB opens the rows of one replica in c.Dir, or makes an empty folder. The error names the
// folder, and says when another process has it, and when tables are missing that the log no longer
// has.
func OpenDB(c Config) (*DB, error) {
	db, err := openDB(c, false)
	if err != nil {
		return nil, err
	}
	db.startVerifier()
	return db, nil
}

// replicaLock is the file whose lock a replica holds from the beginning of its open to the end of
// its Close. Badger locks the folder only when it opens, and files are removed before that
// (badgerguard.RemoveUnsyncedFiles).
const replicaLock = "replica.lock"

// lockReplica locks the folder of a replica. The error wraps badgerguard.ErrInUse when another
// process, or this one, has it open. It refuses the folder of a single node: as a replica that would
// lack the rows that only its commit log has.
func lockReplica(dir string) (io.Closer, error) {
	state := filepath.Join(dir, logFolder, "state")
	switch _, err := os.Lstat(state); {
	case err == nil:
		return nil, fmt.Errorf("holds the data of a single node (%s exists): cannot be opened as a replica", state)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	lock, err := (vfs.OS{}).Lock(filepath.Join(dir, replicaLock))
	if errors.Is(err, vfs.ErrLocked) {
		return nil, badgerguard.InUse(dir)
	}
	return lock, err
}

// openReplica is the last step of OpenDB: it finds out which entries tables already have.
func (db *DB) openReplica(c Config) error {
	flushed := badgerguard.NewestFlushed(db.badger.Tables())
	if flushed == 0 && c.Synced > 0 {
		return fmt.Errorf("all tables are missing, and they had all rows up to moment %d", c.Synced)
	}
	// Tables have the newest moment whole: on a replica an entry is one request to Badger, whatever
	// the disk is (replicaMemTable). Reads begin there and not before: compactions may have dropped
	// the versions that it replaced (TestReplicaReadsItsNewestTables). The moment may be lower than
	// Synced when a compaction has dropped the newest tombstones.
	newest := max(c.Synced, flushed)
	// The names of tables beyond Synced may not be durable yet: the first Sync makes them so.
	db.replica.synced = c.Synced
	db.replica.applied.Store(newest)
	db.timestamps.publish(newest, nil)
	return nil
}

// Apply writes the rows of one committed entry: that of moment at, of a term of the log. It returns
// when they can be read, and does not sync them (Sync). written is false when the entry changes
// nothing: because its epoch is not the term, or because the rows of at are already there.
//
// One goroutine calls it, with ascending moments. After Close it returns ErrClosed. After any other
// error the DB has failed, and the process ends.
func (db *DB) Apply(at, term uint64, group []byte) (written bool, err error) {
	db.users.RLock()
	defer db.users.RUnlock()
	if db.closing {
		return false, ErrClosed
	}
	if err := db.Err(); err != nil {
		return false, err
	}
	epoch, rows, err := parseGroup(group)
	if err != nil {
		return false, db.fail(fmt.Errorf("moment %d: %w", at, err))
	}
	r := &db.replica
	if epoch != term || at <= r.applied.Load() {
		return false, nil
	}
	r.mutations = r.mutations[:0]
	err = commitlog.EachRow(rows, func(row commitlog.Row) error {
		r.mutations = append(r.mutations, mutation(row))
		return nil
	})
	if err == nil {
		err = db.disk.CheckCommit(int64(len(group)))
	}
	if err != nil {
		return false, db.fail(fmt.Errorf("moment %d: %w", at, err))
	}
	db.writer.begin()
	r.term = term
	db.writer.apply(at, r.mutations)
	err = db.writer.wait()
	clear(r.mutations)
	if err != nil {
		return false, db.fail(err)
	}
	r.applied.Store(at)
	return true, db.Err() // Badger's log may have failed the DB in the meantime
}

// Sync returns the newest moment up to which all rows survive a power failure. The log may then
// forget entries up to there.
//
// It does not make Badger write what it has in memory: at most three memtables, which the log
// keeps. So it costs two syncs of small files, and less when the moment is the one of the last
// call. After Close it returns ErrClosed.
func (db *DB) Sync() (at uint64, err error) {
	db.users.RLock()
	defer db.users.RUnlock()
	if db.closing {
		return 0, ErrClosed
	}
	if err := db.Err(); err != nil {
		return 0, err
	}
	flushed := max(badgerguard.NewestFlushed(db.badger.Tables()), 1) - 1
	db.syncMu.Lock()
	defer db.syncMu.Unlock()
	if flushed <= db.replica.synced {
		return db.replica.synced, nil
	}
	if err := (vfs.OS{}).SyncDir(db.dir); err != nil {
		return 0, db.fail(fmt.Errorf("sync the names of tables: %w", err))
	}
	switch err := db.recordManifest(); {
	case errors.Is(err, errManifestChanges):
		return db.replica.synced, nil // the next call comes
	case err != nil:
		return 0, db.fail(fmt.Errorf("record the tables: %w", err))
	}
	db.replica.synced = flushed
	return flushed, nil
}
