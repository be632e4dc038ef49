package worker

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/vfs"
)

func TestFolderIsLockedAndPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/[x]*/", 20))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f, l, err := CreateFolder(dir, Settings{Version: "v"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if paths, err := ListFolders(dir); err != nil || len(paths) != 1 || paths[0] != f.Path {
		t.Errorf("%q, %v", paths, err)
	}
	st, err := os.Stat(filepath.Join(f.Path, socketFile))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if st, err := os.Stat(f.Path); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st, err)
	}
	c, err := Dial(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := LockFolder(f.Path); err == nil || !strings.Contains(err.Error(), vfs.ErrLocked.Error()) {
		t.Errorf("taken: %v", err)
	}
	if err := f.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := LockFolder(f.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is gone: %v", err)
	}
	if _, err := Dial(f.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is gone: %v", err)
	}
	if checkUser(1, 2) == nil || checkUser(2, 2) != nil {
		t.Error("users")
	}
}
