package actors

import (
	"container/heap"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/idtable"
	"github.com/caravan-dag/caravan/messages"
)

const (
	// noopWindow bounds the no-op tasks that are granted at one time, and so their actors.
	// No-op tasks do not take slots.
	noopWindow = 1024
	// windowBatch is how many tasks of an executor window one run gets before the next
	// run's turn.
	windowBatch = 128
	// ageLimit is how long smaller tasks may overtake a task. After it all grants stop
	// until the task fits, so that it cannot starve. A task of a run that holds a
	// machine-full may be overtaken for longer: it waits for tasks of its own run, and
	// stopping the grants would leave the remaining slots idle.
	ageLimit = 2 * time.Second
	// shortTask: when attempts are shorter than this on average, some are granted
	// ahead, so that a free slot does not wait for a round trip by way of the
	// journal. Longer ones would only block each other's order.
	shortTask = 50 * time.Millisecond
	// aheadWork is the work (time on the whole machine) that is granted ahead, at
	// least one machine-full and at most mostAhead: several commits' worth, so that
	// one commit serves several tasks when they are very short. With several runs,
	// those that hold a machine-full get only the first half of it. The other half is kept
	// for new runs, whose every step would otherwise wait for a free slot.
	aheadWork = 50 * time.Millisecond
	maxAhead  = 128
)

// noopExecutor names the executor of no-op tasks, which do not take slots.
const noopExecutor = "noop"

// executorWindow bounds the number of tasks of an executor that does not use this
// machine's resources.
type executorWindow struct{ limit, held int }

// resources are the request of a task, in thousandths of a core and of a MB.
type resources struct{ cores, memory int64 }

func (a resources) fits(free resources) bool { return a.cores <= free.cores && a.memory <= free.memory }

// scheduler is the dispatcher's bookkeeping: the slots that runs want and hold, and their
// order. It is pure: time is an argument, order is deterministic.
//
// Requests for the same resources form one queue. Each request carries the sequence number
// of its entry into the queue. A grant goes to the smallest number among the queue heads
// that fit. So runs alternate whatever their size, and a grant costs O(distinct resource
// requests), not O(runs). Requests of runs that hold a machine-full (atShare) have a heap of
// their own in each queue: fewer slots are granted ahead to them.
type scheduler struct {
	machine  resources
	windows  map[string]*executorWindow // of executors whose tasks take no slots, by name
	granted  resources                  // granted and not released, of what takes slots
	mean     time.Duration              // moving average of how long a slot was busy; 0 = not known
	paused   bool                       // only no-op tasks are granted
	sequence uint64
	queues   []*requestQueue           // in the order of their first requests
	runs     idtable.Table[*runDemand] // the runs that want or hold slots
	requests int                       // of all of them
}

// newScheduler makes a scheduler of this machine, with a window for each executor
// whose tasks do not run on it, and for no-op tasks.
func newScheduler(cpuMillis, memoryBytes int64, windows map[string]int) *scheduler {
	s := &scheduler{
		machine: resources{cpuMillis, memoryBytes},
		windows: map[string]*executorWindow{noopExecutor: {limit: noopWindow}},
	}
	for name, limit := range windows {
		s.windows[name] = &executorWindow{limit: limit}
	}
	return s
}

// want sets how many slots of its class id the run wants in addition to those it holds.
func (s *scheduler) want(run messages.RunID, id int, class dag.Class, n int) {
	c := s.requestFor(requestKey{run, id}, class)
	c.want = n
	switch {
	case n == 0:
		s.dequeue(c)
		s.dropIfIdle(c)
	case c.heapIndex == 0:
		s.enqueue(c)
	}
}

// release returns n slots that were busy for the given time in sum.
func (s *scheduler) release(run messages.RunID, id int, class dag.Class, n int, busy time.Duration) {
	c := s.requestFor(requestKey{run, id}, class)
	if n > c.held {
		panic("actors: more slots released than were granted")
	}
	c.held -= n
	s.returnSlots(c, n)
	if c.atShare && c.heapIndex > 0 && !s.holdsShare(c) { // it moves to the other heap and keeps its sequence number
		heap.Remove(&c.queue.atShare, c.heapIndex-1)
		c.atShare = false
		heap.Push(&c.queue.underShare, c)
	}
	if busy > 0 && n > 0 && c.queue.window == nil {
		mean := busy / time.Duration(n)
		if s.mean == 0 {
			s.mean = mean
		}
		s.mean += (mean - s.mean) / 8
	}
	s.dropIfIdle(c)
}

// hold records n slots that the run holds already: its attempts were under way before
// it was loaded. They may be more than the machine has by now.
func (s *scheduler) hold(run messages.RunID, id int, class dag.Class, n int) {
	c := s.requestFor(requestKey{run, id}, class)
	c.held += n
	s.returnSlots(c, -n)
}

// forget drops all requests and slots of a run.
func (s *scheduler) forget(run messages.RunID) {
	t := s.runs.Get(uint64(run))
	if t == nil {
		return
	}
	for c := t.head; c != nil; c = c.next {
		s.returnSlots(c, c.held)
		c.held, c.want = 0, 0
		s.dequeue(c)
		s.dropIfIdle(c)
	}
}

// grant grants the free slots, calling yield for each grant.
func (s *scheduler) grant(now int64, yield func(run messages.RunID, id, n int)) {
	for {
		c := s.nextRequest(now)
		if c == nil {
			return
		}
		n := 1
		if w := c.queue.window; w != nil {
			n = min(c.want, windowBatch, w.limit-w.held)
			w.held += n
		} else {
			s.granted.cores += c.queue.resources.cores
			s.granted.memory += c.queue.resources.memory
		}
		s.dequeue(c)
		c.want -= n
		c.held += n
		if c.want > 0 {
			s.enqueue(c)
		}
		yield(c.key.run, c.key.id, n)
	}
}

// nextRequest returns the request to serve next, or nil. When the oldest request of a run
// below its share does not fit, others may overtake it until it has aged.
func (s *scheduler) nextRequest(now int64) *slotRequest {
	free, freeOfFull := s.free()
	var best, oldest, windowed *slotRequest
	for _, l := range s.queues {
		few := l.underShare.first()
		if l.window != nil {
			if few != nil && l.window.held < l.window.limit && few.before(windowed) && (!s.paused || l.class.Executor == noopExecutor) {
				windowed = few
			}
			continue
		}
		if s.paused {
			continue
		}
		full := l.atShare.first()
		if few.before(oldest) {
			oldest = few
		}
		if few.before(best) && l.resources.fits(free) {
			best = few
		}
		if full.before(best) && l.resources.fits(freeOfFull) {
			best = full
		}
	}
	if oldest != nil && oldest != best {
		if oldest.since == 0 {
			oldest.since = now
		}
		if now-oldest.since >= int64(ageLimit) {
			best = nil
		}
	}
	if best == nil {
		return windowed
	}
	return best
}

// idle tells whether all slots are free.
func (s *scheduler) idle() bool {
	for _, w := range s.windows {
		if w.held > 0 {
			return false
		}
	}
	return s.granted == resources{}
}

// free returns the resources that may still be granted, and those for runs that hold a
// machine-full: the machine, and some more when attempts are short.
func (s *scheduler) free() (free, ofFull resources) {
	free = resources{s.machine.cores - s.granted.cores, s.machine.memory - s.granted.memory}
	if s.mean == 0 || s.mean >= shortTask {
		return free, free
	}
	ahead := func(work, most time.Duration) resources {
		n := int64(min(max(work/s.mean, 1), most))
		return resources{free.cores + n*s.machine.cores, free.memory + n*s.machine.memory}
	}
	all := ahead(aheadWork, maxAhead)
	if s.runs.Len() == 1 {
		return all, all
	}
	return all, ahead(aheadWork/2, maxAhead/2)
}

func (s *scheduler) requestFor(key requestKey, class dag.Class) *slotRequest {
	t := s.runs.Get(uint64(key.run))
	c := t.find(key.id)
	if c != nil {
		return c
	}
	if t == nil {
		t = new(runDemand)
		s.runs.Set(uint64(key.run), t)
		c = &t.inline
	} else {
		c = new(slotRequest)
	}
	*c = slotRequest{key: key, queue: s.queueFor(class)}
	c.queue.requests++
	t.add(c)
	s.requests++
	return c
}

func (s *scheduler) queueFor(class dag.Class) *requestQueue {
	w := s.windows[class.Executor]
	if w != nil { // the resources of its tasks are not limited here
		class = dag.Class{Executor: class.Executor}
	}
	for _, l := range s.queues {
		if l.class == class {
			return l
		}
	}
	// A task that was accepted on a larger machine gets all of this one: otherwise it would
	// never fit, and block all others. The executor reports the error.
	l := &requestQueue{class: class, window: w, resources: resources{min(class.CPUMillis, s.machine.cores), min(class.MemoryBytes, s.machine.memory)}}
	s.queues = append(s.queues, l)
	return l
}

// enqueue queues a request with a new sequence number.
func (s *scheduler) enqueue(c *slotRequest) {
	s.sequence++
	c.sequence = s.sequence
	c.atShare = s.holdsShare(c)
	heap.Push(c.queue.heapOf(c), c)
}

// dequeue removes a request from its queue.
func (s *scheduler) dequeue(c *slotRequest) {
	c.since = 0
	if c.heapIndex > 0 {
		heap.Remove(c.queue.heapOf(c), c.heapIndex-1)
	}
}

// holdsShare tells whether a request holds a machine-full: one more slot would not fit
// next to those that it holds. It is false while it holds no slot.
func (s *scheduler) holdsShare(c *slotRequest) bool {
	l, n := c.queue, int64(c.held)+1
	return l.window == nil && !resources{n * l.resources.cores, n * l.resources.memory}.fits(s.machine)
}

func (s *scheduler) returnSlots(c *slotRequest, n int) {
	w := c.queue.window
	if w != nil {
		w.held -= n
	} else {
		s.granted.cores -= int64(n) * c.queue.resources.cores
		s.granted.memory -= int64(n) * c.queue.resources.memory
	}
	if w != nil && w.held < 0 || s.granted.cores < 0 || s.granted.memory < 0 {
		panic("actors: slots below zero")
	}
}

// dropIfIdle removes a request that neither wants nor holds slots.
func (s *scheduler) dropIfIdle(c *slotRequest) {
	if c.want > 0 || c.held > 0 || c.dropped {
		return
	}
	c.dropped = true
	t := s.runs.Get(uint64(c.key.run))
	t.remove(c)
	if s.requests--; t.n == 0 {
		s.runs.Delete(uint64(c.key.run))
	}
	if c.queue.requests--; c.queue.requests == 0 { // queues of former runs do not pile up
		s.queues = slices.DeleteFunc(s.queues, func(l *requestQueue) bool { return l == c.queue })
	}
}

// nextAging returns when (ns) the oldest overtaken request will have aged. It returns 0
// without such a request, and once it has aged: slots are then kept free for it until a
// release.
func (s *scheduler) nextAging(now int64) int64 {
	var oldest *slotRequest
	for _, l := range s.queues {
		if l.window != nil {
			continue
		}
		if c := l.underShare.first(); c.before(oldest) {
			oldest = c
		}
	}
	if oldest == nil || oldest.since == 0 {
		return 0
	}
	if due := oldest.since + int64(ageLimit); due > now {
		return due
	}
	return 0
}

type requestKey struct {
	run messages.RunID
	id  int
}

// slotRequest is the request of one run for slots of one class, and the slots it holds.
type slotRequest struct {
	key       requestKey
	queue     *requestQueue
	want      int
	held      int
	sequence  uint64
	since     int64        // ns: when it became the oldest request and did not fit; 0 = it is not the oldest
	heapIndex int          // its place in its heap, from 1; 0 = not queued
	atShare   bool         // it is in the heap of requests that hold a machine-full
	dropped   bool         // it neither wants nor holds slots any more
	next      *slotRequest // the next one of the run
}

// requestQueue is the queue of requests for one class of work.
type requestQueue struct {
	class      dag.Class
	window     *executorWindow // nil: its tasks take slots
	resources  resources
	requests   int         // that wait or hold
	underShare requestHeap // requests that hold less than a machine-full
	atShare    requestHeap // the others, of what takes slots
}

// requestHeap is a heap of queued requests by sequence number.
type requestHeap []*slotRequest

// heapOf returns the heap of a request.
func (l *requestQueue) heapOf(c *slotRequest) *requestHeap {
	if c.atShare {
		return &l.atShare
	}
	return &l.underShare
}

// before tells whether c is not nil and precedes other, which may be nil.
func (c *slotRequest) before(other *slotRequest) bool {
	return c != nil && (other == nil || c.sequence < other.sequence)
}

// first returns the request with the smallest sequence number, or nil.
func (q requestHeap) first() *slotRequest {
	if len(q) == 0 {
		return nil
	}
	return q[0]
}

// Len is part of heap.Interface, as are Less, Swap, Push and Pop.
func (q requestHeap) Len() int           { return len(q) }
func (q requestHeap) Less(i, j int) bool { return q[i].sequence < q[j].sequence }
func (q requestHeap) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].heapIndex, q[j].heapIndex = i+1, j+1
}

func (q *requestHeap) Push(c any) {
	*q = append(*q, c.(*slotRequest))
	(*q)[len(*q)-1].heapIndex = len(*q)
}

func (q *requestHeap) Pop() any {
	last := len(*q) - 1
	c := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	c.heapIndex = 0
	return c
}

// runDemand is one run at the dispatcher: its requests, and the target of its grants. A
// backlog has many of them, so each takes one allocation and one table entry.
type runDemand struct {
	target grantTarget  // owned by the dispatcher; the scheduler ignores it
	head   *slotRequest // the requests, as a linked list
	inline slotRequest  // the first request: most runs want slots of one class only
	n      int
	byID   map[int]*slotRequest // all of them, when there are more than fewClaims
}

// maxLinearRequests is the number of requests up to which the list is searched.
const maxLinearRequests = 8

// find returns the run's request of class id, or nil. t may be nil.
func (t *runDemand) find(id int) *slotRequest {
	switch {
	case t == nil:
		return nil
	case t.byID != nil:
		return t.byID[id]
	}
	c := t.head
	for c != nil && c.key.id != id {
		c = c.next
	}
	return c
}

func (t *runDemand) add(c *slotRequest) {
	c.next, t.head = t.head, c
	t.n++
	switch {
	case t.byID != nil:
		t.byID[c.key.id] = c
	case t.n > maxLinearRequests:
		t.byID = make(map[int]*slotRequest, 2*t.n)
		for c := t.head; c != nil; c = c.next {
			t.byID[c.key.id] = c
		}
	}
}

// remove unlinks a request, which must be in the list. The request keeps its next.
func (t *runDemand) remove(c *slotRequest) {
	at := &t.head
	for *at != c {
		at = &(*at).next
	}
	*at = c.next
	t.n--
	delete(t.byID, c.key.id)
}

// find returns a run's claim, or nil.
func (s *scheduler) find(run messages.RunID, id int) *slotRequest {
	return s.runs.Get(uint64(run)).find(id)
}
