package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// compactMin is the size from which on a journal is worth compacting.
const compactMin = 1 << 20

// journal is the worker's own memory of what it began and of ends that nobody has
// acknowledged. A record is a workerpb item with its number, which counts the records of
// the file from 0:
//
//	uint32 length of the item, uint32 CRC-32C of number and item, uint32 number, item
//
// The first item is a Header. Every write ends with a Tail, which the next write replaces:
// a file that does not end with one was cut, or not written to its end. So a reader knows
// whether it has all records (past.whole), and tells a torn end from damage.
//
// The worker that writes a journal never reads it: all that its records say of attempts
// that are not acknowledged is in the worker's book too, so that a new file can be written
// at any time. After an error the file is not trusted any more, and nothing is added to
// it: the next write must be a new file (compact).
type journal struct {
	mu     sync.Mutex
	fs     vfs.FS
	path   string
	header []byte // the first item of each file
	f      vfs.File
	size   int64  // of the records in the file, without the Tail
	buf    []byte // records that are not written yet
	number uint32 // of the next record
	next   int64  // the size at which it is compacted
	failed error  // of the last write; nil when that succeeded
}

// createJournal begins the journal of a worker's folder.
func createJournal(fs vfs.FS, folder string, h workerpb.Header) (*journal, error) {
	j := &journal{fs: fs, path: filepath.Join(folder, journalFileName), header: workerpb.AppendHeader(nil, h), next: compactMin}
	var err error
	if j.f, err = fs.OpenFile(j.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, fmt.Errorf("worker's journal: %w", err)
	}
	j.append(j.header)
	if err := j.write(); err != nil {
		j.f.Close()
		return nil, err
	}
	return j, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recordHead is the length of a record without its item.
const recordHead = 12

func appendRecord(dst []byte, number uint32, item []byte) []byte {
	at := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(item)))
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, number)
	dst = append(dst, item...)
	binary.LittleEndian.PutUint32(dst[at+4:], crc32.Checksum(dst[at+8:], castagnoli))
	return dst
}

// cutRecord cuts the first record off, whatever its number. ok is false when there is none.
func cutRecord(b []byte) (number uint32, item, rest []byte, ok bool) {
	if len(b) < recordHead {
		return 0, nil, b, false
	}
	n, sum := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	if n == 0 || uint64(n) > uint64(len(b)-recordHead) {
		return 0, nil, b, false
	}
	end := recordHead + int(n)
	if crc32.Checksum(b[8:end], castagnoli) != sum {
		return 0, nil, b, false
	}
	return binary.LittleEndian.Uint32(b[8:]), b[recordHead:end], b[end:], true
}

// append takes an item for the next write. j.mu is held.
func (j *journal) append(item []byte) {
	j.buf = appendRecord(j.buf, j.number, item)
	j.number++
}

// intents writes that the orders' attempts are about to begin, and all that was added
// before. On an error nothing may be forked.
func (j *journal) intents(orders []*executor.Order, at int64) error {
	var room [64]byte
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, o := range orders {
		j.append(workerpb.AppendKeyAt(room[:0], workerpb.TypeIntent, o.Key, at))
	}
	return j.write()
}

// add takes an item for the next write.
func (j *journal) add(item []byte) {
	j.mu.Lock()
	j.append(item)
	j.mu.Unlock()
}

// flush writes what was added.
func (j *journal) flush() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.write()
}

// errAnew: the file is not trusted after an error.
var errAnew = errors.New("the file must be written anew")

// write writes buf and a Tail over the former Tail. After an error the file is not
// written any more, and what buf holds is left to compact. j.mu is held.
func (j *journal) write() error {
	if j.failed != nil {
		j.buf = j.buf[:0]
		return fmt.Errorf("worker's journal: %w after: %w", errAnew, j.failed)
	}
	if len(j.buf) == 0 {
		return nil
	}
	n := len(j.buf)
	var tail [2]byte
	j.buf = appendRecord(j.buf, j.number, workerpb.AppendEmpty(tail[:0], workerpb.TypeTail))
	_, err := j.f.WriteAt(j.buf, j.size)
	j.buf = j.buf[:0]
	if cap(j.buf) > 1<<20 {
		j.buf = nil
	}
	if err != nil {
		j.failed = err
		return fmt.Errorf("worker's journal: %w", err)
	}
	j.size += int64(n)
	return nil
}

// due tells whether it is time to compact, or needed.
func (j *journal) due() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size >= j.next
}

// broken is not nil when the file must be written anew before anything is added.
func (j *journal) broken() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failed
}

// compact replaces the journal by a new file with the items that live adds. The caller
// sees to it that nothing is added by anybody else meanwhile but intents, which wait, and
// which live adds too. When that does not work the old file stays, in use if it is
// trusted, and it is tried again later.
func (j *journal) compact(live func(add func(item []byte))) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.next = 2 * max(j.size, compactMin)
	var number uint32
	var records []byte
	add := func(item []byte) {
		records = appendRecord(records, number, item)
		number++
	}
	add(j.header)
	live(add)
	size := int64(len(records))
	records = appendRecord(records, number, workerpb.AppendEmpty(nil, workerpb.TypeTail))
	f, err := j.fs.OpenFile(j.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("worker's journal: %w", err)
	}
	_, err = f.WriteAt(records, 0)
	if err == nil {
		err = j.fs.Rename(j.path+".new", j.path)
	}
	if err != nil {
		f.Close()
		_ = j.fs.Remove(j.path + ".new") // else the next one overwrites it
		return fmt.Errorf("worker's journal: %w", err)
	}
	j.f.Close()
	j.f, j.size, j.buf, j.number, j.failed = f, size, j.buf[:0], number, nil
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
