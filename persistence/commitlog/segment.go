package commitlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// A segment is a file whose size never changes, a multiple of the page of 4,096 bytes:
//
//	0        4096                                       end               size
//	+--------+-----------+-----------+-----+------------+-----------------+
//	| header | record 12 | record 13 |  …  | record 57  | zeros, or what  |
//	|        |           |           |     |            | the file held   |
//	+--------+-----------+-----------+-----+------------+-----------------+
//
// Records follow each other without gaps, and cross pages as they come. None crosses a segment: one
// that does not fit begins the next segment, so the rest of a full segment is as unused as that of
// the current one. The bytes after the last record never pass for one: the numbers of former
// records, and the offset and the sequence in their checksums, are others.
//
// The header page, in little-endian:
//
//	offset  bytes
//	     0      8  magic, "CARVNSEG"
//	     8      4  format
//	    12      4  0
//	    16      8  sequence, the number in the file's name
//	    24      8  size of the file, in bytes
//	    32     16  identity of the log
//	    48   4044  zeros
//	  4092      4  CRC32C of all bytes before it
const (
	segmentMagic  = "CARVNSEG"
	format        = 1
	segmentSuffix = ".log"
)

// segment is a file of the log.
type segment struct {
	path     string
	sequence uint64
	size     int64  // in bytes, with the header page
	sum      uint32 // checksum of identity and sequence, see segmentSum
	first    uint64 // number of its first record; 0 for an empty segment
	last     uint64 // number of its last record; 0 for an empty segment
	lastAt   int64  // offset of its last record, as the scan found it; the writer does not update it
	end      int64  // offset of the next record; pageSize for an empty segment
	file     vfs.File
}

func segmentPath(dir string, sequence uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%010d%s", sequence, segmentSuffix))
}

// segmentSequence returns the sequence in a file's name.
func segmentSequence(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 10 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && n > 0
}

func segmentHeader(id Identity, sequence uint64, size int64) []byte {
	h := make([]byte, 0, pageSize)
	h = append(h, segmentMagic...)
	h = binary.LittleEndian.AppendUint32(h, format)
	h = binary.LittleEndian.AppendUint32(h, 0)
	h = binary.LittleEndian.AppendUint64(h, sequence)
	h = binary.LittleEndian.AppendUint64(h, uint64(size))
	h = append(h, id[:]...)
	h = h[:pageSize-4]
	return binary.LittleEndian.AppendUint32(h, crc32.Checksum(h, castagnoli))
}

// checkHeader compares a segment's first page with the expected one. A difference is a *DamageError,
// with the offset of the first wrong byte or field; another format of a whole header is a plain error:
// the program is too old or too new, and the file is as it was written.
func checkHeader(h []byte, path string, id Identity, sequence uint64, size int64) error {
	want := segmentHeader(id, sequence, size)
	if bytes.Equal(h, want) {
		return nil
	}
	sum := binary.LittleEndian.Uint32(h[pageSize-4:])
	if string(h[:8]) != segmentMagic || crc32.Checksum(h[:pageSize-4], castagnoli) != sum {
		at := 0
		for at < pageSize-1 && h[at] == want[at] {
			at++
		}
		return newDamage(path, int64(at), "its header is not that of a segment")
	}
	if n := binary.LittleEndian.Uint32(h[8:]); n != format {
		return fmt.Errorf("commit log: %s: format %d, this program reads format %d", path, n, format)
	}
	if !bytes.Equal(h[32:48], id[:]) {
		return newDamage(path, 32, "it belongs to another commit log (%x, not %v)", h[32:48], id)
	}
	if n := binary.LittleEndian.Uint64(h[16:]); n != sequence {
		return newDamage(path, 16, "it is segment %d by its header", n)
	}
	return newDamage(path, 24, "it has %d bytes, not %d as its header says", size, binary.LittleEndian.Uint64(h[24:]))
}

// openSegment opens a segment and checks its header, not its records. The size is that of the file: a
// segment that was cut has another size than its header says. The caller closes the file.
func openSegment(fs vfs.FS, dir string, id Identity, sequence uint64, flag int) (*segment, error) {
	path := segmentPath(dir, sequence)
	f, err := fs.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	s := &segment{path: path, sequence: sequence, sum: segmentSum(id, sequence), end: pageSize, file: f}
	info, err := f.Stat()
	if err == nil {
		s.size = info.Size()
		h := make([]byte, pageSize)
		if _, err = f.ReadAt(h, 0); err == io.EOF {
			err = newDamage(path, s.size, "it has %d bytes, less than its header", s.size)
		} else if err == nil {
			err = checkHeader(h, path, id, sequence, s.size)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

// segmentReader reads a segment front to back, in windows. One buffer serves a whole scan: the reader
// of the next segment takes it over. The bytes that it returns are valid until the next read.
type segmentReader struct {
	s   *segment
	buf []byte
	off int64 // of buf[0]
	n   int   // number of bytes of buf that were read
}

const windowSize = 256 << 10

// readAt returns n bytes at an offset, fewer at the end of the segment. Offsets must not descend.
func (w *segmentReader) readAt(off, n int64) ([]byte, error) {
	n = min(n, w.s.size-off)
	if n <= 0 {
		return nil, nil
	}
	if off+n > w.off+int64(w.n) || off < w.off {
		want := min(max(n, windowSize), w.s.size-off)
		if int64(cap(w.buf)) < want {
			w.buf = make([]byte, want)
		}
		w.buf = w.buf[:want]
		m, err := w.s.file.ReadAt(w.buf, off)
		if err != nil && (err != io.EOF || int64(m) < want) {
			if err == io.EOF {
				return nil, newDamage(w.s.path, off+int64(m), "the file ends here, at %d of %d bytes", off+int64(m), w.s.size)
			}
			return nil, err
		}
		w.off, w.n = off, m
	}
	at := off - w.off
	return w.buf[at : at+n : at+n], nil
}

// readRecord returns the record at an offset; number is 0 without one. A length that leads beyond the
// segment and a wrong checksum both mean that no record begins there; the caller decides whether
// that is the end or damage (checkEnd). rows are valid until the next read.
func (w *segmentReader) readRecord(off int64) (number uint64, rows []byte, err error) {
	head, err := w.readAt(off, recordHead)
	if err != nil || len(head) < recordHead {
		return 0, nil, err
	}
	n, number := parseHead(head)
	if number == 0 || n > w.s.size-off-recordHead {
		return 0, nil, nil
	}
	sum := binary.LittleEndian.Uint32(head)
	whole, err := w.readAt(off, recordHead+n)
	if err != nil || recordSum(w.s.sum, off, whole[4:]) != sum {
		return 0, nil, err
	}
	return number, whole[recordHead:], nil
}

// findRecord looks for a whole record from an offset on, whose number is above last and at most limit. The
// number is 0 without one.
func (w *segmentReader) findRecord(off int64, last, limit uint64) (at int64, number uint64, err error) {
	for off+recordHead <= w.s.size {
		b, err := w.readAt(off, windowSize)
		if err != nil {
			return 0, 0, err
		}
		i := int64(0)
		for ; i+recordHead <= int64(len(b)); i += recordAlign {
			n := binary.LittleEndian.Uint64(b[i+8:])
			if n <= last || n > limit {
				continue
			}
			number, _, err := w.readRecord(off + i)
			if err != nil || number != 0 {
				return off + i, number, err
			}
			// The window may have moved.
			if b, err = w.readAt(off, windowSize); err != nil {
				return 0, 0, err
			}
		}
		off += i
	}
	return 0, 0, nil
}

// looksLikeRecord reports whether the bytes at an offset look like the beginning of this record, whole
// or torn: its number is there. size is what it would take, cut at the end of the segment, in bytes.
func (w *segmentReader) looksLikeRecord(off int64, number uint64) (size int64, ok bool, err error) {
	b, err := w.readAt(off, recordHead)
	if err != nil || len(b) < recordHead {
		return 0, false, err
	}
	n, at := parseHead(b)
	if at != number {
		return 0, false, nil
	}
	return min(recordSize(int(n)), w.s.size-off), true, nil
}

// writeZeros fills a file with zeros and syncs it. It writes page by page: the kernel keeps each write
// in one large folio, and each later write into a folio costs time in proportion to its size (some
// 10 us for 1 MiB, on ext4 in Linux 6.18); a sync writes the whole folio to the device, 128 KiB for a
// record of 100 bytes. Before each slice it calls pace with the bytes that are done.
func writeZeros(f vfs.File, size int64, pace func(done int64)) error {
	var page [pageSize]byte
	for off := int64(0); off < size; {
		pace(off)
		begin := off
		for ; off < min(begin+zeroSlice, size); off += pageSize {
			if _, err := f.WriteAt(page[:min(pageSize, size-off)], off); err != nil {
				return err
			}
		}
		if err := f.WriteOut(begin, min(off, size)-begin); err != nil {
			return err
		}
	}
	return f.Sync()
}

// zeroSlice is how much goes to the device at once, in bytes: a concurrent commit waits that long.
const zeroSlice = 128 << 10

const createFlags = os.O_RDWR | os.O_CREATE | os.O_EXCL
