package outputs

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// maxOpen is the number of files that stay open while they are idle.
const maxOpen = 64

// Store keeps the output files of runs. It is safe for concurrent use.
type Store struct {
	fs      vfs.FS
	dir     string
	buffers sync.Pool               // of *sectionBuffer
	blocks  sync.Pool               // of *block
	reserve func(total int64) int64 // set by KeepFree; nil = no reserve
	pending atomic.Int64            // bytes of unfinished appends

	mu     sync.Mutex
	closed bool
	damage *DamageError // the first one
	files  map[messages.RunID]*file
	holds  int              // unreleased calls of HoldRemovals
	due    []messages.RunID // removals to do at the last release
	idle   *list.List       // of *file without users, the longest idle first
}

// ErrClosed means that the store is closed.
var ErrClosed = errors.New("output store is closed")

// Open opens an output folder and creates it if necessary.
func Open(dir string) (*Store, error) { return OpenOn(vfs.OS{}, dir) }

// OpenFS is Open on a given file system.
func OpenOn(fs vfs.FS, dir string) (*Store, error) {
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("output folder: %w", err)
	}
	if err := fs.SyncDir(filepath.Dir(dir)); err != nil {
		return nil, fmt.Errorf("output folder: %w", err)
	}
	return &Store{
		fs:      fs,
		dir:     dir,
		buffers: sync.Pool{New: func() any { return new(sectionBuffer) }},
		blocks:  sync.Pool{New: func() any { return new(block) }},
		files:   map[messages.RunID]*file{},
		idle:    list.New(),
	}, nil
}

// Damaged returns the first damage that a read has found since the store was opened, or nil.
func (s *Store) Damaged() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.damage == nil {
		return nil // a nil interface, not an interface around a nil pointer
	}
	return s.damage
}

func (s *Store) noteDamage(e *DamageError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.damage == nil {
		s.damage = e
	}
}

// path is DIR/<run/1000>/<run>.out.
func (s *Store) path(run messages.RunID) string { return path(s.dir, run) }

func path(dir string, run messages.RunID) string {
	return filepath.Join(dir, strconv.FormatUint(uint64(run/1000), 10), strconv.FormatUint(uint64(run), 10)+".out")
}

// Part is Length kept bytes of one stream.
type Part struct {
	Stream messages.Stream
	Body   io.Reader
	Length int64
}

// Append writes parts of an attempt's output to the run's file and returns their offsets
// (messages.Output.Offset). The parts are durable when it returns, including the name of a new
// file. Appends run concurrently, also those to the same file. A part shorter than its length is an
// error, a longer one is truncated, so that appends never overlap.
func (s *Store) Append(key messages.AttemptKey, parts ...Part) (offsets []int64, err error) {
	total := int64(0)
	offsets = make([]int64, len(parts))
	for i, p := range parts {
		offsets[i] = total
		total += sectionBytes(p.Length)
	}
	leave, err := s.admit(total)
	if err != nil {
		return nil, fmt.Errorf("output of run %d: %w", key.Run, err)
	}
	defer leave()
	f, err := s.acquire(key.Run, true)
	if err != nil {
		return nil, err
	}
	defer s.release(f)
	base, err := f.reserve(total)
	if err != nil {
		return nil, fmt.Errorf("output of run %d: %w", key.Run, err)
	}
	for i := range offsets {
		offsets[i] += base
	}
	if err = s.write(f, key, parts, offsets); err == nil {
		err = f.sync(s.fs)
	}
	if err != nil {
		f.giveBack(base, total)
		return nil, fmt.Errorf("output of run %d: %w", key.Run, err)
	}
	return offsets, nil
}

// writeParts writes the sections of the parts, one after the other.
func (s *Store) write(f *file, key messages.AttemptKey, parts []Part, offsets []int64) error {
	if len(parts) == 0 {
		return nil
	}
	buf := s.buffers.Get().(*sectionBuffer)
	defer s.buffers.Put(buf)
	w := sectionWriter{w: f.f, at: offsets[0], buf: buf[:]}
	for i, p := range parts {
		if err := w.write(ID{key, p.Stream}, p.Body, p.Length, offsets[i]); err != nil {
			return err
		}
	}
	return w.flush()
}

// Remove deletes the file of a run. Open Logs stay readable. A missing file is not an error.
func (s *Store) Remove(run messages.RunID) error {
	s.mu.Lock()
	if s.holds > 0 {
		s.due = append(s.due, run)
		s.mu.Unlock()
		return nil
	}
	if f := s.files[run]; f != nil {
		delete(s.files, run)
		f.removed = true
		if f.refs == 0 {
			s.idle.Remove(f.idle)
			f.f.Close()
		}
	}
	s.mu.Unlock()
	if err := s.fs.Remove(s.path(run)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("output of run %d: %w", run, err)
	}
	return nil
}

// CloseIdle closes idle files. A process that only appends must call it regularly, so that the disk
// space of files that another process has removed is freed.
func (s *Store) Trim() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evict(0)
}

// Close closes idle files; the last user closes each other file. Append and Log return ErrClosed
// from now on.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.evict(0)
	return nil
}
