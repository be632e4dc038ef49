package persistence

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/prometheus/client_golang/prometheus"
)

// tableVerifier verifies Badger's tables (package badgerguard): all of them before Badger opens the
// folder, each new one within a minute, and all again once a day. It writes an inventory of them,
// so that the next open sees what has vanished since.
//
// It runs once a minute. A run reads the new tables and, during a pass over all tables, as many of
// the remaining ones as a minute allows. It reads while Badger works: it holds no lock, and skips
// tables that Badger deletes.
type tableVerifier struct {
	dir   string
	clock verifyClock

	writing sync.Mutex             // one inventory is made and written at a time
	known   *badgerguard.Inventory // what is written down; nil before the first inventory; guarded by writing

	pass tablePass // owned by the verifier's goroutine

	cancel  context.CancelFunc
	done    chan struct{}
	suspect atomic.Bool   // a row was damaged: the next run begins a pass
	nextRun atomic.Uint64 // all run IDs below it were in use, as far as the inventory may know

	mu           sync.Mutex      // never held over I/O
	notedDamage  map[string]bool // damage that was found since the store was opened
	damage       error           // the first one; damage of a file replaces that of a row
	damageOfFile bool            // damage is of a file

	verified prometheus.Gauge
	damages  prometheus.Counter
}

const (
	lookEvery   = time.Minute    // between two runs
	verifyEvery = 24 * time.Hour // between two passes over all tables
	verifyRate  = 50 << 20       // bytes that a run reads in a second
	// lookBytes is what one run reads of a pass, in bytes; the rest of the minute is for new
	// tables.
	lookBytes = verifyRate * int64(lookEvery/time.Second) * 3 / 4
	// maxNoted bounds how many damages are told apart; later ones are not logged.
	maxNoted = 1000
)

// verifyClock says when the verifier runs and how it waits. Tests replace it.
type verifyClock struct {
	ticks  <-chan time.Time                                        // nil = every lookEvery
	wait   func(ctx context.Context, d time.Duration) error        // nil = by the machine's clock
	looked func(whole bool, report *badgerguard.Report, err error) // called after each run; whole: the run ended a pass
	bytes  int64                                                   // that one run reads of a pass; 0 = lookBytes
	// unregistered leaves loadFinishedIndex out.
	unregistered bool
}

// tablePass is a pass over all tables.
type tablePass struct {
	left  []uint64 // IDs of tables that remain
	begin time.Time
	read  badgerguard.Report // of the runs so far
	whole bool               // no damage was found
}

// errNextStep ends each refusal of damaged files: it says what an operator does next.
const errNextStep = "`caravan check` lists all damage (docs/operations.md, When the data folder is damaged)"

// verifyBeforeOpen verifies a folder before Badger opens it, and loads its inventory. Its cost is
// that of reading all tables. It comes first because Badger serves what is left of a damaged
// folder, and deletes tables that a damaged manifest lacks. The folder's lock is taken for that
// time only, because Badger takes the same one.
//
// The inventory is written again at once. Verification has set it to the manifest as it is now, and
// the open may add to that.
func (db *DB) verifyBeforeOpen(c Config) error {
	db.verifier.dir, db.verifier.clock = c.Dir, c.clock
	if c.Unverified {
		db.log.Warn("tables are not verified before they are used", "dir", c.Dir)
		db.readInventory(c.Dir)
		return nil
	}
	unlock, err := badgerguard.LockFolder(c.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	begin := time.Now()
	r, err := badgerguard.Verify(context.Background(), c.Dir, badgerguard.VerifyOptions{})
	if err != nil {
		return err
	}
	if err := r.Err(); err != nil {
		return fmt.Errorf("damaged: %w; %s", err, errNextStep)
	}
	if r.Stale != nil && r.Inventory != nil && !errors.Is(r.Stale, fs.ErrNotExist) {
		db.log.Warn("the inventory of tables cannot be used and is rebuilt", "reason", r.Stale)
	}
	db.log.Debug("tables verified", "tables", r.Tables, "bytes", r.Bytes, "took", time.Since(begin))
	db.verifier.known = r.Inventory
	if r.Inventory == nil {
		return nil
	}
	return r.Inventory.Write(vfs.OS{}, c.Dir)
}

// readInventory loads the inventory of a folder that is not verified. A useless inventory is
// ignored. One that is older than the manifest is written again, which syncs the manifest: later an
// inventory that equals the known one is not written (writeInventory), and the log forgets the rows
// of tables that only this manifest names.
func (db *DB) readInventory(dir string) {
	known, err := badgerguard.ReadInventory(dir)
	if err != nil {
		return
	}
	// Badger may reuse the IDs of tables that no longer exist.
	before, tables := *known, len(known.Tables)
	err = known.SetManifest(dir)
	if err == nil && (len(known.Tables) < tables || known.ManifestSize != before.ManifestSize || known.ManifestSum != before.ManifestSum) {
		err = known.Write(vfs.OS{}, dir)
	}
	if err != nil {
		db.log.Warn("the inventory of tables cannot be used", "err", err)
		known = &badgerguard.Inventory{NextRun: known.NextRun}
	}
	db.verifier.known = known
}

// checkNextRun compares the highest run ID in the rows with that in the inventory. The rows may be
// ahead; when they are behind, rows of acknowledged runs are missing. It finds what no checksum
// can: runs whose rows are gone as a whole.
func (s *RunStore) checkNextRun() error {
	k := &s.db.verifier
	k.writing.Lock() // the commit log may already have retired commits, and recorded the tables for that
	defer k.writing.Unlock()
	if k.known == nil || s.nextRun.Load() >= k.known.NextRun {
		return nil
	}
	return fmt.Errorf("damaged: %s/INVENTORY: run ids below %d were in use, the rows end at %d: runs are missing; %s",
		k.dir, k.known.NextRun, s.nextRun.Load(), errNextStep)
}

// startVerifier starts the verifier's goroutine, which runs until the DB closes. The open has just
// read all tables, so the first pass over all of them comes a day later, or when a row was damaged.
func (db *DB) startVerifier() {
	k := &db.verifier
	ctx, cancel := context.WithCancel(context.Background())
	k.cancel, k.done = cancel, make(chan struct{})
	next := time.Now().Add(verifyEvery) // time of the next pass
	go func() {
		defer close(k.done)
		ticks := k.clock.ticks
		if ticks == nil {
			ticker := time.NewTicker(lookEvery)
			defer ticker.Stop()
			ticks = ticker.C
		}
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-ticks:
				if k.pass.begin.IsZero() && (k.suspect.Load() || now.After(next)) {
					k.suspect.Store(false)
					k.beginPass()
					next = now.Add(verifyEvery)
				}
				r, whole, err := db.verifyOpenTables(ctx)
				if err != nil && ctx.Err() == nil {
					db.log.Warn("tables were not verified", "err", err)
				}
				if k.clock.looked != nil {
					k.clock.looked(whole, r, err)
				}
			}
		}
	}()
}

// close ends the verifier's goroutine.
func (k *tableVerifier) close() {
	if k.cancel != nil {
		k.cancel()
		<-k.done
	}
}

// noteNextRun says that all run IDs below next were in use, and that this is durable.
func (k *tableVerifier) noteNextRun(next uint64) {
	for old := k.nextRun.Load(); next > old && !k.nextRun.CompareAndSwap(old, next); old = k.nextRun.Load() {
	}
}

// durableNextRun asks the store over the DB up to which run ID all are durable; 0 without a store.
// The first run of the verifier waits until the store has indexed its finished runs.
func (db *DB) durableNextRun(ctx context.Context) (next uint64, err error) {
	s := db.store.Load()
	if s == nil {
		return db.verifier.nextRun.Load(), nil
	}
	select {
	case <-s.loaded:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	next = s.nextRun.Load()
	switch err := s.waitDurable(); {
	case errors.Is(err, ErrClosed): // between two stores
		return db.verifier.nextRun.Load(), nil
	case err != nil:
		return 0, err
	}
	db.verifier.noteNextRun(next)
	return next, nil
}

// beginPass makes the next runs read all tables that are known now. Tables that compactions make
// meanwhile are new, and read anyway; tables that they delete are skipped.
func (k *tableVerifier) beginPass() {
	k.writing.Lock()
	defer k.writing.Unlock()
	k.pass = tablePass{begin: time.Now(), whole: true}
	if k.known != nil {
		k.pass.left = slices.Sorted(maps.Keys(k.known.Tables))
	}
}

// planLook returns the tables that the next run need not read, and what remains of the pass after
// it. The run reads every table that is missing in skip: new ones, and a share of the pass of at
// most lookBytes.
func (k *tableVerifier) planLook() (skip map[uint64]badgerguard.Fingerprint, left []uint64) {
	k.writing.Lock()
	defer k.writing.Unlock()
	left = k.pass.left
	if k.known == nil {
		return nil, nil
	}
	skip = maps.Clone(k.known.Tables)
	most := cmp.Or(k.clock.bytes, lookBytes)
	for bytes := int64(0); len(left) > 0 && bytes < most; left = left[1:] {
		bytes += skip[left[0]].Size
		delete(skip, left[0])
	}
	return skip, left
}

// verifyOpenTables is one run: it reads new tables, and the remaining ones of a pass, while Badger
// works, and writes the inventory. whole says that this ended a pass.
//
// It asks for the highest durable run ID first, and writes it into the inventory last. In the other
// order a crash could leave an inventory that knows a run which was never durable, and the next
// open would refuse the folder.
func (db *DB) verifyOpenTables(ctx context.Context) (r *badgerguard.Report, whole bool, err error) {
	k := &db.verifier
	next, err := db.durableNextRun(ctx)
	if err != nil {
		return nil, false, err
	}
	skip, left := k.planLook()
	r, err = badgerguard.Verify(ctx, k.dir, badgerguard.VerifyOptions{Live: true, Rate: verifyRate, Wait: k.clock.wait, Known: skip})
	if err != nil {
		return r, false, err
	}
	manifest := r.Inventory != nil
	for i := range r.Damage {
		db.reportDamage(&r.Damage[i])
		if _, ok := badgerguard.ID(r.Damage[i].File); !ok {
			manifest = false
		}
	}
	if p := &k.pass; !p.begin.IsZero() {
		p.left = left
		p.whole = p.whole && len(r.Damage) == 0
		p.read.Tables += r.Tables
		p.read.Bytes += r.Bytes
		if len(left) == 0 {
			whole = true
			db.endPass()
		}
	}
	if !manifest {
		return r, whole, nil // a damaged manifest must not become the expected one
	}
	k.writing.Lock()
	defer k.writing.Unlock()
	v := r.Inventory
	v.NextRun = max(next, v.NextRun)
	if k.known != nil { // of a damaged table the inventory keeps what it should be
		for id, known := range k.known.Tables {
			if _, found := v.Tables[id]; !found {
				v.Tables[id] = known
			}
		}
	}
	if err := v.SetManifest(k.dir); err != nil { // it may have grown, and been written down, in the meantime
		return r, whole, err
	}
	return r, whole, db.writeInventory(v)
}

// endPass logs a pass that has found no damage.
func (db *DB) endPass() {
	p := &db.verifier.pass
	if p.whole {
		db.log.Info("all tables verified", "tables", p.read.Tables, "bytes", p.read.Bytes, "took", time.Since(p.begin).Round(time.Millisecond))
		if db.verifier.verified != nil {
			db.verifier.verified.SetToCurrentTime()
		}
	}
	*p = tablePass{}
}

// errManifestChanges says that the manifest cannot be read whole: Badger may just be appending to it.
var errManifestChanges = errors.New("the manifest cannot be read while it changes")

// recordManifest writes an inventory of the manifest as it is now, with the tables that are already
// known. It costs two syncs. An error that wraps errManifestChanges passes; any other is one of the
// disk.
func (db *DB) recordManifest() error {
	k := &db.verifier
	k.writing.Lock()
	defer k.writing.Unlock()
	v := &badgerguard.Inventory{}
	if k.known != nil {
		v.NextRun, v.Tables = k.known.NextRun, maps.Clone(k.known.Tables)
	}
	if err := v.SetManifest(k.dir); err != nil {
		return fmt.Errorf("%w: %w", errManifestChanges, err)
	}
	return db.writeInventory(v)
}

// writeInventory replaces the inventory if it differs. The caller holds writing. It costs two
// syncs, so an idle store writes none.
func (db *DB) writeInventory(v *badgerguard.Inventory) error {
	k := &db.verifier
	if k.known != nil && v.NextRun == k.known.NextRun && v.ManifestSum == k.known.ManifestSum && maps.Equal(v.Tables, k.known.Tables) {
		return nil
	}
	if err := v.Write(vfs.OS{}, k.dir); err != nil {
		return err
	}
	k.known = v
	return nil
}

// writeFinalInventory writes the inventory of a folder that Badger has closed.
func (db *DB) writeFinalInventory() error {
	k := &db.verifier
	k.writing.Lock()
	defer k.writing.Unlock()
	o := badgerguard.VerifyOptions{}
	if k.known != nil {
		o.Known = k.known.Tables
	}
	r, err := badgerguard.Verify(context.Background(), k.dir, o)
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return err
	}
	r.Inventory.NextRun = max(k.nextRun.Load(), r.Inventory.NextRun)
	return db.writeInventory(r.Inventory)
}

// waitDurable returns when all that was appended before is durable. It is an entry of the queue
// without rows, which the committer answers in its turn; it costs no commit by itself.
func (s *RunStore) waitDurable() error {
	done := make(chan error, 1)
	if !s.queue.push(&pendingBatch{done: func(err error) { done <- err }}) {
		return ErrClosed
	}
	return <-done
}

// reportDamage notes that a stored value is not what was written, and logs it once. The store goes
// on and serves what is whole.
func (db *DB) reportDamage(err error) {
	if db.verifier.noteDamage(err) {
		db.log.Error("stored data is damaged", "dir", db.verifier.dir, "err", err)
	}
}

// reportRowDamage is reportDamage for the error of a read. The result also names the damaged file,
// if one was found.
func (db *DB) reportRowDamage(err error) error {
	err = db.verifier.withDamagedFile(err)
	db.reportDamage(err)
	return err
}

// noteDamage keeps a damage; news says that it was unknown.
func (k *tableVerifier) noteDamage(err error) (news bool) {
	var file *badgerguard.Damage
	ofFile := errors.As(err, &file)
	k.mu.Lock()
	defer k.mu.Unlock()
	text := err.Error()
	if k.notedDamage[text] || len(k.notedDamage) == maxNoted {
		return false
	}
	if k.notedDamage == nil {
		k.notedDamage = map[string]bool{}
	}
	k.notedDamage[text] = true
	if k.damages != nil {
		k.damages.Inc()
	}
	if k.damage == nil || ofFile && !k.damageOfFile {
		k.damage, k.damageOfFile = err, ofFile
	}
	if !ofFile {
		k.suspect.Store(true) // the pass finds the file
	}
	return true
}

// withDamagedFile adds the damaged file that was found, if any, to the damage of a row.
func (k *tableVerifier) withDamagedFile(err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.damageOfFile {
		return err
	}
	return fmt.Errorf("%w (damaged: %w)", err, k.damage)
}

// Damaged returns the first damage that was found since the store was opened, nil without damage.
// Damage of a file comes before that of a row.
func (db *DB) Damaged() error {
	db.verifier.mu.Lock()
	defer db.verifier.mu.Unlock()
	return db.verifier.damage
}

// Damaged returns the first damage that was found in the DB since it was opened, nil without
// damage.
func (s *runReader) Damaged() error { return s.db.Damaged() }
