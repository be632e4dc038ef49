package persistence

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// A batch that is too big for one transaction is still atomic. Its rows are
// written down in parts first (type x), then one row marks it as committed (type
// y), then the rows are carried out in several transactions, and mark and parts
// are deleted. A crash before the mark leaves parts that the next open deletes; a
// crash after it leaves rows that the next open carries out (again).

const (
	stagedV1 = 1
	// maxStaged bounds one batch, in bytes of its rows.
	maxStaged = 512 << 20
)

const (
	stagedSet    = 0
	stagedDelete = 1
)

// commitStaged commits one batch by itself. After the writer's last commit has failed it writes
// nothing: the writer may not have returned from that.
func (s *Badger) commitStaged(ops []op, it *item) {
	err := s.Err()
	if err == nil {
		err = s.stage(ops)
	}
	if err == nil {
		s.cuts.note(it.batch)
	}
	s.metrics.group(1)
	it.answer(err)
}

func (s *Badger) stage(ops []op) error {
	s.enc.writes++
	id := s.enc.writes
	parts := stagedParts(ops, id, s.enc.partSize)
	if err := s.commitMany(parts); err != nil {
		return err
	}
	mark := stagedMark(id, len(parts))
	if err := s.commitAlone([]op{mark}, mark.size()); err != nil {
		return err
	}
	return s.carryOut(ops, id, parts)
}

// stagedMark is the commit marker of a batch. It knows how many parts there are.
func stagedMark(id uint64, parts int) op {
	return seal(markKey(typeStaged, id), binary.AppendUvarint([]byte{stagedV1}, uint64(parts)))
}

// carryOut commits the rows of a marked batch and then takes the mark off.
func (s *Badger) carryOut(ops []op, id uint64, parts []op) error {
	if err := s.commitMany(ops); err != nil {
		return err
	}
	end := []op{{key: markKey(typeStaged, id), del: true}}
	for _, p := range parts {
		end = append(end, op{key: p.key, del: true})
	}
	return s.commitMany(end)
}

// commitMany commits rows in as many transactions as they take, in order.
func (s *Badger) commitMany(ops []op) error {
	for len(ops) > 0 {
		n, size := s.portion(ops)
		if err := s.commitAlone(ops[:n], size); err != nil {
			return err
		}
		ops = ops[n:]
	}
	return nil
}

// portion is how many of the rows, and of how many bytes, go into the first transaction.
// The rows that take a run from the unfinished ones to the finished ones, or back, are
// not parted: in between, a list would not find it.
func (s *Badger) portion(ops []op) (n int, size int64) {
	for n < len(ops) && (n == 0 || s.fits(n+1, size+ops[n].size())) {
		size += ops[n].size()
		n++
	}
	if n == len(ops) {
		return n, size
	}
	whole, wholeSize := n, size
	for whole > 0 && ofSummary(ops[whole-1]) && ofSummary(ops[whole]) {
		whole--
		wholeSize -= ops[whole].size()
	}
	if whole == 0 {
		return n, size
	}
	return whole, wholeSize
}

// ofSummary tells whether a row is a summary, or its entry in the index of tags.
func ofSummary(o op) bool {
	return o.key[0] == typeLive || o.key[0] == typeFinal || o.key[0] == typeTag
}

func stagedParts(ops []op, id uint64, partSize int) []op {
	var parts []op
	buf := []byte{}
	flush := func() {
		if len(buf) > 0 {
			parts = append(parts, seal(stageKey(id, uint32(len(parts))), buf))
			buf = make([]byte, 0, partSize+sumSize)
		}
	}
	write := func(p []byte) {
		for len(p) > 0 {
			n := min(len(p), partSize-len(buf))
			buf = append(buf, p[:n]...)
			if p = p[n:]; len(buf) == partSize {
				flush()
			}
		}
	}
	var head []byte
	for _, o := range ops {
		head = head[:0]
		if o.del {
			head = appendString(append(head, stagedDelete), o.key)
		} else {
			head = appendString(append(head, stagedSet), o.key)
			head = binary.AppendUvarint(head, uint64(len(o.val)))
		}
		write(head)
		write(o.val)
	}
	flush()
	return parts
}

// decodeStaged is the inverse of stagedParts, on the joined parts.
func decodeStaged(v []byte) ([]op, error) {
	d := &decoder{b: v}
	var ops []op
	for d.err == nil && len(d.b) > 0 {
		o := op{}
		switch d.byte() {
		case stagedSet:
			o.key, o.val = d.bytes(), d.bytes()
		case stagedDelete:
			o.key, o.del = d.bytes(), true
		default:
			d.fail("staged row")
		}
		if len(o.key) == 0 {
			d.fail("key of a staged row")
		}
		ops = append(ops, o)
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	return ops, nil
}

// stagedBatch is a batch whose parts are stored.
type stagedBatch struct {
	id     uint64
	marked bool   // it is committed
	want   uint64 // parts that there must be, when it is marked
	parts  [][]byte
	joined []byte // what the parts hold, when it is marked
}

// rows are the rows of a batch that is marked.
func (b *stagedBatch) rows() ([]op, error) {
	n := uint64(len(b.parts))
	switch {
	case n == 0: // the mark goes before the parts
		return nil, fmt.Errorf("staged batch %d: %w: none of %d parts", b.id, errCorrupt, b.want)
	case n != b.want:
		return nil, fmt.Errorf("staged batch %d: %w: %d of %d parts", b.id, errCorrupt, n, b.want)
	}
	ops, err := decodeStaged(b.joined)
	if err != nil {
		return nil, fmt.Errorf("staged batch %d: %w", b.id, err)
	}
	return ops, nil
}

// deletions delete the parts.
func (b *stagedBatch) deletions() (ops []op) {
	for _, key := range b.parts {
		ops = append(ops, op{key: key, del: true})
	}
	return ops
}

// cleanup deletes what is left of a batch that was carried out.
func (b *stagedBatch) cleanup() []op {
	return append([]op{{key: markKey(typeStaged, b.id), del: true}}, b.deletions()...)
}

// eachStaged calls fn for the staged batches, ascending.
func (s *Badger) eachStaged(fn func(*stagedBatch) error) error {
	found := map[uint64]*stagedBatch{}
	batch := func(key []byte) *stagedBatch {
		id := binary.BigEndian.Uint64(key[1:])
		b := found[id]
		if b == nil {
			b = &stagedBatch{id: id}
			found[id] = b
		}
		return b
	}
	err := s.scan([]byte{typeStaged}, nil, false, func(key []byte, item *badger.Item) (bool, error) {
		return true, itemValue(item, func(v []byte) error {
			b := batch(key)
			d := newDecoder(v, stagedV1)
			b.marked, b.want = true, d.uint()
			return d.end()
		})
	})
	if err != nil {
		return err
	}
	err = s.scan([]byte{typeStage}, nil, false, func(key []byte, item *badger.Item) (bool, error) {
		b := batch(key)
		b.parts = append(b.parts, bytes.Clone(key))
		if !b.marked {
			return true, nil
		}
		return true, itemValue(item, func(v []byte) error {
			b.joined = append(b.joined, v...)
			return nil
		})
	})
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(found)) {
		if err := fn(found[id]); err != nil {
			return err
		}
		delete(found, id)
	}
	return nil
}

// recoverStaged carries out what was marked and deletes what was not.
func (s *Badger) recoverStaged() error {
	return s.eachStaged(func(b *stagedBatch) error {
		if !b.marked {
			return s.commitMany(b.deletions())
		}
		ops, err := b.rows()
		if err != nil {
			return err
		}
		return s.carryOut(ops, b.id, b.deletions())
	})
}
