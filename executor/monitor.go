package executor

import (
	"sync"
	"time"
)

// The monitor's pace: often while some stream grows fast, else seldom; a look at
// a stream that does not grow costs a microsecond, and at most watchBudget of them
// are taken per tick, in turn.
const (
	watchSlow   = 25 * time.Millisecond
	watchFast   = 5 * time.Millisecond
	watchBudget = 256
)

// monitor bounds the output of all running attempts. Its goroutine sleeps while
// nothing runs.
type monitor struct {
	mu      sync.Mutex
	running []*watched
	index   map[*attempt]int
	turn    int
	asleep  bool

	wake chan struct{}
	quit chan struct{}
	gone chan struct{}
}

// watched is an attempt with what its streams measured at the last look.
type watched struct {
	a        *attempt
	out, err int64
	hot      bool
}

func (m *monitor) start() {
	m.index = map[*attempt]int{}
	m.wake, m.quit, m.gone = make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	go m.loop()
}

func (m *monitor) stop() {
	close(m.quit)
	<-m.gone
}

func (m *monitor) add(a *attempt) {
	m.mu.Lock()
	m.index[a] = len(m.running)
	m.running = append(m.running, &watched{a: a})
	wake := m.asleep
	m.asleep = false
	m.mu.Unlock()
	if wake {
		m.wake <- struct{}{} // never blocks: it was asleep, and is woken once
	}
}

func (m *monitor) remove(a *attempt) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, added := m.index[a]
	if !added {
		return // it ended at once
	}
	last := len(m.running) - 1
	m.running[i] = m.running[last]
	m.index[m.running[i].a] = i
	m.running[last] = nil
	m.running = m.running[:last]
	delete(m.index, a)
}

func (m *monitor) loop() {
	defer close(m.gone)
	timer := time.NewTimer(watchSlow)
	defer timer.Stop()
	var look []*watched
	for {
		m.mu.Lock()
		look = m.due(look[:0])
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
		pace := watchSlow
		for _, w := range look {
			if w.check() {
				pace = watchFast
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
func (m *monitor) due(look []*watched) []*watched {
	n := len(m.running)
	if n <= watchBudget {
		return append(look, m.running...)
	}
	for _, w := range m.running {
		if w.hot {
			look = append(look, w)
		}
	}
	for range watchBudget {
		m.turn = (m.turn + 1) % n
		if w := m.running[m.turn]; !w.hot {
			look = append(look, w)
		}
	}
	return look
}

// check bounds both streams and tells whether one of them grows fast. Only the
// monitor's goroutine calls it.
func (w *watched) check() bool {
	w.hot = false
	if w.a.out.hold() {
		w.hot = w.a.out.bound(&w.out)
		w.a.out.drop()
	}
	if w.a.err.hold() {
		w.hot = w.a.err.bound(&w.err) || w.hot
		w.a.err.drop()
	}
	return w.hot
}
