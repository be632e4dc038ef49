package badgerguard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/dgraph-io/badger/v4/fb"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/klauspost/compress/snappy"
)

const tableSuffix = ".sst"

// tableName is the name of a table's file.
func tableName(id uint64) string { return fmt.Sprintf("%06d%s", id, tableSuffix) }

// tableID returns the ID of a table by the name of its file.
func tableID(name string) (id uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, tableSuffix)
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(digits, 10, 63)
	return id, err == nil && tableName(id) == name
}

// A table, as table/builder.go of Badger writes it:
//
//	+---------+-----+---------+-------+---------------+----------+------------------+
//	| block 0 |  …  | block n | index | index size u32| checksum | checksum size u32|
//	+---------+-----+---------+-------+---------------+----------+------------------+
//
// A block, which the table may hold compressed:
//
//	+-------+-----+-------+---------------+---------------+----------+------------------+
//	| row 0 |  …  | row m | offsets u32 … | number of rows| checksum | checksum size u32|
//	+-------+-----+-------+---------------+---------------+----------+------------------+
//	|<------------- what the checksum covers ------------>|
//
// A row is the length of the prefix that its key shares with the first key of the block (u16), the
// length of the rest (u16), the rest, and the value: meta byte, user meta byte, expiry (varint),
// content. A key ends with its version, inverted, in 8 bytes, so that newer versions come first.
//
// Sizes and the number of rows are big-endian. Badger writes offsets and lengths of rows as they lie
// in memory; they are read here as little-endian, which is the order of amd64 and arm64.
const (
	maxChecksum = 24 // limit of an encoded checksum, in bytes
	footerRoom  = 4 + maxChecksum + 4
)

// tableReader reads table files, one after the other. It holds the index, a window of the file and one
// block, in buffers that serve all of them.
type tableReader struct {
	path             string
	entry            Entry
	size             int64
	file             io.ReaderAt
	pause            func(bytes int) error // called before so many bytes are read
	checksum         uint32                // checksum of the whole file, once verified
	newestVersion    uint64                // newest version in it
	matchesInventory bool                  // its checksum as a whole is the expected one

	window     []byte
	windowAt   int64 // offset of the window
	indexBytes []byte
	spanList   []span
	decoded    []byte
	rowFn      func(r Row) error // nil = rows are not decoded
}

// windowSize is how much of a table is read at once, in bytes. It fits the cache of a processor, so
// that the checksum need not fetch the bytes from memory again.
const windowSize = 256 << 10

// maxIndex bounds the index of a table, in bytes. A table of 64 MiB with rows of 16 bytes has one of
// 7 MiB.
const maxIndex = 64 << 20

// Row is one row of a table, as Badger stores it. It is valid until the next one.
type Row struct {
	Key     []byte
	Version uint64
	Deleted bool
	Value   []byte
}

const (
	badgerDelete  = 1 << 0 // bits of Badger's meta byte
	badgerPointer = 1 << 1
)

// span is the place of one block, with its first key and that key's version.
type span struct {
	offset, size int64
	key          []byte
}

// readChecksum reads the whole file and returns its checksum. It stops at the first window that cannot
// be read.
func (t *tableReader) readChecksum() (sum uint32, err error) {
	for off := int64(0); off < t.size; off += windowSize {
		b, err := t.read(off, min(windowSize, t.size-off))
		if err != nil {
			return 0, err
		}
		sum = crc32.Update(sum, castagnoli, b)
	}
	return sum, nil
}

// verify reads the whole table. It reports each damaged block and reads the others all the same. The
// error is one of reading.
func (t *tableReader) verify(report func(*Damage)) error {
	index, wrong, err := t.readIndex()
	if err != nil {
		return err
	}
	if wrong != nil {
		report(wrong)
		return nil
	}
	spans, wrong := t.blockSpans(index)
	if wrong != nil {
		report(wrong)
		return nil
	}
	t.checksum = 0
	for i, s := range spans {
		b, err := t.read(s.offset, s.size)
		if err != nil {
			return err
		}
		t.checksum = crc32.Update(t.checksum, castagnoli, b)
		what, err := t.verifyBlock(b, s)
		if err != nil {
			return err
		}
		if what != "" {
			d := newDamage(t.path, s.offset, "block %d of %d bytes: %s", i, s.size, what)
			from, _ := splitKey(s.key)
			d.From = bytes.Clone(from)
			if i+1 < len(spans) {
				// Versions of one key may lie in both blocks.
				next, _ := splitKey(spans[i+1].key)
				d.To = append(bytes.Clone(next), 0)
			}
			report(d)
		}
	}
	for off := index.start; off < t.size; off += windowSize {
		b, err := t.read(off, min(windowSize, t.size-off))
		if err != nil {
			return err
		}
		t.checksum = crc32.Update(t.checksum, castagnoli, b)
	}
	return nil
}

// tableIndex is the index of a table: the place and the first key of each block. It lies in a buffer of
// the tableReader, and is valid until the reader turns to the next table.
type tableIndex struct {
	start int64 // offset of the index, which is the end of the last block
	*fb.TableIndex
}

// readIndex reads the end of the table and verifies it.
func (t *tableReader) readIndex() (index tableIndex, wrong *Damage, err error) {
	if t.size < footerRoom {
		return index, newDamage(t.path, t.size, "the file ends here: too short for a table"), nil
	}
	foot := make([]byte, footerRoom)
	if _, err := t.file.ReadAt(foot, t.size-footerRoom); err != nil {
		return index, nil, t.readError(err, t.size-footerRoom)
	}
	sumSize := int64(binary.BigEndian.Uint32(foot[footerRoom-4:]))
	if sumSize > maxChecksum {
		return index, newDamage(t.path, t.size-4, "the checksum of the index has %d bytes", sumSize), nil
	}
	sum, what := decodeChecksum(foot[footerRoom-4-sumSize : footerRoom-4])
	if what != "" {
		return index, newDamage(t.path, t.size-4-sumSize, "the checksum of the index: %s", what), nil
	}
	end := t.size - 4 - sumSize - 4 // end of the index
	size := int64(binary.BigEndian.Uint32(foot[footerRoom-4-sumSize-4:]))
	if size > end || size < 8 || size > maxIndex {
		return index, newDamage(t.path, end, "the index has %d bytes", size), nil
	}
	if t.pause != nil {
		if err := t.pause(int(size)); err != nil {
			return index, nil, err
		}
	}
	b := slices.Grow(t.indexBytes[:0], int(size))[:size]
	t.indexBytes = b
	index.start = end - size
	if _, err := t.file.ReadAt(b, index.start); err != nil {
		return index, nil, t.readError(err, index.start)
	}
	if got := crc32.Checksum(b, castagnoli); got != sum {
		return index, newDamage(t.path, index.start, "the index of %d bytes has the checksum %08x, not %08x", size, got, sum), nil
	}
	index.TableIndex = fb.GetRootAsTableIndex(b, 0)
	return index, nil, nil
}

// blockSpans returns the table's blocks. They must fill it up to the index, with ascending keys. The
// index has the right checksum, so only a made-up file can cause a panic in here.
func (t *tableReader) blockSpans(index tableIndex) (spans []span, wrong *Damage) {
	defer func() {
		if r := recover(); r != nil {
			spans, wrong = nil, newDamage(t.path, index.start, "the index cannot be read: %v", r)
		}
	}()
	t.newestVersion = index.MaxVersion()
	n := index.OffsetsLength()
	if n == 0 || int64(n) > index.start {
		return nil, newDamage(t.path, index.start, "the index is of %d blocks", n)
	}
	spans = slices.Grow(t.spanList[:0], n)[:n]
	t.spanList = spans
	at := int64(0)
	for i := range spans {
		var o fb.BlockOffset
		if !index.Offsets(&o, i) {
			return nil, newDamage(t.path, index.start, "the index ends before block %d", i)
		}
		s := span{offset: int64(o.Offset()), size: int64(o.Len()), key: o.KeyBytes()}
		if s.offset != at || s.size == 0 || s.size > index.start-at || len(s.key) < 8 {
			return nil, newDamage(t.path, index.start, "the index has block %d at %d with %d bytes, expected at %d", i, s.offset, s.size, at)
		}
		spans[i] = s
		at += s.size
	}
	if at != index.start {
		return nil, newDamage(t.path, at, "%d bytes between the last block and the index", index.start-at)
	}
	return spans, nil
}

// read returns a part of the file, valid until the next call.
func (t *tableReader) read(off, size int64) ([]byte, error) {
	if off < t.windowAt || off+size > t.windowAt+int64(len(t.window)) {
		want := min(max(size, windowSize), t.size-off)
		if want < size {
			return nil, errTableDeleted
		}
		if t.pause != nil {
			if err := t.pause(int(want)); err != nil {
				return nil, err
			}
		}
		if int64(cap(t.window)) < want {
			t.window = make([]byte, want)
		}
		t.window, t.windowAt = t.window[:want], off
		if _, err := t.file.ReadAt(t.window, off); err != nil {
			t.window = t.window[:0]
			return nil, t.readError(err, off)
		}
	}
	return t.window[off-t.windowAt:][:size], nil
}

// readError tells a file that has shrunk, whose table is being deleted, from a device that cannot be
// read.
func (t *tableReader) readError(err error, off int64) error {
	if errors.Is(err, io.EOF) {
		return errTableDeleted
	}
	return newDamage(t.path, off, "%v", err)
}

// errTableDeleted means that Badger is deleting the table.
var errTableDeleted = fmt.Errorf("table is gone: %w", os.ErrNotExist)

// maxRatio is above the best compression of Snappy: a copy of 64 bytes takes 3.
const maxRatio = 32

// verifyBlock verifies a block and yields its rows.
func (t *tableReader) verifyBlock(b []byte, s span) (wrong string, err error) {
	if t.entry.Compression == options.Snappy {
		n, err := snappy.DecodedLen(b)
		if err != nil || n > maxRatio*len(b) {
			return "it cannot be decompressed", nil
		}
		if cap(t.decoded) < n {
			t.decoded = make([]byte, n+n/4)
		}
		if b, err = snappy.Decode(t.decoded[:cap(t.decoded)], b); err != nil {
			return "it cannot be decompressed", nil
		}
	}
	if len(b) < 4 {
		return "it is too short", nil
	}
	size := int64(binary.BigEndian.Uint32(b[len(b)-4:]))
	if size > maxChecksum || size > int64(len(b)-8) {
		return fmt.Sprintf("its checksum has %d bytes", size), nil
	}
	end := len(b) - 4 - int(size)
	sum, wrong := decodeChecksum(b[end : len(b)-4])
	if wrong != "" {
		return "its checksum: " + wrong, nil
	}
	b = b[:end]
	if got := crc32.Checksum(b, castagnoli); got != sum {
		return fmt.Sprintf("its checksum is %08x, not %08x", got, sum), nil
	}
	return t.verifyRows(b, s)
}

// verifyRows verifies the rows of a block: Badger indexes them without a look at their bounds.
func (t *tableReader) verifyRows(b []byte, s span) (wrong string, err error) {
	const head = 4 // of a row: length of the prefix shared with the first key, length of the rest
	n := int64(binary.BigEndian.Uint32(b[len(b)-4:]))
	if n == 0 || n > int64(len(b)-4)/4 {
		return fmt.Sprintf("it has %d rows", n), nil
	}
	ends := b[len(b)-4-4*int(n):]
	b = b[:len(b)-4-4*int(n)]
	start := uint32(0)
	for i := range int(n) {
		if got := binary.LittleEndian.Uint32(ends[4*i:]); got != start {
			return fmt.Sprintf("row %d is at %d, expected at %d", i, got, start), nil
		}
		end := uint32(len(b))
		if i+1 < int(n) {
			end = binary.LittleEndian.Uint32(ends[4*i+4:])
		}
		if end > uint32(len(b)) || end < start || end-start < head {
			return fmt.Sprintf("row %d ends at %d", i, end), nil
		}
		row := b[start:end]
		start = end
		shared, own := int(binary.LittleEndian.Uint16(row)), int(binary.LittleEndian.Uint16(row[2:]))
		if shared > len(s.key) || own > len(row)-head || shared+own < 8 {
			return fmt.Sprintf("row %d has a key of %d and %d bytes", i, shared, own), nil
		}
		if t.rowFn == nil {
			if i == 0 && (shared != 0 || !bytes.Equal(row[head:head+own], s.key)) {
				return "its first key is not that of the index", nil
			}
			continue
		}
		key := append(append([]byte(nil), s.key[:shared]...), row[head:head+own]...)
		value := row[head+own:]
		if len(value) < 3 || value[0]&badgerPointer != 0 {
			return fmt.Sprintf("row %d has no value", i), nil
		}
		_, expires := binary.Uvarint(value[2:])
		if expires <= 0 {
			return fmt.Sprintf("row %d has no value", i), nil
		}
		name, version := splitKey(key)
		if err := t.rowFn(Row{name, version, value[0]&badgerDelete != 0, value[2+expires:]}); err != nil {
			return "", err
		}
	}
	return "", nil
}

// splitKey splits a key of Badger into the row's key and its version.
func splitKey(key []byte) (name []byte, version uint64) {
	n := len(key) - 8
	return key[:n:n], ^binary.BigEndian.Uint64(key[n:])
}

// checksumTag begins an encoded checksum: field 2 of pb.Checksum, a varint. Field 1 is the algorithm,
// and is left out for CRC32C.
const checksumTag = 2 << 3

// decodeChecksum reads a CRC32C exactly as Badger encodes it. Another encoding of the same value would
// be a changed bit that stays undetected.
func decodeChecksum(b []byte) (sum uint32, wrong string) {
	if len(b) == 0 {
		return 0, "" // the sum is 0
	}
	n, size := binary.Uvarint(b[1:])
	if b[0] != checksumTag || n == 0 || n > 1<<32-1 || size != len(b)-1 || size != (bits.Len64(n)+6)/7 {
		return 0, "not a CRC32C"
	}
	return uint32(n), ""
}
