package remote_test

import (
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/lease"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/messages"
)

// forLeaders is the configuration on a node of a cluster with two partitions.
func forLeaders(c *remote.Config) {
	c.ForLeaders = true
	c.Settings.Lease, c.Settings.Partitions = time.Hour, 2
}

// leaseHour lets attempts of a partition run for an hour from now on.
func leaseHour(r *remote.Remote, partition uint32) {
	r.ExtendLease(partition, lease.Now()+int64(time.Hour))
}

// knownTo returns the states of what workers know of a partition, once all have spoken.
func knownTo(t *testing.T, r *remote.Remote, partition uint64) map[messages.AttemptKey]lifecycle.State {
	t.Helper()
	states := map[messages.AttemptKey]lifecycle.State{}
	poll(t, "all workers to speak", func() bool {
		known, ok := r.Attempts(messages.Numbering{Partitions: 2, Partition: partition})
		for _, k := range known {
			states[k.Key] = k.State
			if k.GrantedAt == 0 {
				t.Errorf("%v without the time of its grant", k.Key)
			}
		}
		return ok
	})
	return states
}

// TestLeadersFindWhatAFormerServerOrdered: after a restart of the server, what workers have is known and
// reported without an order of this server, and can be killed.
func TestLeadersFindWhatAFormerServerOrdered(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec, forLeaders)
	knownTo(t, r, 1)
	leaseHour(r, 0)
	leaseHour(r, 1)
	running, ended, other := g.order(0, "echo x >>ran; exec sleep 1000"), g.order(1, until("go")), g.order(2, "exec sleep 1000")
	other.Key.Run = 2
	running.GrantedAt, ended.GrantedAt, other.GrantedAt = 5, 6, 7
	other.CPUMillis = 0 // there are two slots
	r.Start(running)
	r.Start(ended)
	r.Start(other)
	rec.WaitStarted(running.Key)
	rec.WaitStarted(ended.Key)
	rec.WaitStarted(other.Key)
	g.awaitText("ran", "x\n")
	if err := r.Detach(); err != nil {
		t.Fatal(err)
	}
	g.touch("go")

	rec = executortest.NewRecorder(t)
	r = g.open(rec, forLeaders)
	if end := rec.WaitFinal(ended.Key); end.Record.Result != messages.AttemptSucceeded {
		t.Errorf("it ended as %v", end.Record.Result)
	}
	if states := knownTo(t, r, 1); states[running.Key] != lifecycle.Running || states[ended.Key] != lifecycle.Ended || len(states) != 2 {
		t.Errorf("of partition 1 it knows %v", states)
	}
	if states := knownTo(t, r, 0); states[other.Key] != lifecycle.Running || len(states) != 1 {
		t.Errorf("of partition 0 it knows %v", states)
	}
	r.Kill(running.Key, 0)
	if end := rec.WaitFinal(running.Key); end.Record.Result != messages.AttemptKilled {
		t.Errorf("it ends as %v", end.Record.Result)
	}
	if states := knownTo(t, r, 1); states[running.Key] != lifecycle.Ended || len(states) != 2 {
		t.Errorf("after that it knows %v", states)
	}
	if ran := read(filepath.Join(g.data, "ran")); ran != "x\n" {
		t.Errorf("the attempt has started %q", ran)
	}
}

// TestOrderThatTheWorkerRefusesGoesBackToItsLeader: a worker without a lease gives orders back. They are not given to it
// again and again.
func TestOrderThatTheWorkerRefusesGoesBackToItsLeader(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec, forLeaders)
	knownTo(t, r, 1)
	order := g.order(0, "echo x >>ran")
	r.Start(order)
	if report := rec.WaitFinal(order.Key); report.Kind != executor.Revoked {
		t.Errorf("reported: %+v", report)
	}
	if states := knownTo(t, r, 1); len(states) > 0 {
		t.Errorf("after that it knows %v", states)
	}
	leaseHour(r, 1)
	order.Key.Task = 1
	r.Start(order)
	if report := rec.WaitFinal(order.Key); report.Kind != executor.Finished {
		t.Errorf("under a lease: %+v", report)
	}
}

// TestLeadersHearOfADeadWorker: its attempts without an order of this server are reported, too.
func TestLeadersHearOfADeadWorker(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec, forLeaders)
	knownTo(t, r, 1)
	leaseHour(r, 1)
	running := g.order(0, "exec sleep 1000")
	running.GrantedAt = 5
	r.Start(running)
	rec.WaitStarted(running.Key)
	if err := r.Detach(); err != nil {
		t.Fatal(err)
	}
	rec = executortest.NewRecorder(t)
	r = g.open(rec, forLeaders)
	rec.WaitStarted(running.Key)
	leaseHour(r, 1)
	if err := unix.Kill(g.worker(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if end := rec.WaitFinal(running.Key); end.Record.Result != messages.AttemptLost {
		t.Errorf("it ends as %v", end.Record.Result)
	}
	next := g.order(1, "exit 0") // a new worker is told the lease
	r.Start(next)
	rec.WaitFinal(next.Key)
}
