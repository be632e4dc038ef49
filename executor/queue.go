package executor

import (
	"cmp"

	"github.com/caravan-dag/caravan/messages"
)

// queue holds the orders that wait. The orders of one run keep their sequence. Runs take turns, one
// order each, so that a small run does not wait for all that a large one was granted. The turns also
// keep an order whose start is postponed again and again (Process.postpone) from taking every try:
// an order that became the head again at once would hold up all others. The zero queue is empty.
//
// The list is linked through the attempts, so that removing any of them is O(1).
type queue struct {
	runs     map[messages.RunID]*runQueue
	next     *runQueue // its first order is the head; nil = the queue is empty
	spareRun *runQueue // the last one that became empty, for reuse
	len      int
}

// runQueue holds the orders of one run, at least one. All runQueues form a ring.
type runQueue struct {
	run         messages.RunID
	first, last *attempt
	prev, next  *runQueue
}

// head returns the order to start next, or nil.
func (q *queue) head() *attempt {
	if q.next == nil {
		return nil
	}
	return q.next.first
}

// push adds an order. A run that had no orders gets its turn after all others.
func (q *queue) push(a *attempt) {
	a.queued = true
	q.len++
	l := q.runs[a.order.Key.Run]
	if l == nil {
		l = q.addRun(a.order.Key.Run)
		l.first, l.last = a, a
		return
	}
	a.prev = l.last
	l.last.next = a
	l.last = a
}

// pushFirst adds an order before the others of its run.
func (q *queue) pushFirst(a *attempt) {
	l := q.runs[a.order.Key.Run]
	if l == nil {
		q.push(a)
		return
	}
	a.queued = true
	q.len++
	a.next = l.first
	l.first.prev = a
	l.first = a
}

// addRun puts an empty runQueue at the end of the ring.
func (q *queue) addRun(run messages.RunID) *runQueue {
	l := q.spareRun
	if q.spareRun = nil; l == nil {
		l = new(runQueue)
	}
	l.run = run
	if q.runs == nil {
		q.runs = make(map[messages.RunID]*runQueue)
	}
	q.runs[run] = l
	if q.next == nil {
		l.prev, l.next = l, l
		q.next = l
		return l
	}
	l.prev, l.next = q.next.prev, q.next
	l.prev.next, l.next.prev = l, l
	return l
}

// pop removes the head. The next run has its turn then.
func (q *queue) pop() {
	l := q.next
	q.next = l.next
	q.remove(l.first)
}

// remove removes an order, wherever it is.
func (q *queue) remove(a *attempt) {
	l := q.runs[a.order.Key.Run]
	if a.prev == nil {
		l.first = a.next
	} else {
		a.prev.next = a.next
	}
	if a.next == nil {
		l.last = a.prev
	} else {
		a.next.prev = a.prev
	}
	a.prev, a.next, a.queued = nil, nil, false
	q.len--
	if l.first == nil {
		q.removeRun(l)
	}
}

// removeRun takes an empty runQueue out of the ring.
func (q *queue) removeRun(l *runQueue) {
	delete(q.runs, l.run)
	if l.next == l {
		q.next = nil
	} else {
		l.prev.next, l.next.prev = l.next, l.prev
		if q.next == l {
			q.next = l.next
		}
	}
	*l = runQueue{}
	q.spareRun = l
}

// RecentKeys remembers attempts, so that a repeated order is not started again. A page holds 64
// neighbouring tasks of a run. The oldest page is dropped first. The zero value is empty.
type RecentKeys struct {
	limit int // pages; 0 = recentPages
	pages map[recentPage]uint64
	ring  []recentPage
	next  int
}

// recentPages bounds the memory of RecentKeys: it holds at least the last 262,144 attempts, and 64
// times as many when they are neighbours, in at most some 20 MB.
const recentPages = 1 << 18

type recentPage struct {
	run     messages.RunID
	attempt uint32
	page    uint32
}

// pageOf returns the page of a key and the key's bit in it.
func pageOf(k messages.AttemptKey) (page recentPage, bit uint64) {
	return recentPage{k.Run, k.Attempt, k.Task / 64}, 1 << (k.Task % 64)
}

// Has tells whether the key was added, as far as the memory reaches back.
func (r *RecentKeys) Has(k messages.AttemptKey) bool {
	page, bit := pageOf(k)
	return r.pages[page]&bit != 0
}

// Remove forgets a key. Its page stays.
func (r *RecentKeys) Remove(k messages.AttemptKey) {
	page, bit := pageOf(k)
	if bits, known := r.pages[page]; known {
		r.pages[page] = bits &^ bit
	}
}

// Add remembers a key.
func (r *RecentKeys) Add(k messages.AttemptKey) {
	if r.pages == nil {
		r.pages = map[recentPage]uint64{}
	}
	page, bit := pageOf(k)
	bits, known := r.pages[page]
	r.pages[page] = bits | bit
	switch {
	case known:
	case len(r.ring) < cmp.Or(r.limit, recentPages):
		r.ring = append(r.ring, page)
	default:
		delete(r.pages, r.ring[r.next])
		r.ring[r.next] = page
		r.next = (r.next + 1) % len(r.ring)
	}
}
