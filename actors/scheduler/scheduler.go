package scheduler

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
	// least one machine-full and at most maxAhead: several commits' worth, so that
	// one commit serves several tasks when they are very short. With several runs,
	// those that hold a machine-full get only the first half of it. The other half is kept
	// for new runs, whose every step would otherwise wait for a free slot.
	aheadWork = 50 * time.Millisecond
	maxAhead  = 128
)

// NoopExecutor names the executor of no-op tasks, which do not take slots.
const NoopExecutor = "noop"

// Resources are what a task takes of a machine, or what a machine has.
type Resources struct {
	CPUMillis   int64 // thousandths of a core
	MemoryBytes int64
}

func (a Resources) fitsInto(free Resources) bool {
	return a.CPUMillis <= free.CPUMillis && a.MemoryBytes <= free.MemoryBytes
}

// times returns what n tasks of this size take.
func (a Resources) times(n int64) Resources { return Resources{n * a.CPUMillis, n * a.MemoryBytes} }

func (a Resources) plus(b Resources) Resources {
	return Resources{a.CPUMillis + b.CPUMillis, a.MemoryBytes + b.MemoryBytes}
}

func (a Resources) minus(b Resources) Resources {
	return Resources{a.CPUMillis - b.CPUMillis, a.MemoryBytes - b.MemoryBytes}
}

// executorWindow bounds the number of tasks of an executor that does not use this
// machine's resources.
type executorWindow struct{ limit, held int }

// Scheduler keeps the slots that runs want and hold, and their order. The caller keeps a
// Target with each run that wants or holds slots: the receiver of its grants. The scheduler
// does not read it.
//
// A request is a classRequest: a run with work of k classes has k requests, each with its own turns.
// Requests for the same class form one queue. Each request carries the sequence number
// of its entry into the queue. A grant goes to the smallest number among the queue heads
// that fit. So runs alternate whatever their size, and a grant costs O(distinct classes),
// not O(runs). Requests of runs that hold a machine-full (atShare) have a heap of
// their own in each queue: fewer slots are granted ahead to them.
type Scheduler[Target any] struct {
	machine      Resources                           // what all tasks may take together
	largest      Resources                           // what one task may take
	windows      map[string]*executorWindow          // of executors whose tasks take no slots, by name
	granted      Resources                           // granted and not released, of what takes slots
	meanBusy     time.Duration                       // moving average of how long a slot was busy; 0 = not known
	awaitsHeld   bool                                // runs have yet to report the slots they hold: only no-op tasks are granted
	lastSequence uint64                              // numbers the entries into queues
	queues       []*requestQueue                     // in the order of their first requests
	runs         idtable.Table[*runRequests[Target]] // the runs that want or hold slots
	requestCount int                                 // of all of them
	queuedTasks  int                                 // slots that are wanted and not held
	runningTasks int                                 // granted and not released, except no-op tasks
}

// New makes a scheduler of this machine, with a window for each executor whose tasks do not
// run on it, and for no-op tasks. Its runs are those of one partition.
func New[Target any](machine Resources, windows map[string]int, numbering messages.Numbering) *Scheduler[Target] {
	s := &Scheduler[Target]{
		machine: machine,
		largest: machine,
		runs:    idtable.Spaced[*runRequests[Target]](numbering.Stride(), numbering.Partition),
		windows: map[string]*executorWindow{NoopExecutor: {limit: noopWindow}},
	}
	for name, limit := range windows {
		s.windows[name] = &executorWindow{limit: limit}
	}
	return s
}

// SetMachine changes what all tasks may take together: the slots of several machines, some of which come and go.
// Grants stay, also when they are more. One task takes at most what New was told, as before. It costs O(requests).
func (s *Scheduler[Target]) SetMachine(machine Resources) {
	if machine == s.machine {
		return
	}
	s.machine = machine
	for _, q := range s.queues {
		var moves []*classRequest
		for _, r := range slices.Concat(q.underShare, q.atShare) {
			if r.held > 0 && r.atShare != s.holdsShare(r) {
				moves = append(moves, r)
			}
		}
		for _, r := range moves { // it keeps its sequence number
			heap.Remove(q.heapOf(r), r.heapIndex-1)
			r.atShare = !r.atShare
			heap.Push(q.heapOf(r), r)
		}
	}
}

// SetDemand sets how many slots of a class the run wants in addition to those it holds. classIndex
// is the run's own number of the class.
func (s *Scheduler[Target]) SetDemand(run messages.RunID, classIndex int, class dag.Class, n int) {
	r := s.requestFor(requestKey{run, classIndex}, class)
	s.queuedTasks += n - r.wanted
	r.wanted = n
	switch {
	case n == 0:
		s.dequeue(r)
		s.dropIfIdle(r)
	case r.heapIndex == 0:
		s.enqueue(r)
	}
}

// Release returns n slots that were busy for the given time in sum.
func (s *Scheduler[Target]) Release(run messages.RunID, classIndex int, class dag.Class, n int, busy time.Duration) {
	r := s.requestFor(requestKey{run, classIndex}, class)
	if n > r.held {
		panic("scheduler: more slots released than were granted")
	}
	r.held -= n
	s.returnSlots(r, n)
	if r.atShare && r.heapIndex > 0 && !s.holdsShare(r) { // it moves to the other heap and keeps its sequence number
		heap.Remove(&r.queue.atShare, r.heapIndex-1)
		r.atShare = false
		heap.Push(&r.queue.underShare, r)
	}
	if busy > 0 && n > 0 && r.queue.window == nil {
		mean := busy / time.Duration(n)
		if s.meanBusy == 0 {
			s.meanBusy = mean
		}
		s.meanBusy += (mean - s.meanBusy) / 8
	}
	s.dropIfIdle(r)
}

// AddHeld records n slots that the run holds already: its attempts were under way before
// it was loaded. They may be more than the machine has by now.
func (s *Scheduler[Target]) AddHeld(run messages.RunID, classIndex int, class dag.Class, n int) {
	r := s.requestFor(requestKey{run, classIndex}, class)
	r.held += n
	s.returnSlots(r, -n)
}

// RemoveRun drops all requests and slots of a run.
func (s *Scheduler[Target]) RemoveRun(run messages.RunID) {
	d := s.runs.Get(uint64(run))
	if d == nil {
		return
	}
	for r := d.head; r != nil; r = r.nextOfRun {
		s.returnSlots(r, r.held)
		s.queuedTasks -= r.wanted
		r.held, r.wanted = 0, 0
		s.dequeue(r)
		s.dropIfIdle(r)
	}
}

// SetTarget sets where a run's grants go. It ignores a run that neither wants nor holds slots:
// a target that is kept would keep the run's actor in memory.
func (s *Scheduler[Target]) SetTarget(run messages.RunID, target Target) {
	if d := s.runs.Get(uint64(run)); d != nil {
		d.target = target
	}
}

// Target returns where the grants of a run go. The run must hold slots.
func (s *Scheduler[Target]) Target(run messages.RunID) Target { return s.runs.Get(uint64(run)).target }

// AwaitHeld says whether runs have yet to report the slots that they hold (AddHeld). Until they
// have, only no-op tasks are granted.
func (s *Scheduler[Target]) AwaitHeld(awaits bool) { s.awaitsHeld = awaits }

// Grant grants the free slots at a time (ns), calling yield for each grant: n slots of the
// run's class with this index.
func (s *Scheduler[Target]) Grant(now int64, yield func(run messages.RunID, classIndex, n int)) {
	for {
		r := s.nextRequest(now)
		if r == nil {
			return
		}
		n := 1
		if w := r.queue.window; w != nil {
			n = min(r.wanted, windowBatch, w.limit-w.held)
			w.held += n
		} else {
			s.granted = s.granted.plus(r.queue.perTask)
		}
		if r.queue.class.Executor != NoopExecutor {
			s.runningTasks += n
		}
		s.dequeue(r)
		s.queuedTasks -= n
		r.wanted -= n
		r.held += n
		if r.wanted > 0 {
			s.enqueue(r)
		}
		yield(r.key.run, r.key.classIndex, n)
	}
}

// nextRequest returns the request to serve next, or nil. When the oldest request of a run
// below its share does not fit, others may overtake it until it has aged.
func (s *Scheduler[Target]) nextRequest(now int64) *classRequest {
	free, freeAtShare := s.freeResources()
	var best, oldest, windowed *classRequest
	for _, q := range s.queues {
		under := q.underShare.first()
		if q.window != nil {
			if under != nil && q.window.held < q.window.limit && under.precedes(windowed) && (!s.awaitsHeld || q.class.Executor == NoopExecutor) {
				windowed = under
			}
			continue
		}
		if s.awaitsHeld {
			continue
		}
		at := q.atShare.first()
		if under.precedes(oldest) {
			oldest = under
		}
		if under.precedes(best) && q.perTask.fitsInto(free) {
			best = under
		}
		if at.precedes(best) && q.perTask.fitsInto(freeAtShare) {
			best = at
		}
	}
	if oldest != nil && oldest != best {
		if oldest.overtakenSince == 0 {
			oldest.overtakenSince = now
		}
		if now-oldest.overtakenSince >= int64(ageLimit) {
			best = nil
		}
	}
	if best == nil {
		return windowed
	}
	return best
}

// NextAging returns when (ns) the oldest overtaken request will have aged. It returns 0
// without such a request, and once it has aged: slots are then kept free for it until a
// release.
func (s *Scheduler[Target]) NextAging(now int64) int64 {
	var oldest *classRequest
	for _, q := range s.queues {
		if q.window != nil {
			continue
		}
		if r := q.underShare.first(); r.precedes(oldest) {
			oldest = r
		}
	}
	if oldest == nil || oldest.overtakenSince == 0 {
		return 0
	}
	if due := oldest.overtakenSince + int64(ageLimit); due > now {
		return due
	}
	return 0
}

// Idle tells whether all slots are free.
func (s *Scheduler[Target]) Idle() bool {
	for _, w := range s.windows {
		if w.held > 0 {
			return false
		}
	}
	return s.granted == Resources{}
}

// Granted returns what is granted and not released of this machine. It may be more than the
// machine has: see freeResources.
func (s *Scheduler[Target]) Granted() Resources { return s.granted }

// Requests returns how many classes of runs want or hold slots.
func (s *Scheduler[Target]) Requests() int { return s.requestCount }

// Tasks returns how many tasks wait for a slot, and how many have one. No-op tasks that have one do not
// count.
func (s *Scheduler[Target]) Tasks() (queued, running int) { return s.queuedTasks, s.runningTasks }

// EachWindow calls yield for each executor that has a window, with the number of its
// granted tasks, in any order.
func (s *Scheduler[Target]) EachWindow(yield func(executor string, granted int)) {
	for name, w := range s.windows {
		yield(name, w.held)
	}
}

// freeResources returns the resources that may still be granted, and those for runs that hold a
// machine-full: the machine, and some more when attempts are short.
func (s *Scheduler[Target]) freeResources() (free, atShare Resources) {
	free = s.machine.minus(s.granted)
	if s.meanBusy == 0 || s.meanBusy >= shortTask {
		return free, free
	}
	ahead := func(work, most time.Duration) Resources {
		return free.plus(s.machine.times(int64(min(max(work/s.meanBusy, 1), most))))
	}
	all := ahead(aheadWork, maxAhead)
	if s.runs.Len() == 1 {
		return all, all
	}
	return all, ahead(aheadWork/2, maxAhead/2)
}

// holdsShare tells whether a request holds a machine-full: one more slot would not fit
// next to those that it holds. It is false while it holds no slot.
func (s *Scheduler[Target]) holdsShare(r *classRequest) bool {
	return r.queue.window == nil && r.held > 0 && !r.queue.perTask.times(int64(r.held)+1).fitsInto(s.machine)
}

func (s *Scheduler[Target]) returnSlots(r *classRequest, n int) {
	w := r.queue.window
	if r.queue.class.Executor != NoopExecutor {
		s.runningTasks -= n
	}
	if w != nil {
		w.held -= n
	} else {
		s.granted = s.granted.minus(r.queue.perTask.times(int64(n)))
	}
	if w != nil && w.held < 0 || s.granted.CPUMillis < 0 || s.granted.MemoryBytes < 0 {
		panic("scheduler: slots below zero")
	}
}

// enqueue queues a request with a new sequence number.
func (s *Scheduler[Target]) enqueue(r *classRequest) {
	s.lastSequence++
	r.sequence = s.lastSequence
	r.atShare = s.holdsShare(r)
	heap.Push(r.queue.heapOf(r), r)
}

// dequeue removes a request from its queue.
func (s *Scheduler[Target]) dequeue(r *classRequest) {
	r.overtakenSince = 0
	if r.heapIndex > 0 {
		heap.Remove(r.queue.heapOf(r), r.heapIndex-1)
	}
}

// findRequest returns the request of a run for the class with this index, or nil.
func (s *Scheduler[Target]) findRequest(run messages.RunID, classIndex int) *classRequest {
	return s.runs.Get(uint64(run)).find(classIndex)
}

// requestFor returns the request of a run for a class. A request that is missing is made.
func (s *Scheduler[Target]) requestFor(key requestKey, class dag.Class) *classRequest {
	d := s.runs.Get(uint64(key.run))
	r := d.find(key.classIndex)
	if r != nil {
		return r
	}
	if d == nil {
		d = new(runRequests[Target])
		s.runs.Set(uint64(key.run), d)
		r = &d.inline
	} else {
		r = new(classRequest)
	}
	*r = classRequest{key: key, queue: s.queueFor(class)}
	r.queue.requestCount++
	d.add(r)
	s.requestCount++
	return r
}

// dropIfIdle removes a request that neither wants nor holds slots.
func (s *Scheduler[Target]) dropIfIdle(r *classRequest) {
	if r.wanted > 0 || r.held > 0 || r.dropped {
		return
	}
	r.dropped = true
	d := s.runs.Get(uint64(r.key.run))
	d.remove(r)
	if s.requestCount--; d.n == 0 {
		s.runs.Delete(uint64(r.key.run))
	}
	if r.queue.requestCount--; r.queue.requestCount == 0 { // queues of former runs do not pile up
		s.queues = slices.DeleteFunc(s.queues, func(q *requestQueue) bool { return q == r.queue })
	}
}

// queueFor returns the queue of a class. A queue that is missing is made.
func (s *Scheduler[Target]) queueFor(class dag.Class) *requestQueue {
	w := s.windows[class.Executor]
	if w != nil { // the resources of its tasks are not limited here
		class = dag.Class{Executor: class.Executor}
	}
	for _, q := range s.queues {
		if q.class == class {
			return q
		}
	}
	// A task that was accepted on a larger machine gets all of this one: otherwise it would
	// never fit, and block all others. The executor reports the error.
	q := &requestQueue{class: class, window: w, perTask: Resources{
		min(class.CPUMillis, s.largest.CPUMillis), min(class.MemoryBytes, s.largest.MemoryBytes),
	}}
	s.queues = append(s.queues, q)
	return q
}
