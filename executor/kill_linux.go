package executor

import (
	"time"

	"golang.org/x/sys/unix"
)

// end begins to end the attempt: SIGTERM to its group, after grace SIGKILL. An
// attempt that has ended by itself, even if nobody noticed yet, is left to its own
// end. Later calls can only bring SIGKILL forward. One that is starting is ended too,
// wherever its start hangs. p.mu is held.
func (p *Process) end(a *attempt, c cause, grace time.Duration) {
	switch {
	case a.phase == reaped:
		return
	case a.phase == unborn:
		if a.cause == causeNone || grace < a.grace {
			a.grace = grace
		}
		if a.cause == causeNone {
			a.cause = c
		}
		if a.hurry != nil {
			close(a.hurry)
			a.hurry = nil
		}
		return
	case a.phase == starting:
		if a.cause == causeNone {
			a.late = a.pid != 0 && exited(a.pid)
		}
		if a.cause == causeNone || grace < a.grace {
			a.grace = grace
		}
		if a.cause == causeTimeout {
			a.cause = c // what never began does not time out: see unstart
		}
		if a.late { // what it has left in its group, if it came to its program, is left alone
			if a.cause == causeNone {
				a.cause = c
			}
			return
		}
	case a.late, a.cause == causeNone && exited(a.pid):
		return
	}
	if a.cause == causeNone {
		a.cause = c
		if grace > 0 {
			p.terminate(a)
		}
	}
	p.forceIn(a, grace)
}

// startOrEnd says that the attempt is about to be forked, which may take long: the timeout begins.
// It tells whether the attempt is to be ended: then none is forked. p.mu is held.
func (p *Process) startOrEnd(a *attempt) (end bool) {
	if a.phase != starting {
		a.phase, a.began = starting, p.cfg.Now()
		if a.order.Timeout > 0 {
			a.timeoutAt = p.time() + a.order.Timeout
			p.schedule(a)
		}
	}
	if a.cause != causeNone {
		go p.failed(a, errEnded)
	}
	return a.cause != causeNone
}

// toBeEnded tells whether the attempt is to be ended: then it is not tried again. p.mu is not held.
func (p *Process) toBeEnded(a *attempt) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return a.cause != causeNone
}

// unstart says that the start has failed, and returns why it was to be ended. later says
// that it will be tried again: then a timeout is forgotten, since what never began does not
// time out. p.mu is held.
func (p *Process) unstart(a *attempt, later bool) (why cause) {
	a.killAt, a.timeoutAt, a.told, a.forced, a.pid = 0, 0, false, false, 0
	p.schedule(a)
	a.phase, a.late = unborn, false
	why = a.cause
	if later && why == causeTimeout {
		a.cause = causeNone
	}
	return why
}

// born is end's other half: a signal that has not reached the process does now. p.mu is
// held.
func (p *Process) born(a *attempt) {
	if a.cause == causeNone {
		return
	}
	if a.grace > 0 && !a.told {
		p.terminate(a)
	}
	p.forceIn(a, a.grace)
}

// terminate sends SIGTERM. p.mu is held.
func (p *Process) terminate(a *attempt) {
	a.told = a.signal(unix.SIGTERM)
	a.signal(unix.SIGCONT) // a stopped process takes no SIGTERM
}

// forceIn sends SIGKILL when grace is over, unless it is due earlier. p.mu is held.
func (p *Process) forceIn(a *attempt, grace time.Duration) {
	if a.forced {
		return
	}
	if grace <= 0 {
		p.force(a)
		return
	}
	if at := p.time() + grace; a.killAt == 0 || at < a.killAt {
		a.killAt = at
		p.schedule(a)
	}
}

// chase is how soon SIGKILL is tried again for what was about to be forked.
const chase = 10 * time.Millisecond

// force sends SIGKILL to whoever is left of the group. p.mu is held.
func (p *Process) force(a *attempt) {
	a.killAt = 0
	switch a.phase {
	case starting:
		if a.forced = a.signal(unix.SIGKILL); !a.forced {
			a.killAt = p.time() + chase
		}
	case alive, zombie:
		a.forced = true
		a.signal(unix.SIGKILL)
		if a.group != nil {
			killing := make(chan struct{})
			a.killing = killing
			go func() {
				a.group.kill()
				close(killing)
			}()
		}
	}
	p.schedule(a)
}

// signal signals the group; the leader is unreaped, so that the number is the
// group's own. A leader that has left its group is signalled by itself, as is one that has
// none yet. It returns whether there is a process, dead or alive. p.mu is held.
func (a *attempt) signal(sig unix.Signal) bool {
	if a.pid == 0 {
		return a.pending.Signal(sig)
	}
	if unix.Kill(-a.pid, sig) == unix.ESRCH {
		// An error means that it has ended, or that it is another user's by now; what
		// becomes of it shows in the wait.
		_ = unix.Kill(a.pid, sig)
	}
	return true
}

// bury sees an attempt that we ended, and whose leader is a zombie, to its final report,
// once its whole group is dead. Members that outlive the leader have the rest of the grace.
func (p *Process) bury(a *attempt) {
	for wait := time.Millisecond; !p.isForced(a) && p.groups.alive(a.pid); wait = min(2*wait, 20*time.Millisecond) {
		time.Sleep(wait)
	}
	// The last SIGKILL goes out while the zombie still pins the number: a member that
	// the look at /proc missed (it was being forked) cannot escape it.
	p.mu.Lock()
	a.forced, a.killAt = true, 0
	p.schedule(a)
	a.signal(unix.SIGKILL)
	killing := a.killing
	p.mu.Unlock()
	if killing != nil {
		<-killing
	}
	if a.group != nil {
		a.group.killed = true
		a.group.kill()
	}
	p.mu.Lock()
	p.reap(a, 0)
	p.mu.Unlock()
	began, warned := time.Now(), false
	for wait := time.Millisecond; a.group != nil && a.group.populated() || exists(a.pid) && p.groups.alive(a.pid); wait = min(2*wait, 20*time.Millisecond) {
		time.Sleep(wait)
		if !warned && time.Since(began) > 10*time.Second {
			warned = true
			p.cfg.Logger.Warn("process group survives SIGKILL", "pgid", a.pid, "key", a.order.Key)
		}
	}
	p.mu.Lock()
	a.stop = max(p.cfg.Now(), a.began)
	p.release(a, a.stop)
	p.mu.Unlock()
	p.finish(a)
}

func (p *Process) isForced(a *attempt) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return a.forced
}

// exists tells whether the group has a member, be it a zombie.
func exists(pgid int) bool { return unix.Kill(-pgid, 0) != unix.ESRCH }

// time is now, on the clock of deadlines.
func (p *Process) time() time.Duration { return time.Since(p.clock) }

// schedule sets the attempt's timer to its next deadline. p.mu is held.
func (p *Process) schedule(a *attempt) {
	due := a.killAt
	if due == 0 || a.timeoutAt != 0 && a.timeoutAt < due {
		due = a.timeoutAt
	}
	switch {
	case due == 0:
		if a.timer != nil {
			a.timer.Stop()
		}
	case a.timer == nil:
		a.timer = time.AfterFunc(due-p.time(), func() { p.expire(a) })
	default:
		a.timer.Reset(due - p.time())
	}
}

// expire does what is due, whatever the loop waits for. It does nothing when the deadline has
// gone meanwhile.
func (p *Process) expire(a *attempt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.time()
	if a.timeoutAt != 0 && a.timeoutAt <= now {
		a.timeoutAt = 0
		p.end(a, causeTimeout, p.cfg.Grace)
	}
	if a.killAt != 0 && a.killAt <= now {
		p.force(a)
	}
	p.schedule(a)
}
