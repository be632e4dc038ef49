package remote

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// TestOrdersWaitForOthersWhenTheyCannotBegin sends an order at once until the worker has more orders
// than it can begin. From then on orders go together, and again at once when the worker has begun
// them.
func TestOrdersWaitForOthersWhenTheyCannotBegin(t *testing.T) {
	synctest.Test(t, testLingeringOrders)
}

// testLingeringOrders runs on a clock of its own, which stands while orders are given.
func testLingeringOrders(t *testing.T) {
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
	<-p.wakeSender // within orderDelay
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

// TestReportsOfAnotherSessionAreDropped takes frames in as they come from a worker. Each hello begins a session
// with a number of its own. Only what the present session says counts, and a refused Lead or order
// ends the connection: it does not say that the attempt is lost.
func TestReportsOfAnotherSessionAreDropped(t *testing.T) {
	r := &Remote{cfg: Config{CPUMillis: 2000}, attempts: attemptTable{}, wakeSupervisor: make(chan struct{}, 1)}
	p := newPeer(r, "x")
	key := messages.AttemptKey{Run: 1, Attempt: 1}
	a := &trackedAttempt{order: &executor.Order{Key: key}, peer: p}
	r.attempts[key] = a
	r.mu.Lock()
	defer r.mu.Unlock()
	handle := func(s workerpb.Session, add func(*workerpb.PartitionReport)) error {
		f := new(workerpb.WorkerFrame)
		add(f.ReportIn(s))
		return p.handleFrame(f)
	}
	refused := func(reason workerpb.IgnoreReason) func(*workerpb.PartitionReport) {
		return func(m *workerpb.PartitionReport) { m.AddIgnored(key, reason, 4) }
	}
	synced := func(m *workerpb.PartitionReport) { m.Synced = true }
	started := func(m *workerpb.PartitionReport) { m.AddStarted(key, 1, 0, 0) }

	if err := handle(workerpb.Session{}, synced); err != nil || p.attached {
		t.Fatalf("before the hello: %v, attached %v", err, p.attached)
	}
	for number := range uint64(2) {
		p.listed = map[messages.AttemptKey]bool{}
		if err := p.handleFrame(&workerpb.WorkerFrame{Hello: &workerpb.Hello{Name: []byte("x")}}); err != nil {
			t.Fatal(err)
		}
		leads := p.takeFrame().Leads
		if len(leads) != 1 || workerpb.SessionOf(leads[0]) != p.session || p.session != (workerpb.Session{Number: number + 1}) {
			t.Fatalf("session %v, leads %v", p.session, leads)
		}
	}
	for _, s := range []workerpb.Session{{Number: 1}, {Number: 3}, {Epoch: 1, Number: 2}, {Partition: 1, Number: 2}} {
		for _, add := range []func(*workerpb.PartitionReport){synced, started, refused(workerpb.IgnoreReason_IGNORE_REASON_KEY_USED), refused(workerpb.IgnoreReason_IGNORE_REASON_STALE_EPOCH)} {
			if err := handle(s, add); err != nil || p.attached || a.StartedAt != 0 || r.attempts[key] != a {
				t.Errorf("session %v: %v, attached %v, attempt %+v", s, err, p.attached, a)
			}
		}
	}
	for _, reason := range []workerpb.IgnoreReason{workerpb.IgnoreReason_IGNORE_REASON_STALE_EPOCH, workerpb.IgnoreReason_IGNORE_REASON_STALE_SESSION, 99} {
		if err := handle(p.session, refused(reason)); err == nil || !strings.Contains(err.Error(), "refuses session 2") || r.attempts[key] != a {
			t.Errorf("reason %v: %v, attempt %+v", reason, err, r.attempts[key])
		}
	}
	if err := handle(p.session, func(m *workerpb.PartitionReport) { started(m); synced(m) }); err != nil || !p.attached || a.StartedAt == 0 {
		t.Errorf("%v, attached %v, attempt %+v", err, p.attached, a)
	}
}
