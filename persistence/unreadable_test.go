package persistence_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// TestOfflineUnreadableFiles: a file that cannot be opened is a finding that names it; what
// the other files hold is read, and nothing is left in the scratch folder.
func TestOfflineUnreadableFiles(t *testing.T) {
	whole := t.TempDir()
	makeTables(t, whole, 3)
	for kind, spoil := range map[string]func(path string) error{
		"folder": func(path string) error { return os.Mkdir(path, 0o700) },
		"pipe":   func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"loop":   func(path string) error { return os.Symlink(path, path) },
		"no right": func(path string) error {
			return errors.Join(os.WriteFile(path, []byte("x"), 0), os.Chmod(path, 0))
		},
	} {
		if kind == "no right" && os.Geteuid() == 0 {
			continue // root reads it all the same
		}
		for _, name := range readFiles(t, whole) {
			t.Run(kind+" "+name, func(t *testing.T) {
				dir, scratch := t.TempDir(), t.TempDir()
				if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(dir, name)
				if err := errors.Join(os.Remove(path), spoil(path)); err != nil {
					t.Fatal(err)
				}
				o, err := persistence.OpenOffline(t.Context(), dir, scratch)
				if err != nil {
					t.Fatal(err)
				}
				if text := findings(t, o); !strings.Contains(text, path) {
					t.Errorf("the findings do not name %s: %s", path, text)
				}
				runs := 0
				err = o.ScanRows(func(messages.RunID, bool, error) {}, func(_ messages.RunID, complete bool) {
					if complete {
						runs++
					}
				})
				if err != nil || runs < 2 {
					t.Errorf("%d runs are left: %v", runs, err)
				}
				if err := o.Close(); err != nil {
					t.Error(err)
				}
				if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
					t.Errorf("left behind: %v, %v", left, err)
				}
			})
		}
	}
}

// readFiles are the files of a store that hold something, by their paths in it.
func readFiles(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && filepath.Base(name) != "LOCK" {
			names = append(names, name)
		}
		return err
	})
	if err != nil || len(names) < 6 {
		t.Fatalf("%v: %v", names, err)
	}
	return names
}
