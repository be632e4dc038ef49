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

// classRequest is the request of one run for slots of one class, and the slots of that class that it
// holds. It is queued while it wants slots, and is dropped once it neither wants nor holds any.
//
// The next turn has the lowest sequence number among the first requests of all queues that fit into the
// free slots, until the oldest has been overtaken for ageLimit (Scheduler.nextRequest). The place of a
// request among all others is not stored: to find it costs O(requests).
type classRequest struct {
	key            requestKey
	queue          *requestQueue
	wanted         int           // slots, in addition to those held
	held           int           // slots
	sequence       uint64        // of its last entry into the queue; orders its heap
	overtakenSince int64         // ns: since when the oldest request does not fit; 0 for all others
	heapIndex      int           // its place in its heap, from 1; 0 = not queued
	atShare        bool          // it is in the heap of requests that hold a machine-full
	dropped        bool          // it neither wants nor holds slots any more
	nextOfRun      *classRequest // links the requests of a run
}

// precedes tells whether r is not nil and its turn is before that of other, which may be nil.
func (r *classRequest) precedes(other *classRequest) bool {
	return r != nil && (other == nil || r.sequence < other.sequence)
}

// requestQueue is the queue of requests for one class of work. A request is in one of its two heaps
// while it wants slots, and in neither otherwise. Only the first of each heap is looked at: all
// requests of a queue want slots of the same size, so when the first does not fit, none does.
type requestQueue struct {
	class        dag.Class
	window       *executorWindow // nil: its tasks take slots of this machine
	perTask      Resources       // what one task takes; unused with a window
	requestCount int             // requests that wait or hold
	underShare   requestHeap     // requests that hold less than a machine-full
	atShare      requestHeap     // the others; empty with a window
}

// heapOf returns the heap of a request.
func (q *requestQueue) heapOf(r *classRequest) *requestHeap {
	if r.atShare {
		return &q.atShare
	}
	return &q.underShare
}

// requestHeap is a heap of queued requests by sequence number.
type requestHeap []*classRequest

// first returns the request with the smallest sequence number, or nil.
func (h requestHeap) first() *classRequest {
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
	*h = append(*h, r.(*classRequest))
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
