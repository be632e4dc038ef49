package persistence

import (
	"sync"
	"time"
)

// stallWatch alarms when a commit does not end. It counts seconds that this process saw
// pass: a timer that comes much too late was late because the process, or its machine,
// stood still (SIGSTOP, a suspended machine), and then the disk is not to blame.
type stallWatch struct {
	alarm func(time.Duration)
	now   func() time.Time                               // monotonic
	after func(time.Duration, func()) (stop func() bool) // time.AfterFunc

	mu     sync.Mutex
	commit uint64 // counts begin and end: odd while a commit is under way
	stop   func() bool
	seen   time.Duration // of the commit that is under way
	tick   time.Time     // of the last count
}

const (
	stallLimit = time.Minute
	stallTick  = time.Second
	stallLate  = 2 * time.Second // a tick that takes longer is no sign of the disk
)

func newStallWatch(alarm func(time.Duration)) *stallWatch {
	return &stallWatch{alarm: alarm, now: time.Now, after: func(d time.Duration, fn func()) func() bool {
		return time.AfterFunc(d, fn).Stop
	}}
}

// begin notes that a commit begins; there is one at a time.
func (w *stallWatch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.commit++
	w.seen, w.tick = 0, w.now()
	w.next(w.commit)
}

func (w *stallWatch) next(commit uint64) {
	w.stop = w.after(stallTick, func() { w.count(commit) })
}

// end notes that it has ended.
func (w *stallWatch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.commit++
	w.stop()
}

func (w *stallWatch) count(commit uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.commit != commit {
		return
	}
	now := w.now()
	if passed := now.Sub(w.tick); passed <= stallLate {
		w.seen += passed
	}
	w.tick = now
	if w.seen >= stallLimit {
		go w.alarm(stallLimit)
		return
	}
	w.next(commit)
}
