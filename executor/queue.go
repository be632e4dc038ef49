package executor

import "github.com/caravan-dag/caravan/messages"

// queue is the orders that wait. Those of one run keep the order in which they came;
// runs take turns, an order each, so that a small run does not wait behind all that a
// large one has been granted. The zero queue is empty.
//
// It is linked through the attempts, so that a kill of any of them is O(1).
type queue struct {
	lines map[messages.RunID]*line
	turn  *line // whose order is the head; nil = nothing waits
	spare *line // the last one that got empty
	len   int
}

// line is the orders of one run, at least one, in the ring of lines.
type line struct {
	run         messages.RunID
	first, last *attempt
	prev, next  *line
}

// head is the order that is to start next, or nil.
func (q *queue) head() *attempt {
	if q.turn == nil {
		return nil
	}
	return q.turn.first
}

// push adds an order. A run that has not been waiting has its turn behind all others.
func (q *queue) push(a *attempt) {
	a.queued = true
	q.len++
	l := q.lines[a.order.Key.Run]
	if l == nil {
		l = q.open(a.order.Key.Run)
		l.first, l.last = a, a
		return
	}
	a.prev = l.last
	l.last.next = a
	l.last = a
}

// pushFirst adds an order before the others of its run.
func (q *queue) pushFirst(a *attempt) {
	l := q.lines[a.order.Key.Run]
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

// open puts an empty line at the end of the ring.
func (q *queue) open(run messages.RunID) *line {
	l := q.spare
	if q.spare = nil; l == nil {
		l = new(line)
	}
	l.run = run
	if q.lines == nil {
		q.lines = make(map[messages.RunID]*line)
	}
	q.lines[run] = l
	if q.turn == nil {
		l.prev, l.next = l, l
		q.turn = l
		return l
	}
	l.prev, l.next = q.turn.prev, q.turn
	l.prev.next, l.next.prev = l, l
	return l
}

// pop takes the head; it is the next run's turn then.
func (q *queue) pop() {
	l := q.turn
	q.turn = l.next
	q.remove(l.first)
}

// remove takes an order out, wherever it is.
func (q *queue) remove(a *attempt) {
	l := q.lines[a.order.Key.Run]
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
		q.close(l)
	}
}

// close takes an empty line out of the ring.
func (q *queue) close(l *line) {
	delete(q.lines, l.run)
	if l.next == l {
		q.turn = nil
	} else {
		l.prev.next, l.next.prev = l.next, l.prev
		if q.turn == l {
			q.turn = l.next
		}
	}
	*l = line{}
	q.spare = l
}
