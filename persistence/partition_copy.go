package persistence

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/caravan-dag/caravan/internal/rowdigest"
	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// PartitionCopy describes a copy that WritePartition has written.
type PartitionCopy struct {
	Digest [32]byte // of its rows, as ReadView.Digest returns it
	Rows   uint64
	Epoch  uint64 // the newest of the rows: the first term of the replicas is higher (Lead.Epoch)
	RowCounts
	KeptKeys int // of the idempotency keys, those of deleted runs
}

// WritePartition writes the rows that partition n has of a single node's runs, as a copy of a replica:
// InstallCopy makes a replica of it. The view must be of a store that OpenStore has opened, with no batch
// since: then no row is half of something. next is the store's NextRun.
//
//	rows of a run                by the run's ID
//	idempotency keys             by the hash of the key: their runs may be of other partitions
//	format, shards, clock mark   in each partition
//	next run                     in each partition, so that new runs have higher IDs than all before
//	number of kept keys          counted anew
//	opens                        left out: PartitionCopy.Epoch
//
// It reads all rows, and does not see lost blocks: the caller verifies the tables once, after the last
// partition (DB.VerifyTables).
func (m *ReadView) WritePartition(ctx context.Context, w io.Writer, n messages.Numbering, next messages.RunID) (c PartitionCopy, err error) {
	if err := n.Check(); err != nil {
		return c, err
	}
	if c.KeptKeys, err = m.countKeptKeys(n); err != nil {
		return c, err
	}
	if c.Epoch, err = m.countOpens(); err != nil {
		return c, err
	}
	meta, err := m.partitionMeta(n, next, c.KeptKeys)
	if err != nil {
		return c, err
	}
	out := newCopyWriter(w, m.at)
	writeMeta := func() error { // in the place that their keys have
		for _, row := range meta {
			if err := out.writeRow(row.Key, row.Value); err != nil {
				return err
			}
		}
		meta = nil
		return nil
	}
	err = m.Rows(ctx, func(key, value []byte) error {
		if key[0] > typeMeta && meta != nil {
			if err := writeMeta(); err != nil {
				return err
			}
		}
		isOf, err := isOfPartition(key, n)
		if err != nil || !isOf {
			return err
		}
		c.Add(key)
		return out.writeRow(key, value)
	})
	if err == nil {
		err = writeMeta()
	}
	if err != nil {
		return c, err
	}
	c.Digest, c.Rows, err = out.finish()
	return c, err
}

// isOfPartition reports whether a partition has a row of a single node. Meta rows are none of them.
func isOfPartition(key []byte, n messages.Numbering) (bool, error) {
	ofHash := func(hash []byte) bool { return messages.KeyPartition([32]byte(hash), n.Stride()) == n.Partition }
	switch key[0] {
	case typeMeta:
		return false, nil
	case typeUnfinished, typeFinished, typeDef, typeSet, typeJournal, typeHeader, typeChunk, typeAttempts:
		return n.Owns(runOfKey(key)), nil
	case typeTag:
		return n.Owns(runOfKey(key[8:])), nil // after the hash of the tag: see tagKey
	case typeKey:
		return ofHash(key[1:]), nil
	case typeExpiry:
		_, hash, err := parseExpiryKey(key)
		return ofHash(hash[:]), err
	}
	return false, fmt.Errorf("%s: a row of this type cannot be in a store at rest", rowName(key))
}

// partitionMeta returns the meta rows of a partition, by ascending keys.
func (m *ReadView) partitionMeta(n messages.Numbering, next messages.RunID, keptKeys int) (rows []mutation, err error) {
	copied := map[string]bool{"format": true, "shards": true, "mark": true}
	known := map[string]bool{"opens": true, "next": true, "keys": true}
	err = scanTxn(m.txn, []byte{typeMeta}, nil, false, func(key []byte, item *badger.Item) (bool, error) {
		switch {
		case copied[string(key[1:])]:
		case known[string(key[1:])]:
			return true, nil
		default:
			return false, fmt.Errorf("row %q: not of a single node", key)
		}
		return true, item.Value(func(value []byte) error {
			rows = append(rows, mutation{Key: slices.Clone(key), Value: slices.Clone(value)})
			return CheckRow(key, value)
		})
	})
	rows = append(rows, numberingRows(n)...)
	for name, number := range map[string]uint64{"next": uint64(next), "keys": uint64(keptKeys)} {
		if number > 0 {
			rows = append(rows, metaRow(name, number))
		}
	}
	slices.SortFunc(rows, func(a, b mutation) int { return cmp.Compare(string(a.Key), string(b.Key)) })
	return rows, err
}

// countKeptKeys counts the keys of deleted runs whose partition this is.
func (m *ReadView) countKeptKeys(n messages.Numbering) (count int, err error) {
	err = scanTxn(m.txn, []byte{typeExpiry}, nil, false, func(key []byte, _ *badger.Item) (bool, error) {
		isOf, err := isOfPartition(key, n)
		if isOf {
			count++
		}
		return true, err
	})
	return count, err
}

// countOpens returns how often the store was opened.
func (m *ReadView) countOpens() (uint64, error) {
	v, err := getRowTxn(m.txn, metaKey("opens"))
	if err != nil {
		return 0, err
	}
	if v == nil {
		return 0, fmt.Errorf("meta row opens: %w: missing", errCorrupt)
	}
	d := newDecoder(v, metaV1)
	n := d.uint()
	return n, d.end()
}

// RowDigest computes the digest of rows that come by ascending keys, as ReadView.Digest does.
type RowDigest = rowdigest.Digest

// NewRowDigest returns a digest, before the first row.
func NewRowDigest() *RowDigest { return rowdigest.New() }

// RowCounts counts what the rows of a replica are.
type RowCounts struct {
	Runs       int
	Unfinished int // of these
	Keys       int // idempotency keys
}

// Add counts a row by its key.
func (c *RowCounts) Add(key []byte) {
	if len(key) == 0 {
		return
	}
	switch key[0] {
	case typeKey:
		c.Keys++
	case typeUnfinished:
		c.Runs++
		c.Unfinished++
	case typeFinished:
		c.Runs++
	}
}
