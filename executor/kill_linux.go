package executor

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/vfork"
)

// end begins to end the attempt: SIGTERM to its group, after grace SIGKILL. An
// attempt that has ended by itself, even if nobody noticed yet, is left to its own
// end. Later calls can only bring SIGKILL forward. One that is starting is ended too,
// wherever its start hangs.
func (a *attempt) end(c cause, grace time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.endLocked(c, grace)
}

// endLocked is end while a.mu is held.
func (a *attempt) endLocked(c cause, grace time.Duration) {
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
		if a.cause == causeNone || grace < a.grace {
			a.grace = grace
		}
		if a.cause == causeTimeout {
			a.cause = c // what never began does not time out: see unstart
		}
	case a.cause == causeNone && exited(a.pid):
		return
	}
	if a.cause == causeNone {
		a.cause = c
		if grace > 0 {
			a.terminate()
		}
	}
	a.forceIn(grace)
}

// start says that the attempt is about to be forked, which may take long: the timeout
// begins, and the grace of a kill that has come before. It returns what signals the child
// by. grace is that of the timeout.
func (a *attempt) start(grace time.Duration) *vfork.Birth {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.phase = starting
	a.tries++
	try := a.tries
	switch {
	case a.cause != causeNone:
		a.forceIn(a.grace)
	case a.order.Timeout > 0:
		a.timeout = time.AfterFunc(a.order.Timeout, func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.tries == try && a.phase != unborn {
				a.endLocked(causeTimeout, grace)
			}
		})
	}
	return &a.birth
}

// again says that the child has failed and that another one will be tried, which has got no
// signal yet. It returns false when the attempt is to be ended: then none is tried.
func (a *attempt) again() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cause == causeNone
}

// unstart says that the start has failed, and returns why it was to be ended. later says
// that it will be tried again: then a timeout is forgotten, since what never began does not
// time out.
func (a *attempt) unstart(later bool) (why cause) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopTimers()
	a.timeout, a.killer, a.told, a.forced = nil, nil, false, false
	a.phase = unborn
	why = a.cause
	if later && why == causeTimeout {
		a.cause = causeNone
	}
	return why
}

// born is end's other half: the process exists now. a.mu is held.
func (a *attempt) born() {
	a.phase = alive
	if a.cause == causeNone {
		return
	}
	if a.grace > 0 && !a.told {
		a.terminate()
	}
	a.forceIn(a.grace)
}

// terminate sends SIGTERM. a.mu is held.
func (a *attempt) terminate() {
	a.told = a.signal(unix.SIGTERM)
	a.signal(unix.SIGCONT) // a stopped process takes no SIGTERM
}

// forceIn sends SIGKILL when grace is over, unless it is due earlier. a.mu is held.
func (a *attempt) forceIn(grace time.Duration) {
	if a.forced {
		return
	}
	if grace <= 0 {
		a.force()
		return
	}
	at := time.Now().Add(grace)
	if a.killer != nil {
		if !at.Before(a.killAt) {
			return
		}
		a.killer.Stop()
	}
	a.killAt = at
	a.forceAfter(grace)
}

// forceAfter calls force after a time, unless the start fails before. a.mu is held.
func (a *attempt) forceAfter(d time.Duration) {
	try := a.tries
	a.killer = time.AfterFunc(d, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.tries == try {
			a.force()
		}
	})
}

// chase is how soon SIGKILL is tried again for what was about to be forked.
const chase = 10 * time.Millisecond

// force sends SIGKILL to whoever is left of the group. a.mu is held.
func (a *attempt) force() {
	switch a.phase {
	case starting:
		if a.killer != nil {
			a.killer.Stop()
		}
		if a.forced = a.signal(unix.SIGKILL); !a.forced {
			a.forceAfter(chase)
		}
	case alive, zombie:
		a.forced = true
		a.signal(unix.SIGKILL)
		if a.group != nil {
			a.group.kill()
		}
	}
}

// signal signals the group; the leader is unreaped, so that the number is the
// group's own. A leader that has left its group is signalled by itself. It returns whether
// there is a process, dead or alive. a.mu is held.
func (a *attempt) signal(sig unix.Signal) bool {
	if a.phase == starting {
		return a.birth.Signal(sig)
	}
	if unix.Kill(-a.pid, sig) == unix.ESRCH {
		// An error means that it has ended, or that it is another user's by now; what
		// becomes of it shows in the wait.
		_ = unix.Kill(a.pid, sig)
	}
	return true
}

// bury returns when the whole group of an attempt that we ended is dead. Its
// leader is a zombie. Members that outlive the leader have the rest of the grace.
func (p *Process) bury(a *attempt) {
	for wait := time.Millisecond; !a.isForced() && p.groups.alive(a.pid); wait = min(2*wait, 20*time.Millisecond) {
		time.Sleep(wait)
	}
	// The last SIGKILL goes out while the zombie still pins the number: a member that
	// the look at /proc missed (it was being forked) cannot escape it.
	a.mu.Lock()
	a.force()
	a.reap(0)
	a.mu.Unlock()
	began, warned := time.Now(), false
	for wait := time.Millisecond; a.group != nil && a.group.populated() || exists(a.pid) && p.groups.alive(a.pid); wait = min(2*wait, 20*time.Millisecond) {
		time.Sleep(wait)
		if !warned && time.Since(began) > 10*time.Second {
			warned = true
			p.cfg.Logger.Warn("process group survives SIGKILL", "pgid", a.pid, "key", a.order.Key)
		}
	}
}

func (a *attempt) isForced() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.forced
}

// exists tells whether the group has a member, be it a zombie.
func exists(pgid int) bool { return unix.Kill(-pgid, 0) != unix.ESRCH }
