package badgerguard

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"
)

// ErrInUse means that another process holds a folder's lock.
var ErrInUse = errors.New("in use by another server")

// InUse returns ErrInUse with the process that holds the folder, as far as Badger's lock file
// knows it.
func InUse(dir string) error {
	if pid, err := vfs.ReadFile(filepath.Join(dir, "LOCK")); err == nil {
		return fmt.Errorf("%w (process %s)", ErrInUse, strings.TrimSpace(string(pid)))
	}
	return ErrInUse
}

// OpenError makes an error of badger.Open recognizable: Badger reports a locked folder by its text
// only.
func OpenError(dir string, err error) error {
	if strings.Contains(err.Error(), "Cannot acquire directory lock") {
		return InUse(dir)
	}
	return err
}

// LockFolder takes the lock that Badger takes on a folder. The error wraps ErrInUse when another
// process has it.
func LockFolder(dir string) (unlock func() error, err error) {
	f, err := vfs.OpenFolder(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, InUse(dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f.Close, nil
}

// HoldsDatabase reports whether a folder has a manifest or a table.
func HoldsDatabase(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if e.Name() == manifestName || strings.HasSuffix(e.Name(), tableSuffix) {
			return true, nil
		}
	}
	return false, nil
}

// RemoveUnsyncedFiles deletes the files of Badger that hold only what the commit log has too: its
// own log files and the statistics of the value log. Badger must not replay them: it takes the
// first damaged entry for the end.
//
// flushed says that tables hold commits that the log no longer has. Then the manifest must be
// there: without it Badger would start a new one and delete the tables.
func RemoveUnsyncedFiles(dir string, flushed bool) error {
	manifest := filepath.Join(dir, manifestName)
	if _, err := os.Stat(manifest); flushed && err != nil {
		return fmt.Errorf("%s: %w: the tables cannot be told from leftovers", manifest, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !isUnsyncedFile(e.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// isUnsyncedFile reports whether a file of Badger holds no row of ours that counts.
func isUnsyncedFile(name string) bool {
	return strings.HasSuffix(name, ".mem") || strings.HasSuffix(name, ".vlog") || name == "DISCARD"
}

// NewestFlushed returns the newest commit of which tables have any row. A managed Badger numbers
// the versions of rows by the caller's commits. Tables have all commits before that one.
func NewestFlushed(tables []badger.TableInfo) (commit uint64) {
	for _, t := range tables {
		commit = max(commit, t.MaxVersion)
	}
	return commit
}
