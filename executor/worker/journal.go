package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// compactMin is the least size at which a journal is compacted, in bytes. A larger one is compacted at twice
// its size after the last time, so that the work of compactions stays in proportion to what is written.
const compactMin = 1 << 20

// journal is the worker's durable memory of the attempts that it began and of their ends that are not
// acknowledged. A record is an encoded workerpb.JournalRecord with its number, which counts the
// records of the file from 0:
//
//	uint32 length, uint32 CRC-32C of number and message, uint32 number, message
//
// The first record is the header. Every write ends with a tail, which the next write replaces: a file
// without a tail was cut, or not written to its end. So a reader knows whether it has all records
// (journalContents.complete), and tells a torn end from damage.
//
// The worker that writes a journal never reads it: its table of attempts has all that the records say
// of attempts that are not acknowledged, so a new file can be written at any time. After an error the
// file is not trusted, and no record is added to it: the next write must be a new file (rewrite).
type journal struct {
	mu        sync.Mutex
	fs        vfs.FS
	path      string
	header    *workerpb.JournalHeader // of each file
	f         vfs.File
	size      int64        // of the records in the file, without the tail
	buf       recordBuffer // records that are not written yet
	compactAt int64        // the size at which it is compacted
	failed    error        // of the last write; nil when that succeeded
}

// journalFormat is the version of the format.
const journalFormat = 1

// createJournal begins the journal in a worker's folder.
func createJournal(fs vfs.FS, folder string, h *workerpb.JournalHeader) (*journal, error) {
	j := &journal{fs: fs, path: filepath.Join(folder, journalFileName), header: h, compactAt: compactMin}
	var err error
	if j.f, err = fs.OpenFile(j.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, fmt.Errorf("worker journal: %w", err)
	}
	j.buf.add(&workerpb.JournalRecord{Header: j.header})
	if err := j.write(); err != nil {
		j.f.Close()
		return nil, err
	}
	return j, nil
}

// castagnoli is the table of CRC-32C.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recordHead is the length of a record without its message.
const recordHead = 12

// recordBuffer holds encoded records.
type recordBuffer struct {
	bytes  []byte
	number uint32 // of the next record
}

// add encodes a record.
func (b *recordBuffer) add(r *workerpb.JournalRecord) {
	at, size := len(b.bytes), r.SizeVT()
	b.bytes = slices.Grow(b.bytes, recordHead+size)[:at+recordHead+size]
	record := b.bytes[at:]
	binary.LittleEndian.PutUint32(record, uint32(size))
	binary.LittleEndian.PutUint32(record[8:], b.number)
	if _, err := r.MarshalToSizedBufferVT(record[recordHead:]); err != nil {
		panic(fmt.Sprintf("record %d of the worker journal: %v", b.number, err)) // only a wrong size gives an error
	}
	binary.LittleEndian.PutUint32(record[4:], crc32.Checksum(record[8:], castagnoli))
	b.number++
}

// addIntent encodes that the attempt's process is forked next; at is in ns since boot.
func (b *recordBuffer) addIntent(k messages.AttemptKey, at int64) {
	b.add(&workerpb.JournalRecord{Intent: &workerpb.Intent{Run: uint64(k.Run), Task: k.Task, Attempt: k.Attempt, At: at}})
}

// addWithdrawn encodes that the process was not forked in spite of the intent.
func (b *recordBuffer) addWithdrawn(k messages.AttemptKey) {
	b.add(&workerpb.JournalRecord{Withdrawn: &workerpb.AttemptKey{Run: uint64(k.Run), Task: k.Task, Attempt: k.Attempt}})
}

// addForked encodes which process the attempt is; at is that of its intent.
func (b *recordBuffer) addForked(k messages.AttemptKey, pid int, at int64) {
	b.add(&workerpb.JournalRecord{Forked: &workerpb.Forked{
		Run: uint64(k.Run), Task: k.Task, Attempt: k.Attempt, Pid: int64(pid), At: at,
	}})
}

// addFinished encodes an end, as workerpb.AppendFinished gives it.
func (b *recordBuffer) addFinished(end []byte) { b.add(&workerpb.JournalRecord{Finished: end}) }

// addTail encodes the tail, whose number the next record has.
func (b *recordBuffer) addTail() {
	b.add(&workerpb.JournalRecord{Tail: true})
	b.number--
}

// cutRecord cuts the first record off, with any number. ok is false when b does not begin with an
// intact record.
func cutRecord(b []byte) (number uint32, data, rest []byte, ok bool) {
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

// writeIntents writes the intents of the orders' attempts, and all that was added before. After an
// error no process may be forked.
func (j *journal) writeIntents(orders []*executor.Order, at int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, o := range orders {
		j.buf.addIntent(o.Key, at)
	}
	return j.write()
}

// add adds records to the next write.
func (j *journal) add(records func(*recordBuffer)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	records(&j.buf)
}

// flush writes what was added. Without additions it does nothing.
func (j *journal) flush() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.write()
}

// errMustRewrite says that the file is not trusted after an error.
var errMustRewrite = errors.New("the file must be replaced")

// write writes buf and a tail over the former tail. After an error the file is not written any more,
// and rewrite has to write what buf holds. j.mu is held.
//
// It does not sync. The journal is for the death of the worker's process, which leaves written pages
// with the kernel. A restart of the machine ends all attempts anyway, and the boot ID in the header
// tells it (DeadWorkerState.Complete). That keeps a start free of a wait for the disk.
func (j *journal) write() error {
	if j.failed != nil {
		j.buf.bytes = j.buf.bytes[:0]
		return fmt.Errorf("worker journal: %w after: %w", errMustRewrite, j.failed)
	}
	n := len(j.buf.bytes)
	if n == 0 {
		return nil
	}
	j.buf.addTail()
	_, err := j.f.WriteAt(j.buf.bytes, j.size)
	j.buf.bytes = j.buf.bytes[:0]
	if cap(j.buf.bytes) > 1<<20 {
		j.buf.bytes = nil
	}
	if err != nil {
		j.failed = err
		return fmt.Errorf("worker journal: %w", err)
	}
	j.size += int64(n)
	return nil
}

// needsCompaction reports whether the file has grown enough to be compacted.
func (j *journal) needsCompaction() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size >= j.compactAt
}

// failure returns the error of the last write. The file must be replaced before a record is added.
func (j *journal) failure() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failed
}

// rewrite replaces the journal by a new file with the records that addLive adds. The caller holds
// Worker.mu, so that only intents can come at the same time: they wait for j.mu, and addLive adds them
// too. After an error the old file stays, and stays in use if it is trusted; the caller tries again
// later.
func (j *journal) rewrite(addLive func(*recordBuffer)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.compactAt = 2 * max(j.size, compactMin)
	var records recordBuffer
	records.add(&workerpb.JournalRecord{Header: j.header})
	addLive(&records)
	size := int64(len(records.bytes))
	records.addTail()
	f, err := j.fs.OpenFile(j.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("worker journal: %w", err)
	}
	_, err = f.WriteAt(records.bytes, 0)
	if err == nil {
		err = j.fs.Rename(j.path+".new", j.path)
	}
	if err != nil {
		f.Close()
		_ = j.fs.Remove(j.path + ".new") // else the next one overwrites it
		return fmt.Errorf("worker journal: %w", err)
	}
	j.f.Close()
	j.f, j.size, j.buf, j.failed = f, size, recordBuffer{j.buf.bytes[:0], records.number}, nil
	j.compactAt = max(2*j.size, compactMin)
	return nil
}

// close writes what was added and closes the file. The journal is not used after that.
func (j *journal) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return errors.Join(j.write(), j.f.Close())
}
