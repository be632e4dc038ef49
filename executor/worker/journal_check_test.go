package worker

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestCheckJournal: a journal that is whole is no error; one that is changed, cut or missing
// is an error that names it.
func TestCheckJournal(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, journalFileName)
	whole := sample("b", 1)
	put := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(whole)
	if err := CheckJournal(dir); err != nil {
		t.Errorf("a whole one: %v", err)
	}
	damaged := func(what string) {
		t.Helper()
		var damage *JournalError
		if err := CheckJournal(dir); !errors.As(err, &damage) || damage.File != path || damage.Fault == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range whole {
		put(whole[:i])
		damaged("cut")
		changed := append([]byte(nil), whole...)
		changed[i] ^= 4
		put(changed)
		damaged("changed")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	damaged("missing")
	if err := CheckJournal(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a worker that is gone: %v", err)
	}
}
