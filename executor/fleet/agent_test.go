package fleet

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lease"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// agentRig is an agent without a network or a clock: leaders are links that the test fills and reads.
type agentRig struct {
	*agent
	t       *testing.T
	workers *fakeWorkers
}

func newAgentRig(t *testing.T) *agentRig {
	g := &agentRig{t: t, workers: &fakeWorkers{attempts: map[messages.AttemptKey]*Known{}, starts: map[messages.AttemptKey]int{}, leases: map[uint32]int64{}}}
	g.agent = newAgent(&Config{Partitions: 2, Lease: time.Hour, Logger: slog.New(slog.DiscardHandler)})
	g.agent.workers, g.workers.sink = g.workers, g.takeReports
	return g
}

// newLink returns a link that has said hello.
func (g *agentRig) newLink() *agentLink {
	l := &agentLink{outgoing: new(workerpb.WorkerFrame), wake: make(chan struct{}, 1)}
	g.links[l] = true
	return l
}

// send has the agent carry a frame out.
func (g *agentRig) send(l *agentLink, fill func(*workerpb.ServerFrame)) {
	g.t.Helper()
	frame := new(workerpb.ServerFrame)
	fill(frame)
	if err := g.handleFrame(l, frame); err != nil {
		g.t.Error(err)
	}
}

func (g *agentRig) lead(l *agentLink, s workerpb.Session) {
	g.t.Helper()
	g.send(l, func(f *workerpb.ServerFrame) { f.AddLead(s) })
}

func (g *agentRig) order(l *agentLink, s workerpb.Session, key messages.AttemptKey) {
	g.t.Helper()
	g.send(l, func(f *workerpb.ServerFrame) { f.OrdersIn(s).AddOrder(&executor.Order{Key: key, GrantedAt: 5}) })
}

// renewNow answers the newest heartbeat, which is sent now.
func (g *agentRig) renewNow(l *agentLink, epoch uint64) {
	g.t.Helper()
	g.beat(lease.Now())
	g.send(l, func(f *workerpb.ServerFrame) { f.AddRenewal(1, epoch, g.heartbeat) })
}

// said returns what the agent has said on a link since the last call, in the order in which a leader takes it
// in.
func said(l *agentLink) (lines []string) {
	for _, report := range l.outgoing.Partitions {
		add := func(format string, args ...any) {
			lines = append(lines, fmt.Sprintf("%d: ", report.Session)+fmt.Sprintf(format, args...))
		}
		for _, m := range report.Queued {
			add("queued %d", m.Task)
		}
		for _, m := range report.Started {
			add("started %d", m.Task)
		}
		for range report.Finished {
			add("finished")
		}
		for _, m := range report.Revoked {
			add("revoked %d", m.Task)
		}
		for _, m := range report.Ignored {
			add("ignored %d, epoch %d", m.Task, m.Epoch)
		}
		if report.Synced {
			add("synced")
		}
	}
	l.outgoing = new(workerpb.WorkerFrame)
	return lines
}

func (g *agentRig) expect(l *agentLink, want ...string) {
	g.t.Helper()
	if got := said(l); !slices.Equal(got, want) {
		g.t.Errorf("it says %q, want %q", got, want)
	}
}

var (
	firstSession  = workerpb.Session{Partition: 1, Epoch: 4, Number: 1}
	secondSession = workerpb.Session{Partition: 1, Epoch: 4, Number: 2}
	laterSession  = workerpb.Session{Partition: 1, Epoch: 5, Number: 1}
)

// TestAgentObeysTheNewestSession: orders count in the newest session of the highest epoch, on its link. The first
// report of a session has all attempts of the partition.
func TestAgentObeysTheNewestSession(t *testing.T) {
	g := newAgentRig(t)
	former, present := g.newLink(), g.newLink()
	g.lead(former, firstSession)
	g.renewNow(former, 4)
	g.order(former, firstSession, testKey(1))
	g.expect(former, "1: synced")
	g.lead(former, secondSession)
	g.order(former, firstSession, testKey(2))
	g.lead(former, firstSession)
	g.expect(former, "2: queued 1", "2: synced", "1: ignored 2, epoch 4", "1: ignored 0, epoch 4")
	g.workers.begin(testKey(1))
	g.expect(former, "2: started 1")
	g.lead(present, laterSession)
	g.order(former, secondSession, testKey(2))
	g.lead(former, workerpb.Session{Partition: 1, Epoch: 4, Number: 3})
	g.workers.end(testKey(1), messages.AttemptSucceeded)
	g.expect(former, "2: ignored 2, epoch 5", "3: ignored 0, epoch 5")
	g.expect(present, "1: started 1", "1: finished", "1: synced")
	g.order(former, laterSession, testKey(2)) // the session is of another link
	if g.workers.startsOf(testKey(1)) != 1 || g.workers.startsOf(testKey(2)) != 0 {
		t.Errorf("starts: %v", g.workers.starts)
	}
	g.endLink(present)
	g.order(present, laterSession, testKey(2))
	if g.workers.startsOf(testKey(2)) != 0 {
		t.Error("an order after the end of its link")
	}
	g.lead(former, firstSession)
	g.expect(former, "1: ignored 2, epoch 5", "1: ignored 0, epoch 5")
	g.lead(present, workerpb.Session{Partition: 1, Epoch: 6, Number: 1}) // its frame is carried out late
	if g.isLed(testRun) {
		t.Error("a session begins on a link that has ended")
	}
	for _, bad := range []func(*workerpb.ServerFrame){
		func(f *workerpb.ServerFrame) { f.AddLead(workerpb.Session{Partition: 2, Epoch: 9, Number: 1}) },
		func(f *workerpb.ServerFrame) { f.AddLead(workerpb.Session{Partition: 1, Epoch: 9}) },
		func(f *workerpb.ServerFrame) { f.AddRenewal(2, 9, 1) },
		func(f *workerpb.ServerFrame) { // without the number of the attempt
			f.OrdersIn(laterSession).AddOrder(&executor.Order{Key: messages.AttemptKey{Run: testRun, Task: 1}, GrantedAt: 5})
		},
		func(f *workerpb.ServerFrame) {
			f.OrdersIn(workerpb.Session{Partition: 2, Number: 1}).AddKill(testKey(1), 0)
		},
	} {
		frame := new(workerpb.ServerFrame)
		bad(frame)
		if g.handleFrame(former, frame) == nil {
			t.Errorf("accepted: %v", frame)
		}
	}
}

// TestAgentLease: an order is given back until the present leader has answered a heartbeat of this agent. The
// deadline counts from that heartbeat.
func TestAgentLease(t *testing.T) {
	g := newAgentRig(t)
	l, other := g.newLink(), g.newLink()
	g.lead(l, firstSession)
	g.order(l, firstSession, testKey(1))
	g.expect(l, "1: revoked 1", "1: synced")
	sentAt := lease.Now()
	g.beat(sentAt)
	renew := func(l *agentLink, epoch, heartbeat uint64) {
		t.Helper()
		g.send(l, func(f *workerpb.ServerFrame) { f.AddRenewal(1, epoch, heartbeat) })
	}
	renew(l, 3, 1)
	renew(l, 5, 1)
	renew(l, 4, 0)
	renew(l, 4, 2)
	renew(other, 4, 1)
	if until := g.workers.leaseOf(1); until != 0 {
		t.Errorf("a lease until %d by a renewal that does not count", until)
	}
	renew(l, 4, 1)
	if until := g.workers.leaseOf(1); until != sentAt+int64(time.Hour) {
		t.Errorf("a lease until %d, and the heartbeat was sent at %d", until, sentAt)
	}
	for range rememberedHeartbeats {
		g.beat(sentAt)
	}
	renew(l, 4, 1) // its number stands for another heartbeat by now
	g.order(l, firstSession, testKey(1))
	g.order(l, firstSession, testKey(2))
	if g.workers.startsOf(testKey(1)) != 1 || g.workers.startsOf(testKey(2)) != 1 || g.workers.leaseOf(1) != sentAt+int64(time.Hour) {
		t.Errorf("starts %v, leases %v", g.workers.starts, g.workers.leases)
	}

	// When it is over, what waits is given back, and it is renewed when all attempts have ended.
	g.workers.begin(testKey(1))
	said(l)
	over := sentAt + int64(time.Hour)
	g.check(over - 1)
	g.expect(l)
	g.check(over)
	g.expect(l, "1: revoked 2")
	g.partitions[1].lease.IsOver(over, func() bool { return true })
	g.renewNow(l, 4)
	if g.workers.leaseOf(1) != over {
		t.Error("renewed with an attempt left")
	}
	g.workers.end(testKey(1), messages.AttemptLost)
	g.renewNow(l, 4)
	if g.workers.leaseOf(1) <= over {
		t.Error("not renewed when all attempts have ended")
	}
}

// TestAgentWaitsForItsWorkers: the first report waits until all workers have spoken.
func TestAgentWaitsForItsWorkers(t *testing.T) {
	g := newAgentRig(t)
	g.workers.isSilent = true
	g.workers.attempts[testKey(1)] = &Known{Key: testKey(1), GrantedAt: 5}
	l := g.newLink()
	g.lead(l, firstSession)
	g.workers.begin(testKey(1))
	g.check(lease.Now())
	g.expect(l)
	g.workers.isSilent = false
	g.check(lease.Now())
	g.expect(l, "1: started 1", "1: synced")
	g.check(lease.Now())
	g.expect(l)
}

// TestAgentLosesNoReport that comes when the list for the first report of a session was made.
func TestAgentLosesNoReport(t *testing.T) {
	g := newAgentRig(t)
	l := g.newLink()
	g.workers.attempts[testKey(1)] = &Known{Key: testKey(1), GrantedAt: 5}
	g.workers.begin(testKey(1))
	g.workers.listed = func() {
		g.workers.listed = nil
		g.workers.end(testKey(1), messages.AttemptSucceeded)
	}
	g.lead(l, firstSession)
	g.expect(l, "1: started 1", "1: finished", "1: synced")

	g.workers.isSilent = true
	g.workers.listed = func() {
		g.workers.listed = nil
		g.workers.Acknowledge(testKey(1))
	}
	g.lead(l, secondSession)
	g.expect(l)
	g.workers.isSilent = false
	g.check(lease.Now())
	g.expect(l, "2: synced")
}

// TestAgentDoesNotAskForOrdersItRefuses: the first report of a session brings no heartbeat while the lease is
// over with attempts left. Its renewal would bring the orders back at once.
func TestAgentDoesNotAskForOrdersItRefuses(t *testing.T) {
	g := newAgentRig(t)
	l := g.newLink()
	g.lead(l, firstSession)
	g.renewNow(l, 4)
	g.order(l, firstSession, testKey(1))
	g.workers.begin(testKey(1))
	over := lease.Now() + int64(2*time.Hour)
	g.partitions[1].lease.IsOver(over, func() bool { return true })
	said(l)
	g.lead(l, secondSession)
	if l.outgoing.Heartbeat != 0 {
		t.Error("a heartbeat in the first report")
	}
	g.expect(l, "2: started 1", "2: synced")
	g.workers.end(testKey(1), messages.AttemptLost)
	said(l)
	g.lead(l, workerpb.Session{Partition: 1, Epoch: 4, Number: 3})
	if l.outgoing.Heartbeat == 0 {
		t.Error("no heartbeat when all attempts have ended")
	}
}

// TestAgentOfUnhealthyWorkers: a node whose workers cannot start attempts accepts no order, gives back those that have not
// begun, and tells the leaders. It accepts orders again when the workers can start attempts.
func TestAgentOfUnhealthyWorkers(t *testing.T) {
	g := newAgentRig(t)
	l := g.newLink()
	g.lead(l, firstSession)
	g.renewNow(l, 4)
	for task := range uint32(2) {
		g.order(l, firstSession, testKey(task))
	}
	g.workers.begin(testKey(0))
	said(l)
	g.workers.setHealth(errors.New("the worker hangs"))
	g.checkHealth()
	if !l.outgoing.Node.GetDraining() {
		t.Error("the leaders do not hear of it")
	}
	g.order(l, firstSession, testKey(2))
	g.expect(l, "1: revoked 1", "1: revoked 2")
	g.checkHealth()
	if l.outgoing.Node != nil {
		t.Error("the state is told again without a change")
	}
	g.workers.setHealth(nil)
	g.checkHealth()
	if l.outgoing.Node == nil || l.outgoing.Node.Draining {
		t.Error("the leaders do not hear that the workers are well again")
	}
	g.order(l, firstSession, testKey(1))
	if g.workers.startsOf(testKey(1)) != 2 || g.workers.startsOf(testKey(2)) != 0 {
		t.Errorf("starts: %v", g.workers.starts)
	}
	g.drain(0)
	g.checkHealth()
	if !g.state.Draining {
		t.Error("a node that stops takes orders, since its workers are well")
	}
}

// TestAgentTellsWhoUsesItsNode: what the leader of a partition says is passed on to all links. Another one is not
// believed. A node that drains accepts no order.
func TestAgentTellsWhoUsesItsNode(t *testing.T) {
	g := newAgentRig(t)
	leader, other := g.newLink(), g.newLink()
	g.lead(leader, firstSession)
	g.renewNow(leader, 4)
	taken := workerpb.Taken{Amount: workerpb.Amount{CPUMillis: 1500, MemoryBytes: 7}, Running: 1, Waiting: 2}
	g.send(leader, func(f *workerpb.ServerFrame) { f.AddShare(1, taken) })
	g.send(other, func(f *workerpb.ServerFrame) { f.AddShare(1, workerpb.Taken{}) })
	g.agent.mu.Lock()
	g.announceState()
	g.agent.mu.Unlock()
	if got := other.outgoing.Node.Status(2); got.Draining || got.Taken[1] != taken || got.Taken[0] != (workerpb.Taken{}) {
		t.Errorf("%+v", got)
	}
	said(leader)
	g.drain(0)
	if !leader.outgoing.Node.Draining || !other.outgoing.Node.Draining {
		t.Error("the links do not hear that the node drains")
	}
	g.order(leader, firstSession, testKey(1))
	g.expect(leader, "1: revoked 1")
	if g.workers.has(testKey(1)) {
		t.Error("an order is accepted")
	}
	frame := new(workerpb.ServerFrame)
	frame.AddShare(2, taken)
	if err := g.handleFrame(leader, frame); err == nil {
		t.Error("the share of an unknown partition is taken")
	}
}
