package actors

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Clock tells the engine the time. Tests put clocks of their own in its place, which are
// set while the engine runs.
type Clock interface {
	// Now returns the wall clock in ns since the epoch, and the monotonic clock in ns
	// since a moment that stays the same while the process lives. The wall clock may be set
	// forwards or backwards at any time: it is for showing. Intervals and deadlines use the
	// monotonic clock. Both are read at the same instant.
	Now() (wall, monotonic int64)
	// SinceBoot returns the time since the machine was started, in ns, in which it was
	// suspended included, and the name of that start; "" when it is not known.
	SinceBoot() (elapsed int64, boot string)
}

// systemClock is the clock of this machine.
type systemClock struct{ began time.Time }

// SystemClock is the clock of this machine.
func SystemClock() Clock { return systemClock{time.Now()} }

// Now is part of Clock.
func (c systemClock) Now() (wall, monotonic int64) {
	now := time.Now()
	return now.UnixNano(), int64(now.Sub(c.began))
}

// SinceBoot is part of Clock.
func (c systemClock) SinceBoot() (elapsed int64, boot string) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	var ts unix.Timespec
	if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return int64(time.Since(c.began)), ""
	}
	return ts.Nano(), strings.TrimSpace(string(id))
}

// wall is the wall clock, for showing.
func (e *env) wall() int64 {
	wall, _ := e.clock.Now()
	return wall
}

// monotonic is the clock of intervals and deadlines.
func (e *env) monotonic() int64 {
	_, monotonic := e.clock.Now()
	return monotonic
}

// runClock is the time of one run: the wall clock as of a moment, and from that moment on
// as much later as the monotonic clock says. So it never goes backwards, and the
// difference of two of its times is the time that has passed. It follows the wall clock
// only forwards, and only while no interval depends on it.
type runClock struct {
	ahead int64 // ns: of the monotonic clock
}

// begin sets the clock of a run whose newest stored time is last.
func (c *runClock) begin(wall, monotonic, last int64) {
	c.ahead = max(wall, last) - monotonic
}

// now is the run's time. With follow it makes up for what the wall clock is ahead.
func (c *runClock) now(wall, monotonic int64, follow bool) int64 {
	if follow {
		c.ahead = max(c.ahead, wall-monotonic)
	}
	return monotonic + c.ahead
}

// monotonic is when, on the monotonic clock, a time of the run comes.
func (c *runClock) monotonic(at int64) int64 { return at - c.ahead }

// now is the time of an event that happens to the run now. A task in RETRY has its due
// time on the run's clock as it is: while there is one, the clock stays with it.
func (r *run) now() int64 {
	wall, monotonic := r.env.clock.Now()
	return r.clock.now(wall, monotonic, !r.dag.Waiting())
}
