package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// An entry of the log as this package writes it. Integers are big-endian. The first 13 bytes have
// the same meaning in every version, so that a replica can check the sum of an entry that it does not
// understand, and store it.
//
//	0    version
//	1    epoch: the term of the engine that proposed it
//	9    CRC-32C of everything but these four bytes
//	13   kind
//	14   body
const (
	entryVersion = 1

	epochOffset  = 1
	sumOffset    = 9
	kindOffset   = 13
	headerLength = 14
)

// entryKind says what an entry is for. A replica that meets an unknown kind stops: it cannot know
// what it would leave out.
type entryKind byte

const (
	// rowsEntry carries rows for the machine. It is fenced: see entry.isFenced.
	rowsEntry entryKind = 1 + iota
	// takeoverEntry marks the begin of an epoch. It has no body and changes no row.
	takeoverEntry
	// verifyEntry makes every replica compute the digest of its rows at the same index.
	verifyEntry
)

// MaxRows bounds the rows of one proposal, in bytes. It keeps one append request (up to
// maxAppendEntries entries) within what a follower stores and answers in the time limit of a request.
// raft-wal stores entries of up to 64 MiB.
const MaxRows = 4 << 20

// ErrTooBig is the error of a proposal of more than MaxRows bytes. It never reached the log.
var ErrTooBig = errors.New("proposal exceeds 4 MiB")

var (
	errBadSum       = errors.New("checksum does not match")
	errUnknownEntry = errors.New("entry was written by a newer version")
)

// entry is a decoded entry. Its body is a part of the encoded one.
type entry struct {
	epoch uint64
	kind  entryKind
	body  []byte
}

// isFenced reports whether the rows of this entry must not be written, given the term of the log
// entry that carries it. This comparison is the fence between two engines: an entry that was proposed
// by the engine of epoch 5 and appended when the same node led term 7 has lost its turn, because the
// engine of epoch 7 has already read the rows as they were. The rule needs no state, so a replay
// decides as the first application did.
func (e *entry) isFenced(term uint64) bool { return e.epoch != term }

// encodeEntry copies the body: the library keeps the entry in memory and may read it after the
// proposer has given up waiting, when the proposer uses its buffer again.
func encodeEntry(kind entryKind, epoch uint64, body []byte) []byte {
	data := make([]byte, headerLength+len(body))
	data[0] = entryVersion
	binary.BigEndian.PutUint64(data[epochOffset:], epoch)
	data[kindOffset] = byte(kind)
	copy(data[headerLength:], body)
	binary.BigEndian.PutUint32(data[sumOffset:], entrySum(data))
	return data
}

// decodeEntry returns errBadSum, or an error that wraps errUnknownEntry.
func decodeEntry(data []byte) (entry, error) {
	if err := checkEntry(data); err != nil {
		return entry{}, err
	}
	e := entry{epoch: binary.BigEndian.Uint64(data[epochOffset:]), kind: entryKind(data[kindOffset]), body: data[headerLength:]}
	if data[0] != entryVersion || e.kind < rowsEntry || e.kind > verifyEntry {
		return entry{}, fmt.Errorf("version %d, kind %d: %w", data[0], e.kind, errUnknownEntry)
	}
	return e, nil
}

// checkEntry checks the sum of an entry of any version. raft-wal checks the sum of the last batch when
// it opens the log, and the sum of no entry that it reads, so that without this check a leader would
// copy a damaged entry to all followers.
func checkEntry(data []byte) error {
	if len(data) < headerLength || binary.BigEndian.Uint32(data[sumOffset:]) != entrySum(data) {
		return errBadSum
	}
	return nil
}

func entrySum(data []byte) uint32 {
	return crc32.Update(crc32.Checksum(data[:sumOffset], castagnoli()), castagnoli(), data[kindOffset:])
}

// castagnoli returns the table that package hash/crc32 computes in hardware. MakeTable returns the
// same table at each call.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }
