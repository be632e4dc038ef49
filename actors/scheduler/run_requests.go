package scheduler

// runRequests are the requests of one run, and the target of its grants. A backlog has many of them,
// so each takes one allocation and one table entry.
type runRequests[Target any] struct {
	target  Target                // the caller's; the scheduler ignores it
	head    *classRequest         // the requests, as a linked list
	inline  classRequest          // the first request: most runs want slots of one class only
	n       int                   // requests in the list
	byIndex map[int]*classRequest // all of them, by the run's number of the class; nil up to maxLinearRequests
}

// maxLinearRequests is the number of requests up to which the list is searched.
const maxLinearRequests = 8

// find returns the run's request for the class with this index, or nil. d may be nil.
func (d *runRequests[Target]) find(classIndex int) *classRequest {
	switch {
	case d == nil:
		return nil
	case d.byIndex != nil:
		return d.byIndex[classIndex]
	}
	r := d.head
	for r != nil && r.key.classIndex != classIndex {
		r = r.nextOfRun
	}
	return r
}

func (d *runRequests[Target]) add(r *classRequest) {
	r.nextOfRun, d.head = d.head, r
	d.n++
	switch {
	case d.byIndex != nil:
		d.byIndex[r.key.classIndex] = r
	case d.n > maxLinearRequests:
		d.byIndex = make(map[int]*classRequest, 2*d.n)
		for r := d.head; r != nil; r = r.nextOfRun {
			d.byIndex[r.key.classIndex] = r
		}
	}
}

// remove unlinks a request, which must be in the list. The request keeps its next.
func (d *runRequests[Target]) remove(r *classRequest) {
	at := &d.head
	for *at != r {
		at = &(*at).nextOfRun
	}
	*at = r.nextOfRun
	d.n--
	delete(d.byIndex, r.key.classIndex)
}
