package badgerguard_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// makeFolder makes a folder of Badger's, closed cleanly, with n tables or more. The rows
// differ with the seed; their keys and sizes do not.
func makeFolder(t testing.TB, dir string, n int, rows int, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	version := uint64(0)
	for range n {
		db, err := badger.OpenManaged(badger.DefaultOptions(dir).WithLogger(nil).WithMetricsEnabled(false).
			WithCompression(options.Snappy).WithMemTableSize(4 << 20).WithValueThreshold(600 << 10))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < rows; {
			version++
			txn := db.NewTransactionAt(version-1, true)
			for k := 0; k < 100 && i < rows; k, i = k+1, i+1 {
				value := fmt.Appendf(nil, "echo %d %d %s", rng.Uint64(), i, strings.Repeat("x", 30))
				if err := txn.Set(fmt.Appendf(nil, "d%08d", i), value); err != nil {
					t.Fatal(err)
				}
			}
			if err := txn.CommitAt(version, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func verify(t testing.TB, dir string) *badgerguard.Report {
	t.Helper()
	r, err := badgerguard.Verify(t.Context(), dir, badgerguard.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// writeInventory writes the inventory of a whole folder.
func writeInventory(t testing.TB, dir string) {
	t.Helper()
	r := verify(t, dir)
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	if err := r.Inventory.Write(vfs.OS{}, dir); err != nil {
		t.Fatal(err)
	}
}

func files(t testing.TB, dir, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("no %s in %s: %v", pattern, dir, err)
	}
	return names
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// sample is 1, or n with -short: one of so many cases is tried.
func sample(n int) int {
	if testing.Short() {
		return n
	}
	return 1
}

// TestFoldersOfThisBadgerVerify fails when Badger writes what this package does not know.
func TestFoldersOfThisBadgerVerify(t *testing.T) {
	dir := t.TempDir()
	if r := verify(t, dir); r.Err() != nil || r.Inventory != nil {
		t.Fatalf("an empty folder: %v", r.Err())
	}
	makeFolder(t, dir, 7, 20_000, 1) // enough to be compacted
	r := verify(t, dir)
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	if r.Tables < 2 || r.Bytes < 100_000 || r.Latest() != 7*200 || r.Manifest.Torn != 0 {
		t.Errorf("%d tables of %d bytes up to %d", r.Tables, r.Bytes, r.Latest())
	}
	n := map[string]bool{}
	for id, e := range r.Manifest.Tables {
		found, err := badgerguard.Rows(filepath.Join(dir, fmt.Sprintf("%06d.sst", id)), e, func(r badgerguard.Row) error { n[string(r.Key)] = true; return nil })
		if err != nil || len(found) > 0 {
			t.Fatal(err, found)
		}
	}
	delete(n, "") // Badger's own
	for k := range n {
		if k[0] == '!' {
			delete(n, k)
		}
	}
	if len(n) != 20_000 {
		t.Errorf("%d keys", len(n))
	}
	writeInventory(t, dir)
	makeFolder(t, dir, 1, 1000, 2) // it may grow
	if r := verify(t, dir); r.Err() != nil || r.Stale != nil {
		t.Error(r.Err(), r.Stale)
	}
}

// TestEveryFlippedBitIsFound flips each bit of each file (with -short some of them): it is found, under
// the file's name, or without effect.
func TestEveryFlippedBitIsFound(t *testing.T) {
	dir := t.TempDir()
	makeFolder(t, dir, 2, 12, 1)
	writeInventory(t, dir)
	manifest := verify(t, dir).Manifest
	rows := func(path string, e badgerguard.Entry) (all []byte) {
		_, err := badgerguard.Rows(path, e, func(r badgerguard.Row) error {
			all = fmt.Appendf(all, "%q %d %v %q\n", r.Key, r.Version, r.Deleted, r.Value)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	for _, withInventory := range []bool{true, false} {
		if !withInventory {
			os.Remove(filepath.Join(dir, "INVENTORY"))
		}
		for _, path := range slices.Concat(files(t, dir, "*.sst"), files(t, dir, "MANIFEST"), files(t, dir, "KEYREGISTRY")) {
			name := filepath.Base(path)
			whole := read(t, path)
			var id uint64
			fmt.Sscanf(name, "%d.sst", &id)
			before := []byte(nil)
			if id > 0 {
				before = rows(path, manifest.Tables[id])
			}
			silent := 0
			for bit := 0; bit < 8*len(whole); bit += sample(41) {
				b := bytes.Clone(whole)
				b[bit/8] ^= 1 << (bit % 8)
				write(t, path, b)
				r := verify(t, dir)
				var d *badgerguard.Damage
				switch {
				case errors.As(r.Err(), &d):
					if filepath.Base(d.File) != name {
						t.Fatalf("%s: bit %d: named %s", name, bit, d.File)
					}
				case name == "KEYREGISTRY" && bit/8 < 16: // without a meaning
				case id > 0 && bytes.Equal(before, rows(path, manifest.Tables[id])):
					silent++
				default:
					t.Fatalf("%s: bit %d of %d is not found", name, bit, 8*len(whole))
				}
			}
			write(t, path, whole)
			if withInventory && silent > 0 {
				t.Errorf("%s: %d bits without effect, and the inventory knows its checksum", name, silent)
			}
		}
	}
}

// TestTruncatedAndZeroedFilesAreFound cuts and zeroes each file at many places.
func TestTruncatedAndZeroedFilesAreFound(t *testing.T) {
	dir := t.TempDir()
	makeFolder(t, dir, 3, 2000, 1)
	writeInventory(t, dir)
	for _, path := range slices.Concat(files(t, dir, "*.sst"), files(t, dir, "MANIFEST"), files(t, dir, "KEYREGISTRY")) {
		name := filepath.Base(path)
		whole := read(t, path)
		step := max(1, len(whole)*sample(10)/200)
		try := func(what string, b []byte) {
			write(t, path, b)
			err := verify(t, dir).Err()
			if err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("%s %s: %v", name, what, err)
			}
		}
		for n := 0; n < len(whole); n += step {
			try(fmt.Sprintf("cut at %d of %d", n, len(whole)), whole[:n])
			if name == "KEYREGISTRY" && n < 16 || bytes.Count(whole[n:min(n+512, len(whole))], []byte{0}) == min(512, len(whole)-n) {
				continue
			}
			b := bytes.Clone(whole)
			clear(b[n:min(n+512, len(b))])
			try(fmt.Sprintf("zeroed at %d", n), b)
		}
		if name != "MANIFEST" { // there it is a torn tail
			try("with more bytes after it", append(bytes.Clone(whole), 1, 2, 3, 4, 5, 6, 7, 8, 9))
		}
		write(t, path, whole)
	}
	if err := verify(t, dir).Err(); err != nil {
		t.Fatal(err)
	}
}

// TestReplacedFilesAreFound: whole files in the wrong place, and missing ones.
func TestReplacedFilesAreFound(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	makeFolder(t, dir, 2, 500, 1)
	makeFolder(t, other, 2, 500, 2)
	writeInventory(t, dir)
	ssts := files(t, dir, "*.sst")
	a, b := ssts[0], ssts[1]
	wantNamed := func(what, path string) {
		t.Helper()
		err := verify(t, dir).Err()
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", what, err)
		}
	}
	wa, wb := read(t, a), read(t, b)
	write(t, a, wb)
	write(t, b, wa)
	wantNamed("two tables exchanged", a)
	write(t, a, read(t, filepath.Join(other, filepath.Base(a))))
	write(t, b, wb)
	wantNamed("a table of another folder", a)
	os.Remove(a)
	wantNamed("a missing table", a)
	write(t, a, wa)

	manifest := filepath.Join(dir, "MANIFEST")
	whole := read(t, manifest)
	write(t, manifest, read(t, filepath.Join(other, "MANIFEST")))
	os.Remove(manifest)
	wantNamed("a missing manifest", manifest)
	write(t, manifest, whole[:25])
	wantNamed("a cut manifest", manifest)
	write(t, manifest, whole[:16]) // as if it had been empty for ever
	wantNamed("a manifest cut after a record", manifest)
	write(t, manifest, whole)
	if err := verify(t, dir).Err(); err != nil {
		t.Fatal(err)
	}
}

// TestCrashesAreNotDamage: what a process that was killed, or a power failure, may leave.
func TestCrashesAreNotDamage(t *testing.T) {
	dir := t.TempDir()
	makeFolder(t, dir, 2, 500, 1)
	writeInventory(t, dir)
	manifest := filepath.Join(dir, "MANIFEST")
	whole := read(t, manifest)
	write(t, manifest, append(bytes.Clone(whole), 0, 0, 0, 12, 1, 2, 3, 4, 5, 6))
	write(t, filepath.Join(dir, "000099.sst"), []byte("in the making"))
	r := verify(t, dir)
	if r.Err() != nil || r.Manifest.Torn != 10 {
		t.Errorf("torn by %d: %v", r.Manifest.Torn, r.Err())
	}
	write(t, manifest, append(bytes.Clone(whole), make([]byte, 100)...))
	if r := verify(t, dir); r.Err() != nil || r.Manifest.Torn != 100 {
		t.Errorf("torn by %d: %v", r.Manifest.Torn, r.Err())
	}
	write(t, filepath.Join(dir, "INVENTORY"), []byte("half"))
	if r := verify(t, dir); r.Err() != nil || r.Stale == nil {
		t.Errorf("a damaged inventory: %v, %v", r.Err(), r.Stale)
	}
}

// TestEveryFlippedInventoryBitIsFound flips each bit of an inventory, which is then not believed.
func TestEveryFlippedInventoryBitIsFound(t *testing.T) {
	dir := t.TempDir()
	makeFolder(t, dir, 2, 50, 1)
	writeInventory(t, dir)
	whole := read(t, filepath.Join(dir, "INVENTORY"))
	if v, d := badgerguard.DecodeInventory(whole); d != nil || len(v.Tables) != len(files(t, dir, "*.sst")) {
		t.Fatal(d)
	}
	for bit := range 8 * len(whole) {
		b := bytes.Clone(whole)
		b[bit/8] ^= 1 << (bit % 8)
		if _, d := badgerguard.DecodeInventory(b); d == nil {
			t.Fatalf("bit %d is not found", bit)
		}
	}
	for n := range whole {
		if _, d := badgerguard.DecodeInventory(whole[:n]); d == nil {
			t.Fatalf("cut at %d is not found", n)
		}
	}
}

func FuzzTable(f *testing.F) {
	dir := f.TempDir()
	makeFolder(f, dir, 1, 60, 1)
	for _, path := range files(f, dir, "*.sst") {
		f.Add(read(f, path), true)
	}
	path := filepath.Join(f.TempDir(), "000001.sst")
	f.Fuzz(func(t *testing.T, b []byte, packed bool) {
		e := badgerguard.Entry{}
		if packed {
			e.Compression = options.Snappy
		}
		write(t, path, b)
		if _, err := badgerguard.Rows(path, e, func(badgerguard.Row) error { return nil }); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzManifest(f *testing.F) {
	dir := f.TempDir()
	makeFolder(f, dir, 1, 60, 1)
	f.Add(read(f, filepath.Join(dir, "MANIFEST")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, d := badgerguard.ParseManifest(b); d == nil && m.Size+m.Torn != int64(len(b)) {
			t.Fatal(m.Size, m.Torn)
		}
	})
}

func FuzzInventory(f *testing.F) {
	f.Add([]byte("caravan inventory 1\nmanifest 1 2 3\nnext 4\ntable 1 2 3 4\nend 5\n"))
	f.Fuzz(func(t *testing.T, b []byte) { badgerguard.DecodeInventory(b) })
}

// TestInventoryIsReadFirst: a manifest that grows while a live folder is verified, and an
// inventory that is written of it, are not taken for a manifest that has lost its end.
func TestInventoryIsReadFirst(t *testing.T) {
	dir := t.TempDir()
	makeFolder(t, dir, 1, 500, 1)
	writeInventory(t, dir)
	manifest, inventory := filepath.Join(dir, "MANIFEST"), filepath.Join(dir, "INVENTORY")
	shorter, before := read(t, manifest), read(t, inventory)
	makeFolder(t, dir, 1, 500, 2)
	writeInventory(t, dir)
	longer, text := read(t, manifest), read(t, inventory)
	if len(longer) <= len(shorter) {
		t.Fatalf("the manifest had %d bytes and has %d", len(shorter), len(longer))
	}
	write(t, manifest, shorter)
	write(t, inventory, before)
	r, err := badgerguard.Verify(t.Context(), dir, badgerguard.WithHookBetweenReads(badgerguard.VerifyOptions{}, func() {
		write(t, manifest, longer)
		write(t, inventory, text)
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Err(); err != nil || r.Stale != nil {
		t.Errorf("a manifest that has grown: %v, %v", err, r.Stale)
	}
}
