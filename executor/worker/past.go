package worker

import (
	"errors"
	"fmt"
	"slices"

	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// past is what a journal says.
type past struct {
	header   *workerpb.JournalHeader // empty when the header is damaged
	attempts map[messages.AttemptKey]*pastAttempt
	keys     []messages.AttemptKey // in the order in which they began
	// whole: these are all records that were written. What the journal does not name has
	// not begun, or was acknowledged.
	whole bool
	fault string // what is wrong and where; "" when whole
}

type pastAttempt struct {
	intent int64  // ns since boot; 0 when it is not known
	born   int64  // ns since boot, or a little earlier; 0 when it is not known
	pid    int    // 0 when it is not known
	end    []byte // its end, encoded; nil when it has not ended
}

// readJournal reads all records that are whole, those after a damaged place too: each
// proves itself by its checksum and its number.
func readJournal(b []byte) (p past) {
	p.header, p.attempts = &workerpb.JournalHeader{}, map[messages.AttemptKey]*pastAttempt{}
	if len(b) == 0 {
		p.fault = "the file is empty"
		return p
	}
	var number uint32 // of the next record
	tail := false
	for rest := b; len(rest) > 0; {
		at := len(b) - len(rest)
		if tail {
			p.blame("there are %d bytes after the last record, at offset %d", len(rest), at)
			tail = false
		}
		n, data, after, ok := cutRecord(rest)
		if ok && n == number {
			isTail, err := p.read(data, number == 0)
			if err != nil {
				p.blame("record %d at offset %d: %v", number, at, err)
			}
			tail = isTail // and overwritten, when a record follows
			rest = after
			number++
			continue
		}
		skipped, found := nextRecord(rest[1:], number)
		if !found {
			p.blame("the end is torn: %d bytes at offset %d are no record", len(rest), at)
			break
		}
		p.blame("record %d at offset %d is damaged, and good records follow at offset %d", number, at, at+1+skipped)
		rest = rest[1+skipped:]
		number, _, _, _ = cutRecord(rest)
	}
	if p.fault == "" && !tail {
		p.fault = fmt.Sprintf("it was cut off at offset %d", len(b))
	}
	p.whole = p.fault == ""
	return p
}

// blame keeps the first fault.
func (p *past) blame(format string, args ...any) {
	if p.fault == "" {
		p.fault = fmt.Sprintf(format, args...)
	}
}

// nextRecord finds the next good record whose number can stand there.
func nextRecord(b []byte, number uint32) (at int, found bool) {
	for at := range b {
		rest := b[at:]
		if len(rest) < recordHead {
			break
		}
		// Between the two there is room for so many records at most.
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

// read takes in a record. A record without a field that is known here is one of a later version.
func (p *past) read(data []byte, first bool) (tail bool, _ error) {
	var r workerpb.JournalRecord
	if err := r.UnmarshalVT(data); err != nil {
		return false, err
	}
	if first != (r.Header != nil) {
		return false, errors.New("only the first record, and it always, has the header")
	}
	switch {
	case r.Header != nil:
		if r.Header.Format != journalFormat {
			return false, fmt.Errorf("format %d, want %d", r.Header.Format, journalFormat)
		}
		p.header = r.Header
	case r.Intent != nil:
		p.attempt(workerpb.KeyOf(r.Intent)).intent = r.Intent.At
	case r.Withdrawn != nil:
		p.forget(workerpb.KeyOf(r.Withdrawn))
	case r.Forked != nil:
		a := p.attempt(workerpb.KeyOf(r.Forked))
		a.pid, a.born = int(r.Forked.Pid), r.Forked.At
	case r.Finished != nil:
		report, err := workerpb.ParseFinished(r.Finished)
		if err != nil {
			return false, err
		}
		p.attempt(report.Key).end = r.Finished
	}
	return r.Tail, nil
}

// forget takes back what was said of an attempt.
func (p *past) forget(k messages.AttemptKey) {
	if i := slices.Index(p.keys, k); i >= 0 {
		p.keys = slices.Delete(p.keys, i, i+1)
		delete(p.attempts, k)
	}
}

func (p *past) attempt(k messages.AttemptKey) *pastAttempt {
	a := p.attempts[k]
	if a == nil {
		a = new(pastAttempt)
		p.attempts[k] = a
		p.keys = append(p.keys, k)
	}
	return a
}
