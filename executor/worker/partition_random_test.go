package worker

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/caravan-dag/caravan/executor/lease"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// randomLease is the length of a lease there.
const randomLease = 100

// randomNetwork is a partition at the end of a network that repeats, reorders, delays and loses frames, with
// leaders that are as careless as the protocol allows: they send orders and renewals in every session
// that they ever began. It knows what such leaders conclude, and whether a step breaks it.
type randomNetwork struct {
	partition
	random  *rand.Rand
	now     int64
	frames  []func()
	leads   []workerpb.Session
	session workerpb.Session                         // the newest that a leader began
	absent  map[messages.AttemptKey]workerpb.Session // the newest first report that lacked the attempt
	starts  map[messages.AttemptKey]int
	entered map[messages.AttemptKey]int64 // when the present order was entered
	silent  int64                         // leaders count the worker as silent from then on
	lost    int64                         // what was ordered before was lost to silence
	broken  error
}

func (n *randomNetwork) fail(format string, args ...any) {
	if n.broken == nil {
		n.broken = fmt.Errorf(format, args...)
	}
}

// isLater reports whether session a comes after b.
func isLater(a, b workerpb.Session) bool {
	return a.Epoch > b.Epoch || a.Epoch == b.Epoch && a.Number > b.Number
}

func (n *randomNetwork) randomKey() messages.AttemptKey { return key(uint32(n.random.IntN(4))) }

// randomLead returns a session in which a leader speaks: mostly the newest one.
func (n *randomNetwork) randomLead() workerpb.Session {
	if n.random.IntN(3) > 0 {
		return n.leads[len(n.leads)-1]
	}
	return n.leads[n.random.IntN(len(n.leads))]
}

// step takes one random step.
func (n *randomNetwork) step() {
	switch n.random.IntN(20) {
	case 0: // a leader begins a session, in the same or the next epoch
		if n.random.IntN(4) == 0 {
			n.session = workerpb.Session{Epoch: n.session.Epoch + 1}
		}
		n.session.Number++
		s := n.session
		n.leads = append(n.leads, s)
		n.frames = append(n.frames, func() { n.receiveLead(s) })
	case 1, 2: // a leader orders an attempt, in any session
		if len(n.leads) > 0 {
			s, k := n.randomLead(), n.randomKey()
			n.frames = append(n.frames, func() { n.receiveOrder(s, k) })
		}
	case 3, 4: // a heartbeat reaches a leader later, which renews then
		if len(n.leads) > 0 {
			epoch, sentAt := n.randomLead().Epoch, n.now
			n.frames = append(n.frames, func() {
				n.silent = max(n.silent, n.now+randomLease)
				n.frames = append(n.frames, func() { n.renew(epoch, sentAt) })
			})
		}
	case 5, 6, 7, 8, 9, 10, 11, 12, 13: // a frame arrives, and may stay in the network
		if len(n.frames) > 0 {
			i := n.random.IntN(len(n.frames))
			frame := n.frames[i]
			if n.random.IntN(2) == 0 {
				n.frames[i] = n.frames[len(n.frames)-1]
				n.frames = n.frames[:len(n.frames)-1]
			}
			frame()
		}
	case 14:
		n.now += int64(n.random.IntN(30))
	case 15, 16:
		n.begin(n.randomKey())
	case 17, 18: // an attempt ends; an end may be acknowledged
		k := n.randomKey()
		if a := n.attempts[k]; a != nil && a.State() == lifecycle.Running {
			a.MoveTo(lifecycle.Ended)
		} else if a != nil && a.State() == lifecycle.Ended && n.random.IntN(2) == 0 {
			delete(n.attempts, k)
		}
	case 19:
		n.endOverdue()
	}
	if n.now >= n.silent {
		n.lost = n.now
	}
	if len(n.frames) > 40 {
		n.frames = n.frames[20:] // lost
	}
}

// renew is what an agent does with a renewal.
func (n *randomNetwork) renew(epoch uint64, sentAt int64) {
	if epoch == n.partition.session.Epoch {
		n.extendLease(0, sentAt+randomLease, n.now)
	}
}

func (n *randomNetwork) receiveLead(s workerpb.Session) {
	if _, begun := n.partition.beginSession(s); !begun {
		return
	}
	for task := range uint32(4) {
		if k := key(task); n.attempts[k] == nil && isLater(s, n.absent[k]) {
			n.absent[k] = s
		}
	}
}

func (n *randomNetwork) receiveOrder(s workerpb.Session, k messages.AttemptKey) {
	if _, present := n.checkSession(s); !present {
		return
	}
	if n.enterOrder(k, 1, n.now, n.starts[k] > 0, false) != orderEntered {
		return
	}
	n.entered[k] = n.now
	if isLater(n.absent[k], s) {
		n.fail("order of session %v for %v was entered after session %v reported without it", s, k, n.absent[k])
	}
	if n.now >= n.silent {
		n.fail("order for %v was entered while leaders count the worker as silent", k)
	}
}

// begin begins an attempt that waits, as the loop does after it has asked mayBegin.
func (n *randomNetwork) begin(k messages.AttemptKey) {
	a := n.attempts[k]
	if a == nil || a.State() != lifecycle.Queued || !n.mayBegin(k, n.now) {
		return
	}
	a.MoveTo(lifecycle.Starting)
	a.MoveTo(lifecycle.Running)
	n.starts[k]++
	if n.starts[k] > 1 {
		n.fail("%v began %d times", k, n.starts[k])
	}
	if n.entered[k] < n.lost {
		n.fail("%v was ordered at %d, was lost to silence at %d, and began at %d", k, n.entered[k], n.lost, n.now)
	}
}

// endOverdue does what the deadline asks for. After that no attempt may be left if leaders count the worker as
// silent.
func (n *randomNetwork) endOverdue() {
	revoke, kill := n.overdue(n.now)
	for _, k := range revoke {
		delete(n.attempts, k)
	}
	for _, k := range kill {
		if a := n.attempts[k]; a.State() == lifecycle.Running {
			a.MoveTo(lifecycle.Ended)
		}
	}
	if n.now >= n.silent && n.hasUnended(0) {
		n.fail("an attempt is left at %d, and leaders count the worker as silent since %d", n.now, n.silent)
	}
}

// TestPartitionInARandomNetwork takes random steps, in many short histories, since an attempt begins once in
// each. A failure names the seed.
func TestPartitionInARandomNetwork(t *testing.T) {
	began, histories := 0, 10_000
	if testing.Short() {
		histories = 1000
	}
	for seed := range uint64(histories) {
		n := &randomNetwork{partition: partition{attempts: attemptTable{}, leases: make([]lease.Lease, 1)},
			random: rand.New(rand.NewPCG(seed, 1)), absent: map[messages.AttemptKey]workerpb.Session{},
			starts: map[messages.AttemptKey]int{}, entered: map[messages.AttemptKey]int64{}}
		for step := range 500 {
			if n.step(); n.broken != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, n.broken)
			}
		}
		began += len(n.starts)
	}
	if began < histories {
		t.Errorf("%d attempts began in %d histories: the steps are too rare", began, histories)
	}
}
