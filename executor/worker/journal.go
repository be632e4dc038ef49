package worker

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"

	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// compactMin is the size from which on a journal is worth compacting.
const compactMin = 1 << 20

// journal is the worker's own memory of what it began and of ends that nobody has
// acknowledged. A record is a length, a checksum and a workerpb item:
//
//	uint32 length of the item, uint32 CRC-32C of the item, item
//
// It is never read by the worker that writes it. What stands in no acknowledged way
// is in the worker's book too, so that a new file can be written at any time.
type journal struct {
	mu     sync.Mutex
	path   string
	header []byte // the first item of each file
	f      *os.File
	size   int64  // of the records in the file
	buf    []byte // records that are not written yet
	next   int64  // the size at which it is compacted
	failed bool   // the last write did not succeed
}

// createJournal begins the journal of a worker's folder.
func createJournal(folder string, h workerpb.Header) (*journal, error) {
	j := &journal{path: filepath.Join(folder, journalFile), header: workerpb.AppendHeader(nil, h), next: compactMin}
	var err error
	if j.f, err = os.OpenFile(j.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, fmt.Errorf("worker's journal: %w", err)
	}
	j.buf = appendRecord(j.buf, j.header)
	if err := j.write(); err != nil {
		j.f.Close()
		return nil, err
	}
	return j, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendRecord(dst, item []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(item)))
	dst = binary.LittleEndian.AppendUint32(dst, crc32.Checksum(item, castagnoli))
	return append(dst, item...)
}

// cutRecord cuts the first record off. ok is false at the end, which may be torn.
func cutRecord(b []byte) (item, rest []byte, ok bool) {
	if len(b) < 8 {
		return nil, b, false
	}
	n, sum := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	if n == 0 || uint64(n) > uint64(len(b)-8) || crc32.Checksum(b[8:8+n], castagnoli) != sum {
		return nil, b, false
	}
	return b[8 : 8+n], b[8+n:], true
}

// intent writes that the attempt is about to begin, and all that was added before.
// On an error nothing may be forked.
func (j *journal) intent(key messages.AttemptKey, at int64) error {
	var room [64]byte
	item := workerpb.AppendKeyAt(room[:0], workerpb.TypeIntent, key, at)
	j.mu.Lock()
	defer j.mu.Unlock()
	before := len(j.buf)
	j.buf = appendRecord(j.buf, item)
	if err := j.write(); err != nil {
		j.buf = j.buf[:before]
		return err
	}
	return nil
}

// add takes an item for the next write.
func (j *journal) add(item []byte) {
	j.mu.Lock()
	j.buf = appendRecord(j.buf, item)
	j.mu.Unlock()
}

// flush writes what was added. What could not be written stays for the next time.
func (j *journal) flush() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.write()
}

// write appends buf to the file. A write that is cut short is undone, so that no
// later record stands behind half a one. j.mu is held.
func (j *journal) write() error {
	if len(j.buf) == 0 {
		return nil
	}
	n, err := j.f.WriteAt(j.buf, j.size)
	if err != nil {
		if n > 0 {
			// Else the next write overwrites it; a reader stops at the checksum until then.
			_ = j.f.Truncate(j.size)
		}
		j.failed = true
		return fmt.Errorf("worker's journal: %w", err)
	}
	j.failed = false
	j.size += int64(n)
	j.buf = j.buf[:0]
	if cap(j.buf) > 1<<20 {
		j.buf = nil
	}
	return nil
}

// full tells whether it is time to compact.
func (j *journal) full() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size >= j.next
}

// compact replaces the journal by one of the items that live appends as records. The
// caller sees to it that nothing is added by anybody else meanwhile but intents, which
// wait. When that does not work the old one goes on, and it is tried again later.
func (j *journal) compact(live func(add func(item []byte))) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.next = 2 * max(j.size, compactMin)
	records := appendRecord(nil, j.header)
	live(func(item []byte) { records = appendRecord(records, item) })
	f, err := os.OpenFile(j.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("worker's journal: %w", err)
	}
	_, err = f.Write(records)
	if err == nil {
		err = os.Rename(j.path+".new", j.path)
	}
	if err != nil {
		f.Close()
		os.Remove(j.path + ".new")
		return fmt.Errorf("worker's journal: %w", err)
	}
	j.f.Close()
	j.f, j.size, j.buf = f, int64(len(records)), j.buf[:0]
	j.next = max(2*j.size, compactMin)
	return nil
}

func (j *journal) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	err := j.write()
	if cerr := j.f.Close(); err == nil {
		err = cerr
	}
	return err
}

// past is what a journal says.
type past struct {
	header   workerpb.Header
	attempts map[messages.AttemptKey]*pastAttempt
	keys     []messages.AttemptKey // in the order in which they began
	torn     int                   // bytes at the end that are no record
}

type pastAttempt struct {
	intent int64  // ns since boot
	born   int64  // ns since boot, or a little earlier; 0 when it is not known
	pid    int    // 0 when it is not known
	end    []byte // the body of its Finished; nil when it has not ended
}

// readJournal reads as far as the checksums hold. A journal without a header is one
// that was never written: ok is false.
func readJournal(b []byte) (p past, ok bool) {
	p.attempts = map[messages.AttemptKey]*pastAttempt{}
	for first := true; ; first = false {
		item, rest, good := cutRecord(b)
		if !good {
			break
		}
		typ, body, _, err := workerpb.Next(item)
		if err == nil {
			err = p.read(typ, body, first)
		}
		if err != nil {
			break // the checksum holds and the item does not: written by nobody we know
		}
		ok, b = true, rest
	}
	p.torn = len(b)
	return p, ok
}

func (p *past) read(typ workerpb.Type, body []byte, first bool) (err error) {
	if first != (typ == workerpb.TypeHeader) {
		return fmt.Errorf("item of type %d out of place", typ)
	}
	switch typ {
	case workerpb.TypeHeader:
		p.header, err = workerpb.ParseHeader(body)
	case workerpb.TypeIntent:
		var k workerpb.KeyAt
		if k, err = workerpb.ParseKeyAt(body); err == nil {
			p.attempt(k.Key).intent = k.At
		}
	case workerpb.TypeBorn:
		var b workerpb.Born
		if b, err = workerpb.ParseBorn(body); err == nil {
			a := p.attempt(b.Key)
			a.pid, a.born = b.PID, b.At
		}
	case workerpb.TypeFinished:
		var rep messages.AttemptKey
		if _, err = workerpb.ParseFinished(body); err == nil {
			rep, err = workerpb.FinishedKey(body)
			p.attempt(rep).end = body
		}
	}
	return err
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
