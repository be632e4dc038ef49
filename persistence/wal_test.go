package persistence

import (
	"os"
	"path/filepath"
	"testing"
)

// While the files of a killed server are looked at, Badger may remove one of them.
func TestWALWhoseOlderFileGoes(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("gone", filepath.Join(dir, "00001.mem")); err != nil { // is listed, and cannot be opened
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "00002.mem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := openWAL(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	if w.last != 2 {
		t.Errorf("the newest file is %d, want 2", w.last)
	}
}
