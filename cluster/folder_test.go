package cluster

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// TestFoldersAreDurableFromAbove: the names of all folders that openFolder makes are synced, each before
// those in it, and before the identity is written.
func TestFoldersAreDurableFromAbove(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "a", "b", "data")
	for _, want := range [][]string{
		{root, filepath.Join(root, "a"), filepath.Join(root, "a", "b"), path},
		{filepath.Join(root, "a", "b")}, // it was made before
	} {
		files := faults.New(vfs.OS{})
		f, _, err := openFolder(files, path, "n1")
		if err != nil {
			t.Fatal(err)
		}
		if err := f.close(); err != nil {
			t.Error(err)
		}
		var synced []string
		for _, call := range files.Calls() {
			if call.Op == faults.SyncDir {
				synced = append(synced, call.Path)
			}
		}
		if !slices.Equal(synced, want) {
			t.Errorf("the folders %v were synced, not %v", synced, want)
		}
	}
}

// TestFixedPartitions: a new folder leaves the number of partitions open, one of a cluster has it.
func TestFixedPartitions(t *testing.T) {
	expect := func(path string, want int) {
		t.Helper()
		if got, err := FixedPartitions(vfs.OS{}, path); got != want || err != nil {
			t.Errorf("%d partitions, %v, not %d", got, err, want)
		}
	}
	path := filepath.Join(t.TempDir(), "data")
	expect(path, 0)
	f, id, err := openFolder(vfs.OS{}, path, "n1")
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	expect(path, 0)
	id.Cluster, id.Partitions = "ab", 3
	if err := f.writeIdentity(id); err != nil {
		t.Fatal(err)
	}
	expect(path, 3)
	if err := os.WriteFile(filepath.Join(path, identityFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := FixedPartitions(vfs.OS{}, path); err == nil {
		t.Error("a damaged file has a number of partitions")
	}
}
