package outputs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/caravan-dag/caravan/messages"
)

// ID identifies a stream of an attempt. After a crash between an append and its record a file may
// have two sections of one ID; the record tells which one counts, by its offset.
type ID struct {
	Key    messages.AttemptKey
	Stream messages.Stream
}

// String names the stream for errors.
func (id ID) String() string {
	name := "stdout"
	if id.Stream == messages.Stderr {
		name = "stderr"
	}
	return fmt.Sprintf("%s of run %d, task %d, attempt %d", name, id.Key.Run, id.Key.Task, id.Key.Attempt)
}

// A section holds one stream in a file. It consists of a header, which names the attempt and the
// position, and of the kept bytes in blocks, each followed by its checksum.
//
//	header  magic "CVO1" | stream 1 | 0 3 | run 8 | task 4 | attempt 4 | length 8 | offset 8 | checksum 4
//	block   up to 64 KiB of the kept bytes | checksum 4
//
// Numbers are little-endian. The checksum of the header is the CRC-32C of the bytes before it. The
// checksum of a block is the CRC-32C of the header's checksum, the number of the block and its bytes.
// So a block of another attempt, stream or position is not accepted.
const (
	magic       = "CVO1"
	headerBytes = 44
	blockBytes  = 64 << 10
	sumBytes    = 4
)

// castagnoliTable returns the table of CRC-32C, which package hash/crc32 computes once.
func castagnoliTable() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// sectionBytes returns the size of a section of length kept bytes in the file.
func sectionBytes(length int64) int64 {
	blocks := (length + blockBytes - 1) / blockBytes
	return headerBytes + length + blocks*sumBytes
}

// blockAt returns the offset in the file of a block, for a section at offset.
func blockAt(offset, block int64) int64 { return offset + headerBytes + block*(blockBytes+sumBytes) }

// blockLen returns the number of bytes in a block, for a section of length bytes.
func blockLen(length, block int64) int64 { return min(length-block*blockBytes, blockBytes) }

// appendHeader appends the header of a section.
func appendHeader(dst []byte, id ID, length, offset int64) []byte {
	start := len(dst)
	dst = append(dst, magic...)
	dst = append(dst, byte(id.Stream), 0, 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(id.Key.Run))
	dst = binary.LittleEndian.AppendUint32(dst, id.Key.Task)
	dst = binary.LittleEndian.AppendUint32(dst, id.Key.Attempt)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(length))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(offset))
	return binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoliTable()))
}

// parseHeader parses a header. ok is false if it is damaged.
func parseHeader(b []byte) (id ID, length, offset int64, ok bool) {
	if len(b) < headerBytes || string(b[:4]) != magic ||
		binary.LittleEndian.Uint32(b[headerBytes-sumBytes:]) != crc32.Checksum(b[:headerBytes-sumBytes], castagnoliTable()) {
		return id, 0, 0, false
	}
	id.Stream = messages.Stream(b[4])
	id.Key.Run = messages.RunID(binary.LittleEndian.Uint64(b[8:]))
	id.Key.Task = binary.LittleEndian.Uint32(b[16:])
	id.Key.Attempt = binary.LittleEndian.Uint32(b[20:])
	return id, int64(binary.LittleEndian.Uint64(b[24:])), int64(binary.LittleEndian.Uint64(b[32:])), true
}

// headerSum returns the checksum of a section's header, with which the checksum of each block begins.
func headerSum(id ID, length, offset int64) uint32 {
	var b [headerBytes]byte
	return binary.LittleEndian.Uint32(appendHeader(b[:0], id, length, offset)[headerBytes-sumBytes:])
}

// blockSum returns the checksum of a block.
func blockSum(header uint32, block int64, data []byte) uint32 {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(block))
	return crc32.Update(crc32.Update(header, castagnoliTable(), b[:]), castagnoliTable(), data)
}

// sectionBuffer holds a few blocks with their checksums, so that writes are large: 256 KiB in one
// system call.
type sectionBuffer [4 * (blockBytes + sumBytes)]byte

// sectionWriter writes consecutive sections. The end of one and the begin of the next may be in one
// write. The caller calls flush after the last one.
type sectionWriter struct {
	w   io.WriterAt
	at  int64  // offset in the file of buf
	buf []byte // of a sectionBuffer
	n   int    // bytes in buf that are not written yet
}

// writeSection writes a section of length bytes from a reader, for the given offset. A shorter
// source is an error; a longer one is truncated.
func (s *sectionWriter) writeSection(id ID, from io.Reader, length, offset int64) error {
	if err := s.ensureSpace(headerBytes); err != nil {
		return err
	}
	appendHeader(s.buf[s.n:s.n], id, length, offset)
	s.n += headerBytes
	sum := headerSum(id, length, offset)
	for block := int64(0); block*blockBytes < length; block++ {
		n := int(blockLen(length, block))
		if err := s.ensureSpace(n + sumBytes); err != nil {
			return err
		}
		data := s.buf[s.n : s.n+n]
		if _, err := io.ReadFull(from, data); err != nil {
			return truncatedError(err)
		}
		s.n += n
		binary.LittleEndian.PutUint32(s.buf[s.n:], blockSum(sum, block, data))
		s.n += sumBytes
	}
	return nil
}

// truncatedError turns an early EOF into io.ErrUnexpectedEOF.
func truncatedError(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ensureSpace flushes the buffer if it lacks space for n bytes.
func (s *sectionWriter) ensureSpace(n int) error {
	if len(s.buf)-s.n >= n {
		return nil
	}
	return s.flush()
}

func (s *sectionWriter) flush() error {
	_, err := s.w.WriteAt(s.buf[:s.n], s.at)
	s.at += int64(s.n)
	s.n = 0
	return err
}

// DamageError means that a file differs from what was written: a checksum does not match, bytes
// belong to another attempt, bytes are missing, or the whole file is.
type DamageError struct {
	File   string
	Offset int64 // in the file; -1: the file is missing or unreadable
	ID     ID    // without an attempt: the whole file
	Reason string
}

// Error implements error.
func (e *DamageError) Error() string {
	if e.Offset < 0 && e.ID.Key.Attempt == 0 {
		return fmt.Sprintf("output file %s: %s (run %d)", e.File, e.Reason, e.ID.Key.Run)
	}
	if e.Offset < 0 {
		return fmt.Sprintf("output file %s: %s (%s)", e.File, e.Reason, e.ID)
	}
	return fmt.Sprintf("output file %s is damaged at offset %d: %s (%s)", e.File, e.Offset, e.Reason, e.ID)
}

// As converts it to an error for users.
func (e *DamageError) As(target any) bool {
	seen, ok := target.(**messages.Error)
	if ok {
		*seen = &messages.Error{Code: messages.Damaged, Text: e.Error()}
	}
	return ok
}
