package vfs_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// TestAbandonedTemporariesAreRemoved: what nobody holds any more is removed by the next maker, and
// nothing else is.
func TestAbandonedTemporariesAreRemoved(t *testing.T) {
	for kind, c := range map[string]struct {
		make func(dir, prefix string) (*os.File, error)
		left func(path string) error
	}{
		"folders": {func(dir, prefix string) (*os.File, error) {
			return vfs.CreateTempFolder(dir, prefix, func(path string) bool { return filepath.Base(path) == "work-used" })
		}, func(path string) error {
			if err := os.MkdirAll(filepath.Join(path, "view"), 0o700); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(path, "view", "000001.sst"), []byte("x"), 0o600)
		}},
		"files": {vfs.CreateTempFile, func(path string) error { return os.WriteFile(path, []byte("x"), 0o600) }},
	} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			in := func(name string) string { return filepath.Join(dir, name) }
			held, err := c.make(dir, "work-")
			if err != nil {
				t.Fatal(err)
			}
			defer held.Close()
			stays := []string{filepath.Base(held.Name()), "others-1", "work-link", "elsewhere"}
			for _, name := range []string{"work-left", "work-", "others-1", "elsewhere"} {
				if err := c.left(in(name)); err != nil {
					t.Fatal(err)
				}
			}
			if kind == "folders" {
				if err := c.left(in("work-used")); err != nil {
					t.Fatal(err)
				}
				stays = append(stays, "work-used")
			}
			if err := os.Symlink("elsewhere", in("work-link")); err != nil {
				t.Fatal(err)
			}
			if os.Geteuid() == 0 {
				if err := c.left(in("work-foreign")); err != nil {
					t.Fatal(err)
				}
				if err := os.Chown(in("work-foreign"), 65534, 65534); err != nil {
					t.Fatal(err)
				}
				stays = append(stays, "work-foreign")
			}
			next, err := c.make(dir, "work-")
			if err != nil {
				t.Fatal(err)
			}
			defer next.Close()
			var names []string
			list, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				names = append(names, e.Name())
			}
			stays = append(stays, filepath.Base(next.Name()))
			slices.Sort(stays)
			if got, want := strings.Join(names, " "), strings.Join(stays, " "); got != want {
				t.Errorf("there are %s, want %s", got, want)
			}
		})
	}
	if _, err := vfs.CreateTempFolder(filepath.Join(t.TempDir(), "none"), "work-", nil); !os.IsNotExist(err) {
		t.Error(err)
	}
}
