package dag

import (
	"fmt"
	"slices"
)

// taskRange is a range of n tasks.
type taskRange struct{ first, n uint32 }

// rangeQueue is a queue of ranges, first in, first out. Neighbours that are pushed one
// after the other become one range.
type rangeQueue struct {
	list []taskRange
	head int
}

func (q *rangeQueue) push(first, n uint32) {
	if last := len(q.list) - 1; last >= q.head && q.list[last].first+q.list[last].n == first {
		q.list[last].n += n
		return
	}
	q.list = append(q.list, taskRange{first, n})
}

func (q *rangeQueue) empty() bool { return q.head == len(q.list) }

// pop takes the first task of the first range.
func (q *rangeQueue) pop() uint32 {
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

// removeRange removes the tasks [first, first+n).
func (q *rangeQueue) removeRange(first, n uint32) {
	end := first + n
	kept := make([]taskRange, 0, len(q.list)-q.head)
	for _, s := range q.list[q.head:] {
		if last := s.first + s.n; s.first < first && last > first {
			kept = append(kept, taskRange{s.first, first - s.first})
		}
		if s.first >= end || s.first+s.n <= first {
			kept = append(kept, s)
		}
		if last := s.first + s.n; s.first < end && last > end {
			kept = append(kept, taskRange{end, last - end})
		}
	}
	*q = rangeQueue{list: kept}
}

// classState is the ready work of one class. Tasks that were killed while they
// were ready stay in the queues and are skipped when their turn comes.
type classState struct {
	requeued      rangeQueue // tasks that have had an attempt: served before firstAttempts
	firstAttempts rangeQueue
	ready         int // tasks in both that can be granted
	wanted        int // of the last Demand
	demandMarked  bool
	release       Effect // Release of one slot, made once
}

// popTask removes the next task. The task may have been killed.
func (c *classState) popTask() uint32 {
	if !c.requeued.empty() {
		return c.requeued.pop()
	}
	return c.firstAttempts.pop()
}

// addReady counts n more (or fewer) ready tasks of a class.
func (r *Run) addReady(class, n int) {
	c := &r.classes[class]
	c.ready += n
	r.ready += n
	if c.ready < 0 {
		panic(fmt.Sprintf("run: class %d has %d ready tasks", class, c.ready))
	}
	r.markDemand(class)
}

// requeueFirst queues a task that has had an attempt ahead of the first attempts of its
// class.
func (r *Run) requeueFirst(task uint32) {
	class := r.plan.Templates[r.templateOf(task)].Class
	r.classes[class].requeued.push(task, 1)
	r.addReady(class, 1)
}

func (r *Run) markDemand(class int) {
	if c := &r.classes[class]; !c.demandMarked {
		c.demandMarked = true
		r.changedClasses = append(r.changedClasses, class)
	}
}

// markAllDemand follows a change of the run's state, which its demand depends on.
func (r *Run) markAllDemand() {
	for i := range r.classes {
		if r.classes[i].ready != 0 || r.classes[i].wanted != 0 {
			r.markDemand(i)
		}
	}
}

// emitDemand emits the run's demand for each class where it has changed.
func (r *Run) emitDemand() {
	if len(r.changedClasses) > 1 {
		slices.Sort(r.changedClasses)
	}
	for _, class := range r.changedClasses {
		c := &r.classes[class]
		c.demandMarked = false
		want := 0
		if r.acceptsSlots() {
			want = c.ready
		}
		if want != c.wanted {
			c.wanted = want
			r.emit(Demand{Class: class, Want: want})
		}
	}
	r.changedClasses = r.changedClasses[:0]
}
