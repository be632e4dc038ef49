package outputs

import (
	"bytes"
	"io"
	"sync"

	"github.com/caravan-dag/caravan/messages"
)

// endedLog reads the kept bytes of an ended attempt's stream.
type endedLog struct {
	out   messages.Output
	kept  io.ReaderAt // Head+Tail bytes, from 0
	close func()
}

// Log opens an ended attempt's stream, from its record or from the run's file. The
// error is fs.ErrNotExist when the file is gone.
func (s *Store) Log(run messages.RunID, out messages.Output) (messages.Log, error) {
	length := out.Head + out.Tail
	if length == 0 || out.Inline != nil {
		return &endedLog{out: out, kept: bytes.NewReader(out.Inline), close: func() {}}, nil
	}
	f, err := s.acquire(run, false)
	if err != nil {
		return nil, err
	}
	return &endedLog{
		out:   out,
		kept:  io.NewSectionReader(f.f, out.Offset, length),
		close: sync.OnceFunc(func() { s.release(f) }),
	}, nil
}

// tailAt is the stream offset from which on the kept tail lies.
func (l *endedLog) tailAt() int64 { return max(l.out.Size-l.out.Tail, l.out.Head) }

// ReadAt implements messages.Log.
func (l *endedLog) ReadAt(p []byte, off int64) (int, error) {
	at, end := off, l.out.Head // in the kept bytes
	switch {
	case off >= l.out.Size:
		return 0, io.EOF
	case off < l.out.Head:
	case off < l.tailAt():
		return 0, messages.ErrCut
	default:
		at, end = l.out.Head+off-l.tailAt(), l.out.Head+l.out.Tail
	}
	want := p[:min(int64(len(p)), end-at)]
	n, err := l.kept.ReadAt(want, at)
	switch {
	case n < len(want) && (err == nil || err == io.EOF):
		return n, io.ErrUnexpectedEOF // the file is shorter than the record says
	case n < len(want):
		return n, err
	case n < len(p) && off+int64(n) >= l.out.Size:
		return n, io.EOF
	}
	return n, nil
}

// Size implements messages.Log.
func (l *endedLog) Size() int64 { return l.out.Size }

// Kept implements messages.Log.
func (l *endedLog) Kept(off int64) int64 {
	off = max(off, 0)
	if off >= l.out.Head && off < l.tailAt() {
		off = l.tailAt()
	}
	return min(off, l.out.Size)
}

// Live implements messages.Log.
func (l *endedLog) Live() bool { return false }

// Close implements messages.Log.
func (l *endedLog) Close() error {
	l.close()
	return nil
}
