package worker

import (
	"cmp"
	"slices"

	"github.com/caravan-dag/caravan/executor/lease"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// partition is what a worker knows of what it may do: the session of its leader, its attempts, and the leases
// under which they may run. It only decides, without a clock, a lock or I/O. Its caller
// passes the time, holds a lock, and carries out what partition answers.
//
// Times are nanoseconds since boot (sinceBoot), a clock that goes on while the machine sleeps.
//
// The rules of package internal/model that it has to keep: HighestEpoch, NewestSession, StartOnce,
// BeginUnderLease, LeaseEndsAttempts and OverIsOver.
type partition struct {
	session  workerpb.Session // the newest one, with the highest epoch; number 0: the link has begun none
	attempts attemptTable
	// leases are those of the partitions of a cluster: of run r is number r mod len. Nil on a single node:
	// attempts need no lease, and are never ended.
	leases []lease.Lease
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
	case !p.mayBegin(key, now):
		return orderLeaseOver
	}
	p.attempts[key] = &trackedAttempt{Attempt: lifecycle.Attempt{GrantedAt: grantedAt}}
	return orderEntered
}

// mayBegin reports whether an attempt may be accepted, or begin. It is asked again right before the intent is
// written, since an order may have waited for long.
func (p *partition) mayBegin(key messages.AttemptKey, now int64) bool {
	return p.leases == nil || p.leases[p.leaseOf(key)].Permits(now)
}

// leaseOf returns the index of an attempt's lease.
func (p *partition) leaseOf(key messages.AttemptKey) int {
	return int(uint64(key.Run) % uint64(len(p.leases)))
}

// extendLease moves the deadline of a lease, unless an attempt is left for which it is over.
func (p *partition) extendLease(index int, until, now int64) (extended bool) {
	return index < len(p.leases) && p.leases[index].Extend(until, now, func() bool { return p.hasUnended(index) })
}

// hasUnended reports whether an attempt of a lease waits, is being started or runs. It costs O(attempts), and
// is asked only when the lease is over.
func (p *partition) hasUnended(index int) bool {
	for key, a := range p.attempts {
		if a.State() != lifecycle.Ended && p.leaseOf(key) == index {
			return true
		}
	}
	return false
}

// overdue returns what the caller has to end because its lease is over: the orders to revoke, and the
// attempts to kill, each in the order of their keys. It may be asked again until both are empty.
func (p *partition) overdue(now int64) (revoke, kill []messages.AttemptKey) {
	for i := range p.leases {
		if !p.leases[i].IsOver(now, func() bool { return p.hasUnended(i) }) {
			continue
		}
		for key, a := range p.attempts {
			switch {
			case p.leaseOf(key) != i:
			case a.State() == lifecycle.Queued:
				revoke = append(revoke, key)
			case a.State() != lifecycle.Ended:
				kill = append(kill, key)
			}
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
