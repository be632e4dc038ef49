package outputs

import (
	"container/list"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// file is the open output file of a run. All appends and reads of a store to one run share it. It
// is open as long as it has users, and after that while it is among the maxOpen files that were
// used last: a run with many small tasks then opens its file once.
type file struct {
	f vfs.File

	// Store.mu guards these.
	run     messages.RunID
	refs    int           // users between acquire and release
	idle    *list.Element // its place in Store.idle, while refs is 0 and the file is in Store.files
	removed bool          // by Remove: the last user closes it

	mu           sync.Mutex
	nameUnsynced bool       // not synced since it was opened: its name may not be durable
	syncing      bool       // a goroutine is in fdatasync, without mu
	syncsStarted uint64     // number of syncs started
	synced       *sync.Cond // on mu; signalled at the end of each sync
	syncsDone    uint64     // number of the latest finished sync
	syncErr      error      // first error of a sync; final, because the kernel may have dropped pages
}

// acquire returns the file of a run and opens it if necessary. The caller releases it. Without
// create, a missing file is an error that matches fs.ErrNotExist. After Close the error is ErrClosed.
func (s *Store) acquire(run messages.RunID, create bool) (*file, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	f := s.files[run]
	if f == nil {
		osf, err := openFile(s.fs, s.path(run), create)
		if err != nil {
			return nil, fmt.Errorf("output of run %d: %w", run, err)
		}
		f = &file{f: osf, run: run, nameUnsynced: true}
		f.synced = sync.NewCond(&f.mu)
		s.files[run] = f
		s.evictIdle(maxOpen)
	} else if f.refs == 0 {
		s.idle.Remove(f.idle)
	}
	f.refs++
	return f, nil
}

// release ends a use that acquire began. The caller does not touch f after that.
func (s *Store) release(f *file) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.refs--
	switch {
	case f.refs > 0:
	case f.removed:
		f.f.Close()
	default:
		f.idle = s.idle.PushBack(f)
		if s.closed {
			s.evictIdle(0)
		} else {
			s.evictIdle(maxOpen)
		}
	}
}

// evictIdle closes idle files until at most keep files are open, or no idle one is left. The caller
// holds s.mu.
func (s *Store) evictIdle(keep int) {
	for len(s.files) > keep && s.idle.Len() > 0 {
		f := s.idle.Remove(s.idle.Front()).(*file)
		delete(s.files, f.run)
		// The error does not matter: all acknowledged bytes are synced.
		f.f.Close()
	}
}

// openFile opens the file for reading and writing, and with create makes it and its folder. It
// tries the file first: the folder of a thousand runs is there already for all but one of them.
func openFile(fsys vfs.FS, path string, create bool) (vfs.File, error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE
	}
	f, err := fsys.OpenFile(path, flags, 0o600)
	if create && errors.Is(err, fs.ErrNotExist) {
		if err := fsys.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, err
		}
		f, err = fsys.OpenFile(path, flags, 0o600)
	}
	return f, err
}

// syncNames makes the names of the file and of its folder durable. Both may be new.
func syncNames(fsys vfs.FS, path string) error {
	dir := filepath.Dir(path)
	if err := fsys.SyncDir(dir); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(dir))
}

// reserveSpace extends the file by n bytes and returns their offset. The size of the file tells
// other processes where the next append begins, so the lock is held for the change of the size
// alone, and the bytes are written in parallel. The new bytes read as zeros until then; they are a
// hole, which takes no space: the write may still find the disk full.
func (f *file) reserveSpace(n int64) (off int64, err error) {
	err = f.withFileLock(func() (err error) {
		if off, err = f.size(); err != nil {
			return err
		}
		return f.f.Truncate(off + n)
	})
	return off, err
}

// releaseSpace undoes a reservation whose bytes were not written, if it is still at the end of the
// file: a full disk needs the space. Elsewhere it stays as a gap.
func (f *file) releaseSpace(off, n int64) {
	// An error is ignored: the file then stays a little longer than necessary.
	_ = f.withFileLock(func() error {
		end, err := f.size()
		if err != nil || end != off+n {
			return err
		}
		return f.f.Truncate(off)
	})
}

// withFileLock calls do while no other append, of this or another process, changes the size of the
// file. f.mu excludes the goroutines of this process, for which flock(2) does not count: they share
// one open file description.
func (f *file) withFileLock(do func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.flock(unix.LOCK_EX); err != nil {
		return err
	}
	return errors.Join(do(), f.flock(unix.LOCK_UN))
}

// flock locks or unlocks the file, and waits for other processes.
func (f *file) flock(how int) error {
	descriptor, ok := f.f.(interface{ Fd() uintptr })
	if !ok {
		return nil // a test's file system, in one process
	}
	for {
		err := unix.Flock(int(descriptor.Fd()), how)
		if err != unix.EINTR {
			return os.NewSyscallError("flock", err)
		}
	}
}

// size returns the size of the file, in bytes.
func (f *file) size() (int64, error) {
	st, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// sync returns when everything written before the call is on disk. Concurrent appends share one
// fdatasync: it covers the callers that asked before it began. A caller that comes while one is
// under way waits for the next, because its bytes may have come too late for this one:
//
//	sync 1        |-----------|
//	caller A      asks          returns
//	caller B          asks                  returns
//	sync 2                    |-----------|
//
// Any of the waiting callers carries out the next sync. After a failed one every later call on this
// open file returns the same error: fdatasync reports lost pages once, and the next one would seem
// to succeed (package vfs, rule 1).
func (f *file) sync(fsys vfs.FS) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	want := f.syncsStarted + 1
	for f.syncsDone < want {
		if f.syncing {
			f.synced.Wait()
			continue
		}
		f.syncing = true
		f.syncsStarted++
		mine, fresh := f.syncsStarted, f.nameUnsynced
		f.mu.Unlock()
		err := f.f.Sync()
		if fresh && err == nil {
			err = syncNames(fsys, f.f.Name())
		}
		f.mu.Lock()
		f.syncing, f.syncsDone = false, mine
		f.nameUnsynced = f.nameUnsynced && err != nil
		if f.syncErr == nil {
			f.syncErr = err
		}
		f.synced.Broadcast()
	}
	return f.syncErr
}
