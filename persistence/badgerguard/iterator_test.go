package badgerguard

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
)

func idKey(id uint64) []byte { return binary.BigEndian.AppendUint64([]byte("p"), id) }

// TestIteratorShowsTombstones: an iterator stops at each row once, at deleted ones too, and shows
// the newest version of each. It fails when Badger changes what AllVersions means.
func TestIteratorShowsTombstones(t *testing.T) {
	db := openManaged(t, Options(t.TempDir(), 4<<20))
	commit(t, db, 1, mutation{Key: idKey(1), Value: []byte("old")}, mutation{Key: idKey(2), Value: []byte("old")}, mutation{Key: idKey(5), Value: []byte("five")})
	commit(t, db, 2, mutation{Key: idKey(1), Value: []byte("new")}, mutation{Key: idKey(2), Delete: true})
	commit(t, db, 3, mutation{Key: []byte("pstrange"), Value: nil}, mutation{Key: append(idKey(3), 'x'), Value: nil}, mutation{Key: []byte("q"), Value: nil})
	txn := db.NewTransactionAt(3, false)
	defer txn.Discard()
	it := NewIterator(txn, []byte("p"))
	defer it.Close()
	got := ""
	for ok := it.SeekForward(0); ok; _, ok = it.ID() {
		id, _ := it.ID()
		if it.Deleted() {
			got += fmt.Sprintf(" %d:deleted", id)
		} else if err := it.Item().Value(func(v []byte) error { got += fmt.Sprintf(" %d:%s", id, v); return nil }); err != nil {
			t.Fatal(err)
		}
		it.Next()
	}
	strange := binary.BigEndian.Uint64([]byte("strange" + "\x00")) // "pstrange" has 8 bytes: it is no row
	if want := " 1:new 2:deleted 5:five"; got != want {
		t.Errorf("%s, want%s (%d)", got, want, strange)
	}
}

// TestSeekForwardAgreesWithAScan: whatever is deleted and wherever it is asked to go, the iterator
// finds the first row or tombstone from there on.
func TestSeekForwardAgreesWithAScan(t *testing.T) {
	db := openManaged(t, Options(t.TempDir(), 4<<20))
	rng := rand.New(rand.NewPCG(1, 2))
	const n = 2000
	state := make([]int, n) // 0 never written, 1 there, 2 deleted
	for number := uint64(1); number <= 300; number++ {
		var mutations []mutation
		for id := range rng.Perm(n)[:10] {
			id = rng.IntN(n)
			if rng.IntN(2) == 0 && state[id] != 0 {
				mutations, state[id] = append(mutations, mutation{Key: idKey(uint64(id)), Delete: true}), 2
			} else {
				mutations, state[id] = append(mutations, mutation{Key: idKey(uint64(id)), Value: []byte{1}}), 1
			}
		}
		commit(t, db, number, mutations...)
	}
	for range 100 {
		txn := db.NewTransactionAt(300, false)
		it := NewIterator(txn, []byte("p"))
		for id := rng.IntN(50); id < n+20; id += 1 + rng.IntN(1<<rng.IntN(9)) {
			want := id
			for want < n && state[want] == 0 {
				want++
			}
			ok := it.SeekForward(uint64(id))
			got, _ := it.ID()
			if ok != (want < n) || ok && (got != uint64(want) || it.Deleted() != (state[want] == 2)) {
				t.Fatalf("from %d: %d, %v, deleted %v; want %d, state %d", id, got, ok, ok && it.Deleted(), want, state[min(want, n-1)])
			}
			if !ok {
				break
			}
		}
		it.Close()
		txn.Discard()
	}
}
