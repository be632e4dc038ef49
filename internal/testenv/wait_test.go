package testenv

import (
	"errors"
	"fmt"
	"slices"
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

// TestLongWaitLooksLessOften: a look every 2 ms would be a hundred. A busy machine has fewer in any case.
func TestLongWaitLooksLessOften(t *testing.T) {
	looks := 0
	if Poll(200*time.Millisecond, func() bool { looks++; return false }) || looks > 60 {
		t.Errorf("%d looks", looks)
	}
}

func TestGrowingTimeEndsAtTheFirstSuccess(t *testing.T) {
	var r recorder
	var times []time.Duration
	WithGrowingTime(&r, time.Millisecond, func(d time.Duration) error {
		if times = append(times, d); len(times) < 3 {
			return errors.New("too late")
		}
		return nil
	})
	if want := []time.Duration{time.Millisecond, 4 * time.Millisecond, 16 * time.Millisecond}; r.failure != "" || !slices.Equal(times, want) {
		t.Errorf("tried with %v, want %v; %q", times, want, r.failure)
	}
	WithGrowingTime(&r, 5*time.Second, func(time.Duration) error { return errors.New("broken") })
	if r.failure != "with 20s: broken" {
		t.Errorf("a guarantee that is broken: %q", r.failure)
	}
}

func TestBusyFactorIsBounded(t *testing.T) {
	if f := BusyFactor(); f < 1 || f > 4 {
		t.Errorf("a factor of %d", f)
	}
}
