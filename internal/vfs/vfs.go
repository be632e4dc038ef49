package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// FS is a file system. Its errors are those of package os.
type FS interface {
	// OpenFile is os.OpenFile. A symbolic link as the last element, a folder and a pipe are errors;
	// it never waits for the other end of a pipe.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	Rename(from, to string) error
	Remove(name string) error
	// MkdirAll creates a folder and its parents. It does not sync their names.
	MkdirAll(dir string, perm fs.FileMode) error
	// ReadDir lists a folder by ascending names.
	ReadDir(dir string) ([]fs.DirEntry, error)
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the names in a folder durable.
	SyncDir(dir string) error
	// Lock locks a file for this process, and creates it if necessary. The error is ErrLocked if
	// another process holds the lock. Closing releases the lock, and so does the end of the
	// process.
	Lock(name string) (io.Closer, error)
}

// File is an open file without an offset of its own.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Name() string
	Stat() (fs.FileInfo, error)
	Truncate(size int64) error
	// Sync makes the content durable, with the metadata that is needed to read it (fdatasync).
	Sync() error
	// WriteOut writes n bytes of the content to the device and waits for that. It shortens the next
	// Sync and does not replace it.
	WriteOut(off, n int64) error
}

// ErrLocked means that another process holds the lock.
var ErrLocked = errors.New("locked by another process")

// OS is the file system of the operating system.
type OS struct{}

var _ FS = OS{}

// OpenFile opens a file.
func (OS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := openRegular(name, flag|unix.O_NOFOLLOW, perm, fs.ModeCharDevice)
	if err != nil {
		return nil, err // a nil interface, not a File around a nil pointer
	}
	return file{f}, nil
}

// ErrNotRegular means that the path leads to a folder, a pipe or a device.
var ErrNotRegular = errors.New("not a regular file")

// openRegular opens a regular file, or one whose type has a bit of also.
func openRegular(name string, flag int, perm, also fs.FileMode) (*os.File, error) {
	f, err := os.OpenFile(name, flag|unix.O_NONBLOCK, perm)
	if err != nil {
		return nil, explainOpenError(name, flag, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && info.Mode()&also == 0 {
		err = irregularError(name, info.Mode())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Open opens a regular file for reading. It follows links.
func Open(name string) (*os.File, error) { return openRegular(name, os.O_RDONLY, 0, 0) }

// ReadFile reads a whole file that Open opens.
func ReadFile(name string) ([]byte, error) {
	f, err := Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// IsFileError reports whether an error concerns the file that it names.
func IsFileError(err error) bool {
	var file *fs.PathError
	return errors.As(err, &file) && !IsResourceExhausted(err)
}

// IsResourceExhausted reports whether an error means that descriptors or memory ran out, and so is
// independent of the file that it names.
func IsResourceExhausted(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}

// Rename renames a file.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// Remove removes a file or an empty folder.
func (OS) Remove(name string) error { return os.Remove(name) }

// MkdirAll creates a folder and its parents.
func (OS) MkdirAll(dir string, perm fs.FileMode) error { return os.MkdirAll(dir, perm) }

// ReadDir lists a folder.
func (OS) ReadDir(dir string) ([]fs.DirEntry, error) { return os.ReadDir(dir) }

// Stat describes the target of a path.
func (OS) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

// SyncDir syncs a folder.
func (OS) SyncDir(dir string) error {
	d, err := OpenFolder(dir)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		d.Close()
		return err
	}
	return d.Close()
}

// Lock locks a file.
func (OS) Lock(name string) (io.Closer, error) {
	f, err := LockFile(name)
	if err != nil {
		return nil, err // a nil interface, not a Closer around a nil pointer
	}
	return f, nil
}

// LockFile opens a file, which it creates if it is missing, and locks it for as long as it is open, in
// this process or in a child that has inherited it. The error wraps ErrLocked when another process
// holds the lock, and fs.ErrNotExist when the folder is missing.
func LockFile(name string) (*os.File, error) {
	f, err := OpenNoFollow(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return f, nil
}

// WaitForLock locks an open file or folder with unix.LOCK_EX or LOCK_SH. It waits up to 2 seconds
// for another process, because a child of a killed server may hold the server's locks a little
// longer, between its fork and its exec. The error is ErrLocked when another process has the lock.
func WaitForLock(f *os.File, how int) error {
	const patience, pause = 2 * time.Second, 20 * time.Millisecond
	for begin := time.Now(); ; time.Sleep(pause) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case err == unix.EINTR:
		case err != unix.EWOULDBLOCK:
			return os.NewSyscallError("flock", err)
		case time.Since(begin) > patience:
			return ErrLocked
		}
	}
}

type file struct{ *os.File }

func (f file) Sync() error {
	defer runtime.KeepAlive(f.File)
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
		return nil
	}
}

func (f file) WriteOut(off, n int64) error {
	defer runtime.KeepAlive(f.File)
	err := unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	if err != nil && err != unix.ENOSYS && err != unix.EINTR {
		return &fs.PathError{Op: "sync_file_range", Path: f.Name(), Err: err}
	}
	return nil
}
