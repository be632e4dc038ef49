// Package idtable is a map from ids that are given out in ascending order, of which
// those in use lie close together: neighbours share a page. It costs about a word
// per id where a Go map costs several, a look-up finds the newest ids in the
// processor's cache, and growing moves nothing.
package idtable

import (
	"iter"
	"slices"
)

// pageSize is a power of two. Of ids that are left over, each alone on its page, a
// page is what each costs.
const pageSize = 64

type page[V comparable] struct {
	used   int
	values [pageSize]V
}

// Table maps ids to values. The zero value of V is that of an id that is not there.
// The zero Table is empty and ready for use; it is not safe for concurrent use, but
// for readers alone.
type Table[V comparable] struct {
	pages map[uint64]*page[V]
	order []uint64 // the numbers of the pages, ascending
	n     int
}

// Len returns how many ids are there.
func (t *Table[V]) Len() int { return t.n }

// Get returns the value of an id, or the zero value.
func (t *Table[V]) Get(id uint64) (v V) {
	if p := t.pages[id/pageSize]; p != nil {
		v = p.values[id%pageSize]
	}
	return v
}

// Set gives an id its value; the zero value takes the id out.
func (t *Table[V]) Set(id uint64, v V) {
	var none V
	p := t.pages[id/pageSize]
	if p == nil {
		if v == none {
			return
		}
		if t.pages == nil {
			t.pages = make(map[uint64]*page[V])
		}
		p = new(page[V])
		t.pages[id/pageSize] = p
		at, _ := slices.BinarySearch(t.order, id/pageSize)
		t.order = slices.Insert(t.order, at, id/pageSize)
	}
	at := &p.values[id%pageSize]
	grows, shrinks := *at == none && v != none, *at != none && v == none
	*at = v
	switch {
	case grows:
		p.used++
		t.n++
	case shrinks:
		p.used--
		t.n--
		if p.used == 0 {
			delete(t.pages, id/pageSize)
			at, _ := slices.BinarySearch(t.order, id/pageSize)
			t.order = slices.Delete(t.order, at, at+1)
		}
	}
}

// Delete takes an id out, if it is there.
func (t *Table[V]) Delete(id uint64) {
	var none V
	t.Set(id, none)
}

// All yields the ids that are there and their values, in ascending order. The table
// must not be changed meanwhile.
func (t *Table[V]) All() iter.Seq2[uint64, V] { return t.From(0) }

// From is All from an id on. To find the first one takes the logarithm of how many
// there are.
func (t *Table[V]) From(id uint64) iter.Seq2[uint64, V] {
	return func(yield func(uint64, V) bool) {
		var none V
		begin, _ := slices.BinarySearch(t.order, id/pageSize)
		for _, n := range t.order[begin:] {
			for i, v := range t.pages[n].values {
				if at := n*pageSize + uint64(i); v != none && at >= id && !yield(at, v) {
					return
				}
			}
		}
	}
}
