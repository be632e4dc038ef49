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

// Temporary files and folders whose names begin with a prefix of their own are locked as long
// as their maker lives. So the next maker in the same folder can remove what one that was
// killed has left.

// MakeFolder makes a folder in dir ("" = the system's for temporary files), and removes those
// with this prefix that processes of this user have left. used, if not nil, tells whether such a
// folder is still used by another process than its maker; then it stays. The caller removes
// the folder, then closes what is returned.
func MakeFolder(dir, prefix string, used func(path string) bool) (*os.File, error) {
	return makeLocked(dir, prefix, true, used, func(dir string) (*os.File, error) {
		path, err := os.MkdirTemp(dir, prefix+"*")
		if err != nil {
			return nil, err
		}
		return OpenFolder(path)
	})
}

// MakeFile is MakeFolder for a file that is open for reading and writing.
func MakeFile(dir, prefix string) (*os.File, error) {
	return makeLocked(dir, prefix, false, nil, func(dir string) (*os.File, error) { return os.CreateTemp(dir, prefix+"*") })
}

func makeLocked(dir, prefix string, folder bool, used func(path string) bool, create func(dir string) (*os.File, error)) (*os.File, error) {
	if dir == "" {
		dir = os.TempDir()
	}
	removeLeft(dir, prefix, folder, used)
	for range 100 {
		f, err := create(dir)
		if errors.Is(err, fs.ErrNotExist) {
			if _, derr := os.Stat(dir); derr == nil {
				continue // removed between two steps of making it
			}
		}
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		// Another one may have taken it for left behind before it was locked. Where nothing
		// can be locked, nobody removes anything.
		if isStill(f) && !errors.Is(err, unix.EWOULDBLOCK) {
			return f, nil
		}
		f.Close()
	}
	return nil, fmt.Errorf("%s: whatever is made there is removed by somebody else", filepath.Join(dir, prefix+"*"))
}

// isStill tells whether an open file is what lies under its name.
func isStill(f *os.File) bool {
	info, err := f.Stat()
	named, nerr := os.Lstat(f.Name())
	return err == nil && nerr == nil && os.SameFile(info, named)
}

// removeLeft removes what is of this user, not locked and not used. What cannot be removed stays.
func removeLeft(dir, prefix string, folder bool, used func(path string) bool) {
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
		if err == nil && (info.IsDir() || info.Mode().IsRegular()) && ownFile(info) &&
			unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && isStill(f) &&
			(used == nil || !used(path)) {
			_ = os.RemoveAll(path) // what stays is tried again
		}
		f.Close()
	}
}

func ownFile(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}
