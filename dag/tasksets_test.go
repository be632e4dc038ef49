package dag

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestRangeQueueAgainstAList holds the queue of ranges against a plain list.
func TestRangeQueueAgainstAList(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var q rangeQueue
	var list []uint32
	next := uint32(0)
	for step := range 20_000 {
		switch op := rnd.IntN(10); {
		case op < 3:
			if rnd.IntN(2) == 0 {
				next += 3 // a gap
			}
			n := uint32(1 + rnd.IntN(5))
			q.push(next, n)
			for range n {
				list = append(list, next)
				next++
			}
		case op < 9:
			if q.empty() != (len(list) == 0) {
				t.Fatalf("step %d: empty() = %v, %d tasks are left", step, q.empty(), len(list))
			}
			if len(list) > 0 {
				if got := q.pop(); got != list[0] {
					t.Fatalf("step %d: task %d, want %d", step, got, list[0])
				}
				list = list[1:]
			}
		case len(list) > 0 && rnd.IntN(20) == 0:
			first, n := list[rnd.IntN(len(list))], uint32(1+rnd.IntN(9))
			q.removeRange(first, n)
			list = slices.DeleteFunc(slices.Clone(list), func(i uint32) bool { return i >= first && i < first+n })
		}
	}
	for ; len(list) > 0; list = list[1:] {
		if got := q.pop(); got != list[0] {
			t.Fatalf("task %d, want %d", got, list[0])
		}
	}
	if !q.empty() {
		t.Error("not empty at the end")
	}
}

// TestNeighboursAreOneRange: a million neighbours are one range.
func TestNeighboursAreOneRange(t *testing.T) {
	var q rangeQueue
	for i := range uint32(1_000_000) {
		q.push(i, 1)
	}
	if len(q.list) != 1 || q.list[0] != (taskRange{0, 1_000_000}) {
		t.Errorf("%d ranges", len(q.list))
	}
}

// TestBitmapAgainstAMap holds the set against a map.
func TestBitmapAgainstAMap(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var b bitmap
	set := map[uint32]bool{}
	for size := 1; size <= 300_000; size *= 7 {
		b.grow(size)
		b.grow(size / 2) // never shrinks
		for range 3000 {
			i := uint32(rnd.IntN(size))
			if rnd.IntN(5) < 3 {
				b.add(i)
				set[i] = true
			} else {
				b.remove(i)
				delete(set, i)
			}
			if b.has(i) != set[i] || b.count != len(set) {
				t.Fatalf("has(%d) = %v, %d members; want %v, %d", i, b.has(i), b.count, set[i], len(set))
			}
		}
		var want []uint32
		for i := range set {
			want = append(want, i)
		}
		slices.Sort(want)
		if got := b.members(); !slices.Equal(got, want) {
			t.Fatalf("members %v, want %v", got, want)
		}
		for range 1000 {
			from := uint32(rnd.IntN(size + 10))
			at, found := slices.BinarySearch(want, from)
			got, ok := b.next(from)
			if ok != (at < len(want)) || ok && got != want[at] {
				t.Fatalf("next(%d) = %d, %v; %v", from, got, ok, found)
			}
		}
	}
}
