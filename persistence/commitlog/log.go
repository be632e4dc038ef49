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
	// SegmentSize is the size of a segment, in bytes. The first ones of a new log are
	// smaller: 1/16, then 1/4.
	SegmentSize int64
	// MaxRows is the most that the rows of one record take, in bytes.
	MaxRows int
	// Alarm is called, at most once and from any goroutine, when the log fails while
	// nobody waits for it.
	Alarm func(error)
}

// Log is an open log. Append and Sync belong to one goroutine, the writer. Retire, Close
// and the rest may be called from others beside it.
type Log struct {
	fs   vfs.FS
	dir  string
	opts Options
	lock io.Closer

	// The writer's.
	current *segment
	page    []byte // what lies in the page where the next record goes, before it
	written uint64 // number of the newest record
	asked   bool   // the segment behind the current one was asked for

	synced atomic.Uint64 // number of the newest synced record
	failed atomic.Pointer[error]
	state  *stateFile

	wanted   chan int64    // sizes of segments to prepare; closed by Close
	prepared chan *segment // at most one; closed when preparing has ended
	sequence uint64        // of the newest file; the preparer's
	pacer    pacer

	keeping sync.Mutex // one goroutine at a time changes the folder's files; never the writer
	spares  []string   // under keeping: files to be used again

	mu   sync.Mutex   // never held over I/O
	full []*segment   // under mu, ascending: behind them is the current one
	live atomic.Int64 // bytes of records in full and current

	found    *scan     // until Replay
	longest  int       // of found
	once     sync.Once // of Alarm
	closing  sync.Once
	closeErr error
}

const (
	spareSuffix = ".spare" // was a segment and will be one
	newSuffix   = ".new"   // is being made
	maxSpares   = 5        // as many as become free at once, and one: see segmentSize of package persistence
	lockName    = "LOCK"
)

// ErrFailed is wrapped by every error behind the first one.
var ErrFailed = errors.New("the commit log has failed")

// Open opens the log in dir, or makes a new one, and proves that it is whole. A torn tail
// is cut. The error is a *DamageError when a file is not what was written, and wraps
// vfs.ErrLocked when another process has the log. The caller replays what lies behind
// Applied before it appends.
func Open(dir string, o Options) (l *Log, err error) {
	if o.FS == nil {
		o.FS = vfs.OS{}
	}
	if least := recordSize(o.MaxRows) + 2*pageSize; o.SegmentSize < least {
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
	if err := l.open(); err != nil {
		return nil, errors.Join(err, l.release())
	}
	go l.prepareLoop()
	return l, nil
}

func (l *Log) open() error {
	sc, err := read(l.fs, l.dir, os.O_RDWR, nil)
	l.found = sc
	l.full = sc.segments
	l.longest = sc.longest
	if errors.Is(err, iofs.ErrNotExist) {
		if err = l.create(); err == nil {
			sc.state, _, err = readState(l.fs, l.dir)
		}
	}
	if err != nil {
		return err
	}
	if l.state, err = openStateFile(l.fs, l.dir, sc.state); err != nil {
		return err
	}
	// Both slots and both copies of the witness are whole from here on.
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
	if len(l.full) == 0 {
		size := max(l.opts.SegmentSize/16/pageSize*pageSize, 4*pageSize)
		l.sequence = 1
		if l.current, err = l.makeSegment(1, size); err != nil {
			return err
		}
		l.found.segments = []*segment{l.current}
		return l.state.witness(l.written)
	}
	l.sequence = l.full[len(l.full)-1].sequence
	if err := l.resume(sc.tail); err != nil {
		return err
	}
	return l.state.witness(l.written)
}

// create makes the state of a new log. The folder's own name is synced too.
func (l *Log) create() error {
	if err := l.fs.SyncDir(filepath.Dir(l.dir)); err != nil {
		return err
	}
	st := state{generation: 1}
	if _, err := rand.Read(st.identity[:]); err != nil {
		return err
	}
	return createState(l.fs, l.dir, st)
}

// resume goes on behind the last record. That one may have been written and never synced,
// or its sync may have failed and the kernel forgotten that: it is written again. What a
// crash left of one behind it is overwritten by zeros.
func (l *Log) resume(tail int) error {
	l.current = l.full[tail]
	behind := l.full[tail+1:]
	l.full = l.full[:tail:tail]
	s := l.current
	w := window{s: s}
	from := s.end / pageSize * pageSize
	if s.last != 0 {
		from = s.lastAt / pageSize * pageSize
	}
	torn, ok, err := w.claims(s.end, l.written+1)
	if err != nil {
		return err
	}
	if !ok {
		torn = 0
	}
	end := min((s.end+max(torn, 1)+pageSize-1)/pageSize*pageSize, s.size)
	b, err := w.bytes(from, s.end-from)
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
	l.page = append(make([]byte, 0, pageSize), again[:s.end-from][max(0, s.end/pageSize*pageSize-from):]...)
	for _, f := range l.full {
		l.live.Add(f.end - pageSize)
	}
	l.live.Add(s.end - pageSize)
	if len(behind) > 1 {
		if err := l.drop(behind[1:]); err != nil {
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
		l.asked = true
	}
	return nil
}

// drop removes segments at the end of the log, the last one first. None has a record: the
// power failed while the first record of a segment was being synced, and the segment
// behind it was there already.
func (l *Log) drop(empty []*segment) error {
	for i := len(empty) - 1; i >= 0; i-- {
		if err := errors.Join(empty[i].file.Close(), l.fs.Remove(empty[i].path), l.fs.SyncDir(l.dir)); err != nil {
			return err
		}
	}
	return nil
}

// release gives up what an unfinished Open has.
func (l *Log) release() error {
	if l.found != nil {
		l.found.close()
	}
	if l.state != nil && l.state.file != nil {
		l.state.file.Close()
	}
	return l.lock.Close()
}

// Replay calls fn for the records behind Applied, in order: all that the last process may
// not have kept elsewhere. It is called once, before the first Append. Rows are read by
// the function Rows; they are valid until fn returns.
func (l *Log) Replay(fn func(number uint64, rows []byte) error) error {
	sc := l.found
	l.found = nil
	if sc == nil {
		panic("commitlog: Replay was called before")
	}
	w := window{}
	for _, s := range sc.segments {
		if s.last <= sc.state.applied {
			continue
		}
		w = window{s: s, buf: w.buf}
		for off := int64(pageSize); off < s.end; {
			number, rows, err := w.record(off)
			if err == nil && number == 0 {
				err = damaged(s.path, off, "a record has changed since it was checked")
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

// Longest is the bytes of rows of the longest record that Replay gives.
func (l *Log) Longest() int { return l.longest }

// Last is the number of the newest record that is durable; 0 when there is none.
func (l *Log) Last() uint64 { return l.synced.Load() }

// Applied is the number up to which Retire was called.
func (l *Log) Applied() uint64 {
	l.keeping.Lock()
	defer l.keeping.Unlock()
	return l.state.state.applied
}

// LiveBytes is the size of the records that the log keeps, in bytes.
func (l *Log) LiveBytes() int64 { return l.live.Load() }

// Identity tells this log from all others.
func (l *Log) Identity() Identity { return l.state.identity }

// Append writes a record, which is durable when Sync has returned nil. Its number is one
// more than that of the record before; anything else is a mistake of the caller.
func (l *Log) Append(number uint64, g *Group) error {
	if err := l.Err(); err != nil {
		return err
	}
	if number != l.written+1 || l.written != l.synced.Load() {
		panic(fmt.Sprintf("commitlog: record %d behind %d, of which %d are synced", number, l.written, l.synced.Load()))
	}
	n := len(g.buf) - groupHead
	if n < 0 || n > l.opts.MaxRows {
		return fmt.Errorf("a record of %d bytes; %d are the limit", n, l.opts.MaxRows)
	}
	for l.current.size-l.current.end < recordSize(n) {
		if err := l.rotate(); err != nil {
			return l.fail(err)
		}
	}
	s := l.current
	putHead(g.buf[pageSize:], s.sum, s.end, number)
	begin := pageSize - len(l.page)
	copy(g.buf[begin:], l.page)
	used := len(g.buf) + int(recordSize(n)) - recordHead - n
	whole := min((used-begin+pageSize-1)/pageSize*pageSize, int(s.size-s.end)+len(l.page)) // bytes to write
	g.buf = zeroExtend(g.buf, begin+whole)
	if _, err := s.file.WriteAt(g.buf[begin:begin+whole], s.end-int64(len(l.page))); err != nil {
		return l.fail(err)
	}
	last := (used - begin) / pageSize * pageSize
	l.page = append(l.page[:0], g.buf[begin+last:used]...)
	if s.first == 0 {
		s.first = number
	}
	s.last = number
	s.end += recordSize(n)
	l.live.Add(recordSize(n))
	l.written = number
	if !l.asked && s.end > s.size/4 {
		l.ask()
	} else {
		l.pacer.advance(s.end)
	}
	return nil
}

// zeroExtend makes b longer, by zeros.
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

// Sync makes the record durable that was appended.
func (l *Log) Sync() error {
	if err := l.Err(); err != nil {
		return err
	}
	if err := l.current.file.Sync(); err != nil {
		return l.fail(err)
	}
	if err := l.state.witness(l.written); err != nil {
		return l.fail(err)
	}
	l.synced.Store(l.written)
	return nil
}

// fail makes the log failed for good: what the device has of a file whose sync or write
// failed is not known, and the kernel may call the next sync a success.
func (l *Log) fail(err error) error {
	err = fmt.Errorf("%w: %w", ErrFailed, err)
	if l.failed.CompareAndSwap(nil, &err) {
		return err
	}
	return l.Err()
}

// Err says why the log has failed, or nil.
func (l *Log) Err() error {
	if err := l.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// alarm is fail, for a goroutine that nobody waits for.
func (l *Log) alarm(err error) {
	err = l.fail(err)
	if l.opts.Alarm != nil {
		l.once.Do(func() { l.opts.Alarm(err) })
	}
}

// Close closes the files. When clean is true, and the log has not failed, it notes what
// the last record is, so that whatever happens to it later is found. Append and Sync
// must have ended. A second call does nothing.
func (l *Log) Close(clean bool) error {
	l.closing.Do(func() { l.closeErr = l.close(clean) })
	return l.closeErr
}

func (l *Log) close(clean bool) (err error) {
	close(l.wanted)
	l.pacer.hasten()
	for next := range l.prepared {
		err = errors.Join(err, next.file.Close())
	}
	l.keeping.Lock()
	defer l.keeping.Unlock()
	// Without any record nothing tells the next open where the log ends.
	if last := l.synced.Load(); clean && l.Err() == nil && (last == 0 || l.live.Load() > 0) {
		err = errors.Join(err, l.state.write(func(st *state) { st.closed, st.last = true, last }))
	}
	for _, s := range append(l.full, l.current) {
		err = errors.Join(err, s.file.Close())
	}
	return errors.Join(err, l.state.file.Close(), l.lock.Close())
}
