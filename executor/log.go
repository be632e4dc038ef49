package executor

import (
	"io"
	"sync"

	"github.com/caravan-dag/caravan/messages"
)

// liveLog reads a stream while its attempt runs, and afterwards as long as it is open.
type liveLog struct {
	attempt *attempt
	stream  *stream
	once    sync.Once
}

// openLog opens the output of an attempt. Process.mu is held.
func (a *attempt) openLog(which messages.Stream) (messages.Log, error) {
	if a.phase <= phaseStarting {
		return nil, ErrNotRunning
	}
	s := a.stdout
	if which == messages.Stderr {
		s = a.stderr
	}
	if a.outputFinal.Load() || !s.retain() {
		return nil, ErrNotRunning
	}
	return &liveLog{attempt: a, stream: s}, nil
}

// ReadAt implements messages.Log. A hole may come over bytes while they are read:
// so it is looked at again afterwards.
func (l *liveLog) ReadAt(p []byte, off int64) (int, error) {
	size, h := l.stream.size(), head(l.stream.limit)
	if off >= size {
		return 0, io.EOF
	}
	if l.cut(off) {
		return 0, messages.ErrCut
	}
	end := size
	if off < h && l.stream.hole.Load() > h {
		end = min(end, h)
	}
	want := p[:min(int64(len(p)), end-off)]
	n, err := l.stream.ReadAt(want, off)
	if off < h && off+int64(n) > h && l.stream.hole.Load() > h {
		n, err = int(h-off), nil
	}
	if l.cut(off) {
		return 0, messages.ErrCut
	}
	if err == nil && n < len(p) && off+int64(n) >= size {
		err = io.EOF
	}
	return n, err
}

func (l *liveLog) cut(off int64) bool {
	return off >= head(l.stream.limit) && off < l.stream.hole.Load()
}

// Size implements messages.Log.
func (l *liveLog) Size() int64 { return l.stream.size() }

// Kept implements messages.Log.
func (l *liveLog) Kept(off int64) int64 {
	off = max(off, 0)
	if l.cut(off) {
		off = l.stream.hole.Load()
	}
	return min(off, l.stream.size())
}

// Live implements messages.Log.
func (l *liveLog) Live() bool { return !l.attempt.outputFinal.Load() }

// Close implements messages.Log.
func (l *liveLog) Close() error {
	l.once.Do(l.stream.release)
	return nil
}
