package vfs_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// TestOnlyRegularFilesAreOpened: nothing else is, whatever it is opened for, and no open
// waits.
func TestOnlyRegularFilesAreOpened(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(in("file"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(in("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", in("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Mkdir(in("folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"link": "file", "tofifo": "fifo"} {
		if err := os.Symlink(target, in(link)); err != nil {
			t.Fatal(err)
		}
	}
	what := map[string]string{
		in("fifo"): "a FIFO", in("socket"): "a socket", "/dev/zero": "a device", "/dev/null": "a device",
		in("tofifo"): "a symbolic link", in("link"): "a symbolic link",
	}
	for path, is := range what {
		for _, flag := range []int{os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_CREATE | os.O_APPEND} {
			f, err := vfs.OpenNoFollow(path, flag, 0o600)
			if err == nil || f != nil || !strings.Contains(err.Error(), path+": it is "+is) {
				t.Errorf("%s with flags %#x: %v", path, flag, err)
			}
		}
	}
	what[in("tofifo")], what[in("folder")] = "a FIFO", "a folder"
	delete(what, in("link"))
	for path, is := range what {
		if _, err := vfs.ReadUserFile(path); err == nil || !strings.Contains(err.Error(), path+": it is "+is) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, name := range []string{"file", "link"} {
		if text, err := vfs.ReadUserFile(in(name)); err != nil || string(text) != "text" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	if err := os.Truncate(in("file"), vfs.MaxUserFileBytes+1); err != nil {
		t.Fatal(err)
	}
	if _, err := vfs.ReadUserFile(in("file")); err == nil || !strings.Contains(err.Error(), "at most 1048576 bytes") {
		t.Error(err)
	}
	if f, err := vfs.OpenFolder(in("fifo")); err == nil {
		t.Error(f.Name())
	}
	if _, err := (vfs.OS{}).Lock(in("fifo")); err == nil {
		t.Error("a FIFO was locked")
	}
	if err := vfs.CheckRegularFiles(dir); err == nil || !strings.Contains(err.Error(), "fifo: it is a FIFO") {
		t.Error(err)
	}
	if err := vfs.CheckRegularFiles(in("folder")); err != nil {
		t.Error(err)
	}
}
