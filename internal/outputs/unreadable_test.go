package outputs_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/internal/outputs"
)

// TestVerifyUnreadableFile: an output file that cannot be opened is damage that names it.
func TestVerifyUnreadableFile(t *testing.T) {
	for kind, spoil := range map[string]func(path string) error{
		"folder": func(path string) error { return os.Mkdir(path, 0o700) },
		"pipe":   func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"link":   func(path string) error { return os.Symlink("/etc/passwd", path) },
	} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "0", "7.out")
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := spoil(path); err != nil {
				t.Fatal(err)
			}
			var found []*outputs.DamageError
			err := outputs.Verify(dir, 7, slices.Values[[]outputs.Ref](nil), func(d *outputs.DamageError) { found = append(found, d) })
			if err != nil || len(found) != 1 || found[0].File != path || !strings.Contains(found[0].Error(), "(run 7)") {
				t.Errorf("%v, %v", found, err)
			}
		})
	}
}
