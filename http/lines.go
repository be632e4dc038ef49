package http

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

const (
	lineRoom = 64 << 10 // what is read at a time, of lines that are short
	maxLines = 1024     // that are handed out at a time
)

// errLongLine: a line is longer than the limit.
var errLongLine = errors.New("line is too long")

// lineReader cuts what it reads into lines, and hands them out as they come.
type lineReader struct {
	r      io.Reader
	close  func()
	limit  int64               // bytes of a line
	whole  int                 // length of the body when that is to be read at once, before anything is handed out
	room   func(n int64) error // asked before so many bytes are held, or why they may not be
	rest   []byte
	failed error // comes behind rest
}

// next returns lines, without their ends: those that have come, at least one, and
// at most maxLines. The caller owns them. With the last of them io.EOF comes.
func (l *lineReader) next() (lines [][]byte, err error) {
	searched := 0 // of rest: holds no end of a line
	for {
		for len(lines) < maxLines {
			i := bytes.IndexByte(l.rest[searched:], '\n')
			if i < 0 {
				searched = len(l.rest)
				break
			}
			end := searched + i
			if int64(end) > l.limit {
				return lines, errLongLine
			}
			lines = append(lines, l.rest[:end:end])
			l.rest, searched = l.rest[end+1:], 0
		}
		switch {
		case int64(searched) > l.limit:
			return lines, errLongLine
		case l.failed == io.EOF && searched == len(l.rest) && len(lines) < maxLines:
			if len(l.rest) > 0 {
				lines = append(lines, l.rest)
				l.rest = nil
			}
			return lines, io.EOF
		case len(lines) > 0:
			return lines, nil
		case l.failed != nil:
			return nil, l.failed
		}
		l.read()
	}
}

// read reads some more into memory of its own: lines that were handed out are not
// this reader's any more.
func (l *lineReader) read() {
	if l.whole > 0 {
		if err := l.room(planBytes * int64(l.whole)); err != nil {
			l.whole, l.failed = 0, err
			return
		}
		l.rest = make([]byte, l.whole)
		n, err := io.ReadFull(l.r, l.rest)
		if l.rest, l.whole, l.failed = l.rest[:n], 0, err; err == nil {
			l.failed = io.EOF
		}
		return
	}
	if cap(l.rest)-len(l.rest) < lineRoom/16 {
		if err := l.room(planBytes * int64(len(l.rest))); err != nil {
			l.failed = err
			return
		}
		size := max(2*len(l.rest), lineRoom)
		if most := l.limit + lineRoom; int64(size)+lineRoom >= l.limit && int64(len(l.rest)) < l.limit {
			size = int(most) // all that a line may have: it is refused before it grows again
		}
		l.rest = append(make([]byte, 0, size), l.rest...)
	}
	n, err := l.r.Read(l.rest[len(l.rest):cap(l.rest)])
	l.rest, l.failed = l.rest[:len(l.rest)+n], err
}

// patientReader reads a body for as long as some of it comes, each read under a
// deadline of its own. At shutdown it gives up.
type patientReader struct {
	r       io.Reader
	conn    *conn
	timeout time.Duration
	serving context.Context
	stop    func()
	left    int   // announced and not read; negative when it comes in chunks
	err     error // that reading ended with, but io.EOF

	// Of the line that is coming: one that comes in drops must not take its memory for
	// ever.
	began time.Time // when its first bytes came; zero before
	got   int       // bytes since then

	mu      sync.Mutex // of the connection's deadline, and of
	revoked bool       // nothing more may be read
}

func (p *patientReader) Read(b []byte) (int, error) {
	if err := p.renew(); err != nil {
		p.err = err
		return 0, err
	}
	n, err := p.r.Read(b)
	if p.got += n; n > 0 && p.began.IsZero() {
		p.began = time.Now()
	}
	if p.left >= 0 {
		if p.left -= n; err == io.EOF && p.left > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	if err != nil && err != io.EOF {
		p.err = err
	}
	return n, err
}

func (p *patientReader) renew() error {
	if p.conn == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.serving.Err(); err != nil {
		return err
	}
	if p.revoked {
		return errRevoked
	}
	deadline := time.Now().Add(p.timeout)
	if !p.began.IsZero() {
		if whole := p.began.Add(p.timeout + time.Duration(p.got/bodyRate)*time.Second); whole.Before(deadline) {
			deadline = whole
		}
	}
	return p.conn.SetReadDeadline(deadline)
}

// restart is called when a line is whole: the next one has all its time.
func (p *patientReader) restart() { p.began, p.got = time.Time{}, 0 }

// revoke ends reading for good: the caller's token or session has gone.
func (p *patientReader) revoke() {
	p.mu.Lock()
	p.revoked = true
	p.mu.Unlock()
	p.giveUp()
}

// giveUp ends a read that waits.
func (p *patientReader) giveUp() {
	if p.conn == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.conn.SetReadDeadline(time.Unix(1, 0)) // of a connection that is closed it fails
}

// Close lets go of the server; the body stays the request's.
func (p *patientReader) Close() { p.stop() }
