package scheduler

// runDemand is one run: its requests, and the target of its grants. A
// backlog has many of them, so each takes one allocation and one table entry.
type runDemand[Target any] struct {
	target Target       // the caller's; the scheduler ignores it
	head   *slotRequest // the requests, as a linked list
	inline slotRequest  // the first request: most runs want slots of one class only
	n      int
	byID   map[int]*slotRequest // all of them, when there are more than maxLinearRequests
}

// maxLinearRequests is the number of requests up to which the list is searched.
const maxLinearRequests = 8

// find returns the run's request of class id, or nil. d may be nil.
func (d *runDemand[Target]) find(id int) *slotRequest {
	switch {
	case d == nil:
		return nil
	case d.byID != nil:
		return d.byID[id]
	}
	r := d.head
	for r != nil && r.key.id != id {
		r = r.next
	}
	return r
}

func (d *runDemand[Target]) add(r *slotRequest) {
	r.next, d.head = d.head, r
	d.n++
	switch {
	case d.byID != nil:
		d.byID[r.key.id] = r
	case d.n > maxLinearRequests:
		d.byID = make(map[int]*slotRequest, 2*d.n)
		for r := d.head; r != nil; r = r.next {
			d.byID[r.key.id] = r
		}
	}
}

// remove unlinks a request, which must be in the list. The request keeps its next.
func (d *runDemand[Target]) remove(r *slotRequest) {
	at := &d.head
	for *at != r {
		at = &(*at).next
	}
	*at = r.next
	d.n--
	delete(d.byID, r.key.id)
}
