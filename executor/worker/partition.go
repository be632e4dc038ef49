package worker

import (
	"cmp"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// partition is what a worker knows of a partition: the session of its leader, its attempts, and the lease
// under which they may run. It only decides, without a clock, a lock or I/O. Its caller
// passes the time, holds a lock, and carries out what partition answers.
//
// Times are nanoseconds since boot (sinceBoot), a clock that goes on while the machine sleeps.
//
// The rules of package internal/model that it has to keep: HighestEpoch, NewestSession, StartOnce,
// BeginUnderLease, LeaseEndsAttempts, OverIsOver and LeaseFromSending.
type partition struct {
	session  workerpb.Session // the newest one, with the highest epoch; number 0: the link has begun none
	attempts attemptTable
	lease    time.Duration // how long a renewal lasts; 0: attempts need no lease, and are never ended
	deadline int64         // the lease is over from then on; 0: it has not begun
	ending   bool          // the lease is over, and attempts under it are left
}

// beginSession answers a Lead. It returns whether the session has begun: then the caller tells all
// attempts in it. Else reason says why not. The attempts stay as they are.
func (p *partition) beginSession(s workerpb.Session) (reason workerpb.IgnoreReason, begun bool) {
	switch {
	case s.Epoch < p.session.Epoch:
		return workerpb.IgnoreReason_IGNORE_REASON_STALE_EPOCH, false
	case s.Epoch == p.session.Epoch && s.Number <= p.session.Number:
		return workerpb.IgnoreReason_IGNORE_REASON_STALE_SESSION, false
	}
	p.session = s
	return 0, true
}

// endSession notes that the link has ended: the next link may number its sessions from 1 again. Epoch and
// attempts stay, and the lease goes on.
func (p *partition) endSession() { p.session.Number = 0 }

// checkSession answers orders: they count in the present session only. Else reason says why not.
func (p *partition) checkSession(s workerpb.Session) (reason workerpb.IgnoreReason, present bool) {
	switch {
	case s.Epoch != p.session.Epoch:
		return workerpb.IgnoreReason_IGNORE_REASON_STALE_EPOCH, false
	case s.Number != p.session.Number || s.Number == 0:
		return workerpb.IgnoreReason_IGNORE_REASON_STALE_SESSION, false
	}
	return 0, true
}

// orderAnswer is what a partition answers to an order of the present session.
type orderAnswer uint8

const (
	orderEntered   orderAnswer = iota // it is in the table now, and is to be started
	orderKnown                        // the table has this attempt: its state is told again
	orderKeyUsed                      // the number is used up
	orderGivenBack                    // the worker does not begin attempts any more
	orderLeaseOver                    // the lease is over, or has not begun: given back under its number
)

// enterOrder answers an order. hasStarted says whether the Process has begun an attempt of this key, which
// may not be in the table any more. An order is entered only before the deadline.
func (p *partition) enterOrder(key messages.AttemptKey, grantedAt, now int64, hasStarted, startsNoMore bool) orderAnswer {
	a := p.attempts[key]
	switch {
	case a != nil && a.GrantedAt == grantedAt:
		return orderKnown
	case a != nil, hasStarted:
		return orderKeyUsed
	case startsNoMore:
		return orderGivenBack
	case !p.mayBegin(now):
		return orderLeaseOver
	}
	p.attempts[key] = &trackedAttempt{Attempt: lifecycle.Attempt{GrantedAt: grantedAt}}
	return orderEntered
}

// mayBegin reports whether an attempt may be accepted, or begin. It is asked again right before the intent is
// written, since an order may have waited for long.
func (p *partition) mayBegin(now int64) bool {
	return p.lease == 0 || now < p.deadline && !p.ending
}

// renew extends the lease, from the moment at which the heartbeat was sent that the renewal answers. The
// leader counts from its receipt, which is later. A renewal of another epoch than the present one is
// refused, and so is any renewal while an attempt is left whose lease is over: an order that waits would
// begin under the next lease, when its leader has long counted it as lost.
func (p *partition) renew(epoch uint64, sentAt, now int64) (renewed bool) {
	p.checkDeadline(now)
	if p.lease == 0 || epoch != p.session.Epoch || p.ending {
		return false
	}
	until := sentAt + int64(p.lease)
	if until <= max(now, p.deadline) {
		return false // late, or a later heartbeat was answered first
	}
	p.deadline = until
	return true
}

// checkDeadline notes whether the lease is over with attempts left.
func (p *partition) checkDeadline(now int64) {
	p.ending = p.lease != 0 && (p.ending || now >= p.deadline) && p.hasUnended()
}

// hasUnended reports whether an attempt waits, is being started or runs. It costs O(attempts), and is
// called for renewals and deadlines, not for each order.
func (p *partition) hasUnended() bool {
	for _, a := range p.attempts {
		if a.State() != lifecycle.Ended {
			return true
		}
	}
	return false
}

// overdue returns what the caller has to end when the lease is over: the orders to revoke, then the
// attempts to kill, each in the order of their keys. It may be asked again until both are empty.
func (p *partition) overdue(now int64) (revoke, kill []messages.AttemptKey) {
	p.checkDeadline(now)
	if !p.ending {
		return nil, nil
	}
	for key, a := range p.attempts {
		switch a.State() {
		case lifecycle.Queued:
			revoke = append(revoke, key)
		case lifecycle.Starting, lifecycle.Running:
			kill = append(kill, key)
		}
	}
	slices.SortFunc(revoke, compareKeys)
	slices.SortFunc(kill, compareKeys)
	return revoke, kill
}

// compareKeys orders keys by run, task and attempt.
func compareKeys(a, b messages.AttemptKey) int {
	return cmp.Or(cmp.Compare(a.Run, b.Run), cmp.Compare(a.Task, b.Task), cmp.Compare(a.Attempt, b.Attempt))
}
