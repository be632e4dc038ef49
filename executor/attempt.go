package executor

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/vfork"
	"github.com/caravan-dag/caravan/messages"
)

// attempt is one order from Start to its final report.
type attempt struct {
	order Order

	// Guarded by Process.mu.
	prev, next *attempt
	queued     bool  // waits for slots
	holds      bool  // holds its slots
	starting   bool  // was admitted, and its start is not over
	postponed  int   // how often its start has failed for a shortage
	since      int64 // ns since the epoch: it has been there since, and room for it

	ended atomic.Bool // the process is gone and the sizes of its output are final

	mu      sync.Mutex // guards what follows
	phase   phase
	cause   cause
	grace   time.Duration // of a kill that came before the process
	killAt  time.Time     // when SIGKILL is due, once there is a cause
	forced  bool          // SIGKILL was sent
	told    bool          // SIGTERM was sent
	killer  *time.Timer
	timeout *time.Timer
	tries   int           // starts so far: a timer of a former one does nothing
	birth   vfork.Birth   // while it is starting
	hurry   chan struct{} // closed by end while the failure of its start is being explained; else nil
	pid     int
	pidfd   *os.File // nil when the kernel has none
	began   int64
	status  syscall.WaitStatus
	usage   syscall.Rusage
	out     *stream
	err     *stream
	pumps   *pumps  // nil when it prints into the streams itself
	group   *cgroup // nil where there are none
}

// phase is how far the attempt's process is.
type phase uint8

const (
	unborn   phase = iota // waits, or is about to be forked
	starting              // is being forked, or on its way to its program: signals reach it by its birth
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

func newAttempt(o Order) *attempt { return &attempt{order: o} }

// leaderEnded looks whether the leader has ended. One that ended by itself is
// reaped; one that we are ending stays a zombie, so that its process group can
// still be signalled by a number which is surely its own.
func (a *attempt) leaderEnded() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cause == causeNone {
		return a.reap(unix.WNOHANG)
	}
	if !exited(a.pid) {
		return false
	}
	a.phase = zombie
	return true
}

// reap collects the leader's status. a.mu is held.
func (a *attempt) reap(options int) bool {
	for {
		pid, err := syscall.Wait4(a.pid, &a.status, options, &a.usage)
		switch {
		case err == syscall.EINTR:
		case pid == a.pid:
			a.phase = reaped
			a.stopTimers()
			return true
		case err != nil:
			// Somebody else reaped it. Nothing is known of its end but that it came.
			a.status, a.phase = 0xff00, reaped
			a.stopTimers()
			return true
		default:
			return false
		}
	}
}

func (a *attempt) stopTimers() {
	if a.timeout != nil {
		a.timeout.Stop()
	}
	if a.killer != nil {
		a.killer.Stop()
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

// awaitLeader blocks until leaderEnded: in the netpoller, or in waitid where the
// kernel has no pidfd.
func (a *attempt) awaitLeader() {
	if a.pidfd != nil {
		defer a.pidfd.Close()
		if conn, err := a.pidfd.SyscallConn(); err == nil {
			if conn.Read(func(uintptr) bool { return a.leaderEnded() }) == nil {
				return
			}
		}
	}
	for ended := false; !ended; ended = a.leaderEnded() {
		// An error is EINTR, or ECHILD, which leaderEnded sees too.
		_ = unix.Waitid(unix.P_PID, a.pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
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
	a.mu.Lock()
	defer a.mu.Unlock()
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
