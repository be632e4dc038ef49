package outputs

import (
	"bytes"
	"container/list"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/caravan-dag/caravan/messages"
)

// maxOpen is how many files stay open while nobody uses them.
const maxOpen = 64

// copyBuffer is the size of the pieces in which output is copied.
const copyBuffer = 256 << 10

// Store keeps the output files of runs. It is safe for concurrent use.
type Store struct {
	dir     string
	buffers sync.Pool

	mu     sync.Mutex
	closed bool
	files  map[messages.RunID]*file
	idle   *list.List // of *file nobody uses; the one unused longest is in front
}

// ErrClosed: the store was closed.
var ErrClosed = errors.New("output store is closed")

// Open opens the output folder and makes it if there is none.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("output folder: %w", err)
	}
	return &Store{
		dir:     dir,
		buffers: sync.Pool{New: func() any { return new([copyBuffer]byte) }},
		files:   map[messages.RunID]*file{},
		idle:    list.New(),
	}, nil
}

// path is DIR/<run/1000>/<run>.out.
func (s *Store) path(run messages.RunID) string {
	return filepath.Join(s.dir, strconv.FormatUint(uint64(run/1000), 10), strconv.FormatUint(uint64(run), 10)+".out")
}

// Append writes the parts, one after the other, to the run's file and returns
// where they begin. They are durable when it returns. Several appends, to one run
// too, go on at the same time. A part should tell its length (Len or Size, as
// bytes.Reader and io.SectionReader do); one that does not is read into memory first.
func (s *Store) Append(run messages.RunID, parts ...io.Reader) (offset int64, err error) {
	total, err := measure(parts)
	if err != nil {
		return 0, fmt.Errorf("output of run %d: %w", run, err)
	}
	f, err := s.acquire(run, true)
	if err != nil {
		return 0, err
	}
	defer s.release(f)
	if offset, err = f.reserve(total); err != nil {
		return 0, fmt.Errorf("output of run %d: %w", run, err)
	}
	if err = s.write(f, offset, total, parts); err == nil {
		err = f.sync()
	}
	if err != nil {
		f.giveBack(offset, total)
		return 0, fmt.Errorf("output of run %d: %w", run, err)
	}
	return offset, nil
}

// measure adds up the parts' lengths.
func measure(parts []io.Reader) (total int64, err error) {
	for i, p := range parts {
		switch p := p.(type) {
		case interface{ Len() int }:
			total += int64(p.Len())
		case interface{ Size() int64 }:
			total += p.Size()
		default:
			b, err := io.ReadAll(p)
			if err != nil {
				return 0, err
			}
			parts[i] = bytes.NewReader(b)
			total += int64(len(b))
		}
	}
	return total, nil
}

// write copies the parts into [off, off+total). A part that turns out shorter than
// it said is an error, a longer one is cut: no append writes into another's place.
func (s *Store) write(f *file, off, total int64, parts []io.Reader) error {
	buf := s.buffers.Get().(*[copyBuffer]byte)
	defer s.buffers.Put(buf)
	all := io.LimitReader(io.MultiReader(parts...), total)
	for total > 0 {
		n, err := io.ReadFull(all, buf[:min(total, copyBuffer)])
		if err != nil {
			return err
		}
		if _, err := f.f.WriteAt(buf[:n], off); err != nil {
			return err
		}
		off, total = off+int64(n), total-int64(n)
	}
	return nil
}

// Remove deletes the run's file. Whoever reads it can read on until it closes its
// Log. A run without a file is no error.
func (s *Store) Remove(run messages.RunID) error {
	s.mu.Lock()
	if f := s.files[run]; f != nil {
		delete(s.files, run)
		f.removed = true
		if f.refs == 0 {
			s.idle.Remove(f.idle)
			f.f.Close()
		}
	}
	s.mu.Unlock()
	if err := os.Remove(s.path(run)); err != nil && !errors.Is(err, fs.ErrNotExist) {
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
