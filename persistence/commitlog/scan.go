package commitlog

import (
	"errors"
	iofs "io/fs"
	"os"
	"path/filepath"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// scan is what reading all segments has found.
type scan struct {
	dir      string
	state    state
	witness  uint64
	segments []*segment // ascending, open
	last     uint64     // number of the last record
	records  int
	longest  int // bytes of the rows of the longest record behind Applied
	tail     int // of segments: where the last record lies, or would
}

func (sc *scan) close() {
	for _, s := range sc.segments {
		s.file.Close()
	}
}

// sequences are the sequences of the segments in a folder, ascending.
func sequences(fsys vfs.FS, dir string) ([]uint64, error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []uint64
	for _, e := range entries {
		if n, ok := segmentSequence(e.Name()); ok {
			all = append(all, n)
		}
	}
	return all, nil
}

// read reads the log in dir and proves that it is whole. fn, when not nil, is called for
// each record. The caller closes the scan, also after an error.
func read(fsys vfs.FS, dir string, flag int, fn func(number uint64, rows []byte) error) (sc *scan, err error) {
	sc = &scan{dir: dir}
	all, err := sequences(fsys, dir)
	if err != nil {
		return sc, err
	}
	sc.state, sc.witness, err = readState(fsys, dir)
	if errors.Is(err, iofs.ErrNotExist) && len(all) > 0 {
		return sc, damaged(statePath(dir), 0, "the file is missing, and there are segments")
	}
	if err != nil {
		return sc, err
	}
	for i, n := range all {
		if i > 0 && n != all[i-1]+1 {
			return sc, damaged(segmentPath(dir, all[i-1]+1), 0, "the file is missing")
		}
		s, err := openSegment(fsys, dir, sc.state.identity, n, flag)
		if err != nil {
			return sc, err
		}
		sc.segments = append(sc.segments, s)
	}
	return sc, sc.readRecords(fn)
}

// readRecords reads the records of all segments.
func (sc *scan) readRecords(fn func(number uint64, rows []byte) error) error {
	w := window{}
	for i, s := range sc.segments {
		w = window{s: s, buf: w.buf}
		for {
			number, rows, err := w.record(s.end)
			if err != nil {
				return err
			}
			if number == 0 {
				break
			}
			if err := sc.follows(i, number); err != nil {
				return err
			}
			if fn != nil {
				if err := fn(number, rows); err != nil {
					return err
				}
			}
			if s.first == 0 {
				s.first = number
			}
			s.last, sc.last, sc.tail = number, number, i
			sc.records++
			if number > sc.state.applied {
				sc.longest = max(sc.longest, len(rows))
			}
			s.lastAt = s.end
			s.end += recordSize(len(rows))
		}
	}
	return sc.checkEnd(w.buf)
}

// follows sees that a record that was found in segment i has the number that must come.
func (sc *scan) follows(i int, number uint64) error {
	s := sc.segments[i]
	switch {
	case sc.records > 0 && number == sc.last+1:
		return nil
	case sc.records > 0 && number <= sc.last:
		return damaged(s.path, s.end, "record %d lies behind record %d", number, sc.last)
	case sc.records == 0 && number <= sc.state.applied+1:
		return nil
	case sc.records == 0 && i == 0 && s.end == pageSize:
		return damaged(segmentPath(sc.dir, s.sequence-1), 0, "records %d to %d are missing: is this file?", sc.state.applied+1, number-1)
	}
	// What is missing lies at the end of what came before, or at the front of this one.
	of, next := sc.segments[max(0, i-1)], sc.last+1
	if sc.records == 0 {
		next = sc.state.applied + 1
	}
	return damaged(of.path, of.end, "record %d is damaged; record %d lies behind it, in %s", next, number, filepath.Base(s.path))
}

// checkEnd tells a torn tail from damage. The tail is torn when no whole record lies
// behind it and no record behind it was acknowledged.
func (sc *scan) checkEnd(buf []byte) error {
	if len(sc.segments) == 0 {
		if sc.witness > 0 || sc.state.applied > 0 {
			return damaged(segmentPath(sc.dir, 1), 0, "all segments are missing, and record %d was acknowledged", max(sc.witness, sc.state.applied))
		}
		return nil
	}
	if sc.state.closed && sc.last == sc.state.last && sc.last == sc.witness {
		return nil
	}
	limit := max(sc.last, sc.witness, sc.state.applied)
	for _, s := range sc.segments[sc.tail:] {
		limit += uint64(s.size) / recordHead
	}
	for i, s := range sc.segments {
		if i < sc.tail && s.last != 0 || s.size-s.end < recordHead {
			continue // its end was seen: the next segment goes on with the next number
		}
		w := window{s: s, buf: buf}
		at, number, err := w.search(s.end, sc.last, limit)
		if err != nil {
			return err
		}
		if number != 0 {
			return damaged(s.path, s.end, "record %d is damaged; record %d lies behind it, at offset %d", sc.last+1, number, at)
		}
		buf = w.buf
	}
	known := max(sc.witness, sc.state.applied)
	if sc.state.closed {
		known = max(known, sc.state.last)
	} else if sc.records == 0 && known == sc.state.applied {
		return nil // what came before was retired while the first record of this segment was being synced
	}
	if sc.last < known {
		s := sc.segments[sc.tail]
		for _, behind := range sc.segments[sc.tail+1:] {
			w := window{s: behind, buf: buf}
			if _, ok, err := w.claims(behind.end, sc.last+1); err != nil {
				return err
			} else if ok {
				s = behind
			}
		}
		next := max(sc.last, sc.state.applied) + 1
		if first := sc.segments[0]; sc.records == 0 && s == first && s.sequence > 1 {
			return damaged(segmentPath(sc.dir, s.sequence-1), 0, "the file is missing, or record %d is damaged at offset %d of %s; the log was acknowledged up to record %d",
				next, s.end, filepath.Base(s.path), known)
		}
		return damaged(s.path, s.end, "record %d is damaged or missing; the log was acknowledged up to record %d", next, known)
	}
	return nil
}

// Report is what Verify has found.
type Report struct {
	Identity     Identity
	Records      int    // in the segments
	First, Last  uint64 // their numbers; 0 when there are none
	Applied      uint64 // all up to this number is kept elsewhere
	Acknowledged uint64 // the newest number that is known to have been synced
	Closed       bool   // the log was closed cleanly
	Segments     int
	Bytes        int64 // of records
}

// Verify reads the log in dir and proves that it is whole, without changing anything. A
// torn tail is no damage. The error is a *DamageError when a file is not what was
// written, and wraps fs.ErrNotExist when there is no log. The log must not be in use.
func Verify(fsys vfs.FS, dir string) (Report, error) {
	sc, err := read(fsys, dir, os.O_RDONLY, nil)
	defer sc.close()
	return sc.report(), err
}

func (sc *scan) report() Report {
	r := Report{Identity: sc.state.identity, Records: sc.records, Last: sc.last, Applied: sc.state.applied, Acknowledged: sc.witness,
		Closed: sc.state.closed, Segments: len(sc.segments)}
	for _, s := range sc.segments {
		if r.First == 0 {
			r.First = s.first
		}
		r.Bytes += s.end - pageSize
	}
	return r
}

// Replay calls fn for each whole record, in order, without changing anything. On a
// damaged log it calls fn for what lies before the damage, and returns the error that
// Verify returns. Rows are read by Rows; they are valid until fn returns.
func Replay(fsys vfs.FS, dir string, fn func(number uint64, rows []byte) error) error {
	sc, err := read(fsys, dir, os.O_RDONLY, fn)
	sc.close()
	return err
}
