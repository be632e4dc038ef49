package dag

import (
	"fmt"
	"slices"
)

// span is a range of n tasks.
type span struct{ first, n uint32 }

// spans is a queue of ranges, first in, first out. Neighbours that are pushed one
// after the other become one range.
type spans struct {
	list []span
	head int
}

func (q *spans) push(first, n uint32) {
	if last := len(q.list) - 1; last >= q.head && q.list[last].first+q.list[last].n == first {
		q.list[last].n += n
		return
	}
	q.list = append(q.list, span{first, n})
}

func (q *spans) empty() bool { return q.head == len(q.list) }

// pop takes the first task of the first range.
func (q *spans) pop() uint32 {
	s := &q.list[q.head]
	task := s.first
	s.first++
	s.n--
	if s.n == 0 {
		q.head++
		if q.head*2 >= len(q.list) { // moves each range at most once per pop of a range
			q.list = q.list[:copy(q.list, q.list[q.head:])]
			q.head = 0
		}
	}
	return task
}

// cut takes the tasks [first, first+n) out.
func (q *spans) cut(first, n uint32) {
	end := first + n
	kept := make([]span, 0, len(q.list)-q.head)
	for _, s := range q.list[q.head:] {
		if last := s.first + s.n; s.first < first && last > first {
			kept = append(kept, span{s.first, first - s.first})
		}
		if s.first >= end || s.first+s.n <= first {
			kept = append(kept, s)
		}
		if last := s.first + s.n; s.first < end && last > end {
			kept = append(kept, span{end, last - end})
		}
	}
	*q = spans{list: kept}
}

// classState is the ready work of one class. Tasks that were killed while they
// were ready stay in the queues and are skipped when their turn comes.
type classState struct {
	again   spans // tasks that have had an attempt: before all others
	fresh   spans
	ready   int // tasks in both that can be granted
	wanted  int // as last said by a Demand
	touched bool
	release Effect // Release of one slot, made once
}

// next takes the next task out; it may be one that was killed.
func (c *classState) next() uint32 {
	if !c.again.empty() {
		return c.again.pop()
	}
	return c.fresh.pop()
}

// addReady counts n more (or fewer) ready tasks of a class.
func (r *Run) addReady(class, n int) {
	c := &r.classes[class]
	c.ready += n
	r.ready += n
	if c.ready < 0 {
		panic(fmt.Sprintf("run: class %d has %d ready tasks", class, c.ready))
	}
	r.touch(class)
}

// again puts a task that had its turn before all fresh work of its class.
func (r *Run) again(task uint32) {
	class := r.plan.Templates[r.templateOf(task)].Class
	r.classes[class].again.push(task, 1)
	r.addReady(class, 1)
}

func (r *Run) touch(class int) {
	if c := &r.classes[class]; !c.touched {
		c.touched = true
		r.touched = append(r.touched, class)
	}
}

// touchAll is for changes of the run's state: what it wants depends on it.
func (r *Run) touchAll() {
	for i := range r.classes {
		if r.classes[i].ready != 0 || r.classes[i].wanted != 0 {
			r.touch(i)
		}
	}
}

// demand says what the run wants now, where that has changed.
func (r *Run) demand() {
	if len(r.touched) > 1 {
		slices.Sort(r.touched)
	}
	for _, class := range r.touched {
		c := &r.classes[class]
		c.touched = false
		want := 0
		if r.open() {
			want = c.ready
		}
		if want != c.wanted {
			c.wanted = want
			r.emit(Demand{Class: class, Want: want})
		}
	}
	r.touched = r.touched[:0]
}
