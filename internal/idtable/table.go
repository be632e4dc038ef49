// Package idtable provides a map for IDs that are assigned in ascending order, of which the used
// ones are close together. Neighbouring IDs share a page. It costs about a word per ID where a Go
// map costs several, a look-up finds the newest IDs in the processor's cache, and growth does not
// move entries. A table of IDs with equal gaps (Spaced) costs the same per ID.
package idtable

import (
	"fmt"
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
	stride, offset uint64 // the IDs are offset, offset+stride, …; a stride of 0 or 1 is for all IDs

	// By place: the place of an ID is its number among the IDs of the table.
	pages       map[uint64]*page[V]
	pageNumbers []uint64 // ascending
	count       int
}

// Spaced returns an empty table of the IDs offset, offset+stride, offset+2·stride and so on. Every
// other ID is absent, and may not be set.
func Spaced[V comparable](stride, offset uint64) Table[V] {
	if stride <= 1 {
		return Table[V]{}
	}
	return Table[V]{stride: stride, offset: offset}
}

// placeOf returns the place of an ID; ok is false for an ID that the table cannot have.
func (t *Table[V]) placeOf(id uint64) (place uint64, ok bool) {
	if t.stride == 0 {
		return id, true
	}
	place = (id - t.offset) / t.stride
	return place, id >= t.offset && place*t.stride == id-t.offset
}

// firstPlace returns the place of the first ID of the table that is not below id.
func (t *Table[V]) firstPlace(id uint64) uint64 {
	switch {
	case t.stride == 0:
		return id
	case id <= t.offset:
		return 0
	}
	return (id-t.offset-1)/t.stride + 1
}

// idAt returns the ID of a place.
func (t *Table[V]) idAt(place uint64) uint64 { return place*max(t.stride, 1) + t.offset }

// Len returns the number of IDs.
func (t *Table[V]) Len() int { return t.count }

// Get returns the value of an ID, or the zero value.
func (t *Table[V]) Get(id uint64) (v V) {
	at, ok := t.placeOf(id)
	if p := t.pages[at/pageSize]; p != nil && ok {
		v = p.values[at%pageSize]
	}
	return v
}

// Set sets the value of an ID; the zero value removes the ID. A value for an ID that the table cannot
// have panics.
func (t *Table[V]) Set(id uint64, v V) {
	var none V
	place, ok := t.placeOf(id)
	if !ok {
		if v == none {
			return
		}
		panic(fmt.Sprintf("idtable: %d is not an ID of %d + n·%d", id, t.offset, t.stride))
	}
	p := t.pages[place/pageSize]
	if p == nil {
		if v == none {
			return
		}
		if t.pages == nil {
			t.pages = make(map[uint64]*page[V])
		}
		p = new(page[V])
		t.pages[place/pageSize] = p
		at, _ := slices.BinarySearch(t.pageNumbers, place/pageSize)
		t.pageNumbers = slices.Insert(t.pageNumbers, at, place/pageSize)
	}
	at := &p.values[place%pageSize]
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
			delete(t.pages, place/pageSize)
			at, _ := slices.BinarySearch(t.pageNumbers, place/pageSize)
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
		from := t.firstPlace(id)
		begin, _ := slices.BinarySearch(t.pageNumbers, from/pageSize)
		for _, n := range t.pageNumbers[begin:] {
			for i, v := range t.pages[n].values {
				if at := n*pageSize + uint64(i); v != none && at >= from && !yield(t.idAt(at), v) {
					return
				}
			}
		}
	}
}
