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

// The life of a segment's file. Three goroutines take part: the preparer makes it, the writer fills it,
// and the goroutine that calls Retire takes it out of the log.
//
//	0000000008.new    is being filled with zeros (makeSegment)
//	0000000008.log    prepared: it has its header and its name (nameSegment)
//	                  current: the writer appends records to it (rotate)
//	                  full: the writer has gone on to the next one (rotate)
//	0000000008.spare  retired: it keeps its content and waits to become a segment of a later
//	                  sequence (retireSegment, openSpare)
//	(removed)         retired, and smaller than SegmentSize or one spare too many
//
// The writer does not wait for a file to be made: the next segment is prepared while the current one is
// being filled. The file was used before, or is new and filled with zeros. A write into blocks that were
// written before changes only data, so its sync needs no commit of the file system's journal. A file
// gets the name of a segment when its content is whole and synced, and the writer gets it when the name
// is synced, too.
//
// A segment may be recycled when all its records were retired, which means that the store has made
// them durable elsewhere. Retire keeps an order, so that a crash between two steps leaves a whole log:
//
//  1. The state file says, durably, that records up to this one are not needed (applied). Before
//     that, a log without the segment would be damaged: its first records would be missing.
//  2. The segment loses its name, and the folder is synced. Before that, its content must stay: a
//     power failure could bring the old name back, with a header and records of another sequence.
//  3. The preparer writes the new header over the old one, syncs it, and gives the file its new name.
//     The former records stay in it. They do not pass for records of the new segment, because their
//     checksums begin with the old sequence.
//
// The current segment is never recycled, even if all its records were retired: it has the number
// where the log goes on.

// requestSegment makes the preparer make the next segment. The writer calls it once for each segment, so
// the send does not block: wanted has room for one size. Sizes grow by 4, from a sixteenth of
// SegmentSize, so that a first start does not wait for a large file of zeros.
func (l *Log) requestSegment() {
	l.requested = true
	l.pacer.start(l.currentSegment.end, l.currentSegment.size)
	l.wanted <- min(4*l.currentSegment.size, l.opts.SegmentSize)
}

// pacer spreads the making of a segment over the filling of the one before it. Zeros that go to the
// device at once would hold up the commits that are synced at the same time, by tens of milliseconds.
type pacer struct {
	mu       sync.Mutex
	moved    sync.Cond // signals changes of end and hurry
	from     int64     // offset of the writer when it made the request
	due      int64     // offset of the writer at which the segment should be ready
	end      int64     // offset of the writer
	hurry    bool      // the writer waits, or the log is being closed
	paused   bool      // the preparer waits for moved
	resumeAt int64     // offset of the writer that ends the pause
}

func (p *pacer) start(end, size int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.from, p.end, p.due, p.hurry = end, end, end+(size-end)*3/4, false
}

// advance sets the offset of the writer.
func (p *pacer) advance(end int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end = end; p.paused && end >= p.resumeAt {
		p.moved.Signal()
	}
}

// hasten ends all pauses until the next request.
func (p *pacer) hasten() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hurry = true
	p.moved.Signal()
}

// await waits until the share of the segment that is done, of size bytes, is due by the writer's
// progress.
func (p *pacer) await(done, size int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.hurry && p.end < p.due && done*(p.due-p.from) > (p.end-p.from)*size {
		p.paused, p.resumeAt = true, min(p.from+done*(p.due-p.from)/size, p.due)
		p.moved.Wait()
		p.paused = false
	}
}

// rotate goes on with the next segment. The old one is synced: each record was.
func (l *Log) rotate() error {
	if !l.requested {
		l.requestSegment()
	}
	l.pacer.hasten()
	next, ok := <-l.prepared
	if !ok {
		return errors.New("no segment was prepared")
	}
	l.segmentsMu.Lock()
	l.fullSegments = append(l.fullSegments, l.currentSegment)
	l.segmentsMu.Unlock()
	l.currentSegment, l.pageHead, l.requested = next, l.pageHead[:0], false
	return nil
}

func (l *Log) prepareLoop() {
	defer close(l.prepared)
	for size := range l.wanted {
		if l.Err() != nil {
			return // the channel closes, so a writer that waits for the segment returns
		}
		// A record that is longer than the next segment must fit the one after.
		size = max(size, min(recordSize(l.opts.MaxRowsBytes)+2*pageSize, l.opts.SegmentSize))
		l.sequence++
		s, err := l.makeSegment(l.sequence, size/pageSize*pageSize)
		if err != nil {
			l.failInBackground(fmt.Errorf("prepare a segment: %w", err))
			return
		}
		l.prepared <- s
	}
}

// makeSegment makes a file of the log: from a spare one if there is one of this size, else filled with
// zeros. The preparer calls it, and Open for the first segment. After an error the draft stays in the
// folder: the next open removes it (findSpares).
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
		// Without filesMu: this lasts until the writer has caught up.
		err = writeZeros(f, size, func(done int64) { l.pacer.await(done, size) })
	}
	if err == nil {
		s, err = l.nameSegment(f, path, sequence, size)
	}
	if err != nil {
		f.Close()
	}
	return s, err
}

// openSpare opens a file to reuse; nil without one.
func (l *Log) openSpare(size int64) (path string, f vfs.File, err error) {
	l.filesMu.Lock()
	defer l.filesMu.Unlock()
	n := len(l.spares)
	if n == 0 || size != l.opts.SegmentSize {
		return "", nil, nil
	}
	path = l.spares[n-1]
	l.spares = l.spares[:n-1]
	f, err = l.fs.OpenFile(path, os.O_RDWR, 0)
	return path, f, err
}

// nameSegment gives a filled file its header and its name.
func (l *Log) nameSegment(f vfs.File, path string, sequence uint64, size int64) (*segment, error) {
	l.filesMu.Lock()
	defer l.filesMu.Unlock()
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

// findSpares collects the files to reuse, and removes what a crash between two steps has left.
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

// Retire says that all records up to this one are durable elsewhere. Segments without a newer record
// are reused. A smaller number than before is ignored; a larger one than Last panics. It syncs files,
// so it belongs on a goroutine of its own, not on the writer's. An error fails the log.
func (l *Log) Retire(applied uint64) error {
	if err := l.Err(); err != nil {
		return err
	}
	l.filesMu.Lock()
	defer l.filesMu.Unlock()
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
		s := l.popRetired(applied)
		if s == nil {
			return nil
		}
		if err := l.retireSegment(s); err != nil {
			return l.fail(err)
		}
	}
}

// popRetired takes the oldest segment off the list, if it holds only retired records.
func (l *Log) popRetired(applied uint64) *segment {
	l.segmentsMu.Lock()
	defer l.segmentsMu.Unlock()
	if len(l.fullSegments) == 0 || l.fullSegments[0].last > applied {
		return nil
	}
	s := l.fullSegments[0]
	l.fullSegments = l.fullSegments[1:]
	return s
}

// retireSegment takes the oldest segment out of the log. It removes the name before the content
// changes: else a power failure could leave the old name with the content of another segment. A file
// that is smaller than SegmentSize, or more than there is room for among the spares, is removed. The
// caller holds filesMu, so the preparer does not take a spare between the rename and the sync.
func (l *Log) retireSegment(s *segment) error {
	l.liveBytes.Add(pageSize - s.end)
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
