package persistence

import (
	"encoding/binary"
	"errors"

	"github.com/caravan-dag/caravan/internal/lengthprefix"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
)

// mutation sets or deletes one row. It is what a batch becomes, what a commit log carries, and what
// Badger gets. It is absolute: a replay that applies it and all later ones again ends with the
// same rows. A set row's value ends with a checksum (rows.go); a deletion is a key alone.
type mutation struct {
	Key, Value []byte // owned by the group that they are in
	Delete     bool
}

// Size returns what the row takes of a transaction's limit, in bytes.
func (m mutation) Size() int64 { return badgerguard.RowSize(len(m.Key), len(m.Value)) }

// A batch that is too large for one transaction is written down in parts before it is applied in
// several transactions. The parts hold its mutations, encoded one after the other:
//
//	kind, key length, key [, value length, value]
const (
	encodedSet    = 0
	encodedDelete = 1
)

// errEncodedMutations marks bytes that encodeMutations did not write.
var errEncodedMutations = errors.New("encoded mutations cannot be decoded")

// splitForTransaction returns how many of the mutations go into the first transaction, and their
// size. Neighbours for which keepTogether is true are not separated, unless the transaction would
// hold only such rows.
func splitForTransaction(l badgerguard.Limits, mutations []mutation, keepTogether func(mutation) bool) (n int, size int64) {
	for n < len(mutations) && (n == 0 || l.Fits(n+1, size+mutations[n].Size())) {
		size += mutations[n].Size()
		n++
	}
	if n == len(mutations) {
		return n, size
	}
	whole, wholeSize := n, size
	for whole > 0 && keepTogether(mutations[whole-1]) && keepTogether(mutations[whole]) {
		whole--
		wholeSize -= mutations[whole].Size()
	}
	if whole == 0 {
		return n, size
	}
	return whole, wholeSize
}

// encodeMutations encodes mutations into parts of partSize bytes; the last part may be shorter.
// Each part has spare capacity of that many bytes, so that the caller can append a checksum.
func encodeMutations(mutations []mutation, partSize, spare int) (parts [][]byte) {
	var part []byte
	flush := func() {
		if len(part) > 0 {
			parts = append(parts, part)
			part = make([]byte, 0, partSize+spare)
		}
	}
	write := func(p []byte) {
		for len(p) > 0 {
			n := min(len(p), partSize-len(part))
			part = append(part, p[:n]...)
			if p = p[n:]; len(part) == partSize {
				flush()
			}
		}
	}
	var head []byte
	for _, m := range mutations {
		kind := byte(encodedSet)
		if m.Delete {
			kind = encodedDelete
		}
		head = lengthprefix.Append(append(head[:0], kind), m.Key)
		if !m.Delete {
			head = binary.AppendUvarint(head, uint64(len(m.Value)))
		}
		write(head)
		write(m.Value)
	}
	flush()
	return parts
}

// decodeMutations is the inverse of encodeMutations, on the joined parts. The mutations refer to b.
func decodeMutations(b []byte) (mutations []mutation, err error) {
	for len(b) > 0 {
		kind := b[0]
		m := mutation{Delete: kind == encodedDelete}
		if kind != encodedSet && kind != encodedDelete {
			return nil, errEncodedMutations
		}
		var ok bool
		if m.Key, b, ok = lengthprefix.Cut(b[1:]); !ok || len(m.Key) == 0 {
			return nil, errEncodedMutations
		}
		if !m.Delete {
			if m.Value, b, ok = lengthprefix.Cut(b); !ok {
				return nil, errEncodedMutations
			}
		}
		mutations = append(mutations, m)
	}
	return mutations, nil
}
