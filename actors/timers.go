package actors

import (
	"container/heap"
	"sync"
	"time"

	"github.com/asynkron/protoactor-go/actor"
)

// timers sends messages when they are due: one heap and one goroutine for the
// whole node. A message may find its actor gone, or come late: the receiver
// checks that it still holds.
type timers struct {
	send func(*actor.PID, any)
	now  func() int64 // the monotonic clock: setting the wall clock moves no alarm

	mu     sync.Mutex
	heap   alarmHeap
	seq    uint64
	kick   chan struct{}
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
		kick: make(chan struct{}, 1), stop: make(chan struct{}), exited: make(chan struct{}),
	}
	go t.loop()
	return t
}

// at sends msg to pid at due (ns, on the monotonic clock), or soon when that has passed.
func (t *timers) at(due int64, pid *actor.PID, msg any) {
	t.mu.Lock()
	t.seq++
	heap.Push(&t.heap, alarm{due, t.seq, pid, msg})
	first := t.heap[0].seq == t.seq
	t.mu.Unlock()
	if first {
		select {
		case t.kick <- struct{}{}:
		default:
		}
	}
}

// close ends the goroutine; what was pending is dropped.
func (t *timers) close() {
	close(t.stop)
	<-t.exited
}

func (t *timers) loop() {
	defer close(t.exited)
	clock := time.NewTimer(time.Hour)
	defer clock.Stop()
	for {
		for {
			a, ok := t.due()
			if !ok {
				break
			}
			t.send(a.pid, a.msg)
		}
		clock.Reset(t.pause())
		select {
		case <-clock.C:
		case <-t.kick:
		case <-t.stop:
			return
		}
	}
}

// due takes the next alarm whose time has come.
func (t *timers) due() (alarm, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.heap) == 0 || t.heap[0].due > t.now() {
		return alarm{}, false
	}
	return heap.Pop(&t.heap).(alarm), true
}

// pause is how long the goroutine may sleep: until the first alarm is due.
func (t *timers) pause() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.heap) == 0 {
		return time.Hour
	}
	return max(time.Duration(t.heap[0].due-t.now()), 0)
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
