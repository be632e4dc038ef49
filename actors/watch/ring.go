package watch

import "sync"

// ring keeps the newest items that were appended to it, for any number of readers, each of
// which has a position of its own. The writer never waits for readers.
type ring[T any] struct {
	mu       sync.Mutex
	items    []T
	first    uint64 // number of items[0], counted from the beginning
	size     int    // of items, by sizeOf
	changed  chan struct{}
	sizeOf   func(*T) int
	maxItems int
	maxSize  int
}

// push appends an item and drops the oldest ones beyond the bounds. The newest item stays,
// whatever its size.
func (r *ring[T]) push(item T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.items = append(r.items, item)
	r.size += r.sizeOf(&item)
	drop := 0
	for drop < len(r.items)-1 && (r.size > r.maxSize || len(r.items)-drop > r.maxItems) {
		r.size -= r.sizeOf(&r.items[drop])
		clear(r.items[drop : drop+1])
		drop++
	}
	r.items = r.items[drop:]
	r.first += uint64(drop)
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// endPosition is the position after the newest item.
func (r *ring[T]) endPosition() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.first + uint64(len(r.items))
}

// readResult is the result of read.
type readResult[T any] struct {
	items []T
	next  uint64 // position to read on from
	lost  uint64 // dropped items before these
	more  bool   // there are more
	// changed is closed by the next push; nil unless items is empty.
	changed <-chan struct{}
}

// read returns a copy of items from a position on, up to maxSize in size, one at least.
func (r *ring[T]) read(position uint64, maxSize int) readResult[T] {
	r.mu.Lock()
	defer r.mu.Unlock()
	result := readResult[T]{lost: max(position, r.first) - position}
	rest := r.items[max(position, r.first)-r.first:]
	n, size := 0, 0
	for n < len(rest) && size < maxSize {
		size += r.sizeOf(&rest[n])
		n++
	}
	result.items, result.next, result.more = append(result.items, rest[:n]...), position+result.lost+uint64(n), n < len(rest)
	if n == 0 {
		if r.changed == nil {
			r.changed = make(chan struct{})
		}
		result.changed = r.changed
	}
	return result
}

// newest returns the newest item and the position after it. The ring must hold an item.
func (r *ring[T]) newest() (T, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.items[len(r.items)-1], r.first + uint64(len(r.items))
}
