package vfs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/caravan-dag/caravan/internal/vfs"
)

func TestOSReadsWritesAndRenames(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "a")
	f, err := vfs.OS{}.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("text"), 2); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err == nil {
		t.Error("a closed file was synced")
	}
	if err := (vfs.OS{}).Rename(name, name+"b"); err != nil {
		t.Fatal(err)
	}
	if err := (vfs.OS{}).SyncDir(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(name + "b"); err != nil || string(got) != "\x00\x00text" {
		t.Errorf("%q, %v", got, err)
	}
	if f, err := (vfs.OS{}).OpenFile(name, os.O_RDWR, 0); !errors.Is(err, fs.ErrNotExist) || f != nil {
		t.Errorf("a missing file: %v, %v", f, err)
	}
}

// A link in a data folder is not followed: it may lead to anybody's file.
func TestOpenFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("elsewhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := (vfs.OS{}).OpenFile(filepath.Join(dir, "link"), os.O_RDWR|os.O_CREATE, 0o600); err == nil {
		t.Error("a link was followed")
	}
	if _, err := os.Stat(filepath.Join(dir, "elsewhere")); err == nil {
		t.Error("the link's target was made")
	}
}

func TestLockHasOneHolder(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	first, err := vfs.OS{}.Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (vfs.OS{}).Lock(name); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("a second holder: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := vfs.OS{}.Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}
