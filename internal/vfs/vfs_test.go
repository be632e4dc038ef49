package vfs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/internal/vfs"
	"golang.org/x/sys/unix"
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

// TestLockOfAKilledServerIsWaitedFor: a child of a killed server holds the lock until its exec.
func TestLockOfAKilledServerIsWaitedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	open := func() *os.File {
		f, err := vfs.OpenNoFollow(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	// On a busy machine the holder may take longer than a caller waits.
	testenv.RepeatWithin(t, testenv.Patience, "the lock is had once its holder is gone", func() bool {
		held, wanted := open(), open()
		if err := vfs.WaitForLock(held, unix.LOCK_EX); err != nil {
			return false // that of the try before
		}
		time.AfterFunc(50*time.Millisecond, func() { held.Close() })
		return vfs.WaitForLock(wanted, unix.LOCK_EX) == nil
	})
	if err := vfs.WaitForLock(open(), unix.LOCK_SH); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("a held lock gives %v", err)
	}
}
