package persistence

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/dgraph-io/badger/v4"
)

// manyTables opens a store of Badger's with n tables, which are one and the same file.
func manyTables(tb testing.TB, n int) *badger.DB {
	tb.Helper()
	dir, view := tb.TempDir(), tb.TempDir()
	s, err := OpenBadger(Config{Dir: dir, memory: 1 << 20})
	if err != nil {
		tb.Fatal(err)
	}
	if err := s.Close(); err != nil {
		tb.Fatal(err)
	}
	paths, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil || len(paths) == 0 {
		tb.Fatal("no table", err)
	}
	m, err := badgerguard.ReadManifest(dir)
	if err != nil {
		tb.Fatal(err)
	}
	id, _ := badgerguard.ID(paths[0])
	e := m.Tables[id]
	e.Level = 0
	all := badgerguard.NewCollect(view)
	for range n {
		if err := all.Add(paths[0], e); err != nil {
			tb.Fatal(err)
		}
	}
	if err := all.Finish(); err != nil {
		tb.Fatal(err)
	}
	db, err := badger.OpenManaged(badgerOptions(Config{Dir: view, memory: 1 << 20}).WithReadOnly(true).WithBypassLockGuard(true).WithLogger(nil))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { db.Close() })
	return db
}

// TestTablesAreNotListedForEachCommit: on a disk that is nearly full, too, the store asks
// for Badger's tables, which takes 1 ms for 1,000 of them, not more than 100 times a second.
func TestTablesAreNotListedForEachCommit(t *testing.T) {
	now, listed := time.Unix(1000, 0), 0
	r := newRoom(Config{memory: 4 << 20, statfs: func(string) (int64, int64, error) { return 50 << 20, 1 << 30, nil }})
	r.now = func() time.Time { return now }
	r.tables = func() []badger.TableInfo {
		listed++
		return nil
	}
	for range 1000 { // commits in a second
		now = now.Add(time.Millisecond)
		if err := r.check(100); err != nil {
			t.Fatal(err)
		}
	}
	if r.free >= 2*r.needed {
		t.Fatalf("%d bytes are free, %d are needed: not a disk that is nearly full", r.free, r.needed)
	}
	if listed > 100 {
		t.Errorf("tables were listed %d times for 1,000 commits", listed)
	}
}

// BenchmarkManyTables is what a look at 1,000 tables costs: for the commit log, beside
// commits, and for the room on the disk, on the way of a commit.
func BenchmarkManyTables(b *testing.B) {
	db := manyTables(b, 1000)
	l := &localLog{db: db}
	r := &room{memTable: 1 << 20, tables: db.Tables, now: time.Now}
	b.Run("log", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			l.inTables()
		}
	})
	b.Run("room", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r.need()
		}
	})
}
