// Package idtable provides a map for IDs that are assigned in ascending order, of which the used
// ones are close together. Neighbouring IDs share a page. It costs about a word per ID where a Go
// map costs several, a look-up finds the newest IDs in the processor's cache, and growth does not
// move entries.
package idtable

import (
	"iter"
	"slices"
)

// pageSize is the number of IDs of a page, a power of two. A single ID that remains on its page
// costs the whole page.
const pageSize = 64

type page[V comparable] struct {
	used   int
	values [pageSize]V
}

// Table maps IDs to values. The zero value of V means that the ID is absent. The zero Table is
// empty and ready for use. Concurrent reads are safe, other concurrent use is not.
type Table[V comparable] struct {
	pages       map[uint64]*page[V]
	pageNumbers []uint64 // ascending
	count       int
}

// Len returns the number of IDs.
func (t *Table[V]) Len() int { return t.count }

// Get returns the value of an ID, or the zero value.
func (t *Table[V]) Get(id uint64) (v V) {
	if p := t.pages[id/pageSize]; p != nil {
		v = p.values[id%pageSize]
	}
	return v
}

// Set sets the value of an ID; the zero value removes the ID.
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
		at, _ := slices.BinarySearch(t.pageNumbers, id/pageSize)
		t.pageNumbers = slices.Insert(t.pageNumbers, at, id/pageSize)
	}
	at := &p.values[id%pageSize]
	grows, shrinks := *at == none && v != none, *at != none && v == none
	*at = v
	switch {
	case grows:
		p.used++
		t.count++
	case shrinks:
		p.used--
		t.count--
		if p.used == 0 {
			delete(t.pages, id/pageSize)
			at, _ := slices.BinarySearch(t.pageNumbers, id/pageSize)
			t.pageNumbers = slices.Delete(t.pageNumbers, at, at+1)
		}
	}
}

// Delete removes an ID.
func (t *Table[V]) Delete(id uint64) {
	var none V
	t.Set(id, none)
}

// All yields the IDs with their values, in ascending order. The table must not change during the
// iteration.
func (t *Table[V]) All() iter.Seq2[uint64, V] { return t.From(0) }

// From is All starting at id. It finds the first ID in logarithmic time.
func (t *Table[V]) From(id uint64) iter.Seq2[uint64, V] {
	return func(yield func(uint64, V) bool) {
		var none V
		begin, _ := slices.BinarySearch(t.pageNumbers, id/pageSize)
		for _, n := range t.pageNumbers[begin:] {
			for i, v := range t.pages[n].values {
				if at := n*pageSize + uint64(i); v != none && at >= id && !yield(at, v) {
					return
				}
			}
		}
	}
}
