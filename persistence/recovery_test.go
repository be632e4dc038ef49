package persistence_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/commitlog"
	"github.com/caravan-dag/caravan/persistence/journaltest"
	"golang.org/x/sys/unix"
)

// dump is what a folder holds once it was opened.
func dump(t testing.TB, s *persistence.RunStore) []string {
	t.Helper()
	rows, err := persistence.Dump(s)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// busy makes runs that come, go on, end, are deleted and come back, with values that
// fill memtables.
type busy struct {
	t    testing.TB
	s    *persistence.RunStore
	rng  *rand.Rand
	runs messages.RunID
	seq  map[messages.RunID]uint64
}

func newBusy(t testing.TB, s *persistence.RunStore, seed uint64) *busy {
	return &busy{t: t, s: s, rng: rand.New(rand.NewPCG(seed, 1)), seq: map[messages.RunID]uint64{}}
}

// step does one thing and waits until it is durable.
func (b *busy) step() error {
	unfinished := slices.Sorted(maps.Keys(b.seq))
	var batch *persistence.Batch
	switch kind := b.rng.IntN(10); {
	case kind < 3 || len(unfinished) == 0:
		b.runs++
		batch = journaltest.NewRun(b.runs, fmt.Sprint("tag ", b.rng.IntN(3)), "")
		batch.Create.Definition = incompressibleBytes(b.runs, b.rng.IntN(20<<10))
		b.seq[b.runs] = 1
	case kind < 5:
		run := unfinished[b.rng.IntN(len(unfinished))]
		batch = journaltest.NewRun(run, "", "")
		batch.Create, batch.Summary.State = nil, dag.RunCompleted
		delete(b.seq, run)
		if b.rng.IntN(2) == 0 {
			if err := journaltest.Append(b.t, b.s, batch); err != nil {
				return err
			}
			return b.s.Delete([]messages.RunID{run}, 0)
		}
	default:
		run := unfinished[b.rng.IntN(len(unfinished))]
		batch = &persistence.Batch{Run: run, Seq: b.seq[run], Records: incompressibleBytes(run, b.rng.IntN(30<<10))}
		b.seq[run]++
	}
	return journaltest.Append(b.t, b.s, batch)
}

// TestPowerFailure cuts the power at operations of the commit log, while a store is busy.
// Of Badger's files those are left that it synced: tables and manifest. All that was
// acknowledged is there, and nothing more but what was under way.
func TestPowerFailure(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	disk, err := faults.NewDisk(dir)
	if err != nil {
		t.Fatal(err)
	}
	f := faults.New(disk)
	s, err := persistence.OpenStore(persistence.WithFS(persistence.WithTinyMemtables(persistence.Config{Dir: dir}), f))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b := newBusy(t, s, 5)
	source := rand.New(rand.NewPCG(1, 9))
	cuts := 25
	if testing.Short() {
		cuts = 16
	}
	for range cuts {
		for range 1 + source.IntN(60) {
			if err := b.step(); err != nil {
				t.Fatal(err)
			}
		}
		want := dump(t, s)
		left := filepath.Join(t.TempDir(), "left")
		var rng *rand.Rand
		if source.IntN(2) == 0 {
			rng = source
		}
		cutPower(t, disk, dir, left, rng)
		after, err := persistence.OpenStore(persistence.WithTinyMemtables(persistence.Config{Dir: left}))
		if err != nil {
			t.Fatal(err)
		}
		if got := dump(t, after); !slices.Equal(got, want) {
			t.Errorf("%d rows are left of %d", len(got), len(want))
		}
		if err := after.Close(); err != nil {
			t.Error(err)
		}
	}
	if tables, last := persistence.FlushedAndLast(s); tables == 0 {
		t.Errorf("%d commits, and no table was made", last)
	}
}

// cutPower makes the folder that a power failure leaves. The manifest comes before the tables: those
// that are added later are leftovers. A copy is not made in one moment, so both are copied again when
// the manifest has changed meanwhile.
func cutPower(t testing.TB, disk *faults.Disk, dir, left string, rng *rand.Rand) {
	t.Helper()
	if err := disk.PowerCut(left, rng); err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(dir, "MANIFEST")
	for range 100 {
		before, err := os.ReadFile(manifest)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(left, "MANIFEST"), before, 0o600); err != nil {
			t.Fatal(err)
		}
		for name := range fileSizes(t, dir) {
			if !strings.HasSuffix(name, ".sst") {
				continue
			}
			if err := copyFile(filepath.Join(left, name), filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
		// A compaction empties the tables that it has replaced. Its manifest was durable before that.
		after, err := os.ReadFile(manifest)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(before, after) {
			return
		}
	}
	t.Fatalf("%s does not come to rest", dir)
}

// TestBadgerLogsDoNotCount: after a kill -9, whatever happens to Badger's own log files
// changes nothing. It was the only place of all that no table had.
func TestBadgerLogsDoNotCount(t *testing.T) {
	dir := t.TempDir()
	s := badgerAt(t, dir)
	b := newBusy(t, s, 2)
	for range 100 {
		if err := b.step(); err != nil {
			t.Fatal(err)
		}
	}
	want := dump(t, s)
	killed := copyFolder(t, dir)
	damage := map[string]func(path string) error{
		"as they are": func(string) error { return nil },
		"deleted":     os.Remove,
		"emptied":     func(path string) error { return os.Truncate(path, 0) },
		"cut":         func(path string) error { return os.Truncate(path, 70_000) },
		"a bit in the middle": func(path string) error {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content[len(content)/64] ^= 4
			return os.WriteFile(path, content, 0o600)
		},
	}
	for what, change := range damage {
		to := t.TempDir()
		if err := os.CopyFS(to, os.DirFS(killed)); err != nil {
			t.Fatal(err)
		}
		n := 0
		for name := range fileSizes(t, to) {
			if strings.HasSuffix(name, ".mem") || strings.HasSuffix(name, ".vlog") {
				n++
				if err := change(filepath.Join(to, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := dump(t, badgerAt(t, to)); n == 0 || !slices.Equal(got, want) {
			t.Errorf("%s: %d files, %d rows of %d", what, n, len(got), len(want))
		}
	}
}

// TestDamagedLogIsNotOpened: a store whose log is damaged is not opened, and the error
// names file and offset. Nothing is changed: the log can be put right and opened.
func TestDamagedLogIsNotOpened(t *testing.T) {
	dir := t.TempDir()
	s := badgerAt(t, dir)
	for run := range messages.RunID(20) {
		journaltest.MustAppend(t, s, journaltest.NewRun(run, "", string(incompressibleBytes(run, 3000))))
	}
	killed := copyFolder(t, dir)
	path := filepath.Join(killed, "log", "0000000001.log")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{20, 5000, 40_000} {
		b := slices.Clone(whole)
		b[at] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := persistence.OpenStore(persistence.WithSmallMemtables(persistence.Config{Dir: killed}))
		var found *commitlog.DamageError
		if !errors.As(err, &found) || found.File != path || found.Offset > int64(at) {
			t.Errorf("byte %d: %v", at, err)
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	equalRuns(t, badgerAt(t, killed), 20)
}

// TestTablesWithoutManifestAreRefused: Badger would take them for leftovers and delete them.
func TestTablesWithoutManifestAreRefused(t *testing.T) {
	dir := t.TempDir()
	s := badgerAt(t, dir)
	journaltest.MustAppend(t, s, journaltest.NewRun(1, "", "spec"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(dir, "MANIFEST")
	content, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(manifest); err != nil {
		t.Fatal(err)
	}
	openError(t, persistence.Config{Dir: dir}, manifest)
	if err := os.WriteFile(manifest, content, 0o600); err != nil {
		t.Fatal(err)
	}
	equalRuns(t, badgerAt(t, dir), 1)
	if err := os.RemoveAll(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
}

// TestReplayOverNewerTables: the log is applied from any of its commits on, over tables
// that have newer ones and from which compaction has dropped what those replaced and
// deleted. The result is always the same.
func TestReplayOverNewerTables(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := badgerAt(t, dir)
	persistence.KeepWholeLog(s)
	b := newBusy(t, s, 11)
	for range 600 {
		if err := b.step(); err != nil {
			t.Fatal(err)
		}
	}
	if err := persistence.CompactAll(s); err != nil {
		t.Fatal(err)
	}
	want := dump(t, s)
	tables, last := persistence.FlushedAndLast(s)
	killed := copyFolder(t, dir)
	r, err := commitlog.Verify(vfs.OS{}, filepath.Join(killed, "log"))
	if err != nil || r.First != 1 || r.Last != last || tables < last/4 {
		t.Fatalf("%+v, %v; tables have %d", r, err, tables)
	}
	for _, from := range []uint64{0, 1, tables / 3, tables / 2, tables - 1, tables} {
		to := t.TempDir()
		if err := os.CopyFS(to, os.DirFS(killed)); err != nil {
			t.Fatal(err)
		}
		after, err := persistence.OpenStore(persistence.WithReplayFrom(persistence.WithSmallMemtables(persistence.Config{Dir: to}), from))
		if err != nil {
			t.Fatal(err)
		}
		if got := dump(t, after); !slices.Equal(got, want) {
			t.Errorf("from %d of %d on: %d rows, want %d", from, last, len(got), len(want))
		}
		if err := persistence.CompactAll(after); err != nil {
			t.Fatal(err)
		}
		if got := dump(t, after); !slices.Equal(got, want) {
			t.Errorf("from %d of %d on, compacted: %d rows, want %d", from, last, len(got), len(want))
		}
		if err := after.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestUnsyncedFolderFailsTheStore: the log may forget what is in a table only when the
// table's name is durable; when that cannot be had, the store fails.
func TestUnsyncedFolderFailsTheStore(t *testing.T) {
	dir := t.TempDir()
	f := faults.New(vfs.OS{})
	s, err := persistence.OpenStore(persistence.WithFS(persistence.WithSmallMemtables(persistence.Config{Dir: dir}), f))
	if err != nil {
		t.Fatal(err)
	}
	f.Add(faults.Rule{Op: faults.SyncDir, Path: filepath.Base(dir)})
	b := newBusy(t, s, 3)
	for n := 0; err == nil && n < 5000; n++ {
		err = b.step()
	}
	if !errors.Is(err, persistence.ErrFailed) || !errors.Is(err, faults.ErrInjected) {
		t.Errorf("%v", err)
	}
	f.Reset()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	badgerAt(t, dir)
}

// TestFailedCommitIsWholeOrAbsent: a commit whose record did not reach the log may be there or not
// after the next open, whole, and the store goes on.
func TestFailedCommitIsWholeOrAbsent(t *testing.T) {
	for _, rule := range []faults.Rule{
		{Op: faults.Sync, Path: "0000000001.new"},
		{Op: faults.Write, Path: "0000000001.new", Err: errors.New("no device"), Short: 512},
		{Op: faults.Write, Path: "state"},
	} {
		dir := t.TempDir()
		f := faults.New(vfs.OS{})
		s, err := persistence.OpenStore(persistence.WithFS(persistence.WithSmallMemtables(persistence.Config{Dir: dir}), f))
		if err != nil {
			t.Fatal(err)
		}
		journaltest.MustAppend(t, s, journaltest.NewRun(0, "", "spec"))
		f.Add(rule)
		if err := journaltest.Append(t, s, journaltest.NewRun(1, "", "spec")); !errors.Is(err, persistence.ErrFailed) {
			t.Errorf("%v: %v", rule.Path, err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%v: close: %v", rule.Path, err)
		}
		for range 2 {
			s = badgerAt(t, dir)
			next, err := s.NextRun()
			if err != nil || next < 1 {
				t.Fatal(next, err)
			}
			equalRuns(t, s, int(next))
			journaltest.MustAppend(t, s, journaltest.NewRun(next, "", "spec"))
			equalRuns(t, s, int(next)+1)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestLogOfALargerDiskIsReplayed: what the commit log keeps of a store on a larger disk is applied
// on a smaller one, whose memtables hold less. Nothing of it goes anywhere but into tables.
func TestLogOfALargerDiskIsReplayed(t *testing.T) {
	dir := t.TempDir()
	s, err := persistence.OpenStore(persistence.WithSmallMemtables(persistence.Config{Dir: dir}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for run := range messages.RunID(5) {
		b := journaltest.NewRun(run, "", "")
		b.Create.Definition = incompressibleBytes(run, 400<<10)
		if err := journaltest.Append(t, s, b); err != nil {
			t.Fatal(err)
		}
	}
	want := dump(t, s)
	left := filepath.Join(t.TempDir(), "left")
	if err := os.CopyFS(left, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		after, err := persistence.OpenStore(persistence.WithTinyMemtables(persistence.Config{Dir: left}))
		if err != nil {
			t.Fatal(err)
		}
		if got := dump(t, after); !slices.Equal(got, want) {
			t.Errorf("open %d: %d rows, want %d", round, len(got), len(want))
		}
		for run := range messages.RunID(5) {
			if st, err := after.Load(run); err != nil || !slices.Equal(st.Definition, incompressibleBytes(run, 400<<10)) {
				t.Errorf("open %d: run %d: %v", round, run, err)
			}
		}
		if err := after.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkOpenAfterKill opens a folder of 100,000 finished runs as a kill -9 leaves it: most
// of their rows lie in the commit log alone, and are applied again.
func BenchmarkOpenAfterKill(b *testing.B) {
	dir := b.TempDir()
	s, err := persistence.OpenStore(persistence.Config{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	const runs, together = 100_000, 1000
	for first := 0; first < runs; first += together {
		var batches []*persistence.Batch
		for i := range together {
			run := messages.RunID(first + i)
			created := journaltest.NewRun(run, "tag", `{"tag":"open","tasks":{"a":{"job":{"executor":"noop"}}}}`)
			ended := &persistence.Batch{Run: run, Seq: 1, Records: []byte("records"), Summary: journaltest.NewSummary(run, "tag", dag.RunCompleted),
				Attempts: []messages.AttemptRecord{{Task: 0, Attempt: 1}}}
			batches = append(batches, created, ended)
		}
		journaltest.MustAppend(b, s, batches...)
	}
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		left := copyFolder(b, dir)
		b.StartTimer()
		s, err := persistence.OpenStore(persistence.Config{Dir: left})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// TestAcknowledgedIsOnTheDevice asks the kernel: when a batch is acknowledged, no page of
// the commit log waits to be written to the device. What a power failure leaves is
// TestPowerFailure's subject, which needs no device.
func TestAcknowledgedIsOnTheDevice(t *testing.T) {
	// The folder of other tests may be in memory.
	dir, err := os.MkdirTemp("/var/tmp", "caravan-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if dir, err = filepath.EvalSymlinks(dir); err != nil { // as the kernel tells it
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.TMPFS_MAGIC {
		t.Skipf("%s is on a tmpfs: it has no device", dir)
	}
	s := badgerAt(t, dir)
	for run := range messages.RunID(20) {
		journaltest.MustAppend(t, s, journaltest.NewRun(run, "tag", fmt.Sprint("definition ", run)))
		unmap := mapFiles(t, filepath.Join(dir, "log"), ".log")
		files, dirty := dirtyPages(t, filepath.Join(dir, "log", "*.log"))
		unmap()
		if files == 0 || dirty != 0 {
			t.Fatalf("run %d was acknowledged: %d KB of %d segments wait to be written", run, dirty, files)
		}
	}
}

// mapFiles maps files and touches their pages, so that the kernel tells about them.
func mapFiles(t *testing.T, dir, suffix string) (unmap func()) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var maps [][]byte
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		m, err := unix.Mmap(int(f.Fd()), 0, len(b), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(m, b) { // reads each page
			t.Fatalf("%s changes", e.Name())
		}
		maps = append(maps, m)
	}
	return func() {
		for _, m := range maps {
			if err := unix.Munmap(m); err != nil {
				t.Error(err)
			}
		}
	}
}

// dirtyPages is how many files that match are mapped by this process, and how many
// KB of them were written in memory and not to the device.
func dirtyPages(t *testing.T, pattern string) (files, kb int) {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	matches := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		switch {
		case !strings.HasSuffix(fields[0], ":"): // the head of a mapping
			if matches, err = filepath.Match(pattern, fields[len(fields)-1]); err != nil {
				t.Fatal(err)
			}
			if matches {
				files++
			}
		case matches && (fields[0] == "Shared_Dirty:" || fields[0] == "Private_Dirty:"):
			n := 0
			if _, err := fmt.Sscan(fields[1], &n); err != nil {
				t.Fatal(err)
			}
			kb += n
		}
	}
	return files, kb
}
