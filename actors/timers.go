package actors

import (
	"container/heap"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
)

// timers sends messages when they are due: one heap and one goroutine for the whole node, which sleeps
// until the first alarm is due. A message may find its actor stopped, or come late: the receiver checks
// that it still holds. An alarm cannot be taken back, and a crash loses all of them: what must be due
// again follows from the journal (dag.Run.Init). sendAt costs O(log alarms), from any goroutine.
type timers struct {
	send func(*actor.PID, any)
	now  func() int64 // the monotonic clock: setting the wall clock moves no alarm

	mu     sync.Mutex
	heap   alarmHeap
	seq    uint64
	clock  *time.Timer // fires when the first alarm is due; it is reset under mu
	stop   chan struct{}
	exited chan struct{}
}

type alarm struct {
	due int64 // ns, on the monotonic clock
	seq uint64
	pid *actor.PID
	msg any
}

func newTimers(now func() int64, send func(*actor.PID, any)) *timers {
	t := &timers{
		send: send, now: now,
		clock: time.NewTimer(maxIdle), stop: make(chan struct{}), exited: make(chan struct{}),
	}
	go t.sendDueAlarms()
	return t
}

// sendAt sends msg to pid at due (ns, on the monotonic clock), or soon when that has passed.
func (t *timers) sendAt(due int64, pid *actor.PID, msg any) {
	t.mu.Lock()
	t.seq++
	heap.Push(&t.heap, alarm{due, t.seq, pid, msg})
	if t.heap[0].seq == t.seq {
		t.resetClock()
	}
	t.mu.Unlock()
}

// maxIdle is how long the goroutine sleeps while the heap is empty.
const maxIdle = time.Hour

// resetClock sets the clock to the first alarm. t.mu is held.
func (t *timers) resetClock() {
	d := maxIdle
	if len(t.heap) > 0 {
		d = max(time.Duration(t.heap[0].due-t.now()), 0)
	}
	t.clock.Reset(d)
}

// close ends the goroutine; what was pending is dropped.
func (t *timers) close() {
	close(t.stop)
	<-t.exited
}

func (t *timers) sendDueAlarms() {
	defer close(t.exited)
	defer t.clock.Stop()
	for {
		for {
			a, ok := t.nextDue()
			if !ok {
				break
			}
			t.send(a.pid, a.msg)
		}
		select {
		case <-t.clock.C:
		case <-t.stop:
			return
		}
	}
}

// nextDue takes the next alarm whose time has come. Without a due alarm it resets the clock.
func (t *timers) nextDue() (alarm, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.heap) == 0 || t.heap[0].due > t.now() {
		t.resetClock()
		return alarm{}, false
	}
	return heap.Pop(&t.heap).(alarm), true
}

type alarmHeap []alarm

func (h alarmHeap) Len() int { return len(h) }
func (h alarmHeap) Less(i, j int) bool {
	if h[i].due != h[j].due {
		return h[i].due < h[j].due
	}
	return h[i].seq < h[j].seq
}
func (h alarmHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *alarmHeap) Push(x any)   { *h = append(*h, x.(alarm)) }
func (h *alarmHeap) Pop() any {
	old := *h
	a := old[len(old)-1]
	old[len(old)-1] = alarm{}
	*h = old[:len(old)-1]
	return a
}

const (
	// callTimeout is how long a caller waits for an actor before it gets an error, plus up
	// to rotateEvery.
	callTimeout = 30 * time.Second
	// rotateEvery is how often callers get a new channel to wait on.
	rotateEvery     = callTimeout / deadlineBuckets
	deadlineBuckets = 6
)

// callDeadlines ends the waits of callers. All waits that begin within one interval share
// a channel: a timer for each would cost more than most of the calls.
type callDeadlines struct {
	current atomic.Pointer[chan struct{}]
	buckets []chan struct{} // not expired, the current one last; owned by the goroutine that rotates
}

// expired returns the channel that ends a wait that begins now: by its timeout, or because
// the node stops.
func (w *callDeadlines) expired() <-chan struct{} { return *w.current.Load() }

// rotate begins a new interval, and ends the waits of the oldest one.
func (w *callDeadlines) rotate() {
	c := make(chan struct{})
	w.buckets = append(w.buckets, c)
	w.current.Store(&c)
	if len(w.buckets) > deadlineBuckets+1 {
		close(w.buckets[0])
		w.buckets = w.buckets[1:]
	}
}

// expireAll ends all waits, including later ones.
func (w *callDeadlines) expireAll() {
	for _, c := range w.buckets {
		close(c)
	}
	w.buckets = nil
}
