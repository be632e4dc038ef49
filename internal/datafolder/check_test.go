package datafolder_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/datafolder"
)

// TestFindEnclosing finds the data folder that a path lies in, by whatever way it leads there, and
// though one identity file, or both, are lost.
func TestFindEnclosing(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(root, name) }
	f, err := datafolder.Open(in("data"), datafolder.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"other", "data/own", "data/db/log"} {
		if err := os.MkdirAll(in(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"link": "data", "other/deep": "../data/output", "other/dangling": "../data/none", "data/out": "../other"} {
		if err := os.Symlink(target, in(link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(in("identity"), []byte("somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	look := func(when string) {
		t.Helper()
		for _, path := range []string{"data", "data/x", "data/own", "data/db/000001.sst", "data/output/new/deeper", "link", "link/x", "other/deep/x", "other/dangling", "other/dangling/x"} {
			if got, err := datafolder.FindEnclosing(in(path)); got != in("data") || err != nil {
				t.Errorf("%s: %s: %q, %v", when, path, got, err)
			}
		}
		for _, path := range []string{".", "other", "other/x", "data2", "data/../x", "data/out", "data/out/x", "none/at/all"} {
			if got, err := datafolder.FindEnclosing(in(path)); got != "" || err != nil {
				t.Errorf("%s: %s: %q, %v", when, path, got, err)
			}
		}
	}
	look("whole")
	for _, name := range []string{"data/identity", "data/identity.copy"} {
		if err := os.Remove(in(name)); err != nil {
			t.Fatal(err)
		}
		look("without " + name)
	}
}

// TestNestedDataFoldersAreRefused: neither a server nor a restore makes one there.
func TestNestedDataFoldersAreRefused(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	f, err := datafolder.Open(data, datafolder.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := "lies in the data folder " + f.Path()
	if _, err := datafolder.Open(data+"/worker/new", datafolder.Options{}); err == nil || !strings.Contains(err.Error(), want) {
		t.Error(err)
	}
	if _, err := datafolder.CreateDraft(data+"/output/new", f.ID()); err == nil || !strings.Contains(err.Error(), want) {
		t.Error(err)
	}
	if err := os.Mkdir(data+"/worker/empty", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := datafolder.Open(data+"/worker/empty", datafolder.Options{}); err == nil || !strings.Contains(err.Error(), want) {
		t.Error(err)
	}
	for _, name := range []string{"/output/new", "/worker/new", "/worker/empty/identity"} {
		if _, err := os.Lstat(data + name); err == nil {
			t.Errorf("%s was made", name)
		}
	}
}
