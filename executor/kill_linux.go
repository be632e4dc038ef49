package executor

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor/procfs"
)

// endAttempt begins to end the attempt: SIGTERM to its group, after grace SIGKILL. An attempt that
// has ended by itself is left to its own end, even if that was not noticed yet. Later calls can only
// bring SIGKILL forward. An attempt that is starting is ended too, wherever its start hangs. p.mu is
// held.
func (p *Process) endAttempt(a *attempt, c endCause, grace time.Duration) {
	first := a.cause == causeNone
	beforeExec := a.phase <= phaseStarting // as far as is known
	switch {
	case a.phase == phaseReaped:
		return
	case beforeExec:
		if first || grace < a.killGrace {
			a.killGrace = grace
		}
		if first && a.pid != 0 {
			a.exitedFirst = hasExited(a.pid)
		}
	case a.exitedFirst, first && hasExited(a.pid):
		return
	}
	if first || beforeExec && a.cause == causeTimeout { // a timeout does not count before the exec: see resetFailedStart
		a.cause = c
	}
	switch {
	case a.phase == phaseNotStarted:
		if a.cancelExplain != nil {
			close(a.cancelExplain)
			a.cancelExplain = nil
		}
		return
	case a.exitedFirst: // its background children, if it executed its program, are spared
		return
	case first && grace > 0:
		p.sendSIGTERM(a)
	}
	p.scheduleSIGKILL(a, grace)
}

// beginStart says that the attempt is about to be forked, which may take long, so its timeout
// begins. It returns true when the attempt is to be ended instead. p.mu is held.
func (p *Process) beginStart(a *attempt) (end bool) {
	if a.phase != phaseStarting {
		a.phase, a.startedAt = phaseStarting, p.cfg.Now()
		if a.order.Timeout > 0 {
			a.timeoutAt = p.elapsed() + a.order.Timeout
			p.scheduleDeadline(a)
		}
	}
	if a.cause != causeNone {
		go p.startFailed(a, errEndedFirst)
	}
	return a.cause != causeNone
}

// isEnding tells whether the attempt is being ended: then it is not tried again. p.mu is not held.
func (p *Process) isEnding(a *attempt) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return a.cause != causeNone
}

// resetFailedStart says that the start has failed, and returns why the attempt was to be ended.
// later says that it will be tried again. Then a timeout is forgotten, since an attempt that never
// began does not time out. p.mu is held.
func (p *Process) resetFailedStart(a *attempt, later bool) (why endCause) {
	a.sigkillAt, a.timeoutAt, a.sigtermSent, a.sigkillSent, a.pid = 0, 0, false, false, 0
	p.scheduleDeadline(a)
	a.phase, a.exitedFirst = phaseNotStarted, false
	why = a.cause
	if later && why == causeTimeout {
		a.cause = causeNone
	}
	return why
}

// deliverPendingSignals sends the signals that endAttempt could not send before the process was
// there. p.mu is held.
func (p *Process) deliverPendingSignals(a *attempt) {
	if a.cause == causeNone {
		return
	}
	if a.killGrace > 0 && !a.sigtermSent {
		p.sendSIGTERM(a)
	}
	p.scheduleSIGKILL(a, a.killGrace)
}

// sendSIGTERM sends SIGTERM. p.mu is held.
func (p *Process) sendSIGTERM(a *attempt) {
	a.sigtermSent = a.signalGroup(unix.SIGTERM)
	a.signalGroup(unix.SIGCONT) // a stopped process does not act on SIGTERM
}

// scheduleSIGKILL sends SIGKILL after grace, unless it is due earlier. p.mu is held.
func (p *Process) scheduleSIGKILL(a *attempt, grace time.Duration) {
	if a.sigkillSent {
		return
	}
	if grace <= 0 {
		p.sendSIGKILL(a)
		return
	}
	if at := p.elapsed() + grace; a.sigkillAt == 0 || at < a.sigkillAt {
		a.sigkillAt = at
		p.scheduleDeadline(a)
	}
}

// sigkillRetry is how soon SIGKILL is sent again to an attempt that had no process yet.
const sigkillRetry = 10 * time.Millisecond

// sendSIGKILL sends SIGKILL to all that is left of the group. p.mu is held.
func (p *Process) sendSIGKILL(a *attempt) {
	a.sigkillAt = 0
	switch a.phase {
	case phaseStarting:
		if a.sigkillSent = a.signalGroup(unix.SIGKILL); !a.sigkillSent {
			a.sigkillAt = p.elapsed() + sigkillRetry
		}
	case phaseRunning, phaseExited:
		a.sigkillSent = true
		a.signalGroup(unix.SIGKILL)
		if a.cgroup != nil {
			killing := make(chan struct{})
			a.cgroupKilled = killing
			go func() {
				a.cgroup.kill()
				close(killing)
			}()
		}
	}
	p.scheduleDeadline(a)
}

// signalGroup signals the group. The leader is unreaped, so that the number is the group's own. A
// leader that has left its group, or not made it yet, is signalled by itself. It returns whether there
// is a process, dead or alive. p.mu is held.
func (a *attempt) signalGroup(sig unix.Signal) bool {
	if a.pid == 0 {
		return a.pendingChild.Signal(sig)
	}
	if unix.Kill(-a.pid, sig) == unix.ESRCH {
		// An error means that the leader has ended, or now belongs to another user. The wait for its
		// exit shows which.
		_ = unix.Kill(a.pid, sig)
	}
	return true
}

// waitGroupExit handles an attempt that is being ended and whose leader is a zombie: it makes the
// final report once the whole group is dead. Members that outlive the leader have the rest of the
// grace.
func (p *Process) waitGroupExit(a *attempt) {
	for wait := time.Millisecond; !p.sigkillWasSent(a) && p.groups.hasLiving(a.pid); wait = min(2*wait, 20*time.Millisecond) {
		time.Sleep(wait)
	}
	// The last SIGKILL goes out while the zombie still reserves the number. So it also reaches a
	// member that the scan of /proc missed because it was being forked.
	p.mu.Lock()
	a.sigkillSent, a.sigkillAt = true, 0
	p.scheduleDeadline(a)
	a.signalGroup(unix.SIGKILL)
	killing := a.cgroupKilled
	p.mu.Unlock()
	if killing != nil {
		<-killing
	}
	if a.cgroup != nil {
		a.cgroup.killed = true
		a.cgroup.kill()
	}
	p.mu.Lock()
	p.reapLeader(a, 0)
	p.mu.Unlock()
	began, warned := time.Now(), false
	for wait := time.Millisecond; a.cgroup != nil && a.cgroup.populated() || groupExists(a.pid) && p.groups.hasLiving(a.pid); wait = min(2*wait, 20*time.Millisecond) {
		time.Sleep(wait)
		if !warned && time.Since(began) > 10*time.Second {
			warned = true
			p.cfg.Logger.Warn("process group survives SIGKILL", "pgid", a.pid, LogKey(a.order.Key))
		}
	}
	p.mu.Lock()
	a.endedAt = max(p.cfg.Now(), a.startedAt)
	p.releaseSlots(a, a.endedAt)
	p.mu.Unlock()
	p.finishAttempt(a)
}

func (p *Process) sigkillWasSent(a *attempt) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return a.sigkillSent
}

// groupExists tells whether the group has a member, including zombies.
func groupExists(pgid int) bool { return unix.Kill(-pgid, 0) != unix.ESRCH }

// elapsed is the time on the clock of deadlines.
func (p *Process) elapsed() time.Duration { return time.Since(p.clockStart) }

// scheduleDeadline sets the attempt's timer to its next deadline. p.mu is held.
func (p *Process) scheduleDeadline(a *attempt) {
	due := a.sigkillAt
	if due == 0 || a.timeoutAt != 0 && a.timeoutAt < due {
		due = a.timeoutAt
	}
	switch {
	case due == 0:
		if a.deadlineTimer != nil {
			a.deadlineTimer.Stop()
		}
	case a.deadlineTimer == nil:
		a.deadlineTimer = time.AfterFunc(due-p.elapsed(), func() { p.handleDeadline(a) })
	default:
		a.deadlineTimer.Reset(due - p.elapsed())
	}
}

// handleDeadline acts on deadlines that have passed, whatever the loop waits for. A deadline may
// have been removed since the timer fired.
func (p *Process) handleDeadline(a *attempt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.elapsed()
	if a.timeoutAt != 0 && a.timeoutAt <= now {
		a.timeoutAt = 0
		p.endAttempt(a, causeTimeout, p.cfg.Grace)
	}
	if a.sigkillAt != 0 && a.sigkillAt <= now {
		p.sendSIGKILL(a)
	}
	p.scheduleDeadline(a)
}

// processGroups tells which process groups have living members, not counting zombies. kill(2) with
// signal 0 cannot tell, since it counts zombies, and the leader is kept as one. One scan of /proc
// answers all calls that came before it began, so that a kill of 1,000 attempts costs a few scans.
type processGroups struct {
	mu        sync.Mutex
	scannedAt time.Time    // when the last scan began
	living    map[int]bool // of each group that the last scan has seen: whether a member lives
}

// hasLiving tells whether a process of the group lives. When /proc cannot be read, for instance because
// no descriptor is left, it uses signal 0: so a group of zombies counts as living until a scan succeeds.
func (g *processGroups) hasLiving(pgid int) bool {
	asked := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.scannedAt.After(asked) {
		g.scannedAt = time.Now()
		g.living = map[int]bool{}
		list, _ := procfs.List("/proc")
		for _, p := range list {
			g.living[p.Group] = g.living[p.Group] || !p.Dead
		}
	}
	if len(g.living) == 0 { // /proc cannot be read
		return groupExists(pgid)
	}
	return g.living[pgid]
}
