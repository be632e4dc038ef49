package scheduler

// runDemand is one run: its requests, and the target of its grants. A
// backlog has many of them, so each takes one allocation and one table entry.
type runDemand[Target any] struct {
	target  Target       // the caller's; the scheduler ignores it
	head    *classDemand // the requests, as a linked list
	inline  classDemand  // the first request: most runs want slots of one class only
	n       int
	byIndex map[int]*classDemand // all of them, when there are more than maxLinearRequests
}

// maxLinearRequests is the number of requests up to which the list is searched.
const maxLinearRequests = 8

// find returns the run's request for the class with this index, or nil. d may be nil.
func (d *runDemand[Target]) find(classIndex int) *classDemand {
	switch {
	case d == nil:
		return nil
	case d.byIndex != nil:
		return d.byIndex[classIndex]
	}
	r := d.head
	for r != nil && r.key.classIndex != classIndex {
		r = r.next
	}
	return r
}

func (d *runDemand[Target]) add(r *classDemand) {
	r.next, d.head = d.head, r
	d.n++
	switch {
	case d.byIndex != nil:
		d.byIndex[r.key.classIndex] = r
	case d.n > maxLinearRequests:
		d.byIndex = make(map[int]*classDemand, 2*d.n)
		for r := d.head; r != nil; r = r.next {
			d.byIndex[r.key.classIndex] = r
		}
	}
}

// remove unlinks a request, which must be in the list. The request keeps its next.
func (d *runDemand[Target]) remove(r *classDemand) {
	at := &d.head
	for *at != r {
		at = &(*at).next
	}
	*at = r.next
	d.n--
	delete(d.byIndex, r.key.classIndex)
}
