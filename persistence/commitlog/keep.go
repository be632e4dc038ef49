package commitlog

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// The writer never waits for a file to be made: the segment behind the current one is
// prepared while that is being filled. Its file is one that was used before, or a new one
// that is filled with zeros: writing into blocks that were written before changes nothing
// but data, so its sync needs no commit of the file system's journal. Under its name
// stands only what is whole and synced, and the writer gets it when the name is, too.

// ask has the next segment prepared.
func (l *Log) ask() {
	l.asked = true
	l.pacer.begin(l.current.end, l.current.size)
	l.wanted <- min(4*l.current.size, l.opts.SegmentSize)
}

// pacer spreads the making of a segment over the filling of the one before it: zeros that
// go to the device at once hold up the commits that are synced beside them, by tens of
// milliseconds.
type pacer struct {
	mu     sync.Mutex
	moved  sync.Cond // of written and hurry
	first  int64     // where the writer was when it asked
	full   int64     // where it will be when the segment should be there
	end    int64     // where it is
	hurry  bool      // the writer waits, or the log is being closed
	paused bool      // somebody waits for moved
	until  int64     // where the writer is to be for that
}

func (p *pacer) begin(end, size int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.first, p.end, p.full, p.hurry = end, end, end+(size-end)*3/4, false
}

// advance tells where the writer is.
func (p *pacer) advance(end int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end = end; p.paused && end >= p.until {
		p.moved.Signal()
	}
}

// hasten ends all pauses until the next begin.
func (p *pacer) hasten() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hurry = true
	p.moved.Signal()
}

// await waits until done bytes of size are no more than what the writer has filled asks for.
func (p *pacer) await(done, size int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.hurry && p.end < p.full && done*(p.full-p.first) > (p.end-p.first)*size {
		p.paused, p.until = true, min(p.first+done*(p.full-p.first)/size, p.full)
		p.moved.Wait()
		p.paused = false
	}
}

// rotate goes on with the next segment. The old one is synced: each record was.
func (l *Log) rotate() error {
	if !l.asked {
		l.ask()
	}
	l.pacer.hasten()
	next, ok := <-l.prepared
	if !ok {
		return errors.New("no segment was prepared")
	}
	l.mu.Lock()
	l.full = append(l.full, l.current)
	l.mu.Unlock()
	l.current, l.page, l.asked = next, l.page[:0], false
	return nil
}

func (l *Log) prepareLoop() {
	defer close(l.prepared)
	for size := range l.wanted {
		if l.Err() != nil {
			return // a writer that waits for the segment sees that none comes
		}
		// A record that is longer than the next segment would be waits for the one behind.
		size = max(size, min(recordSize(l.opts.MaxRows)+2*pageSize, l.opts.SegmentSize))
		l.sequence++
		s, err := l.makeSegment(l.sequence, size/pageSize*pageSize)
		if err != nil {
			l.alarm(fmt.Errorf("prepare a segment: %w", err))
			return
		}
		l.prepared <- s
	}
}

// makeSegment makes a file of the log.
func (l *Log) makeSegment(sequence uint64, size int64) (s *segment, err error) {
	path, f, err := l.openSpare(size)
	if err != nil {
		return nil, err
	}
	if f == nil {
		path = strings.TrimSuffix(segmentPath(l.dir, sequence), segmentSuffix) + newSuffix
		if f, err = l.fs.OpenFile(path, createFlags, 0o600); err != nil {
			return nil, err
		}
		// Not under keeping: this lasts until the writer has come as far.
		err = zero(f, size, func(done int64) { l.pacer.await(done, size) })
	}
	if err == nil {
		s, err = l.nameSegment(f, path, sequence, size)
	}
	if err != nil {
		f.Close()
	}
	return s, err
}

// openSpare opens a file to be used again; nil when there is none.
func (l *Log) openSpare(size int64) (path string, f vfs.File, err error) {
	l.keeping.Lock()
	defer l.keeping.Unlock()
	n := len(l.spares)
	if n == 0 || size != l.opts.SegmentSize {
		return "", nil, nil
	}
	path = l.spares[n-1]
	l.spares = l.spares[:n-1]
	f, err = l.fs.OpenFile(path, os.O_RDWR, 0)
	return path, f, err
}

// nameSegment gives a file that is filled its header and its name.
func (l *Log) nameSegment(f vfs.File, path string, sequence uint64, size int64) (*segment, error) {
	l.keeping.Lock()
	defer l.keeping.Unlock()
	id := l.state.identity
	if _, err := f.WriteAt(segmentHeader(id, sequence, size), 0); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	s := &segment{path: segmentPath(l.dir, sequence), sequence: sequence, size: size, sum: segmentSum(id, sequence), end: pageSize, file: f}
	if err := l.fs.Rename(path, s.path); err != nil {
		return nil, err
	}
	return s, l.fs.SyncDir(l.dir)
}

// findSpares takes the files that may be used again, and removes what an end between two
// steps has left.
func (l *Log) findSpares() error {
	entries, err := l.fs.ReadDir(l.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(l.dir, e.Name())
		switch filepath.Ext(path) {
		case spareSuffix:
			info, err := l.fs.Stat(path)
			if err != nil {
				return err
			}
			if info.Size() == l.opts.SegmentSize && len(l.spares) < maxSpares {
				l.spares = append(l.spares, path)
				continue
			}
		case newSuffix:
		default:
			continue
		}
		if err := l.fs.Remove(path); err != nil && !errors.Is(err, iofs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Retire says that all up to this record is kept elsewhere and durable there. Segments
// that hold nothing newer are used again. A smaller number than before changes nothing.
func (l *Log) Retire(applied uint64) error {
	if err := l.Err(); err != nil {
		return err
	}
	l.keeping.Lock()
	defer l.keeping.Unlock()
	if last := l.synced.Load(); applied > last {
		panic(fmt.Sprintf("commitlog: record %d is retired, %d is the last one", applied, last))
	}
	if applied <= l.state.state.applied {
		return nil
	}
	if err := l.state.write(func(st *state) { st.applied = applied }); err != nil {
		return l.fail(err)
	}
	for {
		s := l.oldest(applied)
		if s == nil {
			return nil
		}
		if err := l.retire(s); err != nil {
			return l.fail(err)
		}
	}
}

// oldest takes the oldest segment off the list, when it holds nothing newer.
func (l *Log) oldest(applied uint64) *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.full) == 0 || l.full[0].last > applied {
		return nil
	}
	s := l.full[0]
	l.full = l.full[1:]
	return s
}

// retire takes the oldest segment out of the log. Its name goes before its content does:
// else a power failure could leave the name of the one with the content of another.
func (l *Log) retire(s *segment) error {
	l.live.Add(pageSize - s.end)
	if err := s.file.Close(); err != nil {
		return err
	}
	if len(l.spares) == maxSpares || s.size != l.opts.SegmentSize {
		if err := l.fs.Remove(s.path); err != nil {
			return err
		}
		return l.fs.SyncDir(l.dir)
	}
	spare := strings.TrimSuffix(s.path, segmentSuffix) + spareSuffix
	if err := l.fs.Rename(s.path, spare); err != nil {
		return err
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		return err
	}
	l.spares = append(l.spares, spare)
	return nil
}
