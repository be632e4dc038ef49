package badgerguard

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// TestNewWorkIsRefusedBeforeCommits: new work is refused while others still have room, and commits
// go on.
func TestNewWorkIsRefusedBeforeCommits(t *testing.T) {
	free := int64(0)
	d := NewDiskSpace(DiskSpaceConfig{
		SoftFloor: func(total int64) int64 { return total / 4 }, MemTable: 1 << 20, Segment: 256 << 10,
		Statfs: func(string) (int64, int64, error) { return free, 400 << 20, nil }, Pause: func(time.Duration) {},
	})
	for _, c := range []struct {
		free            int64
		newWork, commit bool
	}{{101 << 20, true, true}, {99 << 20, false, true}, {1 << 20, false, false}} {
		free = c.free
		d.SetStatfs(d.Statfs)
		if err := d.CheckNewWork(); (err == nil) != c.newWork {
			t.Errorf("with %d MiB free new work: %v", free>>20, err)
		}
		if err := d.CheckCommit(0); (err == nil) != c.commit {
			t.Errorf("with %d MiB free a commit: %v", free>>20, err)
		}
	}
}

// TestCommitsRarelyAskTheFileSystem: where much is free, a few of thousands of commits a second ask
// the file system; where little is free, each one does.
func TestCommitsRarelyAskTheFileSystem(t *testing.T) {
	asked, free, now := 0, int64(1<<30), time.Unix(1000, 0)
	d := NewDiskSpace(DiskSpaceConfig{MemTable: 1 << 20, Hard: 100 << 20, Statfs: func(string) (int64, int64, error) { asked++; return free, 2 << 30, nil }})
	d.now = func() time.Time { now = now.Add(time.Millisecond); return now }
	check := func(want int) {
		t.Helper()
		asked = 0
		for range 60 {
			if err := d.CheckCommit(1000); err != nil {
				t.Fatal(err)
			}
		}
		if asked != want {
			t.Errorf("%d of 60 commits have asked, want %d", asked, want)
		}
	}
	check(10)
	free = 150 << 20
	now = now.Add(time.Second)
	check(60)
}

// TestTablesAreNotListedForEachCommit: on a disk that is nearly full, too, Badger's tables are
// listed at most 100 times a second: that takes 1 ms for 1,000 of them.
func TestTablesAreNotListedForEachCommit(t *testing.T) {
	now, listed := time.Unix(1000, 0), 0
	d := NewDiskSpace(DiskSpaceConfig{MemTable: 4 << 20, Segment: 1 << 20, Statfs: func(string) (int64, int64, error) { return 50 << 20, 1 << 30, nil }})
	d.now = func() time.Time { return now }
	d.WatchTables(func() []badger.TableInfo {
		listed++
		return nil
	})
	for range 1000 { // commits in a second
		now = now.Add(time.Millisecond)
		if err := d.CheckCommit(100); err != nil {
			t.Fatal(err)
		}
	}
	if d.free >= 2*d.needed {
		t.Fatalf("%d bytes are free, %d are needed: not a disk that is nearly full", d.free, d.needed)
	}
	if listed > 100 {
		t.Errorf("tables were listed %d times for 1,000 commits", listed)
	}
}

// TestTablesReportTheirSizes: Badger reports level, size on disk and newest version of each table.
func TestTablesReportTheirSizes(t *testing.T) {
	dir := t.TempDir()
	db := openManaged(t, Options(dir, 1<<20))
	number := uint64(0)
	for len(db.Tables()) == 0 {
		number++
		commit(t, db, number, mutation{Key: idKey(number), Value: make([]byte, 20<<10)})
	}
	for _, info := range db.Tables() {
		if info.OnDiskSize == 0 || info.MaxVersion == 0 || info.MaxVersion > number || info.Level != 0 {
			t.Errorf("%+v", info)
		}
	}
	names, _ := filepath.Glob(filepath.Join(dir, "*"+tableSuffix))
	if len(names) == 0 {
		t.Error("a table that Badger reports has no file")
	}
}

// BenchmarkListTables is what a look at 1,000 tables costs: for the commit log, next to commits,
// and for the space on the disk, on the way of a commit.
func BenchmarkListTables(b *testing.B) {
	db := manyTables(b, 1000)
	d := NewDiskSpace(DiskSpaceConfig{MemTable: 1 << 20})
	d.WatchTables(db.Tables)
	b.Run("flushed", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			NewestFlushed(db.Tables())
		}
	})
	b.Run("space", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			d.spaceNeeded()
		}
	})
}

// manyTables opens a Badger with n tables, which are one and the same file.
func manyTables(tb testing.TB, n int) *badger.DB {
	tb.Helper()
	dir, view := tb.TempDir(), tb.TempDir()
	db := openManaged(tb, Options(dir, 1<<20))
	commit(tb, db, 1, mutation{Key: idKey(1), Value: []byte("value")})
	if err := db.Close(); err != nil {
		tb.Fatal(err)
	}
	paths, err := filepath.Glob(filepath.Join(dir, "*"+tableSuffix))
	if err != nil || len(paths) == 0 {
		tb.Fatal("no table", err)
	}
	m, err := ReadManifest(dir)
	if err != nil {
		tb.Fatal(err)
	}
	id, _ := ID(paths[0])
	e := m.Tables[id]
	e.Level = 0
	all := NewCollection(view)
	for range n {
		if err := all.Add(paths[0], e); err != nil {
			tb.Fatal(err)
		}
	}
	if err := all.Finish(); err != nil {
		tb.Fatal(err)
	}
	return openManaged(tb, Options(view, 1<<20).WithReadOnly(true).WithBypassLockGuard(true))
}
