package outputs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// HoldRemovals defers the removal of files until the caller calls release, once. A backup holds
// them while it copies the files of the runs that its rows have. Holds may overlap; the last
// release removes what is due, on the goroutine that calls it.
func (s *Store) HoldRemovals() (release func()) {
	s.mu.Lock()
	s.removalHolds++
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		var due []messages.RunID
		if s.removalHolds--; s.removalHolds == 0 {
			due, s.deferredRemovals = s.deferredRemovals, nil
		}
		s.mu.Unlock()
		for _, run := range due {
			// After an error the file stays, as after a crash.
			_ = s.Remove(run)
		}
	}
}

// ForEachRun yields the runs that have a file, in arbitrary order, until yield returns an error.
// Files with other names are skipped. A run that gets its file while the folder is read may be left
// out.
func (s *Store) ForEachRun(yield func(messages.RunID) error) error {
	folders, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("output folder: %w", err)
	}
	for _, folder := range folders {
		list, err := s.fs.ReadDir(filepath.Join(s.dir, folder.Name()))
		if errors.Is(err, fs.ErrNotExist) || !folder.IsDir() {
			continue
		}
		if err != nil {
			return fmt.Errorf("output folder: %w", err)
		}
		for _, e := range list {
			name, ok := strings.CutSuffix(e.Name(), ".out")
			n, err := strconv.ParseUint(name, 10, 64)
			if !ok || err != nil || s.path(messages.RunID(n)) != filepath.Join(s.dir, folder.Name(), e.Name()) {
				continue
			}
			if err := yield(messages.RunID(n)); err != nil {
				return err
			}
		}
	}
	return nil
}

// ReadRun calls fn with the present content of a run's file. For a run without a file it does not
// call fn. The content is passed on as it is, damaged or not: its checksums go along, and a read of
// the copy finds the damage.
func (s *Store) ReadRun(run messages.RunID, fn func(size int64, r io.Reader) error) error {
	f, err := s.acquire(run, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer s.release(f)
	size, err := f.size()
	if err != nil {
		return fmt.Errorf("output of run %d: %w", run, err)
	}
	return fn(size, io.NewSectionReader(f.f, 0, size))
}

// ImportRun creates the file of a run with size bytes of r, as ReadRun has yielded them. It is
// durable when ImportRun returns. A run that has a file is an error, and so is an r with fewer or
// more bytes.
func (s *Store) ImportRun(run messages.RunID, size int64, r io.Reader) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("output of run %d: %w", run, err)
		}
	}()
	path := s.path(run)
	if err := s.fs.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := s.fs.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.NewOffsetWriter(f, 0), r)
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return errors.Join(s.fs.SyncDir(filepath.Dir(path)), s.fs.SyncDir(s.dir))
}

// CopyRun copies the file of a run, if it has one, to an output folder that does not have it yet.
// It returns when the copy is durable.
func CopyRun(from, to string, run messages.RunID) (err error) {
	in, err := vfs.OS{}.OpenFile(runPath(from, run), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	name := runPath(to, run)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	out, err := vfs.OS{}.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.NewOffsetWriter(out, 0), io.NewSectionReader(in, 0, info.Size()))
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	return errors.Join(vfs.OS{}.SyncDir(filepath.Dir(name)), vfs.OS{}.SyncDir(to))
}
