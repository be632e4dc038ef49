package commitlog

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The writer never waits for a file to be made: the segment behind the current one is
// prepared while that is being filled. Its file is one that was used before, or a new one
// that is filled with zeros: writing into blocks that were written before changes nothing
// but data, so its sync needs no commit of the file system's journal. Under its name
// stands only what is whole and synced, and the writer gets it when the name is, too.

// ask has the next segment prepared.
func (l *Log) ask() {
	l.asked = true
	l.wanted <- min(4*l.current.size, l.opts.SegmentSize)
}

// rotate goes on with the next segment. The old one is synced: each record was.
func (l *Log) rotate() error {
	if !l.asked {
		l.ask()
	}
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
	l.keeping.Lock()
	defer l.keeping.Unlock()
	draft := strings.TrimSuffix(segmentPath(l.dir, sequence), segmentSuffix) + newSuffix
	flag := createFlags
	if n := len(l.spares); n > 0 && size == l.opts.SegmentSize {
		draft, flag = l.spares[n-1], os.O_RDWR
		l.spares = l.spares[:n-1]
	}
	f, err := l.fs.OpenFile(draft, flag, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if flag&os.O_CREATE != 0 {
		if err := zero(f, size); err != nil {
			return nil, err
		}
	}
	id := l.state.identity
	if _, err := f.WriteAt(segmentHeader(id, sequence, size), 0); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	s = &segment{path: segmentPath(l.dir, sequence), sequence: sequence, size: size, sum: segmentSum(id, sequence), end: pageSize, file: f}
	if err := l.fs.Rename(draft, s.path); err != nil {
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
