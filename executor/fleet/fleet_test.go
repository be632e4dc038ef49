package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lease"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

func TestMain(m *testing.M) { testenv.VerifyNoLeaks(m) }

// patience bounds each wait.
const patience = 60 * time.Second

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	testenv.EventuallyWithin(t, patience, what, done)
}

// fakeWorkers are the workers of a machine, which outlive its Fleet.
type fakeWorkers struct {
	mu       sync.Mutex
	sink     executor.Sink
	isSilent bool // workers of a former server have not spoken
	attempts map[messages.AttemptKey]*Known
	starts   map[messages.AttemptKey]int
	kills    []messages.AttemptKey
	leases   map[uint32]int64
	listed   func()        // if set, called by Attempts when the list is made
	silence  chan struct{} // if set, OpenLog answers when it is closed
	health   error         // nil: attempts can start
}

var _ Workers = (*fakeWorkers)(nil)

func (w *fakeWorkers) Start(o executor.Order) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.attempts[o.Key] = &Known{Key: o.Key, GrantedAt: o.GrantedAt}
	w.starts[o.Key]++
}

// begin begins an attempt, and end ends it.
func (w *fakeWorkers) begin(key messages.AttemptKey) {
	w.mu.Lock()
	a := w.attempts[key]
	a.State, a.StartedAt = lifecycle.Running, 7
	w.mu.Unlock()
	w.sink(executor.Report{Key: key, Kind: executor.Started, At: 7, GrantedAt: a.GrantedAt})
}

func (w *fakeWorkers) end(key messages.AttemptKey, result messages.AttemptResult) {
	w.mu.Lock()
	a := w.attempts[key]
	a.State = lifecycle.Ended
	a.End = &executor.Report{Key: key, Kind: executor.Finished, At: 8, GrantedAt: a.GrantedAt,
		Record: messages.AttemptRecord{Task: key.Task, Attempt: key.Attempt, Result: result, Start: 7, Stop: 8}}
	w.mu.Unlock()
	w.sink(*a.End)
}

func (w *fakeWorkers) Kill(key messages.AttemptKey, _ time.Duration) {
	w.mu.Lock()
	w.kills = append(w.kills, key)
	w.mu.Unlock()
}

func (w *fakeWorkers) Revoke(key messages.AttemptKey) {
	w.mu.Lock()
	delete(w.attempts, key)
	w.mu.Unlock()
	w.sink(executor.Report{Key: key, Kind: executor.Revoked})
}

func (w *fakeWorkers) Acknowledge(keys ...messages.AttemptKey) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, key := range keys {
		delete(w.attempts, key)
	}
}

func (w *fakeWorkers) Attempts(partition messages.Numbering) (known []Known, ok bool) {
	w.mu.Lock()
	for _, a := range w.attempts {
		if partition.Owns(a.Key.Run) {
			known = append(known, *a)
		}
	}
	ok, listed := !w.isSilent, w.listed
	w.mu.Unlock()
	if listed != nil {
		listed()
	}
	return known, ok
}

func (w *fakeWorkers) ExtendLease(partition uint32, until int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leases[partition] = until
}

func (w *fakeWorkers) startsOf(key messages.AttemptKey) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.starts[key]
}

// leaseOf returns the deadline of the partition; 0 without a lease.
func (w *fakeWorkers) leaseOf(partition uint32) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leases[partition]
}

func (w *fakeWorkers) has(key messages.AttemptKey) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.attempts[key] != nil
}

func (w *fakeWorkers) OpenLog(key messages.AttemptKey, _ messages.Stream) (messages.Log, error) {
	if w.silence != nil {
		<-w.silence
	}
	if !w.has(key) {
		return nil, executor.ErrNotRunning
	}
	return &textLog{strings.NewReader(fmt.Sprintf("output of %v", key))}, nil
}

// textLog is a log that is complete.
type textLog struct{ *strings.Reader }

func (l *textLog) Size() int64                      { return l.Reader.Size() }
func (l *textLog) Kept(off int64) int64             { return off }
func (l *textLog) Live() bool                       { return true }
func (l *textLog) Close() error                     { return nil }
func (*fakeWorkers) ExpectResume(...messages.RunID) {}
func (*fakeWorkers) ResumeDone(messages.RunID)      {}
func (*fakeWorkers) Close() error                   { return nil }
func (*fakeWorkers) Detach() error                  { return nil }

func (w *fakeWorkers) Healthy() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.health
}

// setHealth changes what Healthy says.
func (w *fakeWorkers) setHealth(health error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.health = health
}

func (*fakeWorkers) PostponedStarts() map[string]uint64 { return map[string]uint64{"memory": 3} }

// testNode is a node of a testCluster. It implements Cluster.
type testNode struct {
	*Fleet
	c         *testCluster
	id        string
	workers   *fakeWorkers
	outputs   *outputs.Store
	outputDir string
	port      atomic.Pointer[localListener] // nil while the node is down
	replaces  bool
	unknown   atomic.Pointer[string] // if set, the ID of a node that is missing in its list
	dialed    func(id string)        // if set, called by Dial

	mu      sync.Mutex
	reports []executor.Report
}

// testCluster is some nodes, of which one leads both partitions.
type testCluster struct {
	t     *testing.T
	nodes []*testNode
	epoch atomic.Uint64            // of the leadership that others confirm
	leads atomic.Pointer[testNode] // nil: no leader is known
	rows  *testRows                // of testPartition
}

// testRun is a run of partition 1.
const testRun = messages.RunID(3)

// testCapacity is what each node has.
var testCapacity = workerpb.Amount{CPUMillis: 2000, MemoryBytes: 1 << 30}

// testLease is longer than any test, so that silence is a matter of ticks that tests make.
const testLease = time.Minute

var testPartition = messages.Numbering{Partitions: 2, Partition: 1}

func testKey(task uint32) messages.AttemptKey {
	return messages.AttemptKey{Run: testRun, Task: task, Attempt: 1}
}

// newTestCluster starts nodes with these IDs.
func newTestCluster(t *testing.T, ids ...string) *testCluster {
	c := &testCluster{t: t, rows: &testRows{}}
	for _, id := range ids {
		n := &testNode{c: c, id: id, workers: &fakeWorkers{attempts: map[messages.AttemptKey]*Known{}, starts: map[messages.AttemptKey]int{}, leases: map[uint32]int64{}}}
		var err error
		n.outputDir = t.TempDir()
		if n.outputs, err = outputs.Open(n.outputDir); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.outputs.Close() })
		c.nodes = append(c.nodes, n)
	}
	for _, n := range c.nodes {
		n.start()
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			if n.port.Load() != nil {
				n.stop()
			}
		}
	})
	return c
}

// start starts the server of a node. Its workers go on from before.
func (n *testNode) start() {
	n.c.t.Helper()
	var err error
	config := Config{Partitions: 2, Lease: testLease, Grace: time.Second, Capacity: testCapacity, Name: "name of " + n.id,
		Outputs: n.outputs, CopyOutput: true, Sink: func(reports ...executor.Report) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.reports = append(n.reports, reports...)
		}}
	n.Fleet, err = Open(config, func(sink executor.Sink) (Workers, error) {
		n.workers.sink = sink
		return n.workers, nil
	})
	if err != nil {
		n.c.t.Fatal(err)
	}
	n.port.Store(newLocalListener())
	n.SetNode(n.id)
	if err := n.Join(n); err != nil {
		n.c.t.Fatal(err)
	}
}

func (n *testNode) stop() {
	n.port.Swap(nil).Close()
	if err := n.Detach(); err != nil {
		n.c.t.Error(err)
	}
}

func (n *testNode) Self() string   { return n.id }
func (n *testNode) Replaces() bool { return n.replaces }

func (n *testNode) Nodes() (ids []string) {
	unknown := n.unknown.Load()
	for _, other := range n.c.nodes {
		if unknown == nil || *unknown != other.id {
			ids = append(ids, other.id)
		}
	}
	return ids
}

func (n *testNode) Dial(ctx context.Context, id string) (net.Conn, error) {
	if n.dialed != nil {
		n.dialed(id)
	}
	for _, other := range n.c.nodes {
		if other.id == id {
			if l := other.port.Load(); l != nil {
				return l.dial(ctx)
			}
		}
	}
	return nil, errors.New("the node is down")
}

func (n *testNode) Listen() (net.Listener, error) { return n.port.Load(), nil }
func (n *testNode) Leader(int) string {
	if leads := n.c.leads.Load(); leads != nil {
		return leads.id
	}
	return ""
}

func (n *testNode) Leads(partition int, epoch uint64) bool { return n.c.epoch.Load() == epoch }

// lead makes a node lead testPartition, with the attempts that resume.
func (n *testNode) lead(epoch uint64, resumed ...messages.AttemptKey) {
	n.c.epoch.Store(epoch)
	n.c.leads.Store(n)
	n.takeOver(epoch, resumed...)
}

// takeOver is lead, without the consent of the others.
func (n *testNode) takeOver(epoch uint64, resumed ...messages.AttemptKey) {
	n.SetRows(int(testPartition.Partition), epoch, n.c.rows.all(), n.c.rows)
	n.TakeOver(testPartition, epoch, testRun)
	for _, key := range resumed {
		n.Start(executor.Order{Key: key, GrantedAt: 5, Resume: true})
	}
	n.ResumeDone(testRun)
}

// awaitRoom waits until orders may go to this node as the leader: of nodes with the same slots it prefers itself.
func (n *testNode) awaitRoom() {
	n.c.t.Helper()
	eventually(n.c.t, "orders may go to "+n.id, func() bool {
		n.Fleet.mu.Lock()
		defer n.Fleet.mu.Unlock()
		l := n.leads[testPartition.Partition]
		return l.table.workers[n.id] != nil && l.table.accepts(l.table.workers[n.id])
	})
}

// drain lets the node take no more orders, and waits until all nodes know.
func (n *testNode) drain() {
	n.c.t.Helper()
	n.Drain()
	for _, other := range n.c.nodes {
		eventually(n.c.t, other.id+" knows that "+n.id+" is draining", func() bool { return other.NodeSlots(n.id).Draining })
	}
}

func (n *testNode) order(key messages.AttemptKey) {
	n.Start(executor.Order{Key: key, GrantedAt: 5, Command: []string{"true"}})
}

// heard returns what was reported of an attempt: "started" or the result, in this order.
func (n *testNode) heard(key messages.AttemptKey) (kinds []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.reports {
		switch {
		case r.Key != key:
		case r.Kind == executor.Started:
			kinds = append(kinds, "started")
		case r.Kind == executor.Revoked:
			kinds = append(kinds, "revoked")
		default:
			kinds = append(kinds, map[messages.AttemptResult]string{messages.AttemptSucceeded: "succeeded", messages.AttemptLost: "lost"}[r.Record.Result])
		}
	}
	return kinds
}

func (n *testNode) awaitHeard(key messages.AttemptKey, want ...string) {
	n.c.t.Helper()
	eventually(n.c.t, fmt.Sprintf("%s hears %v of %v", n.id, want, key), func() bool { return slices.Equal(n.heard(key), want) })
}

// tickUntilSilent lets the silence of all nodes that are not heard be over. It fails the test if an attempt is reported
// lost in the first half of it. The table's own ticks count as well, so the moment cannot be closer.
func (n *testNode) tickUntilSilent(key messages.AttemptKey) {
	n.c.t.Helper()
	tick := func(d time.Duration) {
		n.Fleet.mu.Lock()
		for range d / lease.HeartbeatInterval(testLease) {
			n.leads[testPartition.Partition].table.Tick(9)
		}
		n.unlockAndDeliver()
	}
	silence := lease.Silence(testLease)
	tick(silence / 2)
	if kinds := n.heard(key); kinds != nil {
		n.c.t.Errorf("%v after half of the silence: %v", key, kinds)
	}
	tick(silence/2 + 3*lease.HeartbeatInterval(testLease))
}

// TestAttemptOutlivesItsLeader: an attempt goes on at its node when other nodes lead, and when the server of its
// node starts anew. It is started once, and its end is forgotten when it is acknowledged.
func TestAttemptOutlivesItsLeader(t *testing.T) {
	c := newTestCluster(t, "a", "b", "c")
	a, b, third := c.nodes[0], c.nodes[1], c.nodes[2]
	key, queued := testKey(1), testKey(2)
	b.drain() // an order that waits for long would move
	third.drain()
	a.lead(4)
	a.order(key)
	a.order(queued)
	eventually(t, "the orders come", func() bool { return a.workers.startsOf(queued) == 1 })
	a.workers.begin(key)
	a.awaitHeard(key, "started")
	a.HandOver(testPartition)
	b.lead(5, key, queued)
	b.awaitHeard(key, "started")
	a.stop()
	third.lead(6, key, queued)
	a.start()
	third.awaitHeard(key, "started")
	a.workers.end(key, messages.AttemptSucceeded)
	third.awaitHeard(key, "started", "succeeded")
	third.Acknowledge(key)
	eventually(t, "the end is forgotten", func() bool { return !a.workers.has(key) })
	a.workers.begin(queued)
	third.awaitHeard(queued, "started")
	log, err := third.OpenLog(queued, messages.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(io.NewSectionReader(log, 0, 100))
	if want := fmt.Sprintf("output of %v", queued); err != nil || string(text) != want {
		t.Errorf("output at the node of the leader: %q, %v", text, err)
	}
	log.Close()
	third.Kill(queued, time.Second)
	eventually(t, "the kill comes", func() bool {
		a.workers.mu.Lock()
		defer a.workers.mu.Unlock()
		return slices.Equal(a.workers.kills, []messages.AttemptKey{queued})
	})
	for _, k := range []messages.AttemptKey{key, queued} {
		if n := a.workers.startsOf(k) + b.workers.startsOf(k) + third.workers.startsOf(k); n != 1 {
			t.Errorf("%v was ordered %d times", k, n)
		}
	}
	if _, err := third.OpenLog(testKey(9), messages.Stdout); !errors.Is(err, executor.ErrNotRunning) {
		t.Errorf("an unknown attempt: %v", err)
	}
	if third.PostponedStarts()["memory"] != 3 || third.Healthy() != nil {
		t.Error("the workers of the machine are not asked")
	}
}

// TestAttemptThatNoNodeHasIsLost when all nodes have said so, and not before: workers of a node may have it
// that do not speak yet.
func TestAttemptThatNoNodeHasIsLost(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	b.workers.isSilent = true
	a.lead(4, testKey(1))
	eventually(t, "a lease of a", func() bool { return a.workers.leaseOf(1) != 0 })
	if kinds := a.heard(testKey(1)); kinds != nil || b.workers.leaseOf(1) != 0 {
		t.Errorf("before b has spoken: %v, a lease until %d", kinds, b.workers.leaseOf(1))
	}
	b.workers.mu.Lock()
	b.workers.isSilent = false
	b.workers.mu.Unlock()
	a.awaitHeard(testKey(1), "lost")
	a.Start(executor.Order{Key: testKey(2), Resume: true})
	a.awaitHeard(testKey(2), "lost")
}

// TestAttemptOfALostNodeWaitsForItsLease: it is lost when the silence is over. If the node is back after all, the
// attempt is ended.
func TestAttemptOfALostNodeWaitsForItsLease(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	b.lead(4)
	b.awaitRoom()
	b.order(testKey(1))
	eventually(t, "the order comes", func() bool { return b.workers.startsOf(testKey(1)) == 1 })
	b.workers.begin(testKey(1))
	b.stop()
	a.lead(5, testKey(1))
	eventually(t, "a lease of a", func() bool { return a.workers.leaseOf(1) != 0 })
	if kinds := a.heard(testKey(1)); kinds != nil {
		t.Errorf("before the silence is over: %v", kinds)
	}
	a.tickUntilSilent(testKey(1))
	a.awaitHeard(testKey(1), "lost")
	a.Acknowledge(testKey(1))
	b.start()
	eventually(t, "the attempt is ended", func() bool {
		b.workers.mu.Lock()
		defer b.workers.mu.Unlock()
		return slices.Contains(b.workers.kills, testKey(1))
	})
}

// TestNewNodeDoesNotSpeakForTheFormerOne: while the leases of the node that was replaced may last, attempts
// that are not found wait.
func TestNewNodeDoesNotSpeakForTheFormerOne(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	b.stop()
	b.replaces = true
	b.start()
	a.lead(4, testKey(1))
	eventually(t, "all nodes are led", func() bool { return a.workers.leaseOf(1) != 0 && b.workers.leaseOf(1) != 0 })
	if kinds := a.heard(testKey(1)); kinds != nil {
		t.Errorf("while the lease of the former node may last: %v", kinds)
	}
	a.tickUntilSilent(testKey(1))
	a.awaitHeard(testKey(1), "lost")
}

// TestNewNodeSpeaksForAllInTheEnd: when the leases of the node that was replaced are over, an agent says so on the links
// that there are. Attempts that are not found are lost then, and do not wait at later takeovers.
func TestNewNodeSpeaksForAllInTheEnd(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	b.stop()
	b.replaces = true
	b.start()
	a.lead(4, testKey(1))
	eventually(t, "all nodes are led", func() bool { return a.workers.leaseOf(1) != 0 && b.workers.leaseOf(1) != 0 })
	b.agent.mu.Lock()
	b.agent.ledSince -= int64(time.Hour)
	b.agent.mu.Unlock()
	a.awaitHeard(testKey(1), "lost")
	a.HandOver(testPartition)
	a.lead(5, testKey(2))
	a.awaitHeard(testKey(2), "lost")
}

// TestFormerLeaderOrdersNothing: a node that has not heard of its successor does not renew leases, and its
// orders are refused where the successor leads.
func TestFormerLeaderOrdersNothing(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	c.epoch.Store(5)
	a.takeOver(4) // nobody confirms it
	a.order(testKey(1))
	eventually(t, "a has reported", func() bool {
		a.Fleet.mu.Lock()
		defer a.Fleet.mu.Unlock()
		return a.leads[1].table.HasHeard("a") && a.leads[1].table.HasHeard("b")
	})
	b.lead(5, testKey(1))
	eventually(t, "a lease of a", func() bool { return a.workers.leaseOf(1) != 0 })
	b.awaitHeard(testKey(1), "lost")
	a.order(testKey(2))
	b.awaitRoom()
	b.order(testKey(3))
	eventually(t, "an order of the present leader", func() bool { return b.workers.startsOf(testKey(3)) == 1 })
	if n := a.workers.startsOf(testKey(1)) + a.workers.startsOf(testKey(2)); n != 0 {
		t.Errorf("%d orders of the former leader are carried out", n)
	}
}

// TestNodeThatDoesNotAnswerForOutput is named in the error, when the limit is over.
func TestNodeThatDoesNotAnswerForOutput(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	a.workers.silence = make(chan struct{})
	defer close(a.workers.silence)
	a.lead(4)
	a.awaitRoom()
	a.order(testKey(1))
	eventually(t, "the order comes", func() bool { return a.workers.startsOf(testKey(1)) == 1 })
	a.workers.begin(testKey(1))
	a.HandOver(testPartition)
	b.lead(5, testKey(1))
	b.awaitHeard(testKey(1), "started")
	b.logLimit = time.Millisecond
	_, err := b.OpenLog(testKey(1), messages.Stdout)
	var known *messages.Error
	if !errors.As(err, &known) || known.Code != messages.Unavailable || !strings.Contains(known.Text, "node a") {
		t.Errorf("%v", err)
	}
}

// TestConnectionsThatFailArePaused: a node whose frames are refused is connected to again and again, with pauses that grow,
// although it has said hello each time.
func TestConnectionsThatFailArePaused(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	a.stop()
	b.SetNode("x") // a does not believe it
	times := make(chan time.Time, 100)
	a.dialed = func(id string) {
		if id == "b" {
			times <- time.Now()
		}
	}
	a.start()
	var first, last time.Time
	for i := range 8 {
		select {
		case last = <-times:
		case <-time.After(patience):
			t.Fatal("a does not connect again")
		}
		if i == 0 {
			first = last
		}
	}
	if d, pauses := last.Sub(first), 127*firstPause; d < pauses {
		t.Errorf("8 connections in %v, want pauses of %v in all", d, pauses)
	}
}

// TestHeardIsTheLastFrame of the workers of a node, also after their link has ended.
func TestHeardIsTheLastFrame(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	a.lead(4)
	eventually(t, "the other node is heard", func() bool { return b.workers.leaseOf(1) != 0 && !a.Heard("b").IsZero() })
	b.stop()
	isLinked := func() bool {
		a.Fleet.mu.Lock()
		defer a.Fleet.mu.Unlock()
		return a.links["b"] != nil
	}
	eventually(t, "the link has ended", func() bool { return !isLinked() })
	if at := a.Heard("b"); at.IsZero() || at.After(time.Now()) || !a.Heard("c").IsZero() {
		t.Errorf("heard at %v, and an unknown node at %v", at, a.Heard("c"))
	}
	b.start()
}

// orderOf orders an attempt that takes cores.
func (n *testNode) orderOf(cores int64, key messages.AttemptKey) {
	n.Start(executor.Order{Key: key, GrantedAt: 5, Command: []string{"true"}, CPUMillis: 1000 * cores})
}

// capacityOf has the node watch the capacity of testPartition, which the result returns in cores.
func (n *testNode) capacityOf() (cores func() int64) {
	var now atomic.Int64
	n.WatchCapacity(testPartition, func(cpuMillis, _ int64) { now.Store(cpuMillis / 1000) })
	return now.Load
}

// TestAttemptsGoToAllNodes: a leader uses the slots of all nodes that are there, and no more. A node that drains gets
// no order, and those that wait there move to one that has room.
func TestAttemptsGoToAllNodes(t *testing.T) {
	c := newTestCluster(t, "a", "b", "c")
	a, b, third := c.nodes[0], c.nodes[1], c.nodes[2]
	startsAt := func(task uint32) (at string) {
		for _, n := range c.nodes {
			for range n.workers.startsOf(testKey(task)) {
				at += n.id
			}
		}
		return at
	}
	a.lead(4)
	capacity := a.capacityOf()
	eventually(t, "the slots of three nodes", func() bool { return capacity() == 6 })
	for task := range uint32(6) {
		a.orderOf(1, testKey(task))
	}
	counts := map[string]int{}
	for task := range uint32(6) {
		eventually(t, "an order comes", func() bool { return startsAt(task) != "" })
		counts[startsAt(task)]++
	}
	if counts["a"] != 2 || counts["b"] != 2 || counts["c"] != 2 {
		t.Errorf("orders by node: %v", counts)
	}
	for _, n := range c.nodes { // each knows it, whoever leads
		eventually(t, n.id+" knows what is taken", func() bool {
			state := n.NodeSlots("b")
			return state.Capacity == testCapacity && state.Taken.CPUMillis == 2000 && state.Taken.Waiting == 2
		})
	}
	for task := range uint32(6) {
		for _, n := range c.nodes {
			if n.workers.has(testKey(task)) {
				n.workers.begin(testKey(task))
			}
		}
	}

	third.drain()
	eventually(t, "the slots of two nodes, and what c has begun", func() bool { return capacity() == 6 })
	// It waits at a or b until one of them has room.
	a.orderOf(2, testKey(7))
	eventually(t, "an order that waits", func() bool { return startsAt(7) != "" })
	first, other := a, b
	if startsAt(7) == "b" {
		first, other = b, a
	}
	for task := range uint32(6) {
		if other.workers.has(testKey(task)) {
			other.workers.end(testKey(task), messages.AttemptSucceeded)
		}
	}
	eventually(t, "the order moves", func() bool { return other.workers.startsOf(testKey(7)) == 1 && !first.workers.has(testKey(7)) })
	other.workers.begin(testKey(7))
	a.awaitHeard(testKey(7), "started")
	if third.workers.startsOf(testKey(7)) != 0 {
		t.Error("a node that drains gets an order")
	}
}
