package commitlog

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// Options of a log.
type Options struct {
	FS vfs.FS // nil = the machine's
	// SegmentSize is the size of a segment, in bytes. The first ones of a new log are smaller: 1/16,
	// then 1/4.
	SegmentSize int64
	// MaxRowsBytes is the limit of the encoded rows of one record, in bytes. Append refuses a longer
	// one. A log that was written with a larger limit can still be opened and replayed.
	MaxRowsBytes int
	// Alarm is called, at most once and from any goroutine, when the log fails outside of a call: when
	// the next segment cannot be made. The writer would learn that only when it needs the segment.
	Alarm func(error)
}

// Log is an open log. Append and Sync belong to one goroutine, the writer. Other goroutines may call
// Retire, Close and the rest at the same time.
type Log struct {
	fs   vfs.FS
	dir  string
	opts Options
	lock io.Closer

	// Owned by the writer.
	currentSegment *segment
	pageHead       []byte // the bytes before the next record in its page
	written        uint64 // number of the newest record
	requested      bool   // the segment after the current one was requested

	synced atomic.Uint64 // number of the newest synced record
	failed atomic.Pointer[error]
	state  *stateFile

	wanted   chan int64    // sizes of segments to prepare; closed by Close
	prepared chan *segment // at most one; closed when the preparer has ended
	sequence uint64        // of the newest file; owned by the preparer
	pacer    pacer

	filesMu sync.Mutex // one goroutine at a time changes the folder's files; never the writer
	spares  []string   // files to reuse; guarded by filesMu

	segmentsMu   sync.Mutex   // never held over I/O
	fullSegments []*segment   // ascending, without the current one; guarded by segmentsMu
	liveBytes    atomic.Int64 // bytes of records in full and current

	scanned   *scan     // result of the scan, until Replay
	longest   int       // rows of the longest record to replay, in bytes
	alarmOnce sync.Once // for Alarm
	closeOnce sync.Once
	closeErr  error
}

const (
	spareSuffix = ".spare" // a former segment that waits to be reused
	newSuffix   = ".new"   // is being made
	maxSpares   = 5        // as many as become free at once, and one more: see segmentSize of package persistence
	lockName    = "LOCK"
)

// ErrFailed is wrapped by the error of the call that made the log fail, and by every error after it.
var ErrFailed = errors.New("the commit log has failed")

// Open opens the log in dir, or makes a new one, and proves that it is whole. It cuts a torn tail. The
// error is a *DamageError when a file is not what was written, and wraps vfs.ErrLocked when another
// process has the log. The caller replays the records after Applied before it appends.
//
// It reads all segments once. After an error no whole record has changed; the state file may say that the
// log is open, which it says of a killed process, too.
func Open(dir string, o Options) (l *Log, err error) {
	if o.FS == nil {
		o.FS = vfs.OS{}
	}
	if least := recordSize(o.MaxRowsBytes) + 2*pageSize; o.SegmentSize < least {
		o.SegmentSize = least
	}
	o.SegmentSize = (o.SegmentSize + pageSize - 1) / pageSize * pageSize
	l = &Log{fs: o.FS, dir: dir, opts: o, wanted: make(chan int64, 1), prepared: make(chan *segment, 1)}
	l.pacer.moved.L = &l.pacer.mu
	l.pacer.hurry = true
	if err := l.fs.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if l.lock, err = l.fs.Lock(filepath.Join(dir, lockName)); err != nil {
		return nil, err
	}
	if err := l.openFiles(); err != nil {
		return nil, errors.Join(err, l.closeUnfinished())
	}
	go l.prepareLoop()
	return l, nil
}

func (l *Log) openFiles() error {
	sc, err := scanLog(l.fs, l.dir, os.O_RDWR, nil)
	l.scanned = sc
	l.fullSegments = sc.segments
	l.longest = sc.longest
	if errors.Is(err, iofs.ErrNotExist) {
		if err = l.createState(); err == nil {
			sc.state, _, err = readState(l.fs, l.dir)
		}
	}
	if err != nil {
		return err
	}
	if l.state, err = openStateFile(l.fs, l.dir, sc.state); err != nil {
		return err
	}
	// From here on both slots and both copies of the witness are whole.
	for range 2 {
		if err := l.state.write(func(st *state) { st.closed = false }); err != nil {
			return err
		}
	}
	l.written = max(sc.last, sc.state.applied)
	l.synced.Store(l.written)
	if err := l.findSpares(); err != nil {
		return err
	}
	if len(l.fullSegments) == 0 {
		size := max(l.opts.SegmentSize/16/pageSize*pageSize, 4*pageSize)
		l.sequence = 1
		if l.currentSegment, err = l.makeSegment(1, size); err != nil {
			return err
		}
		l.scanned.segments = []*segment{l.currentSegment}
		return l.state.writeWitness(l.written)
	}
	l.sequence = l.fullSegments[len(l.fullSegments)-1].sequence
	if err := l.resumeAfterLast(sc.tail); err != nil {
		return err
	}
	return l.state.writeWitness(l.written)
}

// createState makes the state file of a new log. It syncs the folder's own name, too.
func (l *Log) createState() error {
	if err := l.fs.SyncDir(filepath.Dir(l.dir)); err != nil {
		return err
	}
	st := state{generation: 1}
	if _, err := rand.Read(st.identity[:]); err != nil {
		return err
	}
	return createState(l.fs, l.dir, st)
}

// resumeAfterLast continues after the last record. That record may have been written and never synced, or its
// sync may have failed and the kernel forgotten that: it is written again. Zeros overwrite what a crash
// has left of the record after it.
func (l *Log) resumeAfterLast(tail int) error {
	l.currentSegment = l.fullSegments[tail]
	behind := l.fullSegments[tail+1:]
	l.fullSegments = l.fullSegments[:tail:tail]
	s := l.currentSegment
	w := segmentReader{s: s}
	from := s.end / pageSize * pageSize
	if s.last != 0 {
		from = s.lastAt / pageSize * pageSize
	}
	torn, ok, err := w.looksLikeRecord(s.end, l.written+1)
	if err != nil {
		return err
	}
	if !ok {
		torn = 0
	}
	end := min((s.end+max(torn, 1)+pageSize-1)/pageSize*pageSize, s.size)
	b, err := w.readAt(from, s.end-from)
	if err != nil {
		return err
	}
	again := make([]byte, end-from)
	copy(again, b)
	if len(again) > 0 {
		if _, err := s.file.WriteAt(again, from); err != nil {
			return err
		}
	}
	if err := s.file.Sync(); err != nil {
		return err
	}
	l.pageHead = append(make([]byte, 0, pageSize), again[:s.end-from][max(0, s.end/pageSize*pageSize-from):]...)
	for _, f := range l.fullSegments {
		l.liveBytes.Add(f.end - pageSize)
	}
	l.liveBytes.Add(s.end - pageSize)
	if len(behind) > 1 {
		if err := l.dropEmptySegments(behind[1:]); err != nil {
			return err
		}
		behind = behind[:1]
		l.sequence = behind[0].sequence
	}
	for _, next := range behind {
		if _, err := next.file.WriteAt(make([]byte, pageSize), pageSize); err != nil {
			return err
		}
		if err := next.file.Sync(); err != nil {
			return err
		}
		next.end = pageSize
		l.prepared <- next
		l.requested = true
	}
	return nil
}

// dropEmptySegments removes empty segments at the end of the log, the last one first. They exist when the power
// failed while the first record of a segment was being synced, and the next segment was already there.
func (l *Log) dropEmptySegments(empty []*segment) error {
	for i := len(empty) - 1; i >= 0; i-- {
		if err := errors.Join(empty[i].file.Close(), l.fs.Remove(empty[i].path), l.fs.SyncDir(l.dir)); err != nil {
			return err
		}
	}
	return nil
}

// closeUnfinished closes what an unfinished Open has opened.
func (l *Log) closeUnfinished() error {
	if l.scanned != nil {
		l.scanned.closeSegments()
	}
	if l.state != nil && l.state.file != nil {
		l.state.file.Close()
	}
	return l.lock.Close()
}

// Replay calls fn for the records after Applied, in order: all that the last process may not have
// stored elsewhere. It is called once, before the first Append. The function Rows reads the rows; they
// are valid until fn returns.
func (l *Log) Replay(fn func(number uint64, rows []byte) error) error {
	sc := l.scanned
	l.scanned = nil
	if sc == nil {
		panic("commitlog: Replay was called before")
	}
	w := segmentReader{}
	for _, s := range sc.segments {
		if s.last <= sc.state.applied {
			continue
		}
		w = segmentReader{s: s, buf: w.buf}
		for off := int64(pageSize); off < s.end; {
			number, rows, err := w.readRecord(off)
			if err == nil && number == 0 {
				err = newDamage(s.path, off, "a record has changed since it was checked")
			}
			if err == nil && number > sc.state.applied {
				err = fn(number, rows)
			}
			if err != nil {
				return err
			}
			off += recordSize(len(rows))
		}
	}
	return nil
}

// LongestBytes returns the size of the rows of the longest record to replay, in bytes.
func (l *Log) LongestBytes() int { return l.longest }

// Last returns the number of the newest durable record; 0 for an empty log.
func (l *Log) Last() uint64 { return l.synced.Load() }

// Applied returns the number up to which records were retired.
func (l *Log) Applied() uint64 {
	l.filesMu.Lock()
	defer l.filesMu.Unlock()
	return l.state.state.applied
}

// LiveBytes returns the size of the records that the log keeps, in bytes.
func (l *Log) LiveBytes() int64 { return l.liveBytes.Load() }

// Identity tells this log from all others.
func (l *Log) Identity() Identity { return l.state.identity }

// Append writes a record, which is durable when Sync has returned nil. Its number must be one more than
// that of the record before, which must have been synced (rule 3); else it panics. The builder
// belongs to the caller again when Append returns. A record of more than MaxRowsBytes is an error
// that leaves the log as it was; every other error fails the log.
//
// The record is written as whole pages: the first begins with the bytes before the record in its page
// (pageHead), and the last one ends with zeros. So the kernel does not have to read a page before it
// changes a part of it, and the zeros overwrite what the last page held after the record.
func (l *Log) Append(number uint64, g *RecordBuilder) error {
	if err := l.Err(); err != nil {
		return err
	}
	if number != l.written+1 || l.written != l.synced.Load() {
		panic(fmt.Sprintf("commitlog: record %d after record %d, of which %d are synced", number, l.written, l.synced.Load()))
	}
	n := len(g.buf) - builderHead
	if n < 0 || n > l.opts.MaxRowsBytes {
		return fmt.Errorf("a record of %d bytes; %d are the limit", n, l.opts.MaxRowsBytes)
	}
	for l.currentSegment.size-l.currentSegment.end < recordSize(n) {
		if err := l.rotate(); err != nil {
			return l.fail(err)
		}
	}
	s := l.currentSegment
	putHead(g.buf[pageSize:], s.sum, s.end, number)
	begin := pageSize - len(l.pageHead)
	copy(g.buf[begin:], l.pageHead)
	used := len(g.buf) + int(recordSize(n)) - recordHead - n
	whole := min((used-begin+pageSize-1)/pageSize*pageSize, int(s.size-s.end)+len(l.pageHead)) // bytes to write
	g.buf = zeroExtend(g.buf, begin+whole)
	if _, err := s.file.WriteAt(g.buf[begin:begin+whole], s.end-int64(len(l.pageHead))); err != nil {
		return l.fail(err)
	}
	last := (used - begin) / pageSize * pageSize
	l.pageHead = append(l.pageHead[:0], g.buf[begin+last:used]...)
	if s.first == 0 {
		s.first = number
	}
	s.last = number
	s.end += recordSize(n)
	l.liveBytes.Add(recordSize(n))
	l.written = number
	if !l.requested && s.end > s.size/4 {
		l.requestSegment()
	} else {
		l.pacer.advance(s.end)
	}
	return nil
}

// zeroExtend extends b with zeros.
func zeroExtend(b []byte, n int) []byte {
	if n <= len(b) {
		return b
	}
	old := len(b)
	if n > cap(b) {
		return append(b, make([]byte, n-old)...)
	}
	b = b[:n]
	clear(b[old:])
	return b
}

// Sync makes the appended record durable. The record may be acknowledged when it returns nil. In
// between, after the sync, it writes the witness (writeWitness). An error fails the log: whether
// the record is durable is unknown, and the next open finds it whole or cuts it.
func (l *Log) Sync() error {
	if err := l.Err(); err != nil {
		return err
	}
	if err := l.currentSegment.file.Sync(); err != nil {
		return l.fail(err)
	}
	if err := l.state.writeWitness(l.written); err != nil {
		return l.fail(err)
	}
	l.synced.Store(l.written)
	return nil
}

// fail makes the log failed for good. After a failed write or sync it is unknown what the device has of
// the file, and the kernel may report the next sync as a success.
func (l *Log) fail(err error) error {
	err = fmt.Errorf("%w: %w", ErrFailed, err)
	if l.failed.CompareAndSwap(nil, &err) {
		return err
	}
	return l.Err()
}

// Err returns why the log has failed, or nil.
func (l *Log) Err() error {
	if err := l.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// failInBackground is fail for a goroutine whose errors are not returned to a caller: it also raises
// the Alarm.
func (l *Log) failInBackground(err error) {
	err = l.fail(err)
	if l.opts.Alarm != nil {
		l.alarmOnce.Do(func() { l.opts.Alarm(err) })
	}
}

// Close closes the files. If clean is true, and the log has not failed, it stores the number of the
// last record, so that any later damage is found. Append and Sync must have ended. A second call has
// no effect.
func (l *Log) Close(clean bool) error {
	l.closeOnce.Do(func() { l.closeErr = l.closeFiles(clean) })
	return l.closeErr
}

func (l *Log) closeFiles(clean bool) (err error) {
	close(l.wanted)
	l.pacer.hasten()
	for next := range l.prepared {
		err = errors.Join(err, next.file.Close())
	}
	l.filesMu.Lock()
	defer l.filesMu.Unlock()
	// An empty log without a record cannot tell the next open where it ends.
	if last := l.synced.Load(); clean && l.Err() == nil && (last == 0 || l.liveBytes.Load() > 0) {
		err = errors.Join(err, l.state.write(func(st *state) { st.closed, st.last = true, last }))
	}
	for _, s := range append(l.fullSegments, l.currentSegment) {
		err = errors.Join(err, s.file.Close())
	}
	return errors.Join(err, l.state.file.Close(), l.lock.Close())
}
