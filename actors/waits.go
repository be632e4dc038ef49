package actors

import (
	"sync/atomic"
	"time"
)

const (
	// answerWithin is how long a caller waits for an actor before it gets an error; it
	// may be up to a turn more.
	answerWithin = 30 * time.Second
	// turn is how often callers get a new channel to wait on.
	turn  = answerWithin / turns
	turns = 6
)

// waits ends those of callers. Those of one turn share a channel, where a
// timer each would cost more than what most of them wait for.
type waits struct {
	current atomic.Pointer[chan struct{}]
	turns   []chan struct{} // that have not ended, the current one last; of the goroutine that turns
}

// over returns the channel that is closed when a wait that begins now is over, because
// of the time or because nobody answers any more.
func (w *waits) over() <-chan struct{} { return *w.current.Load() }

// turn begins a new turn, and ends the waits of the one that has lasted long enough.
func (w *waits) turn() {
	c := make(chan struct{})
	w.turns = append(w.turns, c)
	w.current.Store(&c)
	if len(w.turns) > turns+1 {
		close(w.turns[0])
		w.turns = w.turns[1:]
	}
}

// end ends all waits, and those that are yet to begin.
func (w *waits) end() {
	for _, c := range w.turns {
		close(c)
	}
	w.turns = nil
}
