package cluster

import (
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
