package badgerguard_test

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/persistence/badgerguard"
)

// TestVerifyMemoryIsBounded: a folder of many times the size takes no more memory, and a table
// not more than its name and fingerprint.
func TestVerifyMemoryIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("large folders, to measure memory")
	}
	for _, blocks := range []bool{false, true} {
		used := func(n int) (bytes int64, tablesRead int, allocated uint64) {
			dir := t.TempDir()
			makeFolder(t, dir, n, 20_000, 1)
			writeInventory(t, dir)
			verifyWith(t, dir, blocks) // what is allocated once
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			r := verifyWith(t, dir, blocks)
			runtime.ReadMemStats(&after)
			return r.Bytes, r.Tables, after.TotalAlloc - before.TotalAlloc
		}
		smallBytes, smallTables, small := used(1)
		largeBytes, largeTables, large := used(8)
		t.Logf("blocks %v: %d bytes in %d tables: %d allocated; %d bytes in %d tables: %d", blocks, smallBytes, smallTables, small, largeBytes, largeTables, large)
		if largeBytes < 2*smallBytes {
			t.Fatalf("%d and %d bytes", smallBytes, largeBytes)
		}
		const fixed, perTable = 4 << 20, 16 << 10 // for each processor; window, block and index
		if most := uint64(fixed*runtime.GOMAXPROCS(0) + perTable*largeTables); large > most {
			t.Errorf("blocks %v: %d bytes allocated for %d tables, %d at most", blocks, large, largeTables, most)
		}
	}
}

func verifyWith(t testing.TB, dir string, blocks bool) *badgerguard.Report {
	t.Helper()
	r, err := badgerguard.Verify(t.Context(), dir, badgerguard.VerifyOptions{Blocks: blocks})
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestKnownTablesAreComparedAsAWhole: what the inventory knows is compared as a whole, and a table
// that differs is searched for the block.
func TestKnownTablesAreComparedAsAWhole(t *testing.T) {
	dir := t.TempDir()
	makeFolder(t, dir, 2, 5000, 1)
	if r := verify(t, dir); r.MatchInventory != 0 || r.Tables == 0 {
		t.Errorf("%d of %d tables are known without an inventory", r.MatchInventory, r.Tables)
	}
	writeInventory(t, dir)
	whole := verify(t, dir)
	if whole.MatchInventory != whole.Tables || whole.Tables == 0 {
		t.Errorf("%d of %d tables are known", whole.MatchInventory, whole.Tables)
	}
	if r := verifyWith(t, dir, true); r.MatchInventory != 0 || r.Tables != whole.Tables || r.Bytes != whole.Bytes {
		t.Errorf("by blocks: %d of %d tables are known", r.MatchInventory, r.Tables)
	}
	path := files(t, dir, "*.sst")[0]
	b := read(t, path)
	b[len(b)/3] ^= 16
	write(t, path, b)
	err := verify(t, dir).Err()
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "block ") || !strings.Contains(err.Error(), "at offset") {
		t.Errorf("a changed bit: %v", err)
	}
}

// TestHugeIndexIsRefused: a table whose end claims an index of GiB is damaged, and is not read into
// memory.
func TestHugeIndexIsRefused(t *testing.T) {
	dir := t.TempDir()
	makeFolder(t, dir, 1, 100, 1)
	path := files(t, dir, "*.sst")[0]
	b := read(t, path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The same end, at a high offset, in a file of holes: its index may have up to 4 GiB.
	if err := f.Truncate(5 << 30); err != nil {
		t.Skipf("no sparse file of 5 GiB: %v", err)
	}
	end := b[len(b)-8-int(b[len(b)-1]):] // size of the index, checksum, its size
	copy(end, []byte{0xf0, 0, 0, 0})
	if _, err := f.WriteAt(end, 5<<30-int64(len(end))); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := verify(t, dir)
	runtime.ReadMemStats(&after)
	if r.Err() == nil || !strings.Contains(r.Err().Error(), "the index has") {
		t.Errorf("%v", r.Err())
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
		t.Errorf("%d bytes were allocated", n)
	}
}

// BenchmarkVerify reads tables from the page cache: those that the inventory knows, and
// those that it does not. The time of the processors counts, too: the rate is that of the
// machine at the moment. cat reads the same files by read alone.
func BenchmarkVerify(b *testing.B) {
	dir := b.TempDir()
	makeFolder(b, dir, 4, 400_000, 1)
	bytes := verify(b, dir).Bytes
	run := func(name string, verify func()) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(bytes)
			b.ReportAllocs()
			before := processorTime(b)
			for b.Loop() {
				verify()
			}
			used := processorTime(b) - before
			b.ReportMetric(used.Seconds()*1000/(float64(bytes)*float64(b.N)/1e9), "cpu-ms/GB")
		})
	}
	run("cat", func() {
		buf := make([]byte, 256<<10)
		for _, path := range files(b, dir, "*.sst") {
			f, err := os.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			for n := 1; n > 0; {
				n, _ = f.Read(buf)
			}
			f.Close()
		}
	})
	run("unknown", func() { verifyWith(b, dir, false) })
	writeInventory(b, dir)
	run("known", func() { verifyWith(b, dir, false) })
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
