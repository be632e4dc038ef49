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
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Entry is one line of the audit log: a change, or a request that was refused. Members without a value
// are left out, except those that every request has. docs/security.md explains them. An entry never
// holds a secret: the caller is named by the name of the token.
type Entry struct {
	Time        time.Time `json:"time"` // in UTC, when the answer was known; for many runs, when the request began
	Status      int       `json:"status"`
	Method      string    `json:"method"`
	Route       string    `json:"route"`          // as in docs/rest.md, with {run} and {task}; "none" for an unknown path or method
	Path        string    `json:"path,omitempty"` // without its query
	Run         *uint64   `json:"run,omitempty"`
	Task        string    `json:"task,omitempty"`
	Accepted    int       `json:"accepted,omitempty"` // number of runs, for many submitted at once; Run is the first
	Rejected    int       `json:"rejected,omitempty"` // number of refused lines
	Token       string    `json:"token,omitempty"`
	Session     bool      `json:"session,omitempty"`
	Certificate string    `json:"certificate,omitempty"`
	UID         *int      `json:"uid,omitempty"`
	Address     string    `json:"address"`
	Node        string    `json:"node,omitempty"` // of a cluster: the node that the request arrived at, if that is not this one
	Error       string    `json:"error,omitempty"`
	Suppressed  int       `json:"suppressed,omitempty"` // number of refusals before this entry that were not recorded
}

// CountRun counts one of many runs that are submitted at once. A nil entry ignores it.
func (e *Entry) CountRun(run *uint64, accepted bool) {
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
	// maxAuditBuffer bounds the entries that wait for the disk, in bytes. Entries beyond it are
	// lost and counted.
	maxAuditBuffer = 8 << 20
	// auditFlushDelay is the longest time that an entry waits in memory.
	auditFlushDelay = 100 * time.Millisecond
	// maxUnknownRefusals bounds the entries per second about refused requests of callers without a
	// valid token or certificate: for each user of a unix socket, and for all others together.
	// maxKnownRefusals is the bound for each known caller. So a flood of unknown callers cannot
	// hide the attempts of a known one.
	maxUnknownRefusals = 100
	maxKnownRefusals   = 1000
)

// Audit appends entries to a file, a line of JSON each, in the order of Record. Record never waits for
// the disk: it appends to a buffer, which writeLoop, the only goroutine that uses the file, swaps for
// an empty one and writes without holding mu. So an entry may be in memory only for about
// auditFlushDelay, and is lost when the process is killed then. The file is not synced. Record and
// Reopen may be called from any goroutine.
type Audit struct {
	path      string
	log       *slog.Logger
	countLost func(n int) // is called with the number of entries that were not written

	mu              sync.Mutex // of what follows
	buf             []byte     // whole lines
	bufferedEntries int        // in buf
	refusalSecond   int64      // the second that refusals counts, since the epoch
	refusals        map[refusalKey]int
	suppressed      int // refusals that were not recorded since the last one that was

	file           *os.File // of writeLoop, as is the next field
	writeFailing   bool     // the last write failed, and that was logged
	wakeWriter     chan struct{}
	reopenRequests chan chan error
	stop           chan struct{}
	exited         chan struct{}
}

// refusalKey identifies a caller whose refusals are counted. The zero value stands for all unknown
// callers over TCP.
type refusalKey struct {
	token, certificate string
	uid                int // of a unix socket, plus one
}

// OpenAudit opens a log, and creates it with mode 0600. countLost is called with the number of entries
// that could not be written, from any goroutine and possibly with a lock held: it must not call the
// Audit. The caller closes the Audit.
func OpenAudit(path string, log *slog.Logger, lost func(n int)) (*Audit, error) {
	f, err := openAuditFile(path)
	if err != nil {
		return nil, err
	}
	a := &Audit{path: path, log: log, countLost: lost, file: f, refusals: make(map[refusalKey]int),
		wakeWriter: make(chan struct{}, 1), reopenRequests: make(chan chan error), stop: make(chan struct{}), exited: make(chan struct{})}
	go a.writeLoop()
	return a, nil
}

// openAuditFile opens the file to append to. A link, a FIFO and a device are refused by name, and so is
// a file that everybody may read or write. O_NONBLOCK keeps the open of a FIFO from waiting for a
// reader (fifo(7)); it has no effect on a regular file.
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

// Record adds an entry. One that exceeds the buffer, or the bound on refusals, is not written: the
// first kind is given to countLost, the second is in Suppressed of a later entry. A nil Audit ignores
// all entries.
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
	if err != nil || len(a.buf)+len(line) >= maxAuditBuffer {
		a.countLost(1)
		return
	}
	a.buf = append(AppendPrintable(a.buf, line), '\n')
	a.bufferedEntries++
	select {
	case a.wakeWriter <- struct{}{}:
	default:
	}
}

// admitRefusal bounds the entries about refusals, which everyone can cause. mu is held. The map has one
// key per caller that was refused in the present second; tokens, certificates and users of this machine
// are few, and all unknown callers share a key, so a flood cannot grow it. An entry that is admitted
// carries the number of those before it that were not.
func (a *Audit) admitRefusal(e *Entry) bool {
	if now := e.Time.Unix(); now != a.refusalSecond {
		a.refusalSecond = now
		clear(a.refusals)
	}
	who, limit := refusalKey{token: e.Token, certificate: e.Certificate}, maxKnownRefusals
	if e.UID != nil {
		who.uid = *e.UID + 1
	}
	if e.Token == "" && e.Certificate == "" {
		limit = maxUnknownRefusals
	}
	if a.refusals[who]++; a.refusals[who] > limit {
		a.suppressed++
		return false
	}
	e.Suppressed, a.suppressed = a.suppressed, 0
	return true
}

// Reopen closes the file and opens it again under its name, for rotation. Entries that were recorded
// before go to the old file. After an error the old file stays in use; after Close the error is
// os.ErrClosed.
func (a *Audit) Reopen() error {
	done := make(chan error, 1)
	select {
	case a.reopenRequests <- done:
		return <-done
	case <-a.exited:
		return os.ErrClosed
	}
}

// Close writes the remaining entries and closes the file. It is called once, after the last Record:
// later entries are lost. A nil Audit ignores it.
func (a *Audit) Close() error {
	if a == nil {
		return nil
	}
	close(a.stop)
	<-a.exited
	return a.file.Close()
}

// writeLoop writes entries until Close. After the first entry it waits for auditFlushDelay, so that a
// burst of requests costs one write.
func (a *Audit) writeLoop() {
	defer close(a.exited)
	var spare []byte
	for {
		select {
		case <-a.wakeWriter:
			timer := time.NewTimer(auditFlushDelay)
			select { // more entries may follow
			case <-timer.C:
			case <-a.stop:
			}
			timer.Stop()
			spare = a.flushBuffer(spare)
		case done := <-a.reopenRequests:
			spare = a.flushBuffer(spare)
			f, err := openAuditFile(a.path)
			if err == nil {
				_ = a.file.Close()
				a.file = f
			}
			done <- err
		case <-a.stop:
			a.flushBuffer(spare)
			return
		}
	}
}

// flushBuffer writes the buffered entries. It returns the buffer for its next use. Only writeLoop calls
// it. Entries that cannot be written are lost and counted: a retry would let the buffer grow while the
// disk is full. The log says it once, and once more when writing works again.
func (a *Audit) flushBuffer(spare []byte) []byte {
	a.mu.Lock()
	buf, n := a.buf, a.bufferedEntries
	a.buf, a.bufferedEntries = spare[:0], 0
	a.mu.Unlock()
	if n == 0 {
		return buf
	}
	if a.writeFailing {
		_, _ = a.file.WriteString("\n") // the last write may have ended within a line
	}
	_, err := a.file.Write(buf)
	if err != nil {
		a.countLost(n)
		if !a.writeFailing {
			a.log.Error("the audit log cannot be written", "path", a.path, "err", err)
		}
	} else if a.writeFailing {
		a.log.Info("the audit log is written again", "path", a.path)
	}
	a.writeFailing = err != nil
	return buf
}

// AppendPrintable appends the JSON text to dst, and escapes what a terminal would interpret or
// hide: control and format characters (Cc, Cf), line and paragraph separators (Zl, Zp), and bytes
// that are not UTF-8. encoding/json and log/slog only escape those below U+0020. The value of the
// text stays the same, because such characters can only occur in its strings. Line feeds stay:
// they separate documents.
func AppendPrintable(dst, text []byte) []byte {
	begin := 0 // of the part that is not in dst yet
	for i := 0; i < len(text); {
		if c := text[i]; c >= ' ' && c < 0x7f || c == '\n' {
			i++
			continue
		}
		r, size := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && size == 1 || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			dst = append(dst, text[begin:i]...)
			if high, low := utf16.EncodeRune(r); r > 0xffff {
				dst = fmt.Appendf(dst, `\u%04x\u%04x`, high, low)
			} else {
				dst = fmt.Appendf(dst, `\u%04x`, r)
			}
			begin = i + size
		}
		i += size
	}
	return append(dst, text[begin:]...)
}
