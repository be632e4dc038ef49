package lifecycle_test

import (
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/executor/lifecycle"
)

var states = []lifecycle.State{lifecycle.Queued, lifecycle.Starting, lifecycle.Running, lifecycle.Ended}

// attemptIn returns an attempt in a state, which it reached by legal moves.
func attemptIn(state lifecycle.State) *lifecycle.Attempt {
	a := new(lifecycle.Attempt)
	if state != lifecycle.Queued {
		a.MoveTo(state)
	}
	return a
}

// TestOnlyLegalMovesAreMade tries each move from each state against the table of the package doc.
func TestOnlyLegalMovesAreMade(t *testing.T) {
	legal := map[string]bool{
		"Queued-Starting": true, "Queued-Running": true, "Queued-Ended": true,
		"Starting-Queued": true, "Starting-Running": true, "Starting-Ended": true,
		"Running-Ended": true,
	}
	for _, from := range states {
		for _, to := range states {
			a := attemptIn(from)
			message := panicOf(func() { a.MoveTo(to) })
			if legal[from.String()+"-"+to.String()] {
				if message != "" || a.State() != to {
					t.Errorf("%v to %v: %q, now %v", from, to, message, a.State())
				}
				continue
			}
			if !strings.Contains(message, from.String()) || !strings.Contains(message, to.String()) || a.State() != from {
				t.Errorf("%v to %v: panic %q, now %v", from, to, message, a.State())
			}
		}
	}
	if name := lifecycle.State(9).String(); name != "State(9)" {
		t.Errorf("unknown state is %q", name)
	}
	if lifecycle.CanMove(9, lifecycle.Ended) {
		t.Error("an unknown state has a move")
	}
}

func panicOf(f func()) (message string) {
	defer func() {
		if r := recover(); r != nil {
			message = r.(string)
		}
	}()
	f()
	return ""
}
