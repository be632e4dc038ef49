package worker

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// journalContents is what a journal says. It is read after the worker's death, or by a check of a folder
// whose worker may live; never by the worker itself.
type journalContents struct {
	header   *workerpb.JournalHeader // empty when the header is damaged
	attempts map[messages.AttemptKey]*journalAttempt
	keys     []messages.AttemptKey // in the order in which they began
	// complete: the journal has all records that were written. An attempt that it does not name has
	// not begun, or its end was acknowledged.
	complete bool
	fault    string // what is wrong and where; "" when complete
}

// journalAttempt is what a journal says of an attempt.
type journalAttempt struct {
	intentAt  int64  // ns since boot; 0 when it is not known
	startedAt int64  // ns since boot, or a little earlier; 0 when it is not known
	pid       int    // 0 when it is not known
	end       []byte // its end, encoded; nil when it has not ended
}

// parseJournal reads all intact records, also those after a damaged place: each record proves itself
// by its checksum and its number.
func parseJournal(b []byte) (p journalContents) {
	p.header, p.attempts = &workerpb.JournalHeader{}, map[messages.AttemptKey]*journalAttempt{}
	if len(b) == 0 {
		p.fault = "the file is empty"
		return p
	}
	var number uint32 // of the next record
	tail := false
	for rest := b; len(rest) > 0; {
		at := len(b) - len(rest)
		if tail {
			p.addFault("there are %d bytes after the last record, at offset %d", len(rest), at)
			tail = false
		}
		n, data, after, ok := cutRecord(rest)
		if ok && n == number {
			isTail, err := p.applyRecord(data, number == 0)
			if err != nil {
				p.addFault("record %d at offset %d: %v", number, at, err)
			}
			tail = isTail // and overwritten, when a record follows
			rest = after
			number++
			continue
		}
		skipped, found := findRecord(rest[1:], number)
		if !found {
			p.addFault("the end is torn: %d bytes at offset %d are not a record", len(rest), at)
			break
		}
		p.addFault("record %d at offset %d is damaged, and intact records follow at offset %d", number, at, at+1+skipped)
		rest = rest[1+skipped:]
		number, _, _, _ = cutRecord(rest)
	}
	if p.fault == "" && !tail {
		p.fault = fmt.Sprintf("it was cut off at offset %d", len(b))
	}
	p.complete = p.fault == ""
	return p
}

// addFault keeps the first fault.
func (p *journalContents) addFault(format string, args ...any) {
	if p.fault == "" {
		p.fault = fmt.Sprintf(format, args...)
	}
}

// findRecord finds the next intact record, behind a damaged one whose length cannot be trusted. It tries
// each offset. Its number must be possible at that place, which spares most offsets the checksum.
func findRecord(b []byte, number uint32) (at int, found bool) {
	for at := range b {
		rest := b[at:]
		if len(rest) < recordHead {
			break
		}
		// There is room for so many records in between, at most.
		n := uint32(rest[8]) | uint32(rest[9])<<8 | uint32(rest[10])<<16 | uint32(rest[11])<<24
		if n < number || uint64(n-number) > uint64(at/recordHead)+1 {
			continue
		}
		if _, _, _, ok := cutRecord(rest); ok {
			return at, true
		}
	}
	return 0, false
}

// applyRecord takes in a record. A later version may have written a record that sets no field which
// this version knows: it is skipped.
func (p *journalContents) applyRecord(data []byte, first bool) (tail bool, _ error) {
	var r workerpb.JournalRecord
	if err := r.UnmarshalVT(data); err != nil {
		return false, err
	}
	if first != (r.Header != nil) {
		return false, errors.New("the header must be the first record")
	}
	switch {
	case r.Header != nil:
		if r.Header.Format != journalFormat {
			return false, fmt.Errorf("format %d, want %d", r.Header.Format, journalFormat)
		}
		p.header = r.Header
	case r.Intent != nil:
		p.attemptOf(workerpb.KeyOf(r.Intent)).intentAt = r.Intent.At
	case r.Withdrawn != nil:
		p.removeAttempt(workerpb.KeyOf(r.Withdrawn))
	case r.Forked != nil:
		a := p.attemptOf(workerpb.KeyOf(r.Forked))
		a.pid, a.startedAt = int(r.Forked.Pid), r.Forked.At
	case r.Finished != nil:
		report, err := workerpb.ParseFinished(r.Finished)
		if err != nil {
			return false, err
		}
		p.attemptOf(report.Key).end = r.Finished
	}
	return r.Tail, nil
}

// removeAttempt takes back what was said of an attempt.
func (p *journalContents) removeAttempt(k messages.AttemptKey) {
	if i := slices.Index(p.keys, k); i >= 0 {
		p.keys = slices.Delete(p.keys, i, i+1)
		delete(p.attempts, k)
	}
}

// attemptOf returns what is known of the attempt, which is entered if it is new.
func (p *journalContents) attemptOf(k messages.AttemptKey) *journalAttempt {
	a := p.attempts[k]
	if a == nil {
		a = new(journalAttempt)
		p.attempts[k] = a
		p.keys = append(p.keys, k)
	}
	return a
}

// JournalError says that a journal lacks some of the records that were written to it.
type JournalError struct {
	File    string
	Fault   string // what is wrong, and at which offset
	Missing bool   // so is the file
}

func (e *JournalError) Error() string { return fmt.Sprintf("worker's journal %s: %s", e.File, e.Fault) }

// CheckJournal reads the journal in a worker's folder, as RecoverDeadWorker does, without any change.
// The error is a *JournalError when the journal is damaged, cut or missing. It wraps fs.ErrNotExist
// when the folder is missing. The worker may live: a journal that changes while it is read is read
// again.
func CheckJournal(folder string) error {
	path := filepath.Join(folder, journalFileName)
	var before []byte
	for {
		text, err := vfs.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Stat(folder); err != nil {
				return err // a worker that has ended removes it
			}
			return &JournalError{File: path, Fault: "the file is missing", Missing: true}
		}
		if err != nil {
			return &JournalError{File: path, Fault: err.Error()}
		}
		p := parseJournal(text)
		if p.complete {
			return nil
		}
		if before != nil && bytes.Equal(text, before) {
			return &JournalError{File: path, Fault: p.fault}
		}
		before = append(make([]byte, 0, len(text)+1), text...)
	}
}
