package executor

import (
	"github.com/caravan-dag/caravan/messages"
)

// queue holds the orders that wait. The orders of one run keep their sequence. Runs take turns, one
// order each, so that a small run does not wait for all that a large one was granted. The zero queue
// is empty.
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

// startedPages bounds the memory of startedKeys: it holds at least the last 262,144 attempts, and 64
// times as many when they are neighbours, in at most some 20 MB.
const startedPages = 1 << 18

// startedKeys remembers which keys were started, so that a repeated order starts no process. A page
// holds 64 neighbouring tasks of a run. The oldest page is dropped first.
type startedKeys struct {
	limit int
	pages map[startedPage]uint64
	ring  []startedPage
	next  int
}

type startedPage struct {
	run     messages.RunID
	attempt uint32
	page    uint32
}

func (b *startedKeys) has(k messages.AttemptKey) bool {
	return b.pages[startedPage{k.Run, k.Attempt, k.Task / 64}]>>(k.Task%64)&1 == 1
}

// remove forgets a key whose start was undone. Its page stays.
func (b *startedKeys) remove(k messages.AttemptKey) {
	page := startedPage{k.Run, k.Attempt, k.Task / 64}
	if bits, known := b.pages[page]; known {
		b.pages[page] = bits &^ (1 << (k.Task % 64))
	}
}

func (b *startedKeys) add(k messages.AttemptKey) {
	if b.pages == nil {
		b.pages = map[startedPage]uint64{}
	}
	page := startedPage{k.Run, k.Attempt, k.Task / 64}
	bits, known := b.pages[page]
	b.pages[page] = bits | 1<<(k.Task%64)
	switch {
	case known:
	case len(b.ring) < b.limit:
		b.ring = append(b.ring, page)
	default:
		delete(b.pages, b.ring[b.next])
		b.ring[b.next] = page
		b.next = (b.next + 1) % b.limit
	}
}
