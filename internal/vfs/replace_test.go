package vfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// TestReplaceFile: the content is durable before it has its name, and the name is durable at the end. After
// a failure of any step the file has its former content, or the new one if it was renamed.
func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "record")
	replace := func(files *faults.FS, content string) error {
		return vfs.ReplaceFile(files, path, []byte(content))
	}
	files := faults.New(vfs.OS{})
	if err := replace(files, "a longer first one"); err != nil {
		t.Fatal(err)
	}
	steps := []faults.Op{faults.Create, faults.Write, faults.Sync, faults.Close, faults.Rename, faults.SyncDir}
	var ops []faults.Op
	for _, call := range files.Calls() {
		ops = append(ops, call.Op)
	}
	if !slices.Equal(ops, steps) {
		t.Fatalf("the calls are %v, not %v", ops, steps)
	}
	former := "a longer first one"
	for _, step := range steps {
		files := faults.New(vfs.OS{})
		files.Add(faults.Rule{Op: step})
		if err := replace(files, "new"); !errors.Is(err, faults.ErrInjected) {
			t.Errorf("%s fails: %v", step, err)
		}
		want := former
		if step == faults.SyncDir {
			want = "new"
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("after %s has failed the file has %q, %v", step, got, err)
		}
	}
	if err := replace(faults.New(vfs.OS{}), "last"); err != nil {
		t.Fatal(err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Errorf("the folder has %v, %v", list, err)
	}
}
