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

// maxOpen is how many files stay open while nobody uses them.
const maxOpen = 64

// Store keeps the output files of runs. It is safe for concurrent use.
type Store struct {
	fs      vfs.FS
	dir     string
	buffers sync.Pool               // of *sectionBuffer
	blocks  sync.Pool               // of *block
	reserve func(total int64) int64 // see KeepFree; nil = nothing is left free
	pending atomic.Int64            // bytes of appends that are under way

	mu     sync.Mutex
	closed bool
	damage *DamageError // the first one that was found
	files  map[messages.RunID]*file
	holds  int              // calls of Hold that are not released
	due    []messages.RunID // removed meanwhile
	idle   *list.List       // of *file nobody uses; the one unused longest is in front
}

// ErrClosed: the store was closed.
var ErrClosed = errors.New("output store is closed")

// Open opens the output folder and makes it if there is none.
func Open(dir string) (*Store, error) { return OpenOn(vfs.OS{}, dir) }

// OpenOn is Open on a file system of the caller's.
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
		return nil // not s.damage: an interface around nil
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

// Part is the kept bytes of one stream, Length of them.
type Part struct {
	Stream messages.Stream
	Body   io.Reader
	Length int64
}

// Append writes parts of an attempt's output to the run's file and returns where each
// lies (messages.Output.Offset). They are durable when it returns, the name of a new file
// too. Several appends, to one run too, go on at the same time. A part that turns out
// shorter than its length is an error, a longer one is cut: no append writes into
// another's place.
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

// write writes the parts' sections, which follow each other.
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

// Remove deletes the run's file. Whoever reads it can read on until it closes its
// Log. A run without a file is no error.
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

// Trim closes the files that nobody uses. A process that only appends calls it now
// and then, so that the room of files which another one removes is given back.
func (s *Store) Trim() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evict(0)
}

// Close closes what nobody uses; the rest is closed by its last user. Append and
// Log return ErrClosed from now on.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.evict(0)
	return nil
}
