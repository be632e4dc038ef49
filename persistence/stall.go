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
	now   func() time.Time            // monotonic
	after func(time.Duration, func()) // time.AfterFunc

	mu      sync.Mutex
	commit  uint64        // counts begin and end: odd while a commit is under way
	ticking bool          // the timer runs: while there are commits, and for a tick behind the last one
	seen    time.Duration // of the commit that was under way at the last tick
	watched uint64        // that one
	tick    time.Time     // when the last tick was
}

const (
	stallLimit = time.Minute
	stallTick  = time.Second
	stallLate  = 2 * time.Second // a tick that takes longer is no sign of the disk
)

func newStallWatch(alarm func(time.Duration)) *stallWatch {
	return &stallWatch{alarm: alarm, now: time.Now, after: func(d time.Duration, fn func()) { time.AfterFunc(d, fn) }}
}

// begin notes that a commit begins; there is one at a time. There are thousands of them in a
// second, so they share a timer: a commit is counted from its first tick on.
func (w *stallWatch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.commit++
	if !w.ticking {
		w.ticking, w.tick, w.watched, w.seen = true, w.now(), w.commit, 0
		w.after(stallTick, w.count)
	}
}

// end notes that it has ended.
func (w *stallWatch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.commit++
}

func (w *stallWatch) count() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	passed := now.Sub(w.tick)
	w.tick = now
	switch {
	case w.commit%2 == 0:
		w.ticking = false
		return
	case w.commit != w.watched:
		w.watched, w.seen = w.commit, 0
	case passed <= stallLate:
		w.seen += passed
	}
	if w.seen >= stallLimit {
		w.ticking = false
		go w.alarm(stallLimit)
		return
	}
	w.after(stallTick, w.count)
}
