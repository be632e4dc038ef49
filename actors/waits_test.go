package actors

import "testing"

// A wait lasts through as many turns as answerWithin has, and one more at most.
func TestWaitsEndInTheirTurn(t *testing.T) {
	var w waits
	w.turn()
	first := w.over()
	w.turn()
	second := w.over()
	for range turns - 1 {
		w.turn()
		if isClosed(first) {
			t.Fatal("a wait ended before its time")
		}
	}
	w.turn()
	if !isClosed(first) || isClosed(second) {
		t.Errorf("after %d turns: the first wait is over: %v, the second: %v", turns+1, isClosed(first), isClosed(second))
	}
	if len(w.turns) != turns+1 {
		t.Errorf("%d turns are kept, want %d", len(w.turns), turns+1)
	}
	last := w.over()
	w.end()
	if !isClosed(second) || !isClosed(last) || !isClosed(w.over()) {
		t.Error("a wait goes on when nobody answers any more")
	}
}

func TestCallThatNobodyAnswers(t *testing.T) {
	r := newRig(t)
	over := make(chan struct{})
	close(over)
	if _, err := await[int](r.node, over, nil); err != errTimeout {
		t.Errorf("%v, want %v", err, errTimeout)
	}
}
