package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// OpenOwn is os.OpenFile for regular files: a FIFO, a device, a socket, a folder and a
// symbolic link at the end of the path are errors that say so. It never waits for the
// other end of a FIFO.
func OpenOwn(name string, flag int, perm fs.FileMode) (*os.File, error) {
	return openRegular(name, flag|unix.O_NOFOLLOW|unix.O_NOCTTY, perm, 0)
}

// OpenGiven is OpenOwn for reading, for paths that the user names: a symbolic link may lead to the file.
func OpenGiven(name string) (*os.File, error) {
	return openRegular(name, os.O_RDONLY|unix.O_NOCTTY, 0, 0)
}

// explain says of a file that cannot be opened what it is, where that is why.
func explain(name string, flag int, err error) error {
	var info fs.FileInfo
	var serr error
	switch {
	case errors.Is(err, unix.ELOOP) && flag&unix.O_NOFOLLOW != 0:
		info, serr = os.Lstat(name)
	case errors.Is(err, unix.ENXIO): // a socket, or a FIFO that nobody reads
		info, serr = os.Stat(name)
	default:
		return err
	}
	if serr != nil || info.Mode().IsRegular() {
		return err
	}
	return &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("it is %s, %w (%w)", kind(info.Mode()), ErrNotRegular, errors.Unwrap(err))}
}

func irregular(name string, mode fs.FileMode) error {
	return &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("it is %s, %w", kind(mode), ErrNotRegular)}
}

func kind(mode fs.FileMode) string {
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

// LargestGiven bounds the files that configure a server: settings, tokens, certificates.
const LargestGiven = 1 << 20

// ReadGiven reads a regular file that the user names, of at most LargestGiven bytes.
func ReadGiven(name string) ([]byte, error) {
	f, err := OpenGiven(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, LargestGiven+1))
	if err == nil && len(text) > LargestGiven {
		err = &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("too large: at most %d bytes are read", LargestGiven)}
	}
	if err != nil {
		return nil, err
	}
	return text, nil
}

// OpenFolder opens a folder, and nothing else.
func OpenFolder(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
}

// CheckFolder refuses a folder in which something is neither a regular file nor a folder.
func CheckFolder(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if !e.IsDir() && !e.Type().IsRegular() {
			return irregular(dir+"/"+e.Name(), e.Type())
		}
	}
	return nil
}
