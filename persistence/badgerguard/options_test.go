package badgerguard

import (
	"errors"
	"fmt"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// TestBadgerAcceptsTheLimits: a transaction at the limits commits, in rows and in bytes, and one
// well beyond them is too big. So the limits are Badger's.
func TestBadgerAcceptsTheLimits(t *testing.T) {
	for _, memTable := range []int64{1 << 20, 4 << 20, 32 << 20} {
		db := openManaged(t, Options(t.TempDir(), memTable))
		limits := TransactionLimits(memTable)
		fill := func(rows, value int) error {
			txn := db.NewTransactionAt(1, true)
			defer txn.Discard()
			for i := range rows {
				if err := txn.Set(fmt.Appendf(nil, "key%09d", i), make([]byte, value)); err != nil {
					return err
				}
			}
			return txn.CommitAt(2, nil)
		}
		size := func(value int) int { return int(RowSize(12, value)) }
		if err := fill(limits.Rows, 10); err != nil && limits.Fits(limits.Rows, int64(limits.Rows*size(10))) {
			t.Errorf("memtable of %d MiB: %d small rows: %v", memTable>>20, limits.Rows, err)
		}
		value := limits.Value
		rows := int(limits.Bytes) / size(value)
		if err := fill(rows, value); err != nil {
			t.Errorf("memtable of %d MiB: %d rows of %d bytes: %v", memTable>>20, rows, value, err)
		}
		if err := fill(2*rows+1, value); !errors.Is(err, badger.ErrTxnTooBig) {
			t.Errorf("memtable of %d MiB: %d rows of %d bytes: %v, want too big", memTable>>20, 2*rows+1, value, err)
		}
		if large := MemTableSizeFor(limits.Bytes); large < memTable*9/10 || TransactionLimits(large).Bytes < limits.Bytes*9/10 {
			t.Errorf("memtable of %d MiB: the size for its transactions is %d", memTable>>20, large)
		}
	}
}

// TestNoValueGoesToTheValueLog: a value of any size that a transaction takes lies in the tree, so
// the value log, which is never verified and is deleted at each open, stays without rows.
func TestNoValueGoesToTheValueLog(t *testing.T) {
	for _, memTable := range []int64{1 << 20, 4 << 20, 16 << 20, 32 << 20} {
		opts := Options(t.TempDir(), memTable)
		if limits := TransactionLimits(memTable); int64(limits.Value) >= opts.ValueThreshold {
			t.Errorf("memtable of %d MiB: values have up to %d bytes, and from %d on they go to the value log", memTable>>20, limits.Value, opts.ValueThreshold)
		}
	}
}
