package executor

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/vfork"
	"github.com/caravan-dag/caravan/messages"
)

// attempt is one order from Start to its final report. Process.mu guards the first part. The second
// part belongs to the goroutine that handles the attempt: the loop, or one helper at a time.
type attempt struct {
	order Order

	prev, next    *attempt
	queued        bool  // is in the queue
	holdsSlots    bool  // holds its slots
	startUnderWay bool  // admitted, and not yet started or failed
	postponements int   // how often its start was postponed
	runnableSince int64 // ns since the epoch: since then it has had both its order and room

	phase          phase
	cause          endCause
	killGrace      time.Duration      // of a kill that came before the process
	sigkillAt      time.Duration      // when SIGKILL is due, on the Process's clock; 0 = never
	timeoutAt      time.Duration      // when the task's time is over; 0 = never
	deadlineTimer  *time.Timer        // fires at the earlier of both; nil until there is one
	exitedFirst    bool               // the process had exited before its end was wanted, and its start was not reported yet
	sigkillSent    bool               // SIGKILL was sent
	sigtermSent    bool               // SIGTERM was sent
	cgroupKilled   chan struct{}      // closed once its control group is killed; nil until that begins
	cancelExplain  chan struct{}      // closed to cut short the explanation of a failed start; else nil
	pid            int                // 0 until it is known
	pendingChild   vfork.PendingChild // of a blocking start, until pid is known
	stdout, stderr *stream
	cgroup         *cgroup // nil without control groups

	// Below: owned by the loop or a helper.
	command       command
	cgroupChosen  bool         // cgroup is settled, which may be nil
	launch        vfork.Launch // until its exec is over
	execErrno     unix.Errno   // why the program was not executed
	textBusyTries int          // how often it was tried again because the program was open for writing
	pidfd         int          // -1: there is none
	startedAt     int64
	endedAt       int64
	startDelay    time.Duration
	waitStatus    syscall.WaitStatus
	usage         syscall.Rusage
	pumps         *pumps // nil when the task writes into the streams itself

	monitorIndex int  // 1 + its index in outputMonitor.attempts, whose lock guards it; 0 = not among them
	growsFast    bool // one of its streams does, by the last check; the monitor's
}

// phase is how far the attempt's process is.
type phase uint8

const (
	phaseNotStarted phase = iota // waits, or is about to be forked
	phaseStarting                // is being forked, or has not executed its program yet
	phaseRunning                 // the leader runs, as far as is known
	phaseExited                  // the leader is a zombie and stays unreaped, which reserves its number
	phaseReaped                  // another process may have the number: it must not be signalled
)

// endCause is why the executor ended an attempt. The first cause stands, except that a start that
// has timed out may be ended for another cause.
type endCause uint8

const (
	causeNone endCause = iota
	causeKill
	causeTimeout
	causeClose
)

// result is the result of an attempt that was ended for this cause, and a text for its record.
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

// leaderExited checks for the leader's exit. A leader that ended by itself is reaped. One that is
// being ended stays a zombie, which keeps its number, so that its process group can still be
// signalled. p.mu is held.
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

// reapLeader collects the leader's status. p.mu is held.
func (p *Process) reapLeader(a *attempt, options int) bool {
	for {
		pid, err := syscall.Wait4(a.pid, &a.waitStatus, options, &a.usage)
		switch {
		case err == syscall.EINTR:
			continue
		case pid == a.pid:
		case err != nil:
			// Another process reaped it, so its status is unknown.
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

// hasExited tells whether the process has ended. It does not reap the process.
func hasExited(pid int) bool {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return err == nil && info.Signo != 0 || err == unix.ECHILD
		}
	}
}

// peakMemoryKB is the most memory that the attempt's processes had; 0 when that is unknown. The
// kernel's figure includes the moment between fork and exec, when the child is still a copy of this
// process, so a figure that does not exceed our own peak says nothing. (The smaller the forking
// process, the more is known.) Both figures are rounded by a few pages per CPU, hence the margin.
// Our own peak never falls, so it is read again only when the last known value does not decide.
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

// result says how the attempt ended, from the process's status and the cause.
func (a *attempt) result() (r messages.AttemptResult, rc int32, log string) {
	rc = int32(a.waitStatus.ExitStatus())
	if a.waitStatus.Signaled() {
		rc = 128 + int32(a.waitStatus.Signal())
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

// ownPeakKB is the most memory that this process has ever had.
func ownPeakKB() int64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // cannot fail
	return u.Maxrss
}

// finishAttempt handles the end of an attempt whose processes are gone and whose slots are free.
// That may take long, so a helper calls it.
func (p *Process) finishAttempt(a *attempt) {
	p.freezeOutput(a)
	p.reportFinal(p.finalReport(a))
	p.releaseAttempt(a)
}

// endTakesLong tells whether the final report needs more than some short system calls. Where a
// survivor may be writing, the seals wait for its write.
func (p *Process) endTakesLong(a *attempt) bool {
	short := int64(p.cfg.InlineMax)
	if a.order.Capture || a.pumps != nil || a.stdout.Size() > short || a.stderr.Size() > short {
		return true
	}
	if a.cgroup == nil {
		return groupExists(a.pid)
	}
	return a.cgroup.populated()
}

// releaseAttempt frees what a reported attempt still holds. It may take long.
func (p *Process) releaseAttempt(a *attempt) {
	survivors := true
	if a.stdout != nil {
		survivors = p.cgroups.release(a.cgroup)
	}
	p.dropOutput(a, survivors)
}

// dropOutput frees the attempt's output, which survivors may still hold.
func (p *Process) dropOutput(a *attempt, survivors bool) {
	if a.stdout != nil {
		a.stdout.freeOnRelease.Store(survivors)
		a.stderr.freeOnRelease.Store(survivors)
		a.stdout.release()
		a.stderr.release()
	}
	p.unfinished.Done()
}

// reportFinal makes the final report of an attempt.
func (p *Process) reportFinal(r Report) {
	p.removeReported(r)
	p.cfg.Sink(r)
}
