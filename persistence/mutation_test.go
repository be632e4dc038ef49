package persistence

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/caravan-dag/caravan/persistence/badgerguard"
)

func TestMutationsRoundTrip(t *testing.T) {
	mutations := []mutation{
		{Key: []byte("a"), Value: bytes.Repeat([]byte("v"), 1000)},
		{Key: []byte("b"), Delete: true},
		{Key: []byte("c"), Value: []byte{}},
	}
	parts := encodeMutations(mutations, 64, 4)
	for i, p := range parts {
		if len(p) > 64 || i < len(parts)-1 && len(p) != 64 || i > 0 && cap(p) < len(p)+4 && len(p) == 64 {
			t.Errorf("part %d of %d: %d bytes, room for %d", i, len(parts), len(p), cap(p))
		}
	}
	joined := bytes.Join(parts, nil)
	if got, err := decodeMutations(joined); err != nil || !reflect.DeepEqual(got, mutations) {
		t.Errorf("%v, %v", got, err)
	}
	for n := range joined {
		if got, err := decodeMutations(joined[:n]); err == nil && len(got) == len(mutations) {
			t.Errorf("the first %d bytes are %v", n, got)
		}
	}
}

// TestSplitKeepsRowsTogether: each transaction is within the limits, no row is lost, and rows that
// belong together lie in one transaction.
func TestSplitKeepsRowsTogether(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	limits := badgerguard.Limits{Rows: 10, Bytes: 1000}
	for range 500 {
		var all []mutation
		for range 1 + rng.IntN(40) {
			all = append(all, mutation{Key: []byte("x"), Value: make([]byte, rng.IntN(200))})
		}
		at := rng.IntN(len(all))
		together := min(3, len(all)-at)
		for i := range together {
			all[at+i].Key, all[at+i].Value = []byte("s"), nil
		}
		seen := 0
		for rest := all; len(rest) > 0; {
			n, size := splitForTransaction(limits, rest, func(m mutation) bool { return m.Key[0] == 's' })
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
	f.Add(bytes.Join(encodeMutations([]mutation{{Key: []byte("k"), Value: []byte("v")}, {Key: []byte("d"), Delete: true}}, 100, 0), nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		mutations, err := decodeMutations(b)
		if err != nil {
			return
		}
		again, err := decodeMutations(bytes.Join(encodeMutations(mutations, 16, 0), nil))
		if err != nil || len(again) != len(mutations) {
			t.Fatalf("%v, %v, want %v", again, err, mutations)
		}
	})
}
