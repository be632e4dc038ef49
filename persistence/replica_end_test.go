package persistence

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
)

// leadReplica opens a new replica of a new log, and the store of its first term.
func leadReplica(t testing.TB, c Config) (*replicatedLog, *DB, *RunStore) {
	t.Helper()
	log := newReplicatedLog(t)
	c.Dir = t.TempDir()
	db := openReplica(t, c)
	log.join(db, 0)
	s, err := db.Lead(log.takeOver(db), Config{})
	if err != nil {
		t.Fatal(err)
	}
	return log, db, s
}

// largeRows makes rows of 800 KiB in total.
func largeRows(name string) (rows []mutation) {
	for i := range 20 {
		rows = append(rows, sealRow(fmt.Appendf(nil, "?%s-%d", name, i), randomBytes(40<<10)))
	}
	return rows
}

// fillTables commits rows that fill one memtable, and waits until Badger has a table of it. It commits no
// more while the disk writes that table: with four tables Badger compacts them, and a compaction replaces
// a table that the test has damaged, or copied, at any later moment.
func fillTables(t testing.TB, db *DB, s *RunStore) {
	t.Helper()
	synced, err := db.Sync()
	if err != nil {
		t.Fatal(err)
	}
	for size := int64(0); size < db.memTable+(1<<20); { // the first commit after a full memtable begins another one
		rows := largeRows(fmt.Sprint(len(db.badger.Tables()), "-", size))
		if err := s.commitRows(rows); err != nil {
			t.Fatal(err)
		}
		for _, m := range rows {
			size += m.Size()
		}
	}
	testenv.RepeatWithin(t, 4*testenv.Patience, "a table of the full memtable", func() bool {
		at, err := db.Sync()
		if err != nil {
			t.Error(err)
		}
		return err != nil || at > synced
	})
}

func finishedRunBatch(run messages.RunID) *Batch {
	return &Batch{Run: run, Create: &Creation{Definition: []byte("spec")}, Seq: 1, Records: []byte("x"),
		Summary: &messages.Summary{ID: run, State: dag.RunCompleted}}
}

// TestClosedReplicaRefusesUses: Lead, Apply and Sync return ErrClosed after Close, and also when they
// come while it closes. Badger itself would panic.
func TestClosedReplicaRefusesUses(t *testing.T) {
	t.Parallel()
	log, db, s := leadReplica(t, Config{})
	fillTables(t, db, s)
	if err := errors.Join(s.commitRows(largeRows("last")), s.Close()); err != nil {
		t.Fatal(err)
	}
	last := log.entries[len(log.entries)-1]
	lead := log.lead()
	lead.At = 1 << 40 // the replica may have entries of any moment by then
	uses := map[string]func(n uint64) error{
		"lead":  func(uint64) error { _, err := db.Lead(lead, Config{Shards: 3}); return err }, // refused in any case
		"apply": func(n uint64) error { _, err := db.Apply(last.at+n, last.term, last.group); return err },
		"sync":  func(uint64) error { _, err := db.Sync(); return err },
	}
	done := make(chan bool)
	begun := make(chan bool, len(uses))
	for name, use := range uses {
		if name == "lead" {
			continue // it would refuse the Close
		}
		go func() {
			defer func() { done <- true }()
			for n := uint64(1); ; n++ {
				err := use(n)
				if n == 1 {
					begun <- true
				}
				if errors.Is(err, ErrClosed) {
					return
				}
				if err != nil {
					t.Errorf("%s while the replica closes: %v", name, err)
					return
				}
			}
		}()
	}
	for range len(uses) - 1 {
		<-begun
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for range len(uses) - 1 {
		<-done
	}
	for name, use := range uses {
		if err := use(1 << 20); !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	if err := s.CheckDiskSpace(); !errors.Is(err, ErrClosed) {
		t.Errorf("the disk space of a closed store: %v", err)
	}
}

// TestReplicaReadsItsNewestTables: after a kill, and before entries come again, a view has all rows of
// its moment. Compactions have dropped what the newest entry in tables has replaced, so an earlier
// moment would lack rows.
func TestReplicaReadsItsNewestTables(t *testing.T) {
	t.Parallel()
	_, db, s := leadReplica(t, Config{memTable: replicaMemTable}) // several tables, to be compacted
	digests := map[uint64]string{}
	overwritten := []byte("?a-overwritten")
	for n := range 60 {
		rows := append(largeRows(fmt.Sprint(n%3)), sealRow(overwritten, fmt.Append(nil, n)))
		if err := s.commitRows(rows); err != nil {
			t.Fatal(err)
		}
		if n < 30 {
			continue // tables have all these in any case
		}
		v, err := db.View()
		if err != nil {
			t.Fatal(err)
		}
		moment := v.CommitNumber()
		v.Close()
		digests[moment] = digestOf(t, db)
	}
	if err := errors.Join(s.Close(), db.badger.Flatten(2)); err != nil {
		t.Fatal(err)
	}
	synced, err := db.Sync()
	if err != nil {
		t.Fatal(err)
	}
	again := openReplica(t, Config{Dir: copyOpenFolder(t, db.dir), Synced: synced})
	v, err := again.View()
	if err != nil {
		t.Fatal(err)
	}
	moment := v.CommitNumber()
	v.Close()
	if got := digestOf(t, again); got != digests[moment] {
		t.Errorf("moment %d has %s, and had %s before the kill", moment, got, digests[moment])
	}
}

// TestReplicaRefusesTheFolderOfASingleNode: its commit log has rows that tables lack.
func TestReplicaRefusesTheFolderOfASingleNode(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenStore(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(appendAll(t, s, finishedRunBatch(0)), s.Close()); err != nil {
		t.Fatal(err)
	}
	db, err := OpenDB(Config{Dir: dir})
	if err == nil {
		db.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "single node") {
		t.Errorf("opened as a replica: %v", err)
	}
}

// TestOpenReplicaIsLocked: an open of a folder that is in use removes no file, also when it verifies
// none. The folder is free after Close.
func TestOpenReplicaIsLocked(t *testing.T) {
	t.Parallel()
	_, db, s := leadReplica(t, Config{})
	if err := s.commitRows(largeRows("a")); err != nil {
		t.Fatal(err)
	}
	files := func() []string {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(db.dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	before := files()
	if _, err := OpenDB(Config{Dir: db.dir, Unverified: true}); !errors.Is(err, badgerguard.ErrInUse) {
		t.Errorf("a second open: %v", err)
	}
	if after := files(); !slices.Equal(before, after) {
		t.Errorf("the folder had %q, and has %q", before, after)
	}
	if err := errors.Join(s.Close(), db.Close()); err != nil {
		t.Fatal(err)
	}
	again := openReplica(t, Config{Dir: db.dir})
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// TestFailedInventoryFailsSync: the log must not wait for ever to forget entries because the inventory
// of tables cannot be written.
func TestFailedInventoryFailsSync(t *testing.T) {
	t.Parallel()
	log := newReplicatedLog(t)
	db, err := OpenDB(Config{Dir: t.TempDir(), memTable: replicaMemTable})
	if err != nil {
		t.Fatal(err)
	}
	log.join(db, 0)
	s, err := db.Lead(log.takeOver(db), Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(db.dir, "INVENTORY.new"), 0o700); err != nil {
		t.Fatal(err)
	}
	for n := 0; len(db.badger.Tables()) == 0; n++ {
		if err := s.commitRows(largeRows(fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
	}
	if at, err := db.Sync(); !errors.Is(err, ErrFailed) {
		t.Errorf("moment %d, %v", at, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	_ = db.Close() // it writes the inventory, too
}

// TestFirstSyncMakesNamesDurable: tables that an open finds may not survive a power failure, even when
// their rows survived a kill. So the first Sync syncs them, whatever the open has verified.
func TestFirstSyncMakesNamesDurable(t *testing.T) {
	t.Parallel()
	_, db, s := leadReplica(t, Config{})
	fillTables(t, db, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	dir := copyOpenFolder(t, db.dir)
	inventory := filepath.Join(dir, "INVENTORY") // Sync writes it last
	if err := os.Remove(inventory); err != nil {
		t.Fatal(err)
	}
	again := openReplica(t, Config{Dir: dir, Unverified: true})
	at, err := again.Sync()
	if err != nil || at == 0 {
		t.Errorf("moment %d, %v", at, err)
	}
	if _, err := os.Stat(inventory); err != nil {
		t.Errorf("Sync has returned moment %d without a sync: %v", at, err)
	}
}

// TestFailureEndsTheWaitOfAView: a view of a DB that fails while it waits for an announced commit is
// an error: the rows of that commit may be missing.
func TestFailureEndsTheWaitOfAView(t *testing.T) {
	s, err := OpenStore(WithSmallMemtables(Config{Dir: t.TempDir()}))
	if err != nil {
		t.Fatal(err)
	}
	s.timestamps.announce(s.db.localLog.log.Last() + 1)
	viewed := make(chan error, 1)
	go func() {
		v, err := s.db.View()
		if err == nil {
			v.Close()
		}
		viewed <- err
	}()
	for s.db.readers.TryLock() { // until the view waits
		s.db.readers.Unlock()
		runtime.Gosched()
	}
	_ = s.db.fail(errors.New("injected"))
	if err := <-viewed; !errors.Is(err, ErrFailed) {
		t.Errorf("a view of a failed DB: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// blockedLog is a log whose reader does not read warnings and errors until released is closed.
type blockedLog struct {
	slog.Handler
	reached, released chan struct{}
}

func (blockedLog) Enabled(context.Context, slog.Level) bool { return true }

func (l blockedLog) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		l.reached <- struct{}{}
		<-l.released
	}
	return l.Handler.Handle(ctx, r)
}

// TestBlockedLogDoesNotHideAFailure: the store has failed before its log line is written, which may
// take as long as the reader of the log likes.
func TestBlockedLogDoesNotHideAFailure(t *testing.T) {
	log := blockedLog{slog.DiscardHandler, make(chan struct{}, 10), make(chan struct{})}
	s, err := OpenStore(WithSmallMemtables(Config{Dir: t.TempDir(), Logger: slog.New(log)}))
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() { failed <- s.db.fail(errors.New("injected")) }()
	<-log.reached
	select {
	case <-s.Failed():
	default:
		t.Error("the store has not failed")
	}
	close(log.released)
	<-failed
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestViewDoesNotWaitForAClose: a Close waits for the views that are open. A view that would begin
// meanwhile is refused at once: the goroutine that asks may have to close an open one.
func TestViewDoesNotWaitForAClose(t *testing.T) {
	db := openReplica(t, Config{Dir: t.TempDir()})
	open, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	closed, viewed := make(chan error, 1), make(chan error, 1)
	go func() { closed <- db.Close() }()
	for db.readers.TryRLock() { // until the Close waits for the view
		db.readers.RUnlock()
		runtime.Gosched()
	}
	go func() {
		v, err := db.View()
		if err == nil {
			v.Close()
		}
		viewed <- err
	}()
	select {
	case err := <-viewed:
		if !errors.Is(err, ErrClosed) {
			t.Errorf("a view while the replica closes: %v", err)
		}
	case <-time.After(testenv.Patience):
		t.Error("a view waits for the Close of the replica")
	}
	if rows, err := countRows(open); err != nil || rows != 0 {
		t.Errorf("the open view has %d rows, %v", rows, err)
	}
	open.Close()
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func countRows(v *ReadView) (n int, err error) {
	err = v.Rows(context.Background(), func([]byte, []byte) error { n++; return nil })
	return n, err
}

// TestFirstSyncMakesTheManifestDurable: the manifest that an open finds may have grown since the
// inventory was written, and not survive a power failure. So an unverified open writes the inventory
// again, for which the manifest is synced.
func TestFirstSyncMakesTheManifestDurable(t *testing.T) {
	t.Parallel()
	_, db, s := leadReplica(t, Config{})
	fillTables(t, db, s)
	old, err := os.ReadFile(filepath.Join(db.dir, "INVENTORY"))
	if err != nil {
		t.Fatal(err)
	}
	first, err := db.Sync()
	for at := first; at == first && err == nil; at, err = db.Sync() {
		if err := s.commitRows(largeRows("more")); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	dir := copyOpenFolder(t, db.dir)
	inventory := filepath.Join(dir, "INVENTORY")
	if err := os.WriteFile(inventory, old, 0o600); err != nil {
		t.Fatal(err)
	}
	again := openReplica(t, Config{Dir: dir, Unverified: true})
	if at, err := again.Sync(); err != nil || at <= first {
		t.Errorf("moment %d after %d, %v", at, first, err)
	}
	written, err := os.ReadFile(inventory)
	if err != nil || bytes.Equal(written, old) {
		t.Errorf("the inventory is older than the manifest, %v", err)
	}
}
