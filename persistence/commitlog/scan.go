package commitlog

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// The scan reads a whole log and decides where it ends. Open, Verify and Replay begin with it. It
// changes no file: Open cuts a torn tail afterwards (resumeAfterLast).
//
// # Torn tail or damage
//
// The scan reads records in order until the bytes at the next offset do not have the checksum of one.
// These bytes decide. The "next" record is the one after the last whole record:
//
//	zeros, or former content of the file                          the end
//	a part of the next record, which was never acknowledged       a torn tail: a crash came during its
//	                                                              write. It is cut
//	a part of the next record, or zeros, and it was acknowledged  damage: a durable record is lost
//	a later record, anywhere after the end, also in a segment     damage: a record is written when the
//	that follows                                                  one before is synced (rule 3)
//	a record whose number is not the next one                     damage: a gap
//	a segment that is missing between two others, or at the       damage: its records are lost
//	beginning before the first record after Applied
//
// A record was acknowledged when the witness, or Applied, or the number that a clean Close has stored
// is not below its number. The witness may be too old after a power failure: see the end of doc.go.

// scan is the result of reading all segments.
type scan struct {
	dir      string
	state    state
	witness  uint64     // the newest record that is known to have been synced
	segments []*segment // ascending, open
	last     uint64     // number of the last record; 0 without one
	records  int        // number of records, those up to Applied included
	longest  int        // rows of the longest record after Applied, in bytes
	tail     int        // index in segments: the place of the last record, or of the first one
}

func (sc *scan) closeSegments() {
	for _, s := range sc.segments {
		s.file.Close()
	}
}

// segmentSequences returns the sequences of the segments in a folder, ascending.
func segmentSequences(fsys vfs.FS, dir string) ([]uint64, error) {
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

// scanLog reads the log in dir and proves that it is whole. fn, when not nil, is called for each
// record. The caller closes the scan, also after an error.
func scanLog(fsys vfs.FS, dir string, flag int, fn func(number uint64, rows []byte) error) (sc *scan, err error) {
	sc = &scan{dir: dir}
	all, err := segmentSequences(fsys, dir)
	if err != nil {
		return sc, err
	}
	sc.state, sc.witness, err = readState(fsys, dir)
	if errors.Is(err, iofs.ErrNotExist) && len(all) > 0 {
		return sc, newDamage(statePath(dir), 0, "the file is missing, and there are segments")
	}
	if err != nil {
		return sc, err
	}
	for i, n := range all {
		if i > 0 && n != all[i-1]+1 {
			return sc, newDamage(segmentPath(dir, all[i-1]+1), 0, "the file is missing")
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
	w := segmentReader{}
	for i, s := range sc.segments {
		w = segmentReader{s: s, buf: w.buf}
		for {
			number, rows, err := w.readRecord(s.end)
			if err != nil {
				return err
			}
			if number == 0 {
				break
			}
			if err := sc.checkNumber(i, number); err != nil {
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

// checkNumber checks that a record that was found in segment i has the next number.
func (sc *scan) checkNumber(i int, number uint64) error {
	s := sc.segments[i]
	switch {
	case sc.records > 0 && number == sc.last+1:
		return nil
	case sc.records > 0 && number <= sc.last:
		return newDamage(s.path, s.end, "record %d follows record %d", number, sc.last)
	case sc.records == 0 && number <= sc.state.applied+1:
		return nil
	case sc.records == 0 && i == 0 && s.end == pageSize:
		return newDamage(segmentPath(sc.dir, s.sequence-1), 0, "records %d to %d are missing, perhaps with this file", sc.state.applied+1, number-1)
	}
	// The gap is at the end of the segment before, or at the beginning of this one.
	of, next := sc.segments[max(0, i-1)], sc.last+1
	if sc.records == 0 {
		next = sc.state.applied + 1
	}
	return newDamage(of.path, of.end, "record %d is damaged; record %d follows it, in %s", next, number, filepath.Base(s.path))
}

// checkEnd tells a torn tail from damage, as the table above says. The tail is torn when it is followed
// by no whole record, and when no record from there on was acknowledged.
//
// It searches the rest of the log for whole records, at each offset where one could begin. That costs
// as much as reading the rest of the last segments once. limit bounds the numbers that count: after
// the last one there is room for so many records at most, and a larger number is content of rows.
// A log that was closed cleanly and has all its records is not searched.
func (sc *scan) checkEnd(buf []byte) error {
	if len(sc.segments) == 0 {
		if sc.witness > 0 || sc.state.applied > 0 {
			return newDamage(segmentPath(sc.dir, 1), 0, "all segments are missing, and record %d was acknowledged", max(sc.witness, sc.state.applied))
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
			continue // its end is known: the next segment continues with the next number
		}
		w := segmentReader{s: s, buf: buf}
		at, number, err := w.findRecord(s.end, sc.last, limit)
		if err != nil {
			return err
		}
		if number != 0 {
			return newDamage(s.path, s.end, "record %d is damaged; record %d follows it, at offset %d", sc.last+1, number, at)
		}
		buf = w.buf
	}
	known := max(sc.witness, sc.state.applied)
	if sc.state.closed {
		known = max(known, sc.state.last)
	} else if sc.records == 0 && known == sc.state.applied {
		return nil // the records before were retired while the first record of this segment was being synced
	}
	if sc.last < known {
		s := sc.segments[sc.tail]
		for _, behind := range sc.segments[sc.tail+1:] {
			w := segmentReader{s: behind, buf: buf}
			if _, ok, err := w.looksLikeRecord(behind.end, sc.last+1); err != nil {
				return err
			} else if ok {
				s = behind
			}
		}
		next := max(sc.last, sc.state.applied) + 1
		if first := sc.segments[0]; sc.records == 0 && s == first && s.sequence > 1 {
			return newDamage(segmentPath(sc.dir, s.sequence-1), 0, "the file is missing, or record %d is damaged at offset %d of %s; the log was acknowledged up to record %d",
				next, s.end, filepath.Base(s.path), known)
		}
		return newDamage(s.path, s.end, "record %d is damaged or missing; the log was acknowledged up to record %d", next, known)
	}
	return nil
}

// Report is the result of Verify.
type Report struct {
	Identity     Identity
	Records      int    // number of records in the segments
	First, Last  uint64 // their numbers; 0 for an empty log
	Applied      uint64 // all records up to this number are durable elsewhere
	Acknowledged uint64 // the newest number that is known to have been synced
	Closed       bool   // the log was closed cleanly
	Segments     int
	Bytes        int64 // of records
}

// Verify reads the log in dir and proves that it is whole, without changing it. A torn tail is not
// damage. The error is a *DamageError when a file is not what was written, and wraps fs.ErrNotExist for
// a missing log. The log must not be in use.
func Verify(fsys vfs.FS, dir string) (Report, error) {
	sc, err := scanLog(fsys, dir, os.O_RDONLY, nil)
	defer sc.closeSegments()
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

// Replay calls fn for each whole record, those up to Applied included, in order, without changing the
// log. It is for a log that no process uses, such as that of a damaged folder whose rows are to be
// saved: an open log has Log.Replay. On a damaged log it calls
// fn for the records before the damage, and returns the error that Verify returns. The function Rows
// reads the rows; they are valid until fn returns.
func Replay(fsys vfs.FS, dir string, fn func(number uint64, rows []byte) error) error {
	sc, err := scanLog(fsys, dir, os.O_RDONLY, fn)
	sc.closeSegments()
	return err
}

// DamageError says that a file of the log is not what was written.
type DamageError struct {
	File   string
	Offset int64 // where the damage begins, in bytes
	What   string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("commit log: %s: damaged at offset %d: %s", e.File, e.Offset, e.What)
}

func newDamage(file string, offset int64, format string, args ...any) error {
	return &DamageError{File: file, Offset: offset, What: fmt.Sprintf(format, args...)}
}
