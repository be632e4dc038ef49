package executor

import (
	"io"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/messages"
)

// stream is what a task writes to stdout or stderr: an anonymous file in memory
// which is the task's descriptor itself, so that nothing is copied while it runs.
// Beyond limit the middle is punched out: the first and the last limit/2 bytes stay.
//
// When the attempt has ended the file is sealed: a process that outlives it and still
// prints gets EPERM, as it would get EPIPE from a pipe without a reader, and takes no
// memory.
//
// The descriptor is counted: it is closed when the attempt, its monitor and the
// last reader have dropped it.
type stream struct {
	fd            int
	limit         int64
	refs          atomic.Int32
	hole          atomic.Int64 // bytes [head(limit), hole) are gone; 0 when none are
	final         atomic.Int64 // size at the end; -1 while the task runs
	freeOnRelease atomic.Bool  // a survivor may hold the file: its memory is given back with the last reference
}

// head is how many bytes are kept from the beginning when there are more than limit.
func head(limit int64) int64 { return limit / 2 }

func newStream(limit int64) (*stream, error) {
	fd, err := unix.MemfdCreate("caravan-output", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	// A task that opens /dev/stdout anew, or shares it with a background child, would
	// else overwrite what another descriptor wrote.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_APPEND); err != nil {
		unix.Close(fd)
		return nil, err
	}
	s := &stream{fd: fd, limit: limit}
	s.refs.Store(1)
	s.final.Store(-1)
	return s, nil
}

func newStreams(limitOut, limitErr int64) (out, err *stream, _ error) {
	out, e := newStream(limitOut)
	if e != nil {
		return nil, nil, e
	}
	if err, e = newStream(limitErr); e != nil {
		out.release()
		return nil, nil, e
	}
	return out, err, nil
}

// hold takes a reference, unless the last one is gone.
func (s *stream) retain() bool {
	for {
		n := s.refs.Load()
		if n == 0 {
			return false
		}
		if s.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (s *stream) release() {
	if s.refs.Add(-1) == 0 {
		if s.freeOnRelease.Load() {
			s.freeMemory()
		}
		unix.Close(s.fd)
	}
}

// free gives the memory back though another process holds the file, and has the kernel
// refuse to put any in again. Where that process has mapped the file it may; no more than
// the file's size.
func (s *stream) freeMemory() {
	if n := s.size(); n > 0 {
		const page = 64 << 10 // at most: a part of one is only zeroed
		_ = unix.Fallocate(s.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, n+page-n%page)
	}
	_, _ = unix.FcntlInt(uintptr(s.fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE)
}

// write appends what a pump has read. It is false when there is no memory.
func (s *stream) write(p []byte) bool {
	for len(p) > 0 {
		n, err := unix.Write(s.fd, p)
		if err != nil && err != unix.EINTR {
			return false
		}
		p = p[max(n, 0):]
	}
	return true
}

// size is the number of bytes written so far, and no more once it was frozen.
func (s *stream) size() int64 {
	if n := s.final.Load(); n >= 0 {
		return n
	}
	var st unix.Stat_t
	if unix.Fstat(s.fd, &st) != nil {
		return 0
	}
	return st.Size
}

// freeze fixes the size: what a surviving child writes later is nobody's, and is refused.
func (s *stream) freeze() {
	// An error is EPERM, of a task that has sealed the seals. It waits for a write that is going on.
	_, _ = unix.FcntlInt(uintptr(s.fd), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK)
	n := s.size()
	if n > s.limit {
		s.hole.Store(n - (s.limit - head(s.limit)))
	} else {
		s.hole.Store(0) // the task itself may have truncated what was long before
	}
	s.final.Store(n)
}

// bound frees the middle of a stream that has outgrown its limit, in steps of an
// eighth of it. It tells whether the stream has grown much since size last.
func (s *stream) punchMiddle(last *int64) (grows bool) {
	n := s.size()
	grows = n-*last > s.limit/16
	*last = n
	h := head(s.limit)
	from := max(s.hole.Load(), h)
	to := n - (s.limit - h)
	if n < from {
		s.hole.Store(0) // truncated by the task
		return grows
	}
	if to-from < max(s.limit/8, 1) {
		return grows
	}
	// Readers look at hole after they read: it moves before the bytes go.
	s.hole.Store(to)
	if unix.Fallocate(s.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from) != nil {
		return grows // the bytes stay, unread: memory is all that is lost
	}
	return grows
}

// kept says which bytes of a frozen stream are kept under the limit.
func (s *stream) kept(limit int64) messages.Output {
	n := s.size()
	if n <= limit {
		return messages.Output{Size: n, Head: n}
	}
	return messages.Output{Size: n, Head: head(limit), Tail: limit - head(limit)}
}

// inline reads the kept bytes into the Output.
func (s *stream) inline(o *messages.Output) {
	if o.Head+o.Tail == 0 {
		return
	}
	buf := make([]byte, o.Head+o.Tail)
	s.fill(buf[:o.Head], 0)
	s.fill(buf[o.Head:], o.Size-o.Tail)
	o.Inline = buf
}

func (s *stream) bytes(off, n int64) []byte {
	buf := make([]byte, n)
	s.fill(buf, off)
	return buf
}

// fill reads all of p. Where a surviving child has truncated the file it leaves
// zeros, as a hole would.
func (s *stream) fill(p []byte, off int64) {
	for len(p) > 0 {
		n, err := s.ReadAt(p, off)
		p, off = p[n:], off+int64(n)
		if err != nil {
			return
		}
	}
}

// section reads n bytes from off.
func (s *stream) section(off, n int64) *io.SectionReader { return io.NewSectionReader(s, off, n) }

// ReadAt implements io.ReaderAt on the file as it is, holes and all.
func (s *stream) ReadAt(p []byte, off int64) (int, error) {
	total := 0
	for total < len(p) {
		n, err := unix.Pread(s.fd, p[total:], off+int64(total))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return total, err
		case n == 0:
			return total, io.EOF
		default:
			total += n
		}
	}
	return total, nil
}
