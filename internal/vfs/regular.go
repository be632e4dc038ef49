package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// OpenNoFollow is os.OpenFile for regular files. A FIFO, a device, a socket, a folder and a
// symbolic link as the last element are errors that say so. It never waits for the other end of a
// FIFO.
func OpenNoFollow(name string, flag int, perm fs.FileMode) (*os.File, error) {
	return openRegular(name, flag|unix.O_NOFOLLOW|unix.O_NOCTTY, perm, 0)
}

// OpenUserFile opens a file for reading whose path a user names. Unlike OpenNoFollow it follows a
// symbolic link.
func OpenUserFile(name string) (*os.File, error) {
	return openRegular(name, os.O_RDONLY|unix.O_NOCTTY, 0, 0)
}

// explainOpenError adds the type of a file to an error of opening it, if the type is the cause.
func explainOpenError(name string, flag int, err error) error {
	var info fs.FileInfo
	var serr error
	switch {
	case errors.Is(err, unix.ELOOP) && flag&unix.O_NOFOLLOW != 0:
		info, serr = os.Lstat(name)
	case errors.Is(err, unix.ENXIO): // a socket, or a FIFO without a reader
		info, serr = os.Stat(name)
	default:
		return err
	}
	if serr != nil || info.Mode().IsRegular() {
		return err
	}
	return &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("it is %s, %w (%w)", describeMode(info.Mode()), ErrNotRegular, errors.Unwrap(err))}
}

func irregularError(name string, mode fs.FileMode) error {
	return &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("it is %s, %w", describeMode(mode), ErrNotRegular)}
}

func describeMode(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a folder"
	case mode&fs.ModeSymlink != 0:
		return "a symbolic link"
	case mode&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	}
	return "something else"
}

// MaxUserFileBytes bounds the files that configure a server: settings, tokens, certificates.
const MaxUserFileBytes = 1 << 20

// ReadUserFile reads a regular file that a user names, of at most MaxUserFileBytes bytes.
func ReadUserFile(name string) ([]byte, error) {
	f, err := OpenUserFile(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MaxUserFileBytes+1))
	if err == nil && len(text) > MaxUserFileBytes {
		err = &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("too large: at most %d bytes are allowed", MaxUserFileBytes)}
	}
	if err != nil {
		return nil, err
	}
	return text, nil
}

// OpenFolder opens a folder. Anything else is an error.
func OpenFolder(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
}

// CheckRegularFiles refuses a folder that contains anything but regular files and folders.
func CheckRegularFiles(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if !e.IsDir() && !e.Type().IsRegular() {
			return irregularError(dir+"/"+e.Name(), e.Type())
		}
	}
	return nil
}
