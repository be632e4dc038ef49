package worker

import (
	"slices"
	"testing"

	"github.com/caravan-dag/caravan/executor/lease"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

const (
	staleEpoch   = workerpb.IgnoreReason_IGNORE_REASON_STALE_EPOCH
	staleSession = workerpb.IgnoreReason_IGNORE_REASON_STALE_SESSION
)

// TestNewestSessionOfTheHighestEpochCounts leads a partition in several epochs and sessions.
func TestNewestSessionOfTheHighestEpochCounts(t *testing.T) {
	p := partition{attempts: attemptTable{}}
	for i, c := range []struct {
		lead   workerpb.Session
		reason workerpb.IgnoreReason
		begun  bool
	}{
		{workerpb.Session{Epoch: 4, Number: 7}, 0, true},
		{workerpb.Session{Epoch: 3, Number: 9}, staleEpoch, false},
		{workerpb.Session{Epoch: 4, Number: 7}, staleSession, false},
		{workerpb.Session{Epoch: 4, Number: 6}, staleSession, false},
		{workerpb.Session{Epoch: 4, Number: 8}, 0, true},
		{workerpb.Session{Epoch: 5, Number: 1}, 0, true},
		{workerpb.Session{Epoch: 4, Number: 9}, staleEpoch, false},
	} {
		if reason, begun := p.beginSession(c.lead); reason != c.reason || begun != c.begun {
			t.Errorf("lead %d: %v, %v", i, reason, begun)
		}
	}
	for s, want := range map[workerpb.Session]workerpb.IgnoreReason{
		{Epoch: 4, Number: 8}: staleEpoch, {Epoch: 6, Number: 1}: staleEpoch, {Epoch: 5, Number: 2}: staleSession, {Epoch: 5}: staleSession,
	} {
		if reason, present := p.checkSession(s); present || reason != want {
			t.Errorf("orders of %v: %v, %v", s, reason, present)
		}
	}
	if _, present := p.checkSession(workerpb.Session{Epoch: 5, Number: 1}); !present {
		t.Error("orders of the present session are refused")
	}
	p.endSession()
	if _, present := p.checkSession(workerpb.Session{Epoch: 5}); present {
		t.Error("orders without a session are accepted")
	}
	if _, begun := p.beginSession(workerpb.Session{Epoch: 4, Number: 20}); begun {
		t.Error("the highest epoch is forgotten with the link")
	}
	if _, begun := p.beginSession(workerpb.Session{Epoch: 5, Number: 1}); !begun {
		t.Error("the next link cannot count its own sessions")
	}
}

// TestOrdersAreEnteredOnce has an answer for each state of the table.
func TestOrdersAreEnteredOnce(t *testing.T) {
	p := partition{attempts: attemptTable{}}
	k := key(1)
	for i, c := range []struct {
		grantedAt                int64
		hasStarted, startsNoMore bool
		want                     orderAnswer
	}{
		{5, true, false, orderKeyUsed}, {5, false, true, orderGivenBack}, {5, false, false, orderEntered},
		{5, true, true, orderKnown}, {6, false, false, orderKeyUsed},
	} {
		if got := p.enterOrder(k, c.grantedAt, 0, c.hasStarted, c.startsNoMore); got != c.want {
			t.Errorf("order %d: %v, want %v", i, got, c.want)
		}
	}
	if revoke, kill := p.overdue(1 << 60); revoke != nil || kill != nil {
		t.Errorf("without a lease it ends %v, %v", revoke, kill)
	}
}

// TestPartitionsHaveLeasesOfTheirOwn: an attempt begins under the lease of its partition.
func TestPartitionsHaveLeasesOfTheirOwn(t *testing.T) {
	p := partition{attempts: attemptTable{}, leases: make([]lease.Lease, 2)}
	of := func(run messages.RunID) messages.AttemptKey { return messages.AttemptKey{Run: run, Attempt: 1} }
	if got := p.enterOrder(of(3), 1, 0, false, false); got != orderLeaseOver {
		t.Errorf("an order before the first renewal: %v", got)
	}
	if p.extendLease(2, 100, 0) || !p.extendLease(1, 100, 0) {
		t.Error("two leases")
	}
	if p.mayBegin(of(2), 50) || !p.mayBegin(of(3), 50) || p.mayBegin(of(3), 100) {
		t.Error("one of them begins attempts until its deadline")
	}
	p.extendLease(0, 200, 50)
	p.enterOrder(of(2), 1, 50, false, false)
	p.enterOrder(of(3), 1, 50, false, false)
	if revoke, kill := p.overdue(150); !slices.Equal(revoke, []messages.AttemptKey{of(3)}) || kill != nil {
		t.Errorf("one is over: %v, %v", revoke, kill)
	}
	if p.extendLease(1, 300, 150) || !p.extendLease(0, 300, 150) {
		t.Error("the one with an attempt left is renewed, or the other one is not")
	}
}

// TestLeaseThatIsOverStaysOver ends the attempts of a lease before the next one begins.
func TestLeaseThatIsOverStaysOver(t *testing.T) {
	p := partition{attempts: attemptTable{}, leases: make([]lease.Lease, 1)}
	p.beginSession(workerpb.Session{Epoch: 4, Number: 1})
	p.extendLease(0, 100, 1)
	for task := range uint32(4) {
		if got := p.enterOrder(key(task), 1, 50, false, false); got != orderEntered {
			t.Fatalf("order %d: %v", task, got)
		}
	}
	for task, states := range [][]lifecycle.State{{}, {}, {lifecycle.Starting}, {lifecycle.Starting, lifecycle.Running}} {
		for _, state := range states {
			p.attempts[key(uint32(task))].MoveTo(state)
		}
	}
	if revoke, kill := p.overdue(99); revoke != nil || kill != nil {
		t.Errorf("before the deadline it ends %v, %v", revoke, kill)
	}
	revoke, kill := p.overdue(100)
	if !slices.Equal(revoke, []messages.AttemptKey{key(0), key(1)}) || !slices.Equal(kill, []messages.AttemptKey{key(2), key(3)}) {
		t.Errorf("it ends %v, %v", revoke, kill)
	}
	delete(p.attempts, key(0))
	delete(p.attempts, key(1))
	p.attempts[key(2)].MoveTo(lifecycle.Running)
	p.attempts[key(2)].MoveTo(lifecycle.Ended)
	if p.extendLease(0, 205, 110) || p.mayBegin(key(9), 110) {
		t.Error("renewed while an attempt is left")
	}
	if got := p.enterOrder(key(9), 1, 110, false, false); got != orderLeaseOver {
		t.Errorf("an order while an attempt is left: %v", got)
	}
	p.attempts[key(3)].MoveTo(lifecycle.Ended)
	if !p.extendLease(0, 215, 120) || !p.mayBegin(key(9), 214) || len(p.attempts) != 2 {
		t.Error("not renewed though all attempts have ended; their ends are kept")
	}
}
