package persistence

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// A batch that is too large for one transaction is still atomic. Its rows are written down in parts
// first (type x). Then one row marks it as committed (type y). Then its rows are applied in several
// transactions, and mark and parts are deleted. A crash before the mark leaves parts that the next
// open deletes; a crash after it leaves rows that the next open applies, perhaps again. A read may begin
// between two of the transactions: viewWhole and isSummaryRow keep it from taking that for damage.

const (
	stagedV1 = 1
	// maxStaged bounds one batch, in bytes of its rows.
	maxStaged = 512 << 20
)

// commitStaged commits one batch, or bare rows, by itself, while the writer rests. In a failed store
// it does not write: the writer may not have returned from its last commit.
func (s *RunStore) commitStaged(mutations []mutation, p *pendingBatch) {
	err := s.Err()
	if err == nil {
		err = s.stageAndApply(mutations)
	}
	if err == nil && p.batch != nil {
		s.truncator.noteBatch(p.batch)
	}
	s.metrics.observeGroup(1)
	p.complete(err)
}

// stageAndApply is the way of such a batch: parts, mark, rows, deletion of mark and parts. The
// batch is acknowledged at the end, although it is committed with the mark: a read then finds its
// rows, not its parts. The id is a write number, so it never repeats in a data folder.
func (s *RunStore) stageAndApply(mutations []mutation) error {
	s.encoder.writeCount++
	id := s.encoder.writeCount
	parts := stagedParts(mutations, id, s.encoder.partSize)
	if err := s.commitSplit(parts); err != nil {
		return s.knownLost(err) // parts without a mark are deleted by the next open
	}
	mark := stagedMark(id, len(parts))
	if err := s.commitAndApply([]mutation{mark}, mark.Size()); err != nil {
		return err
	}
	s.stagedApplies.Add(1)
	defer s.stagedApplies.Add(1)
	return s.applyStaged(mutations, id, parts)
}

// stagedMark is the commit marker of a batch. It holds the number of parts.
func stagedMark(id uint64, parts int) mutation {
	return sealRow(markKey(typeStaged, id), binary.AppendUvarint([]byte{stagedV1}, uint64(parts)))
}

// applyStaged commits the rows of a marked batch, and then deletes mark and parts. A crash in
// between leaves the mark, and the rows are written again. The mark is deleted before the parts, as
// the first row of that deletion: parts without a mark are rubbish, but a mark without parts would
// be damage.
func (s *RunStore) applyStaged(mutations []mutation, id uint64, parts []mutation) error {
	if err := s.commitSplit(mutations); err != nil {
		return err
	}
	end := []mutation{{Key: markKey(typeStaged, id), Delete: true}}
	for _, p := range parts {
		end = append(end, mutation{Key: p.Key, Delete: true})
	}
	return s.commitSplit(end)
}

// commitSplit commits rows in as many transactions as they take, in order. It runs where the writer
// rests: in the open of a store, and in the committer for a large batch.
func (s *RunStore) commitSplit(mutations []mutation) error {
	for len(mutations) > 0 {
		n, size := splitForTransaction(s.limits, mutations, isSummaryRow)
		if err := s.commitAndApply(mutations[:n], size); err != nil {
			return err
		}
		mutations = mutations[n:]
	}
	return nil
}

// isSummaryRow reports whether a row is a summary, or its entry in the index of tags. These rows of
// a batch are committed together: a list that reads between two transactions would miss the run.
func isSummaryRow(m mutation) bool {
	return m.Key[0] == typeUnfinished || m.Key[0] == typeFinished || m.Key[0] == typeTag
}

// stagedParts returns the rows that hold a batch until it is applied.
func stagedParts(mutations []mutation, id uint64, partSize int) (parts []mutation) {
	for i, part := range encodeMutations(mutations, partSize, checksumSize) {
		parts = append(parts, sealRow(stageKey(id, uint32(i)), part))
	}
	return parts
}

// decodeStaged is the inverse of stagedParts, on the joined parts.
func decodeStaged(v []byte) ([]mutation, error) {
	mutations, err := decodeMutations(v)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return mutations, nil
}

// stagedBatch is a batch whose parts are stored.
type stagedBatch struct {
	id     uint64
	marked bool   // the batch is committed
	want   uint64 // number of parts, when it is marked
	parts  [][]byte
	joined []byte // content of the parts, when it is marked
}

// mutations returns the rows of a marked batch.
func (b *stagedBatch) mutations() ([]mutation, error) {
	n := uint64(len(b.parts))
	switch {
	case n == 0: // the mark is deleted before the parts
		return nil, fmt.Errorf("staged batch %d: %w: all %d parts are missing", b.id, errCorrupt, b.want)
	case n != b.want:
		return nil, fmt.Errorf("staged batch %d: %w: %d of %d parts", b.id, errCorrupt, n, b.want)
	}
	mutations, err := decodeStaged(b.joined)
	if err != nil {
		return nil, fmt.Errorf("staged batch %d: %w", b.id, err)
	}
	return mutations, nil
}

// partDeletions delete the parts.
func (b *stagedBatch) partDeletions() (deletions []mutation) {
	for _, key := range b.parts {
		deletions = append(deletions, mutation{Key: key, Delete: true})
	}
	return deletions
}

// markAndPartDeletions deletes what is left of a batch that was applied.
func (b *stagedBatch) markAndPartDeletions() []mutation {
	return append([]mutation{{Key: markKey(typeStaged, b.id), Delete: true}}, b.partDeletions()...)
}

// eachStaged calls fn for the staged batches, ascending. It holds the parts of marked batches in
// memory: a crash leaves one at most, because the committer stages one at a time.
func (s *runReader) eachStaged(fn func(*stagedBatch) error) error {
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
	err := s.scanRows([]byte{typeStaged}, nil, false, func(key []byte, item *badger.Item) (bool, error) {
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
	err = s.scanRows([]byte{typeStage}, nil, false, func(key []byte, item *badger.Item) (bool, error) {
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

// recoverStaged applies the batches that were marked and deletes the others. It comes before
// loadIndex, which must see the runs of those batches.
func (s *RunStore) recoverStaged() error {
	return s.eachStaged(func(b *stagedBatch) error {
		if !b.marked {
			return s.commitSplit(b.partDeletions())
		}
		mutations, err := b.mutations()
		if err != nil {
			return err
		}
		return s.applyStaged(mutations, b.id, b.partDeletions())
	})
}
