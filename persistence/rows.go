package persistence

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// Keys are binary: one type byte, then numbers in big-endian, so that byte order is numeric order.
// Every key of a run begins with its type and the run's ID.
//
//	m <name>                        meta: format (of rows), shards, opens, next (run), keys (kept ones, a count), mark (ClockMark), worker/<ID> (Workers), cluster (ClusterTable)
//	u <run>                         summary of an unfinished run: the commit marker, and the index of unfinished runs
//	s <run>                         summary of a finished run
//	d <run> <part>                  definition; part 0 begins with data of the creation and the first journal records
//	g <run> <n> <part>              n-th generated set
//	j <run> <seq> <part>            journal record, from the second one on
//	h <run> <part>                  snapshot header with its cut
//	c <run> <chunk>                 snapshot chunk
//	a <run> <chunk> <write> <part>  attempt records of one chunk of tasks, as one batch brought them
//	t <hash> <run>                  index of finished runs by a tag, or by a label; empty value
//	k <key hash>                    idempotency key
//	e <until> <key hash>            index of the keys that outlive their runs; empty value
//	x <write> <part>                parts of a batch that is too large for one commit
//	y <write>                       commit marker of such a batch, until it is applied
//	z <run>                         the run is being deleted, or its long document is still being written
const (
	typeMeta       = 'm'
	typeUnfinished = 'u'
	typeFinished   = 's'
	typeDef        = 'd'
	typeSet        = 'g'
	typeJournal    = 'j'
	typeHeader     = 'h'
	typeChunk      = 'c'
	typeAttempts   = 'a'
	typeTag        = 't'
	typeKey        = 'k'
	typeExpiry     = 'e'
	typeStage      = 'x'
	typeStaged     = 'y'
	typeDeleting   = 'z'
)

// runTypes are the types of rows that belong to a run, besides summary, tag and idempotency key.
var runTypes = [...]byte{typeDef, typeSet, typeJournal, typeHeader, typeChunk, typeAttempts}

// journalKeySize is the length of a journal record's key, in bytes: type, run, seq and part.
const journalKeySize = 1 + 8 + 8 + 2

// attemptChunk is the number of neighbouring tasks whose attempt records share keys.
const attemptChunk = 1024

func metaKey(name string) []byte { return append([]byte{typeMeta}, name...) }

// runKey is the prefix of a run's keys of one type. For a summary it is the whole key.
func runKey(typ byte, run messages.RunID) []byte {
	return appendRunKey(make([]byte, 0, 24), typ, run)
}

func appendRunKey(dst []byte, typ byte, run messages.RunID) []byte {
	return binary.BigEndian.AppendUint64(append(dst, typ), uint64(run))
}

// isWellFormedKey reports whether a key has the length of its type. Code that parses keys sees only
// such keys.
func isWellFormedKey(key []byte) bool {
	n := len(key)
	if n == 0 {
		return false
	}
	switch key[0] {
	case typeMeta:
		return n > 1
	case typeUnfinished, typeFinished, typeStaged, typeDeleting:
		return n == 9
	case typeDef, typeHeader:
		return n == 11
	case typeChunk, typeAttempts:
		return n >= 13
	case typeSet:
		return n == 15
	case typeJournal:
		return n == journalKeySize
	case typeTag:
		return n == 17
	case typeKey:
		return n == 33
	case typeExpiry:
		return n == 41
	case typeStage:
		return n == 13
	}
	return true // a key of an unknown type, which is never parsed
}

// runOfKey returns the run of a key that has one; 0 when the key is too short.
func runOfKey(key []byte) messages.RunID {
	if len(key) < 9 {
		return 0
	}
	return messages.RunID(binary.BigEndian.Uint64(key[1:]))
}

// tagPrefix is the prefix of the index of one tag. Two tags may share it: a reader compares the tag
// in the summary.
func tagPrefix(tag string) []byte {
	sum := sha256.Sum256([]byte(tag))
	return append([]byte{typeTag}, sum[:8]...)
}

func tagKey(tag string, run messages.RunID) []byte {
	return binary.BigEndian.AppendUint64(tagPrefix(tag), uint64(run))
}

// labelPrefix is the prefix of the index of one label.
func labelPrefix(l dag.Label) []byte { return tagPrefix("\x00" + l.Name + "\x00" + l.Value) }

func labelKey(l dag.Label, run messages.RunID) []byte {
	return binary.BigEndian.AppendUint64(labelPrefix(l), uint64(run))
}

// hashKey returns the part of an idempotency key that is stored. It tells the partition of the key, so
// that rows can be parted (messages.KeyPartition).
func hashKey(key string) [32]byte { return messages.HashKey(key) }

func idempotencyKey(hash [32]byte) []byte { return append([]byte{typeKey}, hash[:]...) }

func stageKey(write uint64, part uint32) []byte {
	return binary.BigEndian.AppendUint32(markKey(typeStage, write), part)
}

func markKey(typ byte, n uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{typ}, n)
}

// Every row's value ends with a checksum (CRC32C, little-endian) of its key and the rest of its
// value. Each read of a value verifies it. So a value that rots while the store is open is an error
// of its run, and so is a whole value under the key of another row. Missing rows are found by rows
// that count them: the numbers of the journal's records, the parts of a value, the stamps of a
// snapshot's chunks, the summary.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const checksumSize = 4

func rowChecksum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// sealRow makes a row of a key and a value. It may write past the end of the value, within its
// capacity.
func sealRow(key, value []byte) mutation {
	return mutation{Key: key, Value: binary.LittleEndian.AppendUint32(value, rowChecksum(key, value))}
}

// unsealRow verifies a row's value and returns it without its checksum.
func unsealRow(key, stored []byte) ([]byte, error) {
	n := len(stored) - checksumSize
	if n < 0 || binary.LittleEndian.Uint32(stored[n:]) != rowChecksum(key, stored[:n]) {
		return nil, fmt.Errorf("%s: %w: wrong checksum", rowName(key), errCorrupt)
	}
	return stored[:n:n], nil
}

// CheckRow verifies a row as it is stored, of a backup or of a damaged store: its key, its
// checksum, and values that a server reads at its start.
func CheckRow(key, stored []byte) error {
	v, err := unsealRow(key, stored)
	switch {
	case err != nil:
		return err
	case !isWellFormedKey(key):
		return fmt.Errorf("%s: %w: no row has this key of %d bytes", rowName(key), errCorrupt, len(key))
	case string(key) == string(metaKey("mark")):
		_, err = decodeMark(v)
	}
	return err
}

// itemValue calls fn with a row's verified value, which is valid within fn.
func itemValue(item *badger.Item, fn func(v []byte) error) error {
	return item.Value(func(stored []byte) error {
		v, err := unsealRow(item.Key(), stored)
		if err != nil {
			return err
		}
		return fn(v)
	})
}

// rowName names a row by its key, for errors.
func rowName(key []byte) string {
	name := map[byte]string{
		typeUnfinished: "summary", typeFinished: "summary", typeDef: "definition", typeSet: "generated set", typeJournal: "journal record",
		typeHeader: "snapshot header", typeChunk: "snapshot chunk", typeAttempts: "attempt records", typeDeleting: "mark of a deletion",
	}[append(key, 0)[0]]
	if name == "" || len(key) < 9 {
		return fmt.Sprintf("row %q", key)
	}
	text := fmt.Sprintf("run %d: %s", runOfKey(key), name)
	switch rest := key[9:]; {
	case key[0] == typeJournal && len(rest) >= 8:
		return fmt.Sprintf("%s %d", text, binary.BigEndian.Uint64(rest))
	case key[0] == typeDef && len(rest) == 2:
		return fmt.Sprintf("%s, part %d", text, binary.BigEndian.Uint16(rest))
	case len(rest) >= 4:
		return fmt.Sprintf("%s %d", text, binary.BigEndian.Uint32(rest))
	}
	return text
}
