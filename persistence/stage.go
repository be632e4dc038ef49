package persistence

import (
	"encoding/binary"
	"fmt"

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

// commitStaged commits one batch by itself.
func (s *Badger) commitStaged(ops []op, it *item) {
	err := s.stage(ops)
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
	if err := s.commit([]op{mark}, mark.size()); err != nil {
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
		if err := s.commit(ops[:n], size); err != nil {
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

// recoverStaged carries out what was marked and deletes what was not.
func (s *Badger) recoverStaged() error {
	type staged struct {
		id     uint64
		joined []byte
		parts  []op
	}
	var found []*staged
	marked := map[uint64]uint64{} // parts
	err := s.scan([]byte{typeStaged}, nil, false, func(key []byte, item *badger.Item) (bool, error) {
		return true, itemValue(item, func(v []byte) error {
			d := newDecoder(v, stagedV1)
			marked[binary.BigEndian.Uint64(key[1:])] = d.uint()
			return d.end()
		})
	})
	if err != nil {
		return err
	}
	err = s.scan([]byte{typeStage}, nil, false, func(key []byte, item *badger.Item) (bool, error) {
		id := binary.BigEndian.Uint64(key[1:])
		if len(found) == 0 || found[len(found)-1].id != id {
			found = append(found, &staged{id: id})
		}
		st := found[len(found)-1]
		st.parts = append(st.parts, op{key: append([]byte{}, key...), del: true})
		if marked[id] == 0 {
			return true, nil
		}
		return true, itemValue(item, func(v []byte) error {
			st.joined = append(st.joined, v...)
			return nil
		})
	})
	if err != nil {
		return err
	}
	for _, st := range found {
		if marked[st.id] == 0 {
			if err := s.commitMany(st.parts); err != nil {
				return err
			}
			continue
		}
		if n := uint64(len(st.parts)); n != marked[st.id] {
			return fmt.Errorf("staged batch %d: %w: %d of %d parts", st.id, errCorrupt, n, marked[st.id])
		}
		delete(marked, st.id)
		ops, err := decodeStaged(st.joined)
		if err != nil {
			return fmt.Errorf("staged batch %d: %w", st.id, err)
		}
		if err := s.carryOut(ops, st.id, st.parts); err != nil {
			return err
		}
	}
	for id, n := range marked { // the mark goes before the parts
		return fmt.Errorf("staged batch %d: %w: none of %d parts", id, errCorrupt, n)
	}
	return nil
}
