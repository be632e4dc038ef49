package vfs_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/vfs"
)

func TestFileChanges(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	now := time.Unix(1000, 0)
	write := func(name, text string, modified time.Time) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, modified, modified); err != nil {
			t.Fatal(err)
		}
	}
	write(a, "1", now)
	changes := vfs.WatchFiles(a, b)
	found := func(what string, after time.Duration, want bool) {
		t.Helper()
		now = now.Add(after)
		if got := changes.Found(now); got != want {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	found("as they were", time.Hour, false)
	write(a, "2", now)
	found("too soon", time.Second/2, false)
	found("another time", time.Second, true)
	found("the same version again", time.Hour, false)
	write(a, "22", now.Add(-time.Hour))
	changes.Expire()
	found("another size, at once", 0, true)
	write(b, "1", now)
	found("a file that was missing", time.Hour, true)
	if err := os.Remove(a); err != nil {
		t.Fatal(err)
	}
	found("a file that goes", time.Hour, true)
	write(a, "22", now.Add(-time.Hour))
	found("a file that returns", time.Hour, true)
}
