package executor

import (
	"sync"
	"time"
)

// The monitor's pace: often while some stream grows fast, else seldom; a look at
// a stream that does not grow costs a microsecond, and at most watchBudget of them
// are taken per tick, in turn.
const (
	checkSlow     = 25 * time.Millisecond
	checkFast     = 5 * time.Millisecond
	checksPerTick = 256
)

// monitor bounds the output of all running attempts. Its goroutine sleeps while
// nothing runs.
type outputMonitor struct {
	mu        sync.Mutex
	attempts  []*monitoredAttempt
	index     map[*attempt]int
	nextCheck int
	asleep    bool

	wake    chan struct{}
	quit    chan struct{}
	stopped chan struct{}
}

// watched is an attempt with what its streams measured at the last look.
type monitoredAttempt struct {
	a                      *attempt
	stdoutSize, stderrSize int64
	growsFast              bool
}

func (m *outputMonitor) start() {
	m.index = map[*attempt]int{}
	m.wake, m.quit, m.stopped = make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	go m.loop()
}

func (m *outputMonitor) stop() {
	close(m.quit)
	<-m.stopped
}

func (m *outputMonitor) add(a *attempt) {
	m.mu.Lock()
	m.index[a] = len(m.attempts)
	m.attempts = append(m.attempts, &monitoredAttempt{a: a})
	wake := m.asleep
	m.asleep = false
	m.mu.Unlock()
	if wake {
		m.wake <- struct{}{} // never blocks: it was asleep, and is woken once
	}
}

func (m *outputMonitor) remove(a *attempt) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, added := m.index[a]
	if !added {
		return // it ended at once
	}
	last := len(m.attempts) - 1
	m.attempts[i] = m.attempts[last]
	m.index[m.attempts[i].a] = i
	m.attempts[last] = nil
	m.attempts = m.attempts[:last]
	delete(m.index, a)
}

func (m *outputMonitor) loop() {
	defer close(m.stopped)
	timer := time.NewTimer(checkSlow)
	defer timer.Stop()
	var look []*monitoredAttempt
	for {
		m.mu.Lock()
		look = m.dueChecks(look[:0])
		// One idle tick passes before it sleeps, so that short tasks in a row do not
		// wake it each time.
		m.asleep = len(look) == 0
		m.mu.Unlock()
		if len(look) == 0 {
			select {
			case <-m.wake:
			case <-m.quit:
				return
			}
		}
		pace := checkSlow
		for _, w := range look {
			if w.checkGrowth() {
				pace = checkFast
			}
		}
		clear(look)
		timer.Reset(pace)
		select {
		case <-timer.C:
		case <-m.quit:
			return
		}
	}
}

// due picks the attempts to look at: the hot ones, and the others in turn. m.mu is held.
func (m *outputMonitor) dueChecks(look []*monitoredAttempt) []*monitoredAttempt {
	n := len(m.attempts)
	if n <= checksPerTick {
		return append(look, m.attempts...)
	}
	for _, w := range m.attempts {
		if w.growsFast {
			look = append(look, w)
		}
	}
	for range checksPerTick {
		m.nextCheck = (m.nextCheck + 1) % n
		if w := m.attempts[m.nextCheck]; !w.growsFast {
			look = append(look, w)
		}
	}
	return look
}

// check bounds both streams and tells whether one of them grows fast. Only the
// monitor's goroutine calls it.
func (w *monitoredAttempt) checkGrowth() bool {
	w.growsFast = false
	if w.a.stdout.retain() {
		w.growsFast = w.a.stdout.punchMiddle(&w.stdoutSize)
		w.a.stdout.release()
	}
	if w.a.stderr.retain() {
		w.growsFast = w.a.stderr.punchMiddle(&w.stderrSize) || w.growsFast
		w.a.stderr.release()
	}
	return w.growsFast
}
