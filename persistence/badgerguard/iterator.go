package badgerguard

import (
	"bytes"
	"encoding/binary"

	"github.com/dgraph-io/badger/v4"
)

// Iterator walks rows whose keys are a prefix and an ID of 8 bytes, in ascending order. Badger's own
// iterator hides tombstones and steps through all of them within one call of Next or Seek: after a
// million deletions a list of ten rows takes a second. This one shows each tombstone, so that the
// caller decides where to go on.
type Iterator struct {
	it      *badger.Iterator
	prefix  []byte
	key     []byte
	started bool
}

// maxSteps is how many rows SeekForward steps over before it seeks. A seek costs about as much as
// that many steps.
const maxSteps = 16

// NewIterator returns an iterator over the rows of a prefix. Close it before the transaction.
func NewIterator(txn *badger.Txn, prefix []byte) *Iterator {
	return &Iterator{it: txn.NewIterator(badger.IteratorOptions{Prefix: prefix, AllVersions: true}), prefix: bytes.Clone(prefix)}
}

// Close releases what the iterator holds.
func (i *Iterator) Close() { i.it.Close() }

// SeekForward moves to the first row, or tombstone, at or after an ID. IDs must ascend from call to
// call. It reports whether there is such a row.
func (i *Iterator) SeekForward(id uint64) bool {
	i.key = binary.BigEndian.AppendUint64(append(i.key[:0], i.prefix...), id)
	for range maxSteps {
		if !i.started || !i.it.Valid() || bytes.Compare(i.it.Item().Key(), i.key) >= 0 {
			break
		}
		i.it.Next()
	}
	if !i.started || i.it.Valid() && bytes.Compare(i.it.Item().Key(), i.key) < 0 {
		i.it.Seek(i.key)
	}
	i.started = true
	_, ok := i.ID()
	return ok
}

// Seek is SeekForward for an ID that is known to be far away.
func (i *Iterator) Seek(id uint64) {
	i.key = binary.BigEndian.AppendUint64(append(i.key[:0], i.prefix...), id)
	i.it.Seek(i.key)
	i.started = true
}

// ID returns the ID of the current row, or tombstone; ok is false past the last one. Keys of
// another length are skipped: a damaged store may hold them.
func (i *Iterator) ID() (id uint64, ok bool) {
	for i.it.Valid() && len(i.it.Item().Key()) != len(i.prefix)+8 {
		i.it.Next()
	}
	if !i.it.Valid() {
		return 0, false
	}
	return binary.BigEndian.Uint64(i.it.Item().Key()[len(i.prefix):]), true
}

// Deleted reports whether the current row is a tombstone. The newest version of a row comes first,
// and SeekForward and Next stop only there.
func (i *Iterator) Deleted() bool { return i.it.Item().IsDeletedOrExpired() }

// Item returns the current row, valid until the iterator moves.
func (i *Iterator) Item() *badger.Item { return i.it.Item() }

// Next moves past all versions of the current row.
func (i *Iterator) Next() {
	current, ok := i.ID()
	for id := current; ok && id == current; id, ok = i.ID() {
		i.it.Next()
	}
}
