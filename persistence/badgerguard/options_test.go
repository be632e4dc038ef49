package badgerguard

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
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
		size := func(value int) int { return int(Mutation{Key: make([]byte, 12), Value: make([]byte, value)}.Size()) }
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

func TestMutationsRoundTrip(t *testing.T) {
	mutations := []Mutation{
		{Key: []byte("a"), Value: bytes.Repeat([]byte("v"), 1000)},
		{Key: []byte("b"), Delete: true},
		{Key: []byte("c"), Value: []byte{}},
	}
	parts := EncodeMutations(mutations, 64, 4)
	for i, p := range parts {
		if len(p) > 64 || i < len(parts)-1 && len(p) != 64 || i > 0 && cap(p) < len(p)+4 && len(p) == 64 {
			t.Errorf("part %d of %d: %d bytes, room for %d", i, len(parts), len(p), cap(p))
		}
	}
	joined := bytes.Join(parts, nil)
	if got, err := DecodeMutations(joined); err != nil || !reflect.DeepEqual(got, mutations) {
		t.Errorf("%v, %v", got, err)
	}
	for n := range joined {
		if got, err := DecodeMutations(joined[:n]); err == nil && len(got) == len(mutations) {
			t.Errorf("the first %d bytes are %v", n, got)
		}
	}
}

// TestSplitKeepsRowsTogether: each transaction is within the limits, no row is lost, and rows that
// belong together lie in one transaction.
func TestSplitKeepsRowsTogether(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	limits := Limits{Rows: 10, Bytes: 1000}
	for range 500 {
		var all []Mutation
		for range 1 + rng.IntN(40) {
			all = append(all, Mutation{Key: []byte("x"), Value: make([]byte, rng.IntN(200))})
		}
		at := rng.IntN(len(all))
		together := min(3, len(all)-at)
		for i := range together {
			all[at+i].Key, all[at+i].Value = []byte("s"), nil
		}
		seen := 0
		for rest := all; len(rest) > 0; {
			n, size := limits.SplitForTransaction(rest, func(m Mutation) bool { return m.Key[0] == 's' })
			total, special := int64(0), 0
			for _, m := range rest[:n] {
				total += m.Size()
				if m.Key[0] == 's' {
					special++
				}
			}
			if n == 0 || total != size || n > 1 && !limits.Fits(n, size) {
				t.Fatalf("a transaction of %d rows and %d bytes, said to be %d", n, total, size)
			}
			if special != 0 && special != together {
				t.Fatalf("%d of %d rows that belong together are in one transaction", special, together)
			}
			seen += n
			rest = rest[n:]
		}
		if seen != len(all) {
			t.Fatalf("%d of %d rows", seen, len(all))
		}
	}
}

func FuzzDecodeMutations(f *testing.F) {
	f.Add(bytes.Join(EncodeMutations([]Mutation{{Key: []byte("k"), Value: []byte("v")}, {Key: []byte("d"), Delete: true}}, 100, 0), nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		mutations, err := DecodeMutations(b)
		if err != nil {
			return
		}
		again, err := DecodeMutations(bytes.Join(EncodeMutations(mutations, 16, 0), nil))
		if err != nil || len(again) != len(mutations) {
			t.Fatalf("%v, %v, want %v", again, err, mutations)
		}
	})
}
