package commitlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/caravan-dag/caravan/internal/lengthprefix"
)

// A record is
//
//	checksum u32, length u32, number u64, rows, zeros up to a multiple of 8
//
// in little-endian. The checksum (CRC32C) covers the rest of the record up to the end of the rows, and
// begins with the log's identity, the segment's sequence and the record's offset. So bytes of another
// log, of former content of the file, or at another place never pass for a record.
const (
	recordHead  = 16
	recordAlign = 8
	pageSize    = 4096 // the unit of writes of the kernel, and the offset of a segment's first record
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Identity tells one log from all others.
type Identity [16]byte

func (id Identity) String() string { return fmt.Sprintf("%x", id[:]) }

// segmentSum is the beginning of the checksums of a segment's records.
func segmentSum(id Identity, sequence uint64) uint32 {
	return crc32.Checksum(binary.LittleEndian.AppendUint64(id[:], sequence), castagnoli)
}

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
// may send them over a network. Its zero value is ready after Reset.
//
//	row = set, key length, key, value length, value | delete, key length, key
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

// Grow makes room for rows of n bytes.
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

// Rows calls fn for each encoded row.
func Rows(b []byte, fn func(Row) error) error {
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
