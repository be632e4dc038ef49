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

// endedLog reads the kept bytes of an ended attempt's stream. It is not safe for concurrent use.
type endedLog struct {
	out   messages.Output
	kept  io.ReaderAt // Head+Tail bytes, from 0
	close func()
}

// Log opens the stream of an ended attempt, from its record or from the run's file. Bytes of the
// file are verified before they are returned. Damage, including a missing file, is a *DamageError
// from Log or from ReadAt.
func (s *Store) Log(id ID, out messages.Output) (messages.Log, error) {
	length := out.Head + out.Tail
	if length == 0 || out.Inline != nil {
		return &endedLog{out: out, kept: bytes.NewReader(out.Inline), close: func() {}}, nil
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
	section := &sectionReader{f: f.f, id: id, length: length, offset: out.Offset, loaded: -1, buffers: &s.blocks, onDamage: s.recordDamage}
	closeAll := sync.OnceFunc(func() {
		section.release()
		s.release(f)
	})
	if err := section.checkHeader(); err != nil {
		closeAll()
		return nil, err
	}
	return &endedLog{out: out, kept: section, close: closeAll}, nil
}

// sectionReader reads the kept bytes of a section. It keeps one block, so that consecutive reads
// load a block once.
type sectionReader struct {
	f        io.ReaderAt
	id       ID
	length   int64
	offset   int64
	loaded   int64 // number of the block in block; -1 = none
	block    *block
	buffers  *sync.Pool
	onDamage func(*DamageError) // called with damage; may be nil
}

// block is a block with its checksum.
type block [blockBytes + sumBytes]byte

// checkHeader checks that the section is the one that the record refers to.
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

// ReadAt implements io.ReaderAt.
func (r *sectionReader) ReadAt(p []byte, off int64) (n int, err error) {
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

// loadBlock reads and verifies a block.
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

// release returns the block to the pool.
func (r *sectionReader) release() {
	if r.block != nil {
		r.buffers.Put(r.block)
		r.block, r.loaded = nil, -1
	}
}

// Verify verifies the kept bytes from offset off of the stream, and returns the first damage.
func (l *endedLog) Verify(off int64) error {
	r, ok := l.kept.(*sectionReader)
	if !ok {
		return nil
	}
	at := off
	if off >= l.out.Head {
		at = l.out.Head + max(off-l.tailOffset(), 0)
	}
	return r.verifyFrom(at)
}

// verifyFrom verifies the blocks from the one with kept byte from.
func (r *sectionReader) verifyFrom(from int64) error {
	for number := from / blockBytes; number*blockBytes < r.length; number++ {
		if err := r.loadBlock(number); err != nil {
			return err
		}
	}
	return nil
}

// tailOffset returns the offset in the stream where the kept tail begins.
func (l *endedLog) tailOffset() int64 { return max(l.out.Size-l.out.Tail, l.out.Head) }

// ReadAt implements messages.Log.
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

// Kept implements messages.Log.
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
func (l *endedLog) Close() error {
	l.close()
	return nil
}
