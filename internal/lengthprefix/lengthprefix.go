// Package lengthprefix is the one form in which formats of this module store byte strings of any
// length: the length as an unsigned varint (encoding/binary), then the bytes.
//
//	""     00
//	"ab"   02 61 62
//
// Rows of the commit log, batches that wait for several transactions, and rows of a backup have it.
package lengthprefix

import "encoding/binary"

// Append appends b with its length before it.
func Append(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

// Cut is the inverse of Append: it returns the byte string at the start of b and what follows it.
// ok is false if b is too short for the length that it claims, or for a length at all; then the
// other results are nil. head shares the memory of b, and its capacity ends with it, so that an
// append to head does not overwrite rest. An empty string is an empty slice, not nil.
//
// The length comes from a disk or a network. It is compared as an unsigned number, before it becomes
// an int: a length above the largest int would be negative and pass the other comparison.
func Cut(b []byte) (head, rest []byte, ok bool) {
	length, size := binary.Uvarint(b)
	if size <= 0 || length > uint64(len(b)-size) {
		return nil, nil, false
	}
	end := size + int(length)
	return b[size:end:end], b[end:], true
}
