package actors

import "testing"

// A wait lasts through as many turns as answerWithin has, and one more at most.
func TestWaitsEndInTheirTurn(t *testing.T) {
	var w callDeadlines
	w.rotate()
	first := w.expired()
	w.rotate()
	second := w.expired()
	for range deadlineBuckets - 1 {
		w.rotate()
		if isClosed(first) {
			t.Fatal("a wait ended before its time")
		}
	}
	w.rotate()
	if !isClosed(first) || isClosed(second) {
		t.Errorf("after %d turns: the first wait is over: %v, the second: %v", deadlineBuckets+1, isClosed(first), isClosed(second))
	}
	if len(w.buckets) != deadlineBuckets+1 {
		t.Errorf("%d turns are kept, want %d", len(w.buckets), deadlineBuckets+1)
	}
	last := w.expired()
	w.expireAll()
	if !isClosed(second) || !isClosed(last) || !isClosed(w.expired()) {
		t.Error("a wait goes on when nobody answers any more")
	}
}

func TestCallThatNobodyAnswers(t *testing.T) {
	r := newRig(t)
	over := make(chan struct{})
	close(over)
	if _, err := awaitReply[int](r.node, over, nil); err != errTimeout {
		t.Errorf("%v, want %v", err, errTimeout)
	}
}
