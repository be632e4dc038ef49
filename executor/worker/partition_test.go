package worker

import (
	"slices"
	"testing"
	"time"

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

// TestLeaseCountsFromTheHeartbeat renews a lease late, out of order and in a former epoch.
func TestLeaseCountsFromTheHeartbeat(t *testing.T) {
	p := partition{attempts: attemptTable{}, lease: 100}
	p.beginSession(workerpb.Session{Epoch: 4, Number: 1})
	if got := p.enterOrder(key(1), 1, 0, false, false); got != orderLeaseOver {
		t.Errorf("an order before the first renewal: %v", got)
	}
	for i, c := range []struct {
		epoch       uint64
		sentAt, now int64
		renewed     bool
		deadline    int64
	}{
		{3, 10, 20, false, 0}, {5, 10, 20, false, 0}, {4, 10, 20, true, 110}, {4, 5, 30, false, 110}, {4, 40, 60, true, 140}, {4, 41, 141, false, 140}, {4, 60, 150, true, 160},
	} {
		if renewed := p.renew(c.epoch, c.sentAt, c.now); renewed != c.renewed || p.deadline != c.deadline {
			t.Errorf("renewal %d: %v, deadline %d", i, renewed, p.deadline)
		}
	}
	if !p.mayBegin(159) || p.mayBegin(160) {
		t.Error("the lease is not over at its deadline")
	}
}

// TestLeaseThatIsOverStaysOver ends the attempts of a lease before the next one begins.
func TestLeaseThatIsOverStaysOver(t *testing.T) {
	p := partition{attempts: attemptTable{}, lease: 100 * time.Nanosecond}
	p.beginSession(workerpb.Session{Epoch: 4, Number: 1})
	p.renew(4, 0, 1)
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
	if p.renew(4, 105, 110) || p.mayBegin(110) {
		t.Error("renewed while an attempt is left")
	}
	if got := p.enterOrder(key(9), 1, 110, false, false); got != orderLeaseOver {
		t.Errorf("an order while an attempt is left: %v", got)
	}
	p.attempts[key(3)].MoveTo(lifecycle.Ended)
	if !p.renew(4, 115, 120) || !p.mayBegin(214) || len(p.attempts) != 2 {
		t.Error("not renewed though all attempts have ended; their ends are kept")
	}
}
