package faults_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
)

func create(t *testing.T, fs vfs.FS, name, text string) vfs.File {
	t.Helper()
	f, err := fs.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		t.Fatal(err)
	}
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRulesFailSelectedCalls(t *testing.T) {
	dir := t.TempDir()
	f := faults.New(vfs.OS{})
	var told []faults.Call
	f.Add(faults.Rule{Op: faults.Sync, Path: "*.log", N: 2})
	f.Add(faults.Rule{Op: faults.Write, Path: "short", Err: os.ErrDeadlineExceeded, Short: 3})
	f.Add(faults.Rule{Op: faults.Rename, Do: func(c faults.Call) { told = append(told, c) }})
	log := create(t, f, filepath.Join(dir, "a.log"), "text")
	must(t, log.Sync())
	if err := log.Sync(); !errors.Is(err, faults.ErrInjected) || !strings.Contains(err.Error(), "a.log") {
		t.Errorf("the second sync: %v", err)
	}
	must(t, log.Sync())
	short, err := f.OpenFile(filepath.Join(dir, "short"), os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer short.Close()
	if n, err := short.WriteAt([]byte("12345"), 0); n != 3 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a short write: %d, %v", n, err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "short")); string(got) != "123" {
		t.Errorf("the file has %q", got)
	}
	must(t, f.Rename(filepath.Join(dir, "short"), filepath.Join(dir, "long")))
	if len(told) != 1 || filepath.Base(told[0].To) != "long" {
		t.Errorf("told of %v", told)
	}
	var ops []string
	for _, c := range f.Calls() {
		ops = append(ops, string(c.Op))
	}
	if got := strings.Join(ops, " "); got != "create write sync sync sync create write rename" {
		t.Error(got)
	}
}

// left is what a power failure leaves, as "name=content" in one line.
func left(t *testing.T, d *faults.Disk, rng *rand.Rand) string {
	t.Helper()
	into := filepath.Join(t.TempDir(), "left")
	must(t, d.PowerCut(into, rng))
	var all []string
	must(t, filepath.WalkDir(into, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			content, _ := os.ReadFile(path)
			rel, _ := filepath.Rel(into, path)
			all = append(all, rel+"="+string(content))
		}
		return err
	}))
	return strings.Join(all, " ")
}

// TestPowerCutLeavesWhatWasSynced: what was synced is left, content and names each by their own sync.
func TestPowerCutLeavesWhatWasSynced(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "old"), []byte("before"), 0o600))
	d, err := faults.NewDisk(dir)
	must(t, err)
	check := func(want string) {
		t.Helper()
		if got := left(t, d, nil); got != want {
			t.Errorf("left %q, want %q", got, want)
		}
	}
	a := create(t, d, filepath.Join(dir, "a"), "one")
	must(t, a.Sync())
	check("old=before")
	must(t, d.SyncDir(dir))
	check("a=one old=before")
	_, err = a.WriteAt([]byte("two"), 2)
	must(t, err)
	check("a=one old=before")
	must(t, a.Sync())
	check("a=ontwo old=before")
	must(t, d.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b")))
	must(t, d.Remove(filepath.Join(dir, "old")))
	must(t, a.Truncate(1))
	check("a=ontwo old=before")
	must(t, d.SyncDir(dir))
	check("b=ontwo")
	must(t, a.Sync())
	check("b=o")
	must(t, d.MkdirAll(filepath.Join(dir, "x", "y"), 0o700))
	c := create(t, d, filepath.Join(dir, "x", "y", "c"), "deep")
	must(t, c.Sync())
	must(t, d.SyncDir(filepath.Join(dir, "x", "y")))
	must(t, d.SyncDir(dir))
	check("b=o")
	must(t, d.SyncDir(filepath.Join(dir, "x")))
	check("b=o x/y/c=deep")
}

// TestPowerCutTearsUnsyncedWrites: with randomness some sectors of what was not synced are left.
func TestPowerCutTearsUnsyncedWrites(t *testing.T) {
	dir := t.TempDir()
	d, err := faults.NewDisk(dir)
	must(t, err)
	f := create(t, d, filepath.Join(dir, "f"), strings.Repeat("a", 1024))
	must(t, f.Sync())
	must(t, d.SyncDir(dir))
	_, err = f.WriteAt([]byte(strings.Repeat("b", 1024)), 0)
	must(t, err)
	seen := map[string]bool{}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		got := left(t, d, rng)
		seen[string([]byte{got[2], got[2+600]})] = true
	}
	if len(seen) != 4 {
		t.Errorf("seen %v, want all four", seen)
	}
}
