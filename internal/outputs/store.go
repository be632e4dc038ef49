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

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// maxOpen is the number of files that stay open while they are idle. Files in use are open beside
// them, one for each run that appends or is read at the moment.
const maxOpen = 64

// Store keeps the output files of runs. It is safe for concurrent use.
type Store struct {
	fs      vfs.FS
	dir     string
	buffers sync.Pool               // of *sectionBuffer
	blocks  sync.Pool               // of *block
	reserve func(total int64) int64 // set by KeepFree; nil = no reserve
	pending atomic.Int64            // bytes of unfinished appends

	replaced atomic.Bool // see SetReplaced

	mu               sync.Mutex // guards the fields below, and some of each file
	closed           bool
	firstDamage      *DamageError             // that recordDamage was called with; nil = none so far
	files            map[messages.RunID]*file // that are open and not removed
	removalHolds     int                      // unreleased calls of HoldRemovals
	deferredRemovals []messages.RunID         // removals to do at the last release
	idle             *list.List               // of *file without users, the longest idle first
}

// ErrClosed means that the store is closed.
var ErrClosed = errors.New("output store is closed")

// Open opens an output folder and creates it if necessary. It reads no file: damage shows at the
// first read of a block. The caller closes the store.
func Open(dir string) (*Store, error) { return OpenFS(vfs.OS{}, dir) }

// OpenFS is Open on a given file system.
func OpenFS(fs vfs.FS, dir string) (*Store, error) {
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

// SetReplaced says that the store is that of a node that took the place of a lost one: records may name
// sections that were on the disk of the former node.
func (s *Store) SetReplaced() { s.replaced.Store(true) }

// Damaged returns the first damage that a read has found since the store was opened, or nil.
func (s *Store) Damaged() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.firstDamage == nil {
		return nil // a nil interface, not an interface around a nil pointer
	}
	return s.firstDamage
}

// recordDamage keeps the first damage, which /healthz reports until the server is restarted.
func (s *Store) recordDamage(e *DamageError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.firstDamage == nil {
		s.firstDamage = e
	}
}

// path is DIR/<run/1000>/<run>.out, such as output/12/12345.out: a folder then has at most 1,000
// files, and a million runs have 1,000 folders.
func (s *Store) path(run messages.RunID) string { return runPath(s.dir, run) }

func runPath(dir string, run messages.RunID) string {
	return filepath.Join(dir, strconv.FormatUint(uint64(run/1000), 10), strconv.FormatUint(uint64(run), 10)+".out")
}

// Part is Length kept bytes of one stream: head and tail of it, one after the other.
type Part struct {
	Stream messages.Stream
	Body   io.Reader
	Length int64
}

// Append writes parts of an attempt's output to the run's file and returns their offsets
// (messages.Output.Offset). The parts are durable when it returns, including the name of a new
// file. Appends run concurrently, also those to the same file. A part shorter than its length is an
// error, a longer one is truncated, so that appends never overlap. A length that is negative or above MaxKept is
// an error, and changes no file.
func (s *Store) Append(key messages.AttemptKey, parts ...Part) (offsets []int64, err error) {
	total := int64(0)
	offsets = make([]int64, len(parts))
	for i, p := range parts {
		if p.Length < 0 || p.Length > MaxKept {
			return nil, fmt.Errorf("output of run %d: a part of %d bytes", key.Run, p.Length)
		}
		offsets[i] = total
		total += sectionBytes(p.Length)
	}
	leave, err := s.admitAppend(total)
	if err != nil {
		return nil, fmt.Errorf("output of run %d: %w", key.Run, err)
	}
	defer leave()
	f, err := s.acquire(key.Run, true)
	if err != nil {
		return nil, err
	}
	defer s.release(f)
	base, err := f.reserveSpace(total)
	if err != nil {
		return nil, fmt.Errorf("output of run %d: %w", key.Run, err)
	}
	for i := range offsets {
		offsets[i] += base
	}
	if err = s.writeParts(f, key, parts, offsets); err == nil {
		err = f.sync(s.fs)
	}
	if err != nil {
		f.releaseSpace(base, total)
		return nil, fmt.Errorf("output of run %d: %w", key.Run, err)
	}
	return offsets, nil
}

// writeParts writes the sections of the parts, one after the other, into reserved space. They are not
// durable when it returns.
func (s *Store) writeParts(f *file, key messages.AttemptKey, parts []Part, offsets []int64) error {
	if len(parts) == 0 {
		return nil
	}
	buf := s.buffers.Get().(*sectionBuffer)
	defer s.buffers.Put(buf)
	w := sectionWriter{w: f.f, at: offsets[0], buf: buf[:]}
	for i, p := range parts {
		if err := w.writeSection(ID{key, p.Stream}, p.Body, p.Length, offsets[i]); err != nil {
			return err
		}
	}
	return w.flush()
}

// Remove deletes the file of a run. Open Logs stay readable. A missing file is not an error. It is
// called after the run is durably deleted, and does not sync: a file that stays, or that a power
// failure brings back, belongs to an ID that is never used again, and only takes space until the
// server's next start removes it (package actors). It must not overlap with an Append of the same
// run, which might write to the deleted file; only runs that have ended are removed.
func (s *Store) Remove(run messages.RunID) error {
	s.mu.Lock()
	if s.removalHolds > 0 {
		s.deferredRemovals = append(s.deferredRemovals, run)
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
func (s *Store) CloseIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evictIdle(0)
}

// Close closes idle files; the last user closes each other file. Append and Log return ErrClosed
// from now on.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.evictIdle(0)
	return nil
}

// ErrDiskNearlyFull means that the rest of the disk is reserved for the journal.
var ErrDiskNearlyFull = errors.New("the disk is nearly full")

// JournalReserve returns how many bytes of a disk of total bytes output leaves free for the
// journal, so that runs can still end and be recorded. It exceeds the space that the store may need
// at once, which also depends on the size of the disk. It is smaller than the free space below
// which the store refuses new runs: that happens first.
func JournalReserve(total int64) int64 {
	const most = 1280 << 20
	least := int64(40 << 20)
	if total < 64<<20 {
		least = 10 << 20
	}
	return max(min(total/4, most), least)
}

// KeepFree makes Append refuse, with ErrDiskNearlyFull, to leave less free space than reserve
// returns for the size of the disk. It must be called before the first Append.
func (s *Store) KeepFree(reserve func(total int64) int64) { s.reserve = reserve }

// admitAppend accounts for an append of bytes bytes that is not yet written, or refuses it with
// ErrDiskNearlyFull. The caller calls leave after writing. Appends under way count as if they were
// still to be written, because statfs(2) may not know of them yet; so of many at a time some are
// refused a little early. Appends of other processes count only as far as statfs(2) knows of them.
func (s *Store) admitAppend(bytes int64) (leave func(), err error) {
	if s.reserve == nil {
		return func() {}, nil
	}
	leave = func() { s.pending.Add(-bytes) }
	pending := s.pending.Add(bytes) // includes other appends that may not be written yet
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		leave()
		return nil, fmt.Errorf("statfs %s: %w", s.dir, err)
	}
	free, reserve := int64(st.Bavail)*st.Bsize, s.reserve(int64(st.Blocks)*st.Bsize)
	if free-pending < reserve {
		leave()
		return nil, fmt.Errorf("%w: %d MiB are free and %d MiB are reserved for the journal", ErrDiskNearlyFull, free>>20, reserve>>20)
	}
	return leave, nil
}
