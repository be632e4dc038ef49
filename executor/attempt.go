package executor

import (
	"fmt"
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

	prev, next    *attempt
	queued        bool  // waits for slots
	holdsSlots    bool  // holds its slots
	startUnderWay bool  // was admitted, and its start is not over
	postponements int   // how often its start has failed for a shortage
	runnableSince int64 // ns since the epoch: it has been there since, and room for it

	outputFinal atomic.Bool // the process is gone and the sizes of its output are final

	phase          phase
	cause          endCause
	killGrace      time.Duration      // of a kill that came before the process
	sigkillAt      time.Duration      // when SIGKILL is due, on the Process's clock; 0 = never
	timeoutAt      time.Duration      // when its time is over; 0 = never
	deadlineTimer  *time.Timer        // of the earlier one of both; nil until there is one
	exitedFirst    bool               // it was to be ended when its process had ended, and nobody had noticed its start
	sigkillSent    bool               // SIGKILL was sent
	sigtermSent    bool               // SIGTERM was sent
	cgroupKilled   chan struct{}      // closed when its control group has been killed; nil while nobody does that
	cancelExplain  chan struct{}      // closed by end while the failure of its start is being explained; else nil
	pid            int                // 0 until it is known here
	pendingChild   vfork.PendingChild // of a helper's start, until pid is known
	stdout, stderr *stream
	cgroup         *cgroup // nil where there are none

	// The loop's, or the helper's.
	command       command
	cgroupChosen  bool         // group is what it is to have
	launch        vfork.Launch // until its exec is over
	execErrno     unix.Errno   // why the program was not executed
	textBusyTries int          // how often that was for its being open for writing
	pidfd         int          // -1: none
	startedAt     int64
	endedAt       int64
	startDelay    time.Duration
	waitStatus    syscall.WaitStatus
	usage         syscall.Rusage
	exitSeen      bool   // the loop has seen its leader's end
	pumps         *pumps // nil when it prints into the streams itself
}

// phase is how far the attempt's process is.
type phase uint8

const (
	phaseNotStarted phase = iota // waits, or is about to be forked
	phaseStarting                // is being forked, or on its way to its program
	phaseRunning                 // the leader runs, as far as we know
	phaseExited                  // the leader has ended and is kept unreaped: its number stays ours
	phaseReaped                  // its number may belong to anybody: no signal any more
)

// cause is why we ended an attempt; the first one stands, but that a start that has timed
// out may be ended for another reason.
type endCause uint8

const (
	causeNone endCause = iota
	causeKill
	causeTimeout
	causeClose
)

// result is how an attempt ended that we ended for this cause, and a text for its record.
func (c endCause) result(timeout time.Duration) (messages.AttemptResult, string) {
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
func (p *Process) leaderExited(a *attempt) bool {
	if a.cause == causeNone {
		return p.reapLeader(a, unix.WNOHANG)
	}
	if !hasExited(a.pid) {
		return false
	}
	a.phase = phaseExited
	return true
}

// reap collects the leader's status. p.mu is held.
func (p *Process) reapLeader(a *attempt, options int) bool {
	for {
		pid, err := syscall.Wait4(a.pid, &a.waitStatus, options, &a.usage)
		switch {
		case err == syscall.EINTR:
			continue
		case pid == a.pid:
		case err != nil:
			// Somebody else reaped it. Nothing is known of its end but that it came.
			a.waitStatus = 0xff00
		default:
			return false
		}
		a.phase = phaseReaped
		a.sigkillAt, a.timeoutAt = 0, 0
		p.scheduleDeadline(a)
		return true
	}
}

// exited tells whether the process has ended; it stays unreaped.
func hasExited(pid int) bool {
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
func (p *Process) peakMemoryKB(a *attempt) int64 {
	const margin = 32
	if own := p.peakKB.Load(); a.usage.Maxrss <= own+own/margin {
		return 0
	}
	own := ownPeakKB()
	p.peakKB.Store(own)
	if a.usage.Maxrss <= own+own/margin {
		return 0
	}
	return a.usage.Maxrss
}

// result says how the attempt ended, from the process's status and our cause.
func (a *attempt) result() (r messages.AttemptResult, rc int32, log string) {
	switch {
	case a.waitStatus.Signaled():
		rc = 128 + int32(a.waitStatus.Signal())
	default:
		rc = int32(a.waitStatus.ExitStatus())
	}
	switch {
	case a.cause != causeNone:
		r, log = a.cause.result(a.order.Timeout)
		return r, rc, log
	case a.waitStatus.Signaled():
		log = fmt.Sprintf("ended by signal %d (%s)", a.waitStatus.Signal(), a.waitStatus.Signal())
		if a.waitStatus.CoreDump() {
			log += ", core dumped"
		}
		return messages.AttemptSignaled, rc, log
	case rc != 0:
		return messages.AttemptFailed, rc, ""
	}
	return messages.AttemptSucceeded, 0, ""
}

// ownPeak is the most memory that this process has had, in KB.
func ownPeakKB() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Maxrss
}
