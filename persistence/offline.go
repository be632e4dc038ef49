package persistence

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/caravan-dag/caravan/persistence/commitlog"
	"github.com/dgraph-io/badger/v4"
)

// Offline is a store that no server has open, damaged or not, as it can be read without changing
// it. Its whole tables are linked into a scratch folder, next to new tables with the rows of the
// commit log and of the whole blocks of damaged tables. (When this process is killed, the next one
// removes the scratch folder.) It is a Reader; damaged rows are missing there.
type Offline struct {
	*runReader
	// DamagedFiles lists the damage in the store's files.
	DamagedFiles []error
	// UnboundedLoss says that rows are missing and their keys are unknown: a table without its
	// index, the manifest, or the commit log is damaged.
	UnboundedLoss bool
	lost          []keyRange
	scratch       string
	lock          *os.File // of scratch
	bytes         int64
}

// offlineMemTable is the memtable size of the scratch stores, in bytes.
const offlineMemTable = 16 << 20

// keyRange is the keys at or after from and below to; nil is open.
type keyRange struct{ from, to []byte }

// OpenOffline reads the store in dir. It writes into a new folder below scratch ("" = the
// system's), which Close removes. The error says when a server has the store open. DamagedFiles
// lists the damage that it meets, and rows in damaged places are missing.
//
// The steps, each of which writes only below scratch:
//
//  1. Verify all files of the folder, as the open of a server does, and go on after a damage.
//  2. Link the whole tables into the folder "view".
//  3. Make tables in "extra" of what is left otherwise: whole blocks of damaged tables, and the
//     commit log. Link them into "view", too.
//  4. Open "view" read-only. Versions of rows are those of the original, so Badger shows the newest
//     ones.
//  5. Apply marked staged batches the same way, into a second pair of folders.
//
// The lock of dir is held until OpenOffline returns. By then Badger has mapped every table, so a
// server that starts later, and deletes some of them, disturbs no read.
func OpenOffline(ctx context.Context, dir, scratch string) (o *Offline, err error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	unlock, err := badgerguard.LockFolder(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	dirs, err := vfs.CreateTempFolder(scratch, "caravan-offline-", nil)
	if err != nil {
		return nil, err
	}
	opened := false
	defer func() {
		if !opened { // also after a panic
			err = errors.Join(err, os.RemoveAll(dirs.Name()), dirs.Close())
		}
	}()
	o = &Offline{scratch: dirs.Name(), lock: dirs}
	r, err := badgerguard.Verify(ctx, dir, badgerguard.VerifyOptions{Blocks: true, Unreadable: true})
	if err != nil {
		return nil, err
	}
	o.bytes = r.Bytes
	broken := map[string]bool{}
	for i := range r.Damage {
		d := &r.Damage[i]
		o.DamagedFiles = append(o.DamagedFiles, d)
		broken[d.File] = true
		if d.From == nil {
			o.UnboundedLoss = true
		} else {
			o.lost = append(o.lost, keyRange{d.From, d.To})
		}
	}
	if r.Stale != nil && !errors.Is(r.Stale, fs.ErrNotExist) {
		o.DamagedFiles = append(o.DamagedFiles, r.Stale) // the next start makes a new inventory
	}
	view, extra := filepath.Join(o.scratch, "view"), filepath.Join(o.scratch, "extra")
	if err := errors.Join(os.Mkdir(view, 0o700), os.Mkdir(extra, 0o700)); err != nil {
		return nil, err
	}
	named, err := o.tablesToRead(dir, r, broken)
	if err != nil {
		return nil, err
	}
	var whole []offlineTable
	var partial []uint64
	for _, id := range slices.Sorted(maps.Keys(named)) {
		path := badgerguard.Path(dir, id)
		if broken[path] {
			partial = append(partial, id)
			continue
		}
		whole = append(whole, offlineTable{path, named[id]})
	}
	if err := o.gatherRows(dir, extra, named, partial); err != nil {
		return nil, err
	}
	if whole, err = linkTables(view, whole, extra); err != nil {
		return nil, err
	}
	if err := o.openView(view); err != nil {
		return nil, err
	}
	if err := o.applyStagedBatches(whole); err != nil {
		return nil, errors.Join(err, o.db.badger.Close())
	}
	o.checkNext(r)
	opened = true
	return o, nil
}

// offlineTable is a table to read: where its file lies, and what the manifest says of it.
type offlineTable struct {
	path  string
	entry badgerguard.Entry
}

// linkTables makes view a folder of these tables and of those in extra, and returns all of them.
// The tables get new numbers there, because those of the two sources may be equal.
func linkTables(view string, list []offlineTable, extra string) ([]offlineTable, error) {
	found, err := badgerguard.Found(extra)
	if err != nil {
		return nil, err
	}
	for _, id := range slices.Sorted(maps.Keys(found)) {
		list = append(list, offlineTable{badgerguard.Path(extra, id), found[id]})
	}
	all := badgerguard.NewCollection(view)
	for _, t := range list {
		if err := all.Add(t.path, t.entry); err != nil {
			return nil, err
		}
	}
	return list, all.Finish()
}

// applyStagedBatches opens the store again with the rows of the staged batches that were committed
// and not yet applied, as the next start of a server would. A view is read-only, so the rows go
// into a new table, with a version above all others. Marks and parts are deleted there, or each
// reader of the view would find the batches once more.
func (o *Offline) applyStagedBatches(list []offlineTable) error {
	var rows []mutation
	err := o.eachStaged(func(st *stagedBatch) error {
		if !st.marked {
			return nil
		}
		ops, err := st.mutations()
		if errors.Is(err, errCorrupt) { // it is unknown which rows it had
			o.DamagedFiles = append(o.DamagedFiles, err)
			o.UnboundedLoss = true
			return nil
		}
		rows = append(append(rows, ops...), st.markAndPartDeletions()...)
		return err
	})
	if errors.Is(err, errCorrupt) { // ScanRows names the row
		o.UnboundedLoss, err = true, nil
	}
	if err != nil || len(rows) == 0 {
		return err
	}
	at := o.db.badger.MaxVersion() + 1
	view, extra := filepath.Join(o.scratch, "view-staged"), filepath.Join(o.scratch, "extra-staged")
	if err := errors.Join(os.Mkdir(view, 0o700), os.Mkdir(extra, 0o700)); err != nil {
		return err
	}
	db, err := badger.OpenManaged(badgerguard.Options(extra, offlineMemTable).WithLogger(nil))
	if err != nil {
		return err
	}
	batch := db.NewManagedWriteBatch()
	for _, row := range rows {
		if row.Delete {
			err = batch.DeleteAt(row.Key, at)
		} else {
			err = batch.SetEntryAt(badger.NewEntry(row.Key, row.Value), at)
		}
		if err != nil {
			batch.Cancel()
			return errors.Join(err, db.Close())
		}
	}
	if err := errors.Join(batch.Flush(), db.Close()); err != nil {
		return err
	}
	if _, err := linkTables(view, list, extra); err != nil {
		return err
	}
	o.packer.close()
	if err := o.db.badger.Close(); err != nil {
		return err
	}
	return o.openView(view)
}

// tablesToRead returns the tables of the manifest. Without a manifest it returns all tables in the
// folder; these may bring older rows back: an input of a compaction may still lie there, while a
// row that it held was deleted, and the tombstone dropped.
func (o *Offline) tablesToRead(dir string, r *badgerguard.Report, broken map[string]bool) (map[uint64]badgerguard.Entry, error) {
	if r.Manifest != nil {
		return r.Manifest.Tables, nil
	}
	found, err := badgerguard.Found(dir)
	if err != nil {
		return nil, err
	}
	for _, id := range slices.Sorted(maps.Keys(found)) {
		damage, err := badgerguard.Rows(badgerguard.Path(dir, id), found[id], nil)
		if err != nil {
			return nil, err
		}
		for _, d := range damage {
			o.DamagedFiles = append(o.DamagedFiles, d)
			broken[d.File] = true
		}
	}
	return found, nil
}

// gatherRows makes tables of the commit log and of the whole blocks of damaged tables. Each row
// keeps its version, so a row of the log overwrites the same row of a table, and never a newer one.
// Rows of a table that the log has, too, are the same rows. Keys of Badger's own are left out: the
// new tables have theirs.
//
// An error of reading is damage. An error of writing ends the whole: the scratch disk may be full.
func (o *Offline) gatherRows(dir, extra string, named map[uint64]badgerguard.Entry, partial []uint64) error {
	db, err := badger.OpenManaged(badgerguard.Options(extra, offlineMemTable).WithLogger(nil))
	if err != nil {
		return err
	}
	batch := db.NewManagedWriteBatch()
	set := func(key, value []byte, deleted bool, at uint64) error {
		if deleted {
			return batch.DeleteAt(bytes.Clone(key), at)
		}
		return batch.SetEntryAt(badger.NewEntry(bytes.Clone(key), bytes.Clone(value)), at)
	}
	for _, id := range partial {
		_, err := badgerguard.Rows(badgerguard.Path(dir, id), named[id], func(r badgerguard.Row) error {
			if bytes.HasPrefix(r.Key, []byte("!badger!")) {
				return nil
			}
			return set(r.Key, r.Value, r.Deleted, r.Version)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(err, db.Close())
		}
	}
	var failed error // error of writing
	err = commitlog.Replay(vfs.OS{}, filepath.Join(dir, logFolder), func(number uint64, rows []byte) error {
		return commitlog.EachRow(rows, func(r commitlog.Row) error {
			failed = set(r.Key, r.Value, r.Delete, number)
			return failed
		})
	})
	if err != nil && failed == nil && !vfs.IsResourceExhausted(err) {
		o.DamagedFiles = append(o.DamagedFiles, err)
		o.UnboundedLoss, err = true, nil
	}
	return errors.Join(err, batch.Flush(), db.Close())
}

// openView opens the scratch folder as the DB of a reader that has no store. The lock guard is
// bypassed because the lock file would be written, and the folder is this process's own. Commits
// end at the newest version of any row.
func (o *Offline) openView(view string) (err error) {
	db := &DB{dir: view, log: slog.New(slog.DiscardHandler), failure: newFailure(), timestamps: newReadTimestamps()}
	db.badger, err = badger.OpenManaged(badgerguard.Options(view, offlineMemTable).
		WithReadOnly(true).WithBypassLockGuard(true).WithLogger(nil))
	if err != nil {
		return err
	}
	db.timestamps.publish(db.badger.MaxVersion(), nil)
	o.runReader = new(runReader)
	if err := o.init(db); err != nil {
		return errors.Join(err, db.badger.Close())
	}
	if err := o.loadIndex(); err != nil {
		o.packer.close()
		return errors.Join(err, db.badger.Close())
	}
	return nil
}

// checkNext compares the highest run ID in the rows with that in the inventory, as the open of a
// server does (checkNextRun). A server refuses to start; here the IDs that are missing stay used,
// so that a salvaged folder never gives them to other runs.
func (o *Offline) checkNext(r *badgerguard.Report) {
	if r.Inventory == nil {
		return
	}
	if next := r.Inventory.NextRun; next > o.nextRun.Load() {
		o.DamagedFiles = append(o.DamagedFiles, fmt.Errorf("run ids below %d were in use, the rows end at %d: runs are missing", next, o.nextRun.Load()))
		o.UnboundedLoss = true
		o.nextRun.Store(next)
	}
}

// Close removes the scratch folder. The lock of the folder is released last: a folder without a
// lock looks like one that a killed process has left.
func (o *Offline) Close() error {
	o.packer.close()
	return errors.Join(o.db.badger.Close(), os.RemoveAll(o.scratch), o.lock.Close())
}

// TableBytes returns how much of tables was read, in bytes.
func (o *Offline) TableBytes() int64 { return o.bytes }

// MayHaveLost reports whether rows of a run may be among the damaged ones. It compares the range of
// all possible keys of the run with the ranges of damaged blocks. So false is certain, and true is
// not. When UnboundedLoss is set the answer says nothing: the ranges are unknown.
func (o *Offline) MayHaveLost(run messages.RunID) bool {
	for _, typ := range append([]byte{typeUnfinished, typeFinished, typeDeleting}, runTypes[:]...) {
		first, end := runKey(typ, run), append(runKey(typ, run), bytes.Repeat([]byte{0xff}, 24)...)
		for _, l := range o.lost {
			if (l.to == nil || bytes.Compare(first, l.to) < 0) && bytes.Compare(l.from, end) <= 0 {
				return true
			}
		}
	}
	return false
}

// ScanRows reads every row once. It calls damaged for each row whose checksum is wrong, with its
// run if it has one, and run for each run that has rows, ascending; complete says that the run has
// a summary. A run without a summary has lost it, unless the mark of a deletion tells that the run
// was being deleted, or being written; such a run is left out. It costs one map entry per run.
func (o *Offline) ScanRows(damaged func(run messages.RunID, ofRun bool, err error), run func(id messages.RunID, complete bool)) error {
	runs := map[messages.RunID]bool{}
	err := o.scanRows(nil, nil, false, func(key []byte, item *badger.Item) (bool, error) {
		ofRun := isWellFormedKey(key) && (bytes.IndexByte(runTypes[:], key[0]) >= 0 || key[0] == typeUnfinished || key[0] == typeFinished)
		id := messages.RunID(0)
		if ofRun {
			id = runOfKey(key)
			runs[id] = runs[id] || key[0] == typeUnfinished || key[0] == typeFinished
		}
		if err := item.Value(func(stored []byte) error { return CheckRow(key, stored) }); err != nil {
			damaged(id, ofRun, err)
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(runs)) {
		if !runs[id] {
			// It may be half deleted, or half written: then it has a mark.
			if mark, err := o.getRow(runKey(typeDeleting, id)); err == nil && mark != nil {
				continue
			}
		}
		run(id, runs[id])
	}
	return nil
}

// CopyRun writes all rows of a run into another store, unchanged: with their checksums, and without
// decoding them. The caller proves before that the run is whole. The rows of the summary come last:
// until then the other store does not know the run, and a crash leaves rows that no read finds. The
// groups go through the committer of that store, as large as one commit may be.
func (o *Offline) CopyRun(run messages.RunID, to *RunStore) error {
	sum, err := o.Summary(run)
	if err != nil {
		return err
	}
	var rows []mutation
	err = o.view(func(txn *badger.Txn) error {
		take := func(prefix []byte) error {
			return scanTxn(txn, prefix, nil, false, func(key []byte, item *badger.Item) (bool, error) {
				v, err := item.ValueCopy(nil)
				rows = append(rows, mutation{Key: bytes.Clone(key), Value: v})
				return true, err
			})
		}
		for _, typ := range runTypes {
			if err := take(runKey(typ, run)); err != nil {
				return err
			}
		}
		v, err := getRowTxn(txn, append(runKey(typeDef, run), 0, 0))
		if err != nil {
			return err
		}
		if c := decodeCreation(newDecoder(v, defV1)); c.hasKey {
			if err := take(idempotencyKey(c.key)); err != nil {
				return err
			}
		}
		if isFinal(sum.State) {
			for _, key := range indexKeys(sum) { // a damaged index row is made again
				rows = append(rows, sealRow(key, nil))
			}
		}
		for _, typ := range [...]byte{typeUnfinished, typeFinished} { // the commit marker comes last
			if err := take(runKey(typ, run)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for len(rows) > 0 {
		n, size := 0, int64(0)
		for n < len(rows) && (n == 0 || to.limits.Fits(n+1, size+rows[n].Size())) {
			size += rows[n].Size()
			n++
		}
		done := make(chan error, 1)
		if !to.queue.push(&pendingBatch{mutations: rows[:n], done: func(err error) { done <- err }}) {
			return ErrClosed
		}
		if err := <-done; err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// SetNextRun marks the IDs below next as used, and returns when that is durable. The store must
// then be opened again: the row is read at the start.
func (s *RunStore) SetNextRun(next messages.RunID) error {
	return s.commitRows([]mutation{metaRow("next", uint64(next))})
}

// CopyKeys writes the idempotency keys of deleted runs into another store, and the mark of the
// server's own clock, by which they expire. It leaves out keys whose rows are damaged.
func (o *Offline) CopyKeys(to *RunStore) (kept int, err error) {
	if mark, ok, err := o.ClockMark(); err == nil && ok {
		if err := to.SetClockMark(mark); err != nil {
			return 0, err
		}
	}
	var rows []mutation
	flush := func() error {
		rows, change := to.withKeyCount(rows)
		if err := to.commitRows(rows); err != nil {
			return err
		}
		to.keptKeys.count.Add(change)
		return nil
	}
	err = o.view(func(txn *badger.Txn) error {
		return scanTxn(txn, []byte{typeExpiry}, nil, false, func(key []byte, item *badger.Item) (bool, error) {
			until, hash, err := parseExpiryKey(key)
			if err != nil || itemValue(item, func([]byte) error { return nil }) != nil {
				return true, nil
			}
			v, err := getRowTxn(txn, idempotencyKey(hash))
			if err != nil || v == nil {
				return true, nil
			}
			run, bodyHash, of, err := decodeKeyRow(v)
			if err != nil || of != until { // another run owns the key by now
				return true, nil
			}
			rows = append(rows, sealRow(idempotencyKey(hash), appendKeyRow(nil, run, bodyHash, until)), sealRow(expiryKey(until, hash), nil))
			kept++
			if len(rows) < deleteRows {
				return true, nil
			}
			err = flush()
			rows = rows[:0]
			return err == nil, err
		})
	})
	if err == nil && len(rows) > 0 {
		err = flush()
	}
	return kept, err
}
