package outputs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/caravan-dag/caravan/messages"
)

// Section reads the kept bytes of an ended attempt's stream, which it counts from 0. It is for one reader at a
// time. A negative offset is an error.
type Section interface {
	io.ReaderAt
	// Verify verifies all bytes from an offset on, and returns the first damage.
	Verify(from int64) error
	Close() error
}

// endedLog reads the stream of an ended attempt. It is not safe for concurrent use. A
// stream that exceeded its bound has lost its middle, so there are two kinds of offsets:
//
//	stream   |--- Head ---|........ cut ........|--- Tail ---|   0 … Size
//	kept     |--- Head ---|--- Tail ---|                         0 … Head+Tail
//
// Callers use those of the stream.
type endedLog struct {
	out  messages.Output
	kept Section // Head+Tail bytes
}

// inlineSection is the section of a stream that is in the record itself.
type inlineSection struct{ *bytes.Reader }

func (inlineSection) Verify(int64) error { return nil }
func (inlineSection) Close() error       { return nil }

// errNegativeOffset is the error of a read, or of a record, that no caller without a mistake makes.
var errNegativeOffset = errors.New("negative offset")

// MaxKept bounds the kept bytes of a stream. It is far above what a disk takes, and sums of a few sizes do not
// overflow.
const MaxKept = 1 << 50

// CheckOutput returns an error if no store can have the kept bytes of an output in a file: it is of use for an
// output that another machine names.
func CheckOutput(out *messages.Output) error {
	switch {
	case out.Size < 0 || out.Head < 0 || out.Tail < 0:
		return errors.New("an output has a negative size")
	case out.Offset < 0:
		return errNegativeOffset
	case out.Head > MaxKept || out.Tail > MaxKept || out.Offset > MaxKept:
		return fmt.Errorf("an output has more than %d bytes, or an offset above that", int64(MaxKept))
	case out.Head+out.Tail > out.Size:
		return fmt.Errorf("an output of %d bytes has kept %d", out.Size, out.Head+out.Tail)
	case !IsInFile(out):
		return errors.New("an output has no bytes in a file")
	}
	return nil
}

// IsInFile reports whether the kept bytes of a stream are in an output file: there are some, and the record
// itself does not have them.
func IsInFile(out *messages.Output) bool { return out.Head+out.Tail != 0 && out.Inline == nil }

// Log opens the stream of an ended attempt, from its record or from the run's file; out is what the
// record has. Bytes of the file are verified before they are returned. Damage, including a missing
// file, is a *DamageError from Log or from ReadAt, and Damaged has it from then on. The caller
// closes the log: until then it holds the file open and, after a read, 64 KiB.
func (s *Store) Log(id ID, out messages.Output) (messages.Log, error) {
	if !IsInFile(&out) {
		return &endedLog{out, inlineSection{bytes.NewReader(out.Inline)}}, nil
	}
	section, err := s.OpenSection(id, out)
	if err != nil {
		return nil, err
	}
	return &endedLog{out, section}, nil
}

// OpenSection opens the section of a stream that is in the run's file, as Log does. In a store that has lost
// sections (SetReplaced) a missing one is a *messages.Error with the code NotFound, and is not damage.
func (s *Store) OpenSection(id ID, out messages.Output) (Section, error) {
	if s.replaced.Load() && !s.Has(id, out) {
		return nil, &messages.Error{Code: messages.NotFound, Text: "the output was lost with the former data folder"}
	}
	f, err := s.acquire(id.Key.Run, false)
	if errors.Is(err, fs.ErrNotExist) {
		missing := &DamageError{File: s.path(id.Key.Run), Offset: -1, ID: id, Reason: "the file is missing"}
		s.recordDamage(missing)
		return nil, missing
	}
	if err != nil {
		return nil, err
	}
	section := &sectionReader{f: f.f, id: id, length: out.Head + out.Tail, offset: out.Offset, loaded: -1, buffers: &s.blocks, onDamage: s.recordDamage}
	section.close = sync.OnceFunc(func() {
		section.release()
		s.release(f)
	})
	if err := section.checkHeader(); err != nil {
		section.close()
		return nil, err
	}
	return section, nil
}

// Has reports whether the run's file has the section of a stream of an ended attempt. A file that lacks it is
// not damaged: the record may be of another machine.
func (s *Store) Has(id ID, out messages.Output) bool {
	f, err := s.acquire(id.Key.Run, false)
	if err != nil {
		return false
	}
	defer s.release(f)
	section := &sectionReader{f: f.f, id: id, length: out.Head + out.Tail, offset: out.Offset, loaded: -1}
	return section.checkHeader() == nil
}

// sectionReader reads the kept bytes of a section. It keeps one block, so that consecutive reads
// load a block once.
type sectionReader struct {
	f        io.ReaderAt        // the run's file
	id       ID                 // that the section must have
	length   int64              // kept bytes, as the record has it
	offset   int64              // of the section's header in the file
	loaded   int64              // number of the block in block; -1 = none
	block    *block             // from buffers; nil before the first read and after release
	buffers  *sync.Pool         // of *block
	close    func()             // gives back what the reader holds; may be called twice. nil without a Store
	onDamage func(*DamageError) // called with damage; may be nil
}

// block is a block with its checksum, as it is in the file. The last one of a section may be shorter.
type block [blockBytes + sumBytes]byte

// checkHeader checks that the section is the one that the record refers to: the header must be
// exactly the one that the record implies. A header that differs is parsed only to say how.
func (r *sectionReader) checkHeader() error {
	var b, want [headerBytes]byte
	n, err := r.f.ReadAt(b[:], r.offset)
	switch appendHeader(want[:0], r.id, r.length, r.offset); {
	case n < headerBytes && (err == nil || err == io.EOF):
		return r.damageError(r.offset+int64(n), "the file is too short")
	case n < headerBytes:
		return err
	case b == want:
		return nil
	}
	id, length, offset, ok := parseHeader(b[:])
	switch {
	case !ok:
		return r.damageError(r.offset, "the header does not match its checksum")
	case id != r.id:
		return r.damageError(r.offset, "the bytes are "+id.String())
	}
	return r.damageError(r.offset, fmt.Sprintf("the header has %d bytes at offset %d, the record has %d", length, offset, r.length))
}

// damageError reports damage at an offset of the file to onDamage, and returns it.
func (r *sectionReader) damageError(at int64, reason string) error {
	e := &DamageError{Offset: at, ID: r.id, Reason: reason}
	if f, ok := r.f.(interface{ Name() string }); ok {
		e.File = f.Name()
	}
	if r.onDamage != nil {
		r.onDamage(e)
	}
	return e
}

// ReadAt implements io.ReaderAt. off counts the kept bytes.
func (r *sectionReader) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, errNegativeOffset
	}
	for n < len(p) && off < r.length {
		number := off / blockBytes
		if err := r.loadBlock(number); err != nil {
			return n, err
		}
		copied := copy(p[n:], r.block[off%blockBytes:blockLen(r.length, number)])
		n, off = n+copied, off+int64(copied)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// loadBlock reads and verifies a block, unless it is the one in r.block. Only a block that proves
// whole is ever marked as loaded. Its errors are *DamageError, or those of reading.
func (r *sectionReader) loadBlock(number int64) error {
	if r.loaded == number {
		return nil
	}
	if r.block == nil {
		r.block = r.buffers.Get().(*block)
	}
	r.loaded = -1
	at, size := blockAt(r.offset, number), int(blockLen(r.length, number))
	b := r.block[:size+sumBytes]
	n, err := r.f.ReadAt(b, at)
	switch {
	case n < len(b) && (err == nil || err == io.EOF):
		return r.damageError(at+int64(n), "the file is too short")
	case n < len(b):
		return err
	}
	if binary.LittleEndian.Uint32(b[size:]) != blockSum(headerSum(r.id, r.length, r.offset), number, b[:size]) {
		return r.damageError(at, fmt.Sprintf("block %d of %d bytes does not match its checksum", number, size))
	}
	r.loaded = number
	return nil
}

// release returns the block to the pool. A later read would take another one.
func (r *sectionReader) release() {
	if r.block != nil {
		r.buffers.Put(r.block)
		r.block, r.loaded = nil, -1
	}
}

// Verify verifies the kept bytes from offset off of the stream, and returns the first damage.
// Package http calls it before it sends the status 200 and a long log: after that it could only
// break the answer off.
func (l *endedLog) Verify(off int64) error {
	at := off
	if off >= l.out.Head {
		at = l.out.Head + max(off-l.tailOffset(), 0)
	}
	return l.kept.Verify(at)
}

// Close implements Section.
func (r *sectionReader) Close() error {
	r.close()
	return nil
}

// Verify implements Section: it verifies the blocks from the one with that byte.
func (r *sectionReader) Verify(from int64) error {
	if from < 0 {
		return errNegativeOffset
	}
	for number := from / blockBytes; number*blockBytes < r.length; number++ {
		if err := r.loadBlock(number); err != nil {
			return err
		}
	}
	return nil
}

// tailOffset returns the offset in the stream where the kept tail begins.
func (l *endedLog) tailOffset() int64 { return max(l.out.Size-l.out.Tail, l.out.Head) }

// ReadAt implements messages.Log. off counts the bytes of the stream. A read in the cut middle is
// messages.ErrCut; Kept tells where the next kept byte is. One call returns bytes of the head or of
// the tail, never of both.
func (l *endedLog) ReadAt(p []byte, off int64) (int, error) {
	at, end := off, l.out.Head // in the kept bytes
	switch {
	case off >= l.out.Size:
		return 0, io.EOF
	case off < l.out.Head:
	case off < l.tailOffset():
		return 0, messages.ErrCut
	default:
		at, end = l.out.Head+off-l.tailOffset(), l.out.Head+l.out.Tail
	}
	want := p[:min(int64(len(p)), end-at)]
	n, err := l.kept.ReadAt(want, at)
	switch {
	case n < len(want) && (err == nil || err == io.EOF):
		return n, io.ErrUnexpectedEOF // the record promises more bytes
	case n < len(want):
		return n, err
	case n < len(p) && off+int64(n) >= l.out.Size:
		return n, io.EOF
	}
	return n, nil
}

// Size implements messages.Log.
func (l *endedLog) Size() int64 { return l.out.Size }

// Kept implements messages.Log: it returns the offset of the first kept byte at or after off.
func (l *endedLog) Kept(off int64) int64 {
	off = max(off, 0)
	if off >= l.out.Head && off < l.tailOffset() {
		off = l.tailOffset()
	}
	return min(off, l.out.Size)
}

// Live implements messages.Log.
func (l *endedLog) Live() bool { return false }

// Close implements messages.Log.
func (l *endedLog) Close() error { return l.kept.Close() }
