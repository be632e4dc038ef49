package scheduler

import (
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// requestKey names a request: a run and the run's own number of the class.
type requestKey struct {
	run        messages.RunID
	classIndex int
}

// classDemand is the request of one run for slots of one class, and the slots of that class that it
// holds.
type classDemand struct {
	key       requestKey
	queue     *requestQueue
	demand    int // slots that are wanted in addition to those held
	held      int
	sequence  uint64
	since     int64        // ns: when it became the oldest request and did not fit; 0 = it is not the oldest
	heapIndex int          // its place in its heap, from 1; 0 = not queued
	atShare   bool         // it is in the heap of requests that hold a machine-full
	dropped   bool         // it neither wants nor holds slots any more
	next      *classDemand // the next one of the run
}

// before tells whether r is not nil and precedes other, which may be nil.
func (r *classDemand) before(other *classDemand) bool {
	return r != nil && (other == nil || r.sequence < other.sequence)
}

// requestQueue is the queue of requests for one class of work. A request is in one of its two
// heaps while it wants slots, and in neither otherwise.
type requestQueue struct {
	class      dag.Class
	window     *executorWindow // nil: its tasks take slots
	resources  Resources       // of one task
	requests   int             // that wait or hold
	underShare requestHeap     // requests that hold less than a machine-full
	atShare    requestHeap     // the others, of what takes slots
}

// heapOf returns the heap of a request.
func (q *requestQueue) heapOf(r *classDemand) *requestHeap {
	if r.atShare {
		return &q.atShare
	}
	return &q.underShare
}

// requestHeap is a heap of queued requests by sequence number.
type requestHeap []*classDemand

// first returns the request with the smallest sequence number, or nil.
func (h requestHeap) first() *classDemand {
	if len(h) == 0 {
		return nil
	}
	return h[0]
}

// Len is part of heap.Interface, as are Less, Swap, Push and Pop.
func (h requestHeap) Len() int           { return len(h) }
func (h requestHeap) Less(i, j int) bool { return h[i].sequence < h[j].sequence }
func (h requestHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].heapIndex, h[j].heapIndex = i+1, j+1
}

func (h *requestHeap) Push(r any) {
	*h = append(*h, r.(*classDemand))
	(*h)[len(*h)-1].heapIndex = len(*h)
}

func (h *requestHeap) Pop() any {
	last := len(*h) - 1
	r := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	r.heapIndex = 0
	return r
}
