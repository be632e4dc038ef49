package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Temporary files and folders with a prefix are locked while their creator lives. Therefore the
// next creator in the same folder can remove those of killed processes.

// CreateTempFolder creates a folder in dir ("" = the system's folder for temporary files), and
// removes folders with this prefix that killed processes of this user have left. used, if not nil,
// reports whether another process than its creator still uses such a folder, which then stays. The
// caller removes the folder, and closes the returned file after that.
func CreateTempFolder(dir, prefix string, used func(path string) bool) (*os.File, error) {
	return createLocked(dir, prefix, true, used, func(dir string) (*os.File, error) {
		path, err := os.MkdirTemp(dir, prefix+"*")
		if err != nil {
			return nil, err
		}
		return OpenFolder(path)
	})
}

// CreateTempFile is CreateTempFolder for a file that is open for reading and writing.
func CreateTempFile(dir, prefix string) (*os.File, error) {
	return createLocked(dir, prefix, false, nil, func(dir string) (*os.File, error) { return os.CreateTemp(dir, prefix+"*") })
}

func createLocked(dir, prefix string, folder bool, used func(path string) bool, create func(dir string) (*os.File, error)) (*os.File, error) {
	if dir == "" {
		dir = os.TempDir()
	}
	removeAbandoned(dir, prefix, folder, used)
	for range 100 {
		f, err := create(dir)
		if errors.Is(err, fs.ErrNotExist) {
			if _, derr := os.Stat(dir); derr == nil {
				continue // another process removed it between two steps of the creation
			}
		}
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		// Another process may have removed the file before it was locked. On a file system without
		// locks no process removes anything.
		if isSameFile(f) && !errors.Is(err, unix.EWOULDBLOCK) {
			return f, nil
		}
		f.Close()
	}
	return nil, fmt.Errorf("%s: other processes remove everything that is created", filepath.Join(dir, prefix+"*"))
}

// isSameFile reports whether an open file still has its name.
func isSameFile(f *os.File) bool {
	info, err := f.Stat()
	named, nerr := os.Lstat(f.Name())
	return err == nil && nerr == nil && os.SameFile(info, named)
}

// removeAbandoned removes files of this user that are neither locked nor used. Files that cannot be
// removed stay.
func removeAbandoned(dir, prefix string, folder bool, used func(path string) bool) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		if !strings.HasPrefix(e.Name(), prefix) || e.IsDir() != folder {
			continue
		}
		flag := os.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
		if folder {
			flag |= unix.O_DIRECTORY
		}
		f, err := os.OpenFile(path, flag, 0)
		if err != nil {
			continue
		}
		info, err := f.Stat()
		if err == nil && (info.IsDir() || info.Mode().IsRegular()) && isOwnFile(info) &&
			unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && isSameFile(f) &&
			(used == nil || !used(path)) {
			_ = os.RemoveAll(path) // the next call retries
		}
		f.Close()
	}
}

func isOwnFile(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}
