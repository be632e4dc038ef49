package idtable

import (
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// A table does what a map does, and yields in order, also when its IDs have gaps.
func TestTableIsAMap(t *testing.T) {
	testTableIsAMap(t, Table[int]{}, func(id uint64) uint64 { return id })
	for stride := uint64(1); stride <= 96; stride = stride*5 + 1 {
		for _, offset := range []uint64{0, stride / 2, stride - 1} {
			testTableIsAMap(t, Spaced[int](stride, offset), func(id uint64) uint64 {
				id -= id % stride
				if id > math.MaxUint64-offset {
					id -= stride
				}
				return id + offset
			})
		}
	}
}

// testTableIsAMap compares a table with a map. own makes an ID of the table from any ID.
func testTableIsAMap(t *testing.T, table Table[int], own func(uint64) uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	oracle := map[uint64]int{}
	for i := range 20_000 {
		id := rng.Uint64N(500)
		switch rng.IntN(10) {
		case 0:
			id = math.MaxUint64 - id
		case 1:
			id *= 1 << 20
		}
		id = own(id)
		if v := rng.IntN(3); v == 0 {
			delete(oracle, id)
			if i%2 == 0 {
				table.Delete(id)
			} else {
				table.Set(id, 0)
			}
		} else {
			oracle[id] = v
			table.Set(id, v)
		}
		if got := table.Get(id); got != oracle[id] {
			t.Fatalf("step %d: id %d is %d, want %d", i, id, got, oracle[id])
		}
		if table.Len() != len(oracle) {
			t.Fatalf("step %d: %d ids, want %d", i, table.Len(), len(oracle))
		}
	}
	want := slices.Sorted(maps.Keys(oracle))
	var got []uint64
	for id, v := range table.All() {
		got = append(got, id)
		if v != oracle[id] {
			t.Errorf("id %d is %d, want %d", id, v, oracle[id])
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("ids %v, want %v", got, want)
	}
	for range table.All() {
		break // who has seen enough may leave
	}
	for _, from := range []uint64{0, 1, 63, 64, 250, 499, 500, 1 << 25, math.MaxUint64 - 3, math.MaxUint64} {
		var got []uint64
		for id := range table.From(from) {
			got = append(got, id)
		}
		at, _ := slices.BinarySearch(want, from)
		if !slices.Equal(got, want[at:]) {
			t.Errorf("from %d on: %v, want %v", from, got, want[at:])
		}
	}
	for _, id := range want {
		table.Delete(id)
	}
	if table.Len() != 0 || len(table.pages) != 0 || len(table.pageNumbers) != 0 {
		t.Errorf("%d ids and %d pages are left of nothing, %d in order", table.Len(), len(table.pages), len(table.pageNumbers))
	}
}

// TestSpacedTableHasOnlyItsIDs: other IDs are absent, and cannot be set.
func TestSpacedTableHasOnlyItsIDs(t *testing.T) {
	table := Spaced[int](6, 2)
	for id := uint64(2); id < 60; id += 6 {
		table.Set(id, 1)
	}
	for id := range uint64(70) {
		if want := id%6 == 2 && id < 60; (table.Get(id) == 1) != want {
			t.Errorf("id %d is %d", id, table.Get(id))
		}
	}
	table.Set(7, 0)
	table.Delete(1)
	if len(table.pages) != 1 {
		t.Errorf("%d pages for 10 neighbours", len(table.pages))
	}
	defer func() {
		if recover() == nil {
			t.Error("an ID of another table was set")
		}
	}()
	table.Set(7, 1)
}

func TestZeroTableIsEmpty(t *testing.T) {
	var table Table[*int]
	table.Delete(7)
	table.Set(7, nil)
	if table.Get(7) != nil || table.Len() != 0 || table.pages != nil {
		t.Error("an empty table holds something")
	}
	for range table.All() {
		t.Error("an empty table yields something")
	}
}

// What came in order and went in order, as runs do, leaves no page behind.
func TestFullyDeletedPagesAreFreed(t *testing.T) {
	var table Table[bool]
	const window = 1000
	for id := range uint64(100_000) {
		table.Set(id, true)
		if id >= window {
			table.Delete(id - window)
		}
		if pages := len(table.pages); pages > window/pageSize+2 {
			t.Fatalf("%d pages for %d ids", pages, table.Len())
		}
	}
}

func BenchmarkTable(b *testing.B) {
	values := new(int)
	b.Run("table", func(b *testing.B) {
		var table Table[*int]
		for i := range uint64(b.N) {
			table.Set(i, values)
			_ = table.Get(i - min(i, 30))
		}
	})
	b.Run("map", func(b *testing.B) {
		table := map[uint64]*int{}
		for i := range uint64(b.N) {
			table[i] = values
			_ = table[i-min(i, 30)]
		}
	})
}
