package actors

import "sync"

// ring keeps the newest of what was put into it, for any number of readers, each of
// which has a position of its own. Who puts never waits for who reads.
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

// put appends, letting go of the oldest. The newest item stays, whatever its size.
func (r *ring[T]) put(item T) {
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

// end is the position behind the newest item.
func (r *ring[T]) end() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.first + uint64(len(r.items))
}

// taken is what a reader gets.
type taken[T any] struct {
	items []T
	next  uint64 // position to go on from
	lost  uint64 // items before these that are gone
	more  bool   // there are more
	// changed is closed when there is something; nil unless items is empty.
	changed <-chan struct{}
}

// take returns a copy of items from pos on, up to most in size, one at least.
func (r *ring[T]) take(pos uint64, most int) taken[T] {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := taken[T]{lost: max(pos, r.first) - pos}
	rest := r.items[max(pos, r.first)-r.first:]
	n, size := 0, 0
	for n < len(rest) && size < most {
		size += r.sizeOf(&rest[n])
		n++
	}
	t.items, t.next, t.more = append(t.items, rest[:n]...), pos+t.lost+uint64(n), n < len(rest)
	if n == 0 {
		if r.changed == nil {
			r.changed = make(chan struct{})
		}
		t.changed = r.changed
	}
	return t
}

// newest returns the newest item of a ring that holds one, and the position behind it.
func (r *ring[T]) newest() (T, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.items[len(r.items)-1], r.first + uint64(len(r.items))
}
