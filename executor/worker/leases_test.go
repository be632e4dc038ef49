package worker

import (
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor/lease"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// leased gives a worker leases that its own ticks do not find over before the test has called endOverdue.
func leased(s *Settings) { s.Lease, s.Partitions = time.Hour, 2 }

// leaseFor extends the lease of the partition of run 1.
func leaseFor(d time.Duration) func(*workerpb.ServerFrame) {
	return func(f *workerpb.ServerFrame) { f.AddLease(1, sinceBoot()+int64(d)) }
}

// TestAttemptsEndWithTheirLease: an order is accepted under a lease only. When it is over, what runs ends as
// lost, what waits is given back, and the lease of another partition does not help.
func TestAttemptsEndWithTheirLease(t *testing.T) {
	g := newRig(t, leased)
	c, _ := g.attach()
	c.send(func(f *workerpb.ServerFrame) { f.AddLease(0, sinceBoot()+int64(time.Hour)) }, shell(1, "true"))
	c.want("revoked", key(1))
	c.send(leaseFor(time.Minute), shell(1, "sleep 1000"))
	c.want("started", key(1))
	c.send(shell(2, "sleep 1000"))
	c.want("started", key(2))
	c.send(shell(3, "sleep 1000")) // there are two slots
	c.send(shell(3, "sleep 1000"))
	c.want("queued", key(3))
	g.endOverdue(sinceBoot())
	over := sinceBoot() + int64(time.Minute)
	g.endOverdue(over)
	g.endOverdue(over)
	seen := map[messages.AttemptKey]string{}
	for range 3 {
		i := c.next()
		seen[i.key] = i.kind
		if i.kind == "finished" {
			if r := i.report(t).Record; r.Result != messages.AttemptLost || r.ExecutorLog != "lost: no leader has renewed its lease for 1h0m0s" {
				t.Errorf("it ends as %v, %q", r.Result, r.ExecutorLog)
			}
		}
	}
	if seen[key(1)] != "finished" || seen[key(2)] != "finished" || seen[key(3)] != "revoked" {
		t.Errorf("%v", seen)
	}
	c.send(leaseFor(2*time.Minute), shell(4, "true"))
	c.want("started", key(4))
	if r := c.want("finished", key(4)).report(t).Record; r.Result != messages.AttemptSucceeded {
		t.Errorf("under the next lease it ends as %v", r.Result)
	}
}

// TestOrderThatWaitedTooLongDoesNotBegin: the lease is over when a slot is free for it. The zero lease permits as
// little as one that is over, and the worker's ticks pass it over: they would give the order back before.
func TestOrderThatWaitedTooLongDoesNotBegin(t *testing.T) {
	g := newRig(t, leased)
	c, _ := g.attach()
	c.send(leaseFor(time.Minute))
	c.send(shell(1, "sleep 1000"))
	c.want("started", key(1))
	c.send(shell(2, "sleep 1000"))
	c.want("started", key(2))
	c.send(shell(3, "true"))
	c.send(shell(3, "true"))
	c.want("queued", key(3))
	g.mu.Lock()
	g.partition.leases[1] = lease.Lease{}
	g.mu.Unlock()
	c.send(kill(1, 0))
	answers := map[messages.AttemptKey]string{}
	for range 2 {
		i := c.next()
		answers[i.key] = i.kind
	}
	if answers[key(1)] != "finished" || answers[key(3)] != "revoked" {
		t.Errorf("%v", answers)
	}
}
