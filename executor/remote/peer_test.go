package remote

import (
	"testing"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// TestOrdersWaitForOthersWhenTheyCannotBegin sends an order at once until the worker has more orders
// than it can begin. From then on orders go together, and again at once when the worker has begun
// them.
func TestOrdersWaitForOthersWhenTheyCannotBegin(t *testing.T) {
	r := &Remote{cfg: Config{CPUMillis: 2000, MemoryBytes: 1 << 20}, attempts: map[messages.AttemptKey]*trackedAttempt{}}
	p := newPeer(r, "x")
	r.active = p
	key := func(task int) messages.AttemptKey { return messages.AttemptKey{Run: 1, Task: uint32(task), Attempt: 1} }
	next := 0
	// order gives an order and tells whether the sender was woken for it.
	order := func(cores int64) (woken bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		e := &trackedAttempt{order: &executor.Order{Key: key(next), CPUMillis: cores}}
		r.attempts[key(next)] = e
		next++
		r.assignOrder(e.order.Key, e)
		select {
		case <-p.wakeSender:
			p.takeFrame()
			return true
		default:
			return false
		}
	}
	started := 0
	begins := func(n int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for range n {
			r.onStarted(p, &workerpb.Started{Run: 1, Task: uint32(started), Attempt: 1, At: 1})
			started++
		}
	}
	for n := range fewPending + 1 {
		if !order(1000) {
			t.Fatalf("order %d waits", n)
		}
	}
	for n := range 3 {
		if order(1000) {
			t.Fatalf("order %d does not wait, though the worker has %d", fewPending+1+n, fewPending+1+n)
		}
	}
	r.mu.Lock()
	waits := p.sendTimer != nil && !p.outgoing.IsEmpty()
	r.mu.Unlock()
	if !waits {
		t.Error("nothing sends the orders that wait")
	}
	<-p.wakeSender // within orderLinger
	begins(4)
	if !order(1000) {
		t.Errorf("an order waits, though the worker has %d", p.pending.count)
	}
	begins(next - started)
	if p.pending != (pendingOrders{}) {
		t.Errorf("%+v are ahead of an idle worker", p.pending)
	}
	// Orders that fit beside each other all begin at once: they never wait.
	for n := range 3 * fewPending {
		if !order(10) {
			t.Fatalf("small order %d waits", n)
		}
	}
	begins(next - started)
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.orderAnswered(&trackedAttempt{order: &executor.Order{CPUMillis: 1000}}); p.pending != (pendingOrders{}) {
		t.Errorf("%+v: what was not ordered on this connection was taken off", p.pending)
	}
}
