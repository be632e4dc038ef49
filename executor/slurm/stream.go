package slurm

import (
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// streams are the two outputs of an attempt that has begun.
type streams struct{ out, err *stream }

// stream is a file that an attempt prints into. Beyond limit its middle is punched out:
// the first and the last half stay. A file system that cannot do that keeps it all
// until the attempt ends.
type stream struct {
	path  string
	limit int64
	whole bool         // no hole can be punched, or none is wanted
	hole  atomic.Int64 // bytes [limit/2, hole) are gone; 0 when none are
	final atomic.Int64 // size at the end; -1 while the attempt runs
}

func newStream(path string, limit int64) *stream {
	s := &stream{path: path, limit: limit}
	s.final.Store(-1)
	return s
}

// show makes an attempt's output readable.
func (s *Slurm) show(e *entry) *streams {
	limit := s.cfg.MaxOutput
	if e.order != nil && e.order.Capture {
		limit = max(limit, s.cfg.MaxCapture)
	}
	st := &streams{newStream(e.folder.path("out"), limit), newStream(e.folder.path("err"), s.cfg.MaxOutput)}
	s.mu.Lock()
	s.live[e.key] = st
	s.mu.Unlock()
	return st
}

// hide ends that.
func (s *Slurm) hide(e *entry) {
	if e.streams == nil {
		return
	}
	s.mu.Lock()
	delete(s.live, e.key)
	s.mu.Unlock()
	for _, st := range []*stream{e.streams.out, e.streams.err} {
		st.final.CompareAndSwap(-1, 0) // of an attempt that nobody asked for
	}
}

// bound frees the middle of a stream that has outgrown its limit, in steps of an eighth
// of it. Only the clerk calls it, and never after freeze.
func (st *stream) bound(log *slog.Logger) {
	if st.whole {
		return
	}
	info, err := os.Stat(st.path)
	if err != nil {
		return
	}
	head := st.limit / 2
	from, to := max(st.hole.Load(), head), info.Size()-(st.limit-head)
	if to-from < max(st.limit/8, 1) {
		return
	}
	f, err := vfs.OpenOwn(st.path, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	// Readers look at hole after they read: it moves before the bytes go.
	before := st.hole.Swap(to)
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from); err != nil {
		st.hole.Store(before)
		st.whole = true
		log.Warn("output is not bounded while its task runs: the file system cannot punch holes", "file", st.path, "err", err)
	}
}

// frozen is a stream whose attempt has ended: what is written later is nobody's.
type frozen struct {
	*stream
	f    *os.File // nil when it was never made
	size int64
}

func (st *stream) freeze() *frozen {
	z := &frozen{stream: st}
	f, err := vfs.OpenOwn(st.path, os.O_RDONLY, 0)
	if err == nil {
		z.f = f
		if info, err := f.Stat(); err == nil {
			z.size = info.Size()
		}
	}
	st.final.Store(z.size)
	return z
}

// ReadAt implements io.ReaderAt; where the file was truncated meanwhile it reads zeros,
// as from a hole.
func (z *frozen) ReadAt(p []byte, off int64) (int, error) {
	if z.f == nil {
		return 0, io.EOF
	}
	n, err := z.f.ReadAt(p, off)
	if err == io.EOF {
		clear(p[n:])
		return len(p), nil
	}
	return n, err
}

// kept says which bytes are kept under a limit.
func (z *frozen) kept(limit int64) messages.Output {
	if z.size <= limit {
		return messages.Output{Size: z.size, Head: z.size}
	}
	return messages.Output{Size: z.size, Head: limit / 2, Tail: limit - limit/2}
}

// bytes reads the kept bytes.
func (z *frozen) bytes(o *messages.Output) []byte {
	if o.Head+o.Tail == 0 {
		return nil
	}
	buf := make([]byte, o.Head+o.Tail)
	// What cannot be read stays zero, as in a hole.
	_, _ = z.ReadAt(buf[:o.Head], 0)
	_, _ = z.ReadAt(buf[o.Head:], o.Size-o.Tail)
	return buf
}

func (z *frozen) close() {
	if z.f != nil {
		z.f.Close()
	}
}

// OpenLog implements executor.Executor. On a network file system what a task prints
// shows here when that has brought it.
func (s *Slurm) OpenLog(key messages.AttemptKey, which messages.Stream) (messages.Log, error) {
	s.mu.Lock()
	st := s.live[key]
	s.mu.Unlock()
	if st == nil {
		return nil, executor.ErrNotRunning
	}
	l := &liveLog{stream: st.out}
	if which == messages.Stderr {
		l.stream = st.err
	}
	f, err := vfs.OpenOwn(l.stream.path, os.O_RDONLY, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist): // begun, and not there yet
	case err != nil:
		return nil, err
	default:
		l.f = f
	}
	return l, nil
}

// liveLog reads a stream while its attempt runs, and afterwards as long as it is open.
type liveLog struct {
	stream *stream
	f      *os.File // nil until it is there
}

// file opens the file when it has come to be.
func (l *liveLog) file() *os.File {
	if l.f == nil {
		if f, err := vfs.OpenOwn(l.stream.path, os.O_RDONLY, 0); err == nil {
			l.f = f
		}
	}
	return l.f
}

// Size implements messages.Log.
func (l *liveLog) Size() int64 {
	if n := l.stream.final.Load(); n >= 0 {
		return n
	}
	f := l.file()
	if f == nil {
		return 0
	}
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

// ReadAt implements messages.Log. A hole may come over bytes while they are read: so
// it is looked at again afterwards.
func (l *liveLog) ReadAt(p []byte, off int64) (int, error) {
	size, head := l.Size(), l.stream.limit/2
	if off >= size || l.file() == nil {
		return 0, io.EOF
	}
	if l.cut(off) {
		return 0, messages.ErrCut
	}
	end := size
	if off < head && l.stream.hole.Load() > head {
		end = min(end, head)
	}
	n, err := l.f.ReadAt(p[:min(int64(len(p)), end-off)], off)
	if off < head && off+int64(n) > head && l.stream.hole.Load() > head {
		n, err = int(head-off), nil
	}
	if l.cut(off) {
		return 0, messages.ErrCut
	}
	if err == nil && n < len(p) && off+int64(n) >= size {
		err = io.EOF
	}
	return n, err
}

func (l *liveLog) cut(off int64) bool { return off >= l.stream.limit/2 && off < l.stream.hole.Load() }

// Kept implements messages.Log.
func (l *liveLog) Kept(off int64) int64 {
	off = max(off, 0)
	if l.cut(off) {
		off = l.stream.hole.Load()
	}
	return min(off, l.Size())
}

// Live implements messages.Log.
func (l *liveLog) Live() bool { return l.stream.final.Load() < 0 }

// Close implements messages.Log.
func (l *liveLog) Close() error {
	if l.f != nil {
		return l.f.Close()
	}
	return nil
}
