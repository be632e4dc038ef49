package commitlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/caravan-dag/caravan/internal/lengthprefix"
)

// A record, in little-endian, with offsets in bytes:
//
//	0          4          8                   16               16+n
//	+----------+----------+-------------------+----------------+-------+
//	| checksum | n        | number            | rows           | zeros |
//	| u32      | u32      | u64               | n bytes        | 0…7   |
//	+----------+----------+-------------------+----------------+-------+
//	           |<------- what the checksum covers ------------>|
//
// The zeros fill the record up to a multiple of 8, where the next one begins. The checksum (CRC32C)
// begins with the log's identity, the segment's sequence and the record's offset, which are not
// stored in the record. So bytes of another log, of former content of the file, or at another place
// never pass for a record. A number is at least 1: zeros are the end.
const (
	recordHead  = 16
	recordAlign = 8
	pageSize    = 4096 // the unit of writes of the kernel, and the offset of a segment's first record
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Identity tells one log from all others.
type Identity [16]byte

func (id Identity) String() string { return fmt.Sprintf("%x", id[:]) }

// segmentSum is the beginning of the checksums of a segment's records. It is computed once for a
// segment, so that a record costs the checksum of its own bytes and 8 more.
func segmentSum(id Identity, sequence uint64) uint32 {
	return crc32.Checksum(binary.LittleEndian.AppendUint64(id[:], sequence), castagnoli)
}

// recordSum returns the checksum of a record at an offset of a segment. body is the record from its
// length to the end of the rows, without the zeros.
func recordSum(segment uint32, offset int64, body []byte) uint32 {
	var at [8]byte
	binary.LittleEndian.PutUint64(at[:], uint64(offset))
	return crc32.Update(crc32.Update(segment, castagnoli, at[:]), castagnoli, body)
}

// recordSize returns the size of a record with rows of n bytes.
func recordSize(n int) int64 {
	return (recordHead + int64(n) + recordAlign - 1) &^ (recordAlign - 1)
}

// putHead fills the header of a record whose rows are there.
func putHead(record []byte, segment uint32, offset int64, number uint64) {
	binary.LittleEndian.PutUint32(record[4:], uint32(len(record)-recordHead))
	binary.LittleEndian.PutUint64(record[8:], number)
	binary.LittleEndian.PutUint32(record, recordSum(segment, offset, record[4:]))
}

// parseHead reads a header: the length of the rows in bytes, and the number.
func parseHead(b []byte) (n int64, number uint64) {
	return int64(binary.LittleEndian.Uint32(b[4:])), binary.LittleEndian.Uint64(b[8:])
}

// RecordBuilder encodes the rows of one commit, once: the log writes them as they are, and another log
// may send them over a network. Its zero value is ready after Reset. One goroutine at a time uses it.
// It keeps its buffer, so a writer that uses one builder for all commits allocates only for a commit
// that is larger than those before.
//
//	row = set, key length, key, value length, value | delete, key length, key
//
// The kinds are one byte each, 1 and 2. The lengths are unsigned varints, in bytes.
type RecordBuilder struct {
	// buf has space before the rows for the record's header, and before that for the bytes that are
	// already in the same page: a page is written whole.
	buf []byte
}

const (
	rowSet      = 1
	rowDelete   = 2
	builderHead = pageSize + recordHead
)

// Reset removes all rows.
func (g *RecordBuilder) Reset() {
	if cap(g.buf) < builderHead {
		g.buf = make([]byte, builderHead, 4*builderHead)
	}
	g.buf = g.buf[:builderHead]
}

// Grow makes room for rows of n bytes, so that adding them does not copy those that are there. It is
// a hint: Set and Delete grow the buffer, too.
func (g *RecordBuilder) Grow(n int) {
	if free := cap(g.buf) - len(g.buf); free < n+pageSize { // also for the end of the last page
		g.buf = append(make([]byte, 0, len(g.buf)+n+n/4+2*pageSize), g.buf...)
	}
}

// Set appends a row.
func (g *RecordBuilder) Set(key, value []byte) {
	g.buf = lengthprefix.Append(lengthprefix.Append(append(g.buf, rowSet), key), value)
}

// Delete appends the deletion of a row.
func (g *RecordBuilder) Delete(key []byte) {
	g.buf = lengthprefix.Append(append(g.buf, rowDelete), key)
}

// Bytes returns the encoded rows. They are valid until the builder is changed or appended.
func (g *RecordBuilder) Bytes() []byte {
	if len(g.buf) < builderHead {
		return nil
	}
	return g.buf[builderHead:]
}

// Row is one row of a commit. Its slices refer to the decoded bytes.
type Row struct {
	Key, Value []byte
	Delete     bool
}

var errEncodedRows = errors.New("rows cannot be decoded")

// EachRow calls fn for each encoded row, in the order in which they were added. It ends with the first
// error of fn, or with an error of its own where b is not what RecordBuilder made: cut off, of an
// unknown kind, or with an empty key. A record has a checksum, so that is a bug and not damage.
func EachRow(b []byte, fn func(Row) error) error {
	for len(b) > 0 {
		kind := b[0]
		r := Row{Delete: kind == rowDelete}
		if kind != rowSet && kind != rowDelete {
			return errEncodedRows
		}
		var ok bool
		if r.Key, b, ok = lengthprefix.Cut(b[1:]); !ok || len(r.Key) == 0 {
			return errEncodedRows
		}
		if !r.Delete {
			if r.Value, b, ok = lengthprefix.Cut(b); !ok {
				return errEncodedRows
			}
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}
