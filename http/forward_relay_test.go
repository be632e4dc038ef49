package http

import (
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// TestThirdNodeReachesTheLeader: a node that is cut off from the leader alone still has requests served.
func TestThirdNodeReachesTheLeader(t *testing.T) {
	rig := newClusterRig(t, 3)
	rig.onStatus = func() { t.Error("a request asks for the status of the cluster, which may wait for leases") }
	rig.update(func() { rig.cut[[2]string{"n2", "n1"}] = true })
	for range 4 {
		if r := rig.node("n2").do("POST", "/v1/dagrun", contractSpec); r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
	}
	if n := len(rig.node("n1").engine.submitted); n != 4 {
		t.Errorf("%d runs", n)
	}
	rig = newClusterRig(t, 3)
	rig.update(func() { rig.cut[[2]string{"n2", "n1"}], rig.cut[[2]string{"n3", "n1"}] = true, true })
	rig.node("n2").forwarder.wait = 50 * time.Millisecond
	refusedWith(t, rig.node("n2").get("/v1/dagrun/3/state"), 503, "node n1, which leads partition 0, cannot be reached")
}

// withShortTicks has waits looked at often, and requests wait for a leader as long as it takes.
func withShortTicks(c *Config) {
	c.forwardTick, c.leaderWait = 20*time.Millisecond, time.Minute
}

// TestThirdNodeIsAskedWithoutALeader: a node that is cut off from the leader alone soon knows no leader at
// all, because no heartbeat comes.
func TestThirdNodeIsAskedWithoutALeader(t *testing.T) {
	rig := newClusterRig(t, 3, withShortTicks)
	rig.update(func() { rig.cut[[2]string{"n2", "n1"}], rig.views["n2"] = true, "" })
	for i := range 4 {
		if r := rig.node("n2").do("POST", "/v1/dagrun", contractSpec); r.status != 200 {
			t.Fatalf("submission %d: %d %s", i, r.status, r.body)
		}
	}
	if n := len(rig.node("n1").engine.submitted); n != 4 {
		t.Errorf("%d runs", n)
	}
	// The request that a third node has forwarded is not given up when this node hears of the leader.
	replies := make(chan reply, 1)
	go func() { replies <- rig.node("n2").get("/v1/dagrun/2/state?wait=60s") }()
	testenv.Eventually(t, "the leader waits", func() bool { return rig.node("n1").waits.len() == 1 })
	calls := rig.node("n1").engine.waits
	rig.update(func() { delete(rig.views, "n2") })
	entry, began := rig.node("n2").forwarder, rig.node("n2").forwarder.ticks.Load()
	testenv.Eventually(t, "the wait was looked at several times", func() bool { return entry.ticks.Load() > began+2*graceTicks })
	if calls() != 1 {
		t.Errorf("%d waits at the leader", calls())
	}
	rig.node("n1").engine.move(2, dag.RunCompleted)
	if r := <-replies; r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestElectionCausesFewRequestsToThirdNodes: while no node leads, each of them refuses what it is asked.
func TestElectionCausesFewRequestsToThirdNodes(t *testing.T) {
	rig := newClusterRig(t, 3, withShortTicks, func(c *Config) { c.leaderWait = time.Second })
	rig.lead("")
	entry := rig.node("n2")
	testenv.Eventually(t, "the node takes itself for cut off", func() bool { return entry.forwarder.isCutOff(0) })
	refusedWith(t, entry.get("/v1/dagrun/3/state"), 503, "partition 0 has no leader")
	const counter = `caravan_http_forwarded_requests_total{outcome="misdirected"} `
	_, after, _ := strings.Cut(entry.get("/metrics").body, counter)
	count, _, _ := strings.Cut(after, "\n")
	if n, err := strconv.Atoi(count); err != nil || n < 1 || n > 4 {
		t.Errorf("one request has asked third nodes %q times", count)
	}
}

// TestFirstRelayIsNotTheLastLeader, whose machine may be dead. Later ones may be: it may follow a leader that
// this node has not heard of.
func TestFirstRelayIsNotTheLastLeader(t *testing.T) {
	rig := newClusterRig(t, 3, withShortTicks)
	f := rig.node("n2").forwarder
	testenv.Eventually(t, "the leader is known", func() bool { return f.leaders[0].last.Load() != nil })
	if node := f.relayWithoutLeader(0, new(relayPace)); node != "" {
		t.Errorf("%s is asked while a leader is known", node)
	}
	rig.lead("")
	testenv.Eventually(t, "the node takes itself for cut off", func() bool { return f.isCutOff(0) })
	later := map[string]bool{}
	for range 4 {
		pace, began := new(relayPace), time.Now()
		if node := f.relayWithoutLeader(0, pace); node != "n3" {
			t.Errorf("the first relay is %q", node)
		}
		if pause := pace.next.Sub(began); pause < firstRelayPause {
			t.Errorf("the next one is asked after %v", pause)
		}
		pace.next = time.Now().Add(time.Hour)
		if node := f.relayWithoutLeader(0, pace); node != "" {
			t.Errorf("%s is asked without a pause", node)
		}
		pace.next = time.Time{}
		later[f.relayWithoutLeader(0, pace)] = true
	}
	if !later["n1"] || !later["n3"] || len(later) != 2 {
		t.Errorf("later relays are %v", later)
	}
}

// TestLongWaitsByWayOfAThirdNode: an answer that takes long is waited for there, too, also when this node
// knows no leader any more.
func TestLongWaitsByWayOfAThirdNode(t *testing.T) {
	rig := newClusterRig(t, 3, withShortTicks)
	rig.update(func() { rig.cut[[2]string{"n2", "n1"}] = true })
	leader, entry := rig.node("n1"), rig.node("n2")
	leader.engine.feed = newFakeFeed()
	_, events := entry.listen(runEventsPath)
	var calls atomic.Int64
	leader.engine.hook = func(method string) {
		if method == "Await" {
			calls.Add(1)
		}
	}
	replies := make(chan reply, 1)
	go func() { replies <- entry.get("/v1/dagrun/2/state?wait=1s") }() // many times graceTicks
	testenv.Eventually(t, "the leader waits", func() bool { return calls.Load() == 1 })
	rig.update(func() { rig.views["n2"] = "" })
	r := testenv.Receive(t, "an answer", replies)
	if r.status != 200 || calls.Load() != 1 {
		t.Errorf("%d %s after %d calls", r.status, r.body, calls.Load())
	}
	plan := leader.engine.runs[2].view.Plan
	leader.engine.feed.news <- &messages.RunEvents{Seq: 5, Plan: plan}
	nextBlock(t, events, "id: 5")
}

// TestLostRelayEndsAWait: a third node that has a request for the leader is lost without a sign on its
// connection, as by a power failure, while the leader stays the same.
func TestLostRelayEndsAWait(t *testing.T) {
	rig := newClusterRig(t, 3, withShortTicks)
	leader, entry := rig.node("n1"), rig.node("n2")
	toLeader, toRelay := [2]string{"n2", "n1"}, [2]string{"n2", "n3"}
	rig.update(func() { rig.cut[toLeader] = true })
	var calls atomic.Int64
	leader.engine.hook = func(method string) {
		if method == "Await" {
			calls.Add(1)
		}
	}
	replies := make(chan reply, 1)
	go func() { replies <- entry.get("/v1/dagrun/2/state?wait=60s") }()
	testenv.Eventually(t, "the leader waits", func() bool { return calls.Load() == 1 })
	began := entry.forwarder.ticks.Load()
	testenv.Eventually(t, "the relay was probed", func() bool { return entry.forwarder.ticks.Load() > began+2*probeTicks })
	if calls.Load() != 1 {
		t.Errorf("the wait began %d times while its relay was well", calls.Load())
	}
	rig.update(func() { rig.cut[toLeader], rig.cut[toRelay] = false, true })
	testenv.Eventually(t, "the leader is asked again", func() bool { return calls.Load() == 2 })
	leader.engine.move(2, dag.RunCompleted)
	if r := <-replies; r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	rig.settled()
}
