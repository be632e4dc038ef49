package testenv

import (
	"fmt"
	"testing"
	"time"
)

// recorder is a TB that records a failure instead of ending the test.
type recorder struct{ failure string }

func (r *recorder) Helper()                           {}
func (r *recorder) Fatalf(format string, args ...any) { r.failure = fmt.Sprintf(format, args...) }

func TestReceiveReturnsTheNextValue(t *testing.T) {
	c := make(chan int, 1)
	c <- 7
	if got := Receive(t, "a value", c); got != 7 {
		t.Errorf("got %d", got)
	}
	close(c)
	if got := Receive(t, "the end", c); got != 0 {
		t.Errorf("got %d from a closed channel", got)
	}
}

func TestEventuallyFailsAfterItsDeadline(t *testing.T) {
	var r recorder
	looks := 0
	EventuallyWithin(&r, 10*time.Millisecond, "the moon is full", func() bool { looks++; return false })
	if r.failure != "not within 10ms: the moon is full" || looks < 2 {
		t.Errorf("%d looks: %q", looks, r.failure)
	}
	r.failure = ""
	Eventually(&r, "the third look", func() bool { looks++; return looks > 3 })
	if r.failure != "" {
		t.Error(r.failure)
	}
}
