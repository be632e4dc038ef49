// Package lease is the lease under which attempts of a partition may run, as those hold it who begin and
// end the attempts: the agent of a node and the processes of its workers. A later leader counts an attempt
// as lost only when the lease and a margin are over.
//
// The rules of package internal/model that it keeps are BeginUnderLease, LeaseEndsAttempts and OverIsOver.
package lease

import (
	"time"

	"golang.org/x/sys/unix"
)

// Parts of a lease. The leader counts from its receipt of the heartbeat that its renewal answers, and the
// worker from the sending of it. So the margin of the leader has room for the grace, for the interval of the
// worker's checks, and for clocks that drift apart.
const (
	// Least is the shortest lease: the next leader must be able to renew it in time.
	Least = 5 * time.Second
	// graceParts: the grace of attempts whose lease is over is an eighth of it.
	graceParts = 8
	// marginParts: the margin that the leader adds is a quarter.
	marginParts = 4
	// heartbeatParts: an agent sends a heartbeat at least every twentieth.
	heartbeatParts = 20
	// checkParts: the deadline is checked at least every 64th.
	checkParts = 64
	// longest bounds both intervals.
	longest = time.Second
)

// Grace returns the time from SIGTERM to SIGKILL for attempts whose lease is over.
func Grace(length time.Duration) time.Duration { return length / graceParts }

// Silence returns for how long a leader must not hear a worker until its attempts are lost.
func Silence(length time.Duration) time.Duration { return length + length/marginParts }

// HeartbeatInterval returns the interval between heartbeats.
func HeartbeatInterval(length time.Duration) time.Duration {
	return min(length/heartbeatParts, longest)
}

// CheckInterval returns the interval between looks at the deadline.
func CheckInterval(length time.Duration) time.Duration { return min(length/checkParts, longest) }

// Now returns the clock of deadlines: nanoseconds since boot. It goes on while the machine sleeps, and is
// the same in all processes of the machine.
func Now() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("clock of the machine: " + err.Error())
	}
	return t.Nano()
}

// Lease is the lease of one partition. It only decides, and its callers lock it. Times are those of Now. The
// zero value is a lease that has not begun, under which attempts may not begin.
type Lease struct {
	deadline int64 // over from then on; 0: it has not begun
	ending   bool  // it is over, and attempts under it are left
}

// Permits reports whether an attempt may be accepted, or begin. It is asked again right before the begin,
// since an order may have waited for long.
func (l *Lease) Permits(now int64) bool { return now < l.deadline && !l.ending }

// IsPast reports whether the deadline is over.
func (l *Lease) IsPast(now int64) bool { return l.deadline != 0 && (l.ending || now >= l.deadline) }

// IsOver reports whether the lease is over with attempts left, which the caller has to end. Only a lease whose
// deadline is past asks hasUnended, whether an attempt waits, begins or runs. Without one the next lease may
// begin.
func (l *Lease) IsOver(now int64, hasUnended func() bool) bool {
	if l.IsPast(now) {
		if l.ending = hasUnended(); !l.ending {
			l.deadline = 0
		}
	}
	return l.ending
}

// Extend moves the deadline, and reports whether it did. A lease that is over stays so while an attempt is
// left: an order that waits would begin under the next lease, when its leader has long counted it as
// lost.
func (l *Lease) Extend(until, now int64, hasUnended func() bool) (extended bool) {
	if l.IsOver(now, hasUnended) || until <= max(now, l.deadline) {
		return false // late, or a later heartbeat was answered first
	}
	l.deadline = until
	return true
}
