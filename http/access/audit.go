package access

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"
)

// Entry is one line of the audit log: a change, or a request that was refused.
type Entry struct {
	Time        time.Time `json:"time"`
	Status      int       `json:"status"`
	Method      string    `json:"method"`
	Route       string    `json:"route"`
	Path        string    `json:"path,omitempty"` // without its query
	Run         *uint64   `json:"run,omitempty"`
	Task        string    `json:"task,omitempty"`
	Accepted    int       `json:"accepted,omitempty"` // runs, of many submitted at once; Run is the first
	Rejected    int       `json:"rejected,omitempty"` // and lines that were refused
	Token       string    `json:"token,omitempty"`
	Session     bool      `json:"session,omitempty"`
	Certificate string    `json:"certificate,omitempty"`
	UID         *int      `json:"uid,omitempty"`
	Address     string    `json:"address"`
	Error       string    `json:"error,omitempty"`
	Suppressed  int       `json:"suppressed,omitempty"` // refusals before this one that have no line
}

// Count counts one of many runs that are submitted at once. A nil entry counts nothing.
func (e *Entry) Count(run *uint64, accepted bool) {
	switch {
	case e == nil:
	case !accepted:
		e.Rejected++
	default:
		if e.Accepted++; e.Run == nil {
			first := *run
			e.Run = &first
		}
	}
}

const (
	// auditBuffer bounds what waits for the disk; beyond it entries are lost, and counted.
	auditBuffer = 8 << 20
	// auditFlush is the longest time that an entry waits in memory.
	auditFlush = 100 * time.Millisecond
	// strangerRefusals bounds the lines of a second about refused requests of callers without
	// a valid token or certificate: of each user of a unix socket, and of all others
	// together. knownRefusals bounds those of each known caller. A flood of strangers thus
	// hides nothing that a known caller tries.
	strangerRefusals = 100
	knownRefusals    = 1000
)

// Audit appends entries to a file. Record never waits for the disk.
type Audit struct {
	path string
	log  *slog.Logger
	lost func(n int) // counts entries that were not written

	mu         sync.Mutex // of what follows
	buf        []byte
	entries    int // in buf
	second     int64
	refusals   map[caller]int // in that second
	suppressed int

	file    *os.File // of run, as is the next
	failing bool     // the last write failed, which was logged
	wake    chan struct{}
	again   chan chan error
	stop    chan struct{}
	ended   chan struct{}
}

// caller is who is counted for refusals. The zero value is all strangers by TCP together.
type caller struct {
	token, certificate string
	uid                int // plus one; of a unix socket
}

// OpenAudit opens a log, which is made with mode 0600. lost is told of entries that
// could not be written.
func OpenAudit(path string, log *slog.Logger, lost func(n int)) (*Audit, error) {
	f, err := openAuditFile(path)
	if err != nil {
		return nil, err
	}
	a := &Audit{path: path, log: log, lost: lost, file: f, refusals: make(map[caller]int),
		wake: make(chan struct{}, 1), again: make(chan chan error), stop: make(chan struct{}), ended: make(chan struct{})}
	go a.run()
	return a, nil
}

func openAuditFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	switch {
	case errors.Is(err, syscall.ELOOP):
		return nil, fmt.Errorf("audit log %s: it is a symbolic link: name the file itself", path)
	case err != nil:
		return nil, fmt.Errorf("audit log: %w", err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("audit log %s: it is not a plain file", path)
	case info.Mode().Perm()&0o007 != 0:
		err = fmt.Errorf("audit log %s: everybody may read or write it (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// Record notes an entry. A nil Audit records nothing.
func (a *Audit) Record(e Entry) {
	if a == nil {
		return
	}
	refused := e.Status == 401 || e.Status == 403 || e.Status == 421 || e.Status == 429
	a.mu.Lock()
	defer a.mu.Unlock()
	if refused && !a.admitRefusal(&e) {
		return
	}
	line, err := json.Marshal(e)
	if err != nil || len(a.buf)+len(line) >= auditBuffer {
		a.lost(1)
		return
	}
	a.buf = append(AppendPrintable(a.buf, line), '\n')
	a.entries++
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// admitRefusal bounds the lines on refusals: anybody can cause those. mu is held.
func (a *Audit) admitRefusal(e *Entry) bool {
	if now := e.Time.Unix(); now != a.second {
		a.second = now
		clear(a.refusals)
	}
	who, limit := caller{token: e.Token, certificate: e.Certificate}, knownRefusals
	if e.UID != nil {
		who.uid = *e.UID + 1
	}
	if e.Token == "" && e.Certificate == "" {
		limit = strangerRefusals
	}
	if a.refusals[who]++; a.refusals[who] > limit {
		a.suppressed++
		return false
	}
	e.Suppressed, a.suppressed = a.suppressed, 0
	return true
}

// Reopen closes the file and opens it again under its name, for rotation.
func (a *Audit) Reopen() error {
	done := make(chan error, 1)
	select {
	case a.again <- done:
		return <-done
	case <-a.ended:
		return os.ErrClosed
	}
}

// Close writes what is left.
func (a *Audit) Close() error {
	if a == nil {
		return nil
	}
	close(a.stop)
	<-a.ended
	return a.file.Close()
}

// run writes entries until Close.
func (a *Audit) run() {
	defer close(a.ended)
	var spare []byte
	for {
		select {
		case <-a.wake:
			timer := time.NewTimer(auditFlush)
			select { // for company
			case <-timer.C:
			case <-a.stop:
			}
			timer.Stop()
			spare = a.flush(spare)
		case done := <-a.again:
			spare = a.flush(spare)
			f, err := openAuditFile(a.path)
			if err == nil {
				_ = a.file.Close()
				a.file = f
			}
			done <- err
		case <-a.stop:
			a.flush(spare)
			return
		}
	}
}

// flush writes what waits. It returns the buffer for its next use.
func (a *Audit) flush(spare []byte) []byte {
	a.mu.Lock()
	buf, n := a.buf, a.entries
	a.buf, a.entries = spare[:0], 0
	a.mu.Unlock()
	if n == 0 {
		return buf
	}
	if a.failing {
		_, _ = a.file.WriteString("\n") // the last write may have ended within a line
	}
	_, err := a.file.Write(buf)
	if err != nil {
		a.lost(n)
		if !a.failing {
			a.log.Error("the audit log cannot be written", "path", a.path, "err", err)
		}
	} else if a.failing {
		a.log.Info("the audit log is written again", "path", a.path)
	}
	a.failing = err != nil
	return buf
}
