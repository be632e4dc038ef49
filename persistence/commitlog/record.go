package commitlog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A record is
//
//	checksum u32, length u32, number u64, rows, zeros up to a multiple of 8
//
// in little-endian. The checksum (CRC32C) covers all that follows it up to the end of the
// rows, and begins with the log's identity, the segment's sequence and the record's
// offset. So bytes of another log, of a former life of the file, or at another place are
// never taken for a record, whatever they are.
const (
	recordHead  = 16
	recordAlign = 8
	pageSize    = 4096 // what the kernel writes at once, and where records begin in a segment
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Identity tells one log from all others.
type Identity [16]byte

func (id Identity) String() string { return fmt.Sprintf("%x", id[:]) }

// segmentSum is what the checksums of a segment's records begin with.
func segmentSum(id Identity, sequence uint64) uint32 {
	return crc32.Checksum(binary.LittleEndian.AppendUint64(id[:], sequence), castagnoli)
}

func recordSum(segment uint32, offset int64, body []byte) uint32 {
	var at [8]byte
	binary.LittleEndian.PutUint64(at[:], uint64(offset))
	return crc32.Update(crc32.Update(segment, castagnoli, at[:]), castagnoli, body)
}

// recordSize is the size of a record with rows of n bytes.
func recordSize(n int) int64 {
	return (recordHead + int64(n) + recordAlign - 1) &^ (recordAlign - 1)
}

// putHead fills the header of a record that is otherwise whole.
func putHead(record []byte, segment uint32, offset int64, number uint64) {
	binary.LittleEndian.PutUint32(record[4:], uint32(len(record)-recordHead))
	binary.LittleEndian.PutUint64(record[8:], number)
	binary.LittleEndian.PutUint32(record, recordSum(segment, offset, record[4:]))
}

// parseHead reads a header: how many bytes of rows follow, and the number.
func parseHead(b []byte) (n int64, number uint64) {
	return int64(binary.LittleEndian.Uint32(b[4:])), binary.LittleEndian.Uint64(b[8:])
}
