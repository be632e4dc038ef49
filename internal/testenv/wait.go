package testenv

import "time"

// Patience is the deadline for what happens at once if it happens at all. It bounds how long a
// failing test hangs, and is far above what a busy machine needs, so that a passing test never
// meets it: two processors with a load of 20 make a test under the race detector wait for seconds.
const Patience = 30 * time.Second

// The time between two looks at a state that has no signal. It is short at first, since most states are
// reached within milliseconds. A look may be a request to a process, so a long wait looks less often: the
// tests that run beside it need the processors, and the state is noticed late by a part of the wait.
const (
	shortestPollPause = 2 * time.Millisecond
	longestPollPause  = 20 * time.Millisecond
	pollPausePart     = 16 // of the time since the first look
)

// TB is the part of testing.TB that the functions of this package need. Their own tests pass one
// that records the failure. Fatalf must not return, as that of testing.T does not.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// Receive returns the next value of a channel, or the zero value of a closed one. It ends the test
// if the channel stays silent for Patience.
func Receive[T any](t TB, what string, c <-chan T) (value T) {
	t.Helper()
	return ReceiveWithin(t, Patience, what, c)
}

// ReceiveWithin is Receive with another deadline.
func ReceiveWithin[T any](t TB, limit time.Duration, what string, c <-chan T) (value T) {
	t.Helper()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case value = <-c:
	case <-timer.C:
		t.Fatalf("%s: not within %v", what, limit)
	}
	return value
}

// Eventually waits for a condition that another goroutine or the kernel brings about without a
// signal. It ends the test if the condition does not hold within Patience. The condition is called on
// the goroutine of the test, again and again, so it must not have side effects.
func Eventually(t TB, what string, condition func() bool) {
	t.Helper()
	EventuallyWithin(t, Patience, what, condition)
}

// EventuallyWithin is Eventually with another deadline, for real processes on a busy machine.
func EventuallyWithin(t TB, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	if !Poll(limit, condition) {
		t.Fatalf("not within %v: %s", limit, what)
	}
}

// RepeatWithin repeats an attempt until it succeeds, on the goroutine of the test. It ends the test if none
// succeeds within limit. Unlike the condition of Eventually, an attempt may change things.
func RepeatWithin(t TB, limit time.Duration, what string, attempt func() (ok bool)) {
	t.Helper()
	EventuallyWithin(t, limit, what, attempt)
}

// WithGrowingTime calls attempt with a time that grows from first, until the attempt returns nil. It is for
// code that measures real time itself, where something must happen within that time: a busy machine
// needs more of it. It ends the test if an attempt fails with a time that no machine needs.
func WithGrowingTime(t TB, first time.Duration, attempt func(d time.Duration) error) {
	t.Helper()
	for d := first; ; d *= 4 {
		err := attempt(d)
		if err == nil {
			return
		}
		if d > Patience/4 {
			t.Fatalf("with %v: %v", d, err)
			return
		}
	}
}

// BusyFactor returns how many times longer a time-out should be than on a quiet machine: from 1 to 4, by how
// late timers wake a goroutine at present. It takes some tens of milliseconds.
func BusyFactor() int {
	const looks, pause, quiet = 20, time.Millisecond, 10 * time.Millisecond
	var late time.Duration
	for range looks {
		begin := time.Now()
		<-time.After(pause)
		late = max(late, time.Since(begin)-pause)
	}
	return min(1+int(late/quiet), 4)
}

// Poll reports whether a condition holds within limit. It looks at once, and once more at the end,
// so that a machine which was asleep for the whole limit does not decide.
func Poll(limit time.Duration, condition func() bool) bool {
	begin := time.Now()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	pause := time.NewTimer(shortestPollPause)
	defer pause.Stop()
	for {
		if condition() {
			return true
		}
		pause.Reset(min(max(time.Since(begin)/pollPausePart, shortestPollPause), longestPollPause))
		select {
		case <-deadline.C:
			return condition()
		case <-pause.C:
		}
	}
}
