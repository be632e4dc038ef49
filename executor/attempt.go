package executor

import (
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/vfork"
	"github.com/caravan-dag/caravan/messages"
)

// attempt is one order from Start to its final report. Process.mu guards the first part. The
// second part belongs to whoever sees to the attempt, which is the loop or one helper at a time.
type attempt struct {
	order Order

	prev, next *attempt
	queued     bool  // waits for slots
	holds      bool  // holds its slots
	starting   bool  // was admitted, and its start is not over
	postponed  int   // how often its start has failed for a shortage
	since      int64 // ns since the epoch: it has been there since, and room for it

	ended atomic.Bool // the process is gone and the sizes of its output are final

	phase     phase
	cause     cause
	grace     time.Duration      // of a kill that came before the process
	killAt    time.Duration      // when SIGKILL is due, on the Process's clock; 0 = never
	timeoutAt time.Duration      // when its time is over; 0 = never
	timer     *time.Timer        // of the earlier one of both; nil until there is one
	late      bool               // it was to be ended when its process had ended, and nobody had noticed its start
	forced    bool               // SIGKILL was sent
	told      bool               // SIGTERM was sent
	killing   chan struct{}      // closed when its control group has been killed; nil while nobody does that
	hurry     chan struct{}      // closed by end while the failure of its start is being explained; else nil
	pid       int                // 0 until it is known here
	pending   vfork.PendingChild // of a helper's start, until pid is known
	out, err  *stream
	group     *cgroup // nil where there are none

	// The loop's, or the helper's.
	command    command
	grouped    bool         // group is what it is to have
	launch     vfork.Launch // until its exec is over
	startErrno unix.Errno   // why the program was not executed
	busy       int          // how often that was for its being open for writing
	pidfd      int          // -1: none
	began      int64
	stop       int64
	idle       time.Duration
	status     syscall.WaitStatus
	usage      syscall.Rusage
	collected  bool   // the loop has seen its leader's end
	pumps      *pumps // nil when it prints into the streams itself
}

// phase is how far the attempt's process is.
type phase uint8

const (
	unborn   phase = iota // waits, or is about to be forked
	starting              // is being forked, or on its way to its program
	alive                 // the leader runs, as far as we know
	zombie                // the leader has ended and is kept unreaped: its number stays ours
	reaped                // its number may belong to anybody: no signal any more
)

// cause is why we ended an attempt; the first one stands, but that a start that has timed
// out may be ended for another reason.
type cause uint8

const (
	causeNone cause = iota
	causeKill
	causeTimeout
	causeClose
)

// result is how an attempt ended that we ended for this cause, and a text for its record.
func (c cause) result(timeout time.Duration) (messages.AttemptResult, string) {
	switch c {
	case causeKill:
		return messages.AttemptKilled, "killed by the user"
	case causeTimeout:
		return messages.AttemptTimedOut, "timed out after " + timeout.String()
	default:
		return messages.AttemptLost, "ended by the executor's shutdown"
	}
}

func newAttempt(o Order) *attempt { return &attempt{order: o, pidfd: -1} }

// leaderEnded looks whether the leader has ended. One that ended by itself is
// reaped; one that we are ending stays a zombie, so that its process group can
// still be signalled by a number which is surely its own. p.mu is held.
func (p *Process) leaderEnded(a *attempt) bool {
	if a.cause == causeNone {
		return p.reap(a, unix.WNOHANG)
	}
	if !exited(a.pid) {
		return false
	}
	a.phase = zombie
	return true
}

// reap collects the leader's status. p.mu is held.
func (p *Process) reap(a *attempt, options int) bool {
	for {
		pid, err := syscall.Wait4(a.pid, &a.status, options, &a.usage)
		switch {
		case err == syscall.EINTR:
			continue
		case pid == a.pid:
		case err != nil:
			// Somebody else reaped it. Nothing is known of its end but that it came.
			a.status = 0xff00
		default:
			return false
		}
		a.phase = reaped
		a.killAt, a.timeoutAt = 0, 0
		p.schedule(a)
		return true
	}
}

// exited tells whether the process has ended; it stays unreaped.
func exited(pid int) bool {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return err == nil && info.Signo != 0 || err == unix.ECHILD
		}
	}
}

// peak is the most memory that the attempt's processes had, in KB; 0 when it is not
// known. The kernel counts the moment between fork and exec too, when the child
// still is this process: a figure that does not exceed our own says nothing. (The
// smaller the process that forks, the more is known.) Both are rounded by a few pages
// per CPU, hence the margin. Our own never falls: it is asked for only when what we last
// knew of it does not tell.
func (p *Process) peak(a *attempt) int64 {
	const margin = 32
	if own := p.ownPeak.Load(); a.usage.Maxrss <= own+own/margin {
		return 0
	}
	own := ownPeak()
	p.ownPeak.Store(own)
	if a.usage.Maxrss <= own+own/margin {
		return 0
	}
	return a.usage.Maxrss
}

// result says how the attempt ended, from the process's status and our cause.
func (a *attempt) result() (r messages.AttemptResult, rc int32, log string) {
	switch {
	case a.status.Signaled():
		rc = 128 + int32(a.status.Signal())
	default:
		rc = int32(a.status.ExitStatus())
	}
	switch {
	case a.cause != causeNone:
		r, log = a.cause.result(a.order.Timeout)
		return r, rc, log
	case a.status.Signaled():
		log = "ended by signal " + itoa(int64(a.status.Signal())) + " (" + a.status.Signal().String() + ")"
		if a.status.CoreDump() {
			log += ", core dumped"
		}
		return messages.AttemptSignaled, rc, log
	case rc != 0:
		return messages.AttemptFailed, rc, ""
	}
	return messages.AttemptSucceeded, 0, ""
}
