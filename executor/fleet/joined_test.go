package fleet

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// testRows is the list of testPartition, which outlives its leaders.
type testRows struct {
	mu      sync.Mutex
	listed  []string
	changes []string      // "+ID", of several with spaces in between, or "-ID", as they began
	gate    chan struct{} // if set, a change is made when it is closed
	err     error         // of changes
}

func (r *testRows) change(text string, do func()) error {
	r.mu.Lock()
	r.changes = append(r.changes, text)
	gate := r.gate
	r.mu.Unlock()
	if gate != nil {
		<-gate
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		do()
	}
	return r.err
}

func (r *testRows) AddWorkers(ids ...string) error {
	return r.change("+"+strings.Join(ids, " "), func() { r.listed = append(r.listed, ids...) })
}

func (r *testRows) RemoveWorker(id string) error {
	return r.change("-"+id, func() { r.listed = slices.DeleteFunc(r.listed, func(x string) bool { return x == id }) })
}

func (r *testRows) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.listed)
}

// ids returns the joined workers that are listed.
func (r *testRows) ids() []string {
	return slices.DeleteFunc(r.all(), func(id string) bool { return !isJoinedWorker(id) })
}

func (r *testRows) allBegun() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.changes)
}

// begun returns the changes of joined workers.
func (r *testRows) begun() []string {
	return slices.DeleteFunc(r.allBegun(), func(change string) bool { return !isJoinedWorker(change) })
}

// close lets changes wait until open is called, or the test ends.
func (r *testRows) close(t *testing.T) (open func()) {
	gate := make(chan struct{})
	r.mu.Lock()
	r.gate = gate
	r.mu.Unlock()
	open = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open)
	return open
}

const testWorker = "w.1"

// testJoined is a joined worker with 8 cores. It implements Cluster.
type testJoined struct {
	*Fleet
	t       *testing.T
	workers *fakeWorkers
	calls   *ConnQueue
	wait    sync.WaitGroup
}

func (w *testJoined) Self() string                  { return testWorker }
func (w *testJoined) Replaces() bool                { return false }
func (w *testJoined) Nodes() []string               { return nil }
func (w *testJoined) Listen() (net.Listener, error) { return w.calls, nil }
func (w *testJoined) Leads(int, uint64) bool        { return false }
func (w *testJoined) Leader(int) string             { return "" }
func (w *testJoined) Dial(context.Context, string) (net.Conn, error) {
	return nil, errors.New("no node is known")
}

func newJoined(t *testing.T) *testJoined {
	t.Helper()
	w := &testJoined{t: t, calls: NewConnQueue(), workers: &fakeWorkers{attempts: map[messages.AttemptKey]*Known{}, starts: map[messages.AttemptKey]int{}, leases: map[uint32]int64{}}}
	var err error
	config := Config{Partitions: 2, Lease: time.Minute, Grace: time.Second, Capacity: workerpb.Amount{CPUMillis: 8000, MemoryBytes: 1 << 30}, Name: testWorker, Sink: func(...executor.Report) {}}
	if w.Fleet, err = Open(config, func(sink executor.Sink) (Workers, error) { w.workers.sink = sink; return w.workers, nil }); err != nil {
		t.Fatal(err)
	}
	if err := w.Join(w); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Detach(); err != nil {
			t.Error(err)
		}
		w.wait.Wait()
	})
	return w
}

// connect connects the worker to a node, and returns what ends the connection.
func (w *testJoined) connect(n *testNode) (cut func()) {
	w.t.Helper()
	here, there, err := socketPair()
	if err != nil {
		w.t.Fatal(err)
	}
	w.wait.Go(func() { n.ServeJoined(testWorker, "there", here) })
	w.calls.Add(there)
	eventually(w.t, "the slots of the worker are known", func() bool { return n.NodeSlots(testWorker).Capacity.CPUMillis == 8000 })
	return func() {
		there.Close()
		eventually(w.t, "the connection has ended", func() bool {
			n.Fleet.mu.Lock()
			defer n.Fleet.mu.Unlock()
			return n.links[testWorker] == nil
		})
	}
}

// leadWith makes a node lead with a list of workers.
func (n *testNode) leadWith(epoch uint64, rows *testRows, resumed ...messages.AttemptKey) {
	n.c.rows = rows
	n.lead(epoch, resumed...)
}

// orderLarge orders an attempt that fits the worker alone.
func (n *testNode) orderLarge(key messages.AttemptKey) {
	n.Start(executor.Order{Key: key, GrantedAt: 5, Command: []string{"true"}, CPUMillis: 4000})
}

// settle waits until a node has taken in a heartbeat of the worker that was sent after the call.
func (w *testJoined) settle(n *testNode) {
	w.t.Helper()
	before := n.Heard(testWorker)
	for range 2 {
		w.agent.beat(1)
		w.agent.mu.Lock()
		w.agent.announceState()
		w.agent.mu.Unlock()
		eventually(w.t, "the worker is heard", func() bool { return n.Heard(testWorker).After(before) })
		before = n.Heard(testWorker)
	}
}

// TestNoOrderBeforeTheRowOfAWorker: until its row is committed a joined worker gets no order, and if the commit
// fails it gets none.
func TestNoOrderBeforeTheRowOfAWorker(t *testing.T) {
	c := newTestCluster(t, "a")
	a, rows, w := c.nodes[0], &testRows{}, newJoined(t)
	open := rows.close(t)
	a.leadWith(4, rows)
	w.connect(a)
	eventually(t, "the row is being added", func() bool { return slices.Equal(rows.begun(), []string{"+" + testWorker}) })
	key := testKey(1)
	a.orderLarge(key)
	w.settle(a)
	if n := w.workers.startsOf(key); n != 0 {
		t.Fatal("the worker has an order before its row")
	}
	open()
	eventually(t, "the order comes", func() bool { return w.workers.startsOf(key) == 1 })

	a.HandOver(testPartition)
	failing := &testRows{err: errors.New("the leadership is lost")}
	a.leadWith(5, failing)
	eventually(t, "the row is not added", func() bool { return slices.Equal(failing.begun(), []string{"+" + testWorker}) })
	a.orderLarge(testKey(2))
	w.settle(a)
	if n := w.workers.startsOf(testKey(2)); n != 0 {
		t.Error("the worker has an order although its row was not committed")
	}
	a.HandOver(testPartition)
	a.SetRows(int(testPartition.Partition), 6, nil, nil)
	a.TakeOver(testPartition, 6)
	a.orderLarge(testKey(3))
	w.settle(a)
	if n := w.workers.startsOf(testKey(3)); n != 0 {
		t.Error("the worker has an order of an engine without a list")
	}
}

// TestNextLeaderWaitsForListedWorkers: an attempt that no node has is lost only when the listed workers have
// reported as well. The worker that has it goes on with it.
func TestNextLeaderWaitsForListedWorkers(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b, rows, w := c.nodes[0], c.nodes[1], &testRows{}, newJoined(t)
	key, missing := testKey(1), testKey(2)
	a.leadWith(4, rows)
	cut := w.connect(a)
	a.orderLarge(key)
	eventually(t, "the order comes", func() bool { return w.workers.startsOf(key) == 1 })
	w.workers.begin(key)
	a.awaitHeard(key, "started")
	cut()
	a.HandOver(testPartition)
	b.leadWith(5, rows, key, missing)
	eventually(t, "all nodes have reported", func() bool {
		b.Fleet.mu.Lock()
		defer b.Fleet.mu.Unlock()
		table := b.leads[testPartition.Partition].table
		return table.HasHeard("a") && table.HasHeard("b")
	})
	if got := slices.Concat(b.heard(key), b.heard(missing)); len(got) != 0 {
		t.Fatalf("decided without the worker: %v", got)
	}
	w.connect(b)
	b.awaitHeard(key, "started")
	b.awaitHeard(missing, "lost")
	w.workers.end(key, messages.AttemptSucceeded)
	b.awaitHeard(key, "started", "succeeded")
	if n := w.workers.startsOf(key); n != 1 {
		t.Errorf("ordered %d times", n)
	}
}

// TestRowOfASilentWorkerIsRemoved when its attempts are lost. A worker that comes back during the removal gets a row
// again before it gets orders.
func TestRowOfASilentWorkerIsRemoved(t *testing.T) {
	c := newTestCluster(t, "a")
	a, rows, w := c.nodes[0], &testRows{listed: []string{testWorker}}, newJoined(t)
	key := testKey(1)
	a.leadWith(4, rows, key)
	open := rows.close(t)
	a.tickUntilSilent(key)
	a.awaitHeard(key, "lost")
	eventually(t, "the row is being removed", func() bool { return slices.Equal(rows.begun(), []string{"-" + testWorker}) })
	w.connect(a)
	a.orderLarge(testKey(2))
	w.settle(a)
	if n := w.workers.startsOf(testKey(2)); n != 0 {
		t.Error("the worker has an order while its row is being removed")
	}
	open()
	eventually(t, "the order comes", func() bool { return w.workers.startsOf(testKey(2)) == 1 })
	if want := []string{"-" + testWorker, "+" + testWorker}; !slices.Equal(rows.begun(), want) || !slices.Equal(rows.ids(), []string{testWorker}) {
		t.Errorf("changes %v, listed %v", rows.begun(), rows.ids())
	}
}

// TestRowOfABusyWorkerStays while it is silent with an attempt whose loss is not durable.
func TestRowOfABusyWorkerStays(t *testing.T) {
	c := newTestCluster(t, "a")
	a, rows, w := c.nodes[0], &testRows{}, newJoined(t)
	key := testKey(1)
	a.leadWith(4, rows)
	cut := w.connect(a)
	a.orderLarge(key)
	eventually(t, "the order comes", func() bool { return w.workers.startsOf(key) == 1 })
	cut()
	a.tickUntilSilent(key)
	a.awaitHeard(key, "lost")
	a.Fleet.mu.Lock()
	a.removeRows()
	a.unlockAndDeliver()
	a.Fleet.mu.Lock()
	state := a.leads[testPartition.Partition].register.states[testWorker]
	a.Fleet.mu.Unlock()
	if state != rowPresent {
		t.Error("the row is removed before the loss is durable")
	}
	a.Acknowledge(key)
	eventually(t, "the row is removed", func() bool { return len(rows.ids()) == 0 })
	if got := a.JoinedWorkers(); len(got) != 0 {
		t.Errorf("%+v is shown", got)
	}
	if a.LargestCapacity().CPUMillis != 8000 {
		t.Error("its size is forgotten at once")
	}
	a.Fleet.mu.Lock()
	a.Fleet.heard[testWorker] = time.Now().Add(-time.Hour)
	a.removeRows()
	a.unlockAndDeliver()
	if got := a.LargestCapacity(); got != testCapacity {
		t.Errorf("its size is remembered: %+v", got)
	}
}

// TestWorkerThatDrainsLeaves its list when it has nothing left to do, and stays in it while it has.
func TestWorkerThatDrainsLeaves(t *testing.T) {
	c := newTestCluster(t, "a")
	a, rows, w := c.nodes[0], &testRows{}, newJoined(t)
	key := testKey(1)
	a.leadWith(4, rows)
	cut := w.connect(a)
	a.orderLarge(key)
	eventually(t, "the order comes", func() bool { return w.workers.startsOf(key) == 1 })
	w.workers.begin(key)
	a.awaitHeard(key, "started")
	w.Drain()
	eventually(t, "the node knows", func() bool { return a.NodeSlots(testWorker).Draining })
	cut()
	if !slices.Equal(rows.ids(), []string{testWorker}) {
		t.Error("the row was removed while a task runs there")
	}
	cut = w.connect(a)
	w.workers.end(key, messages.AttemptSucceeded)
	a.awaitHeard(key, "started", "succeeded")
	a.Acknowledge(key)
	eventually(t, "the end is forgotten", func() bool { return !w.workers.has(key) })
	cut()
	eventually(t, "the row is removed", func() bool { return len(rows.ids()) == 0 })
}

// TestDeadWorker: what a worker has is lost when a person says that it is dead, and it gets no more orders of this
// leader.
func TestDeadWorker(t *testing.T) {
	c := newTestCluster(t, "a")
	a, rows, w := c.nodes[0], &testRows{}, newJoined(t)
	key := testKey(1)
	a.leadWith(4, rows)
	if isKnown, err := a.WorkerDead(1, 4, testWorker); isKnown || err != nil {
		t.Errorf("a worker without a row: %v, %v", isKnown, err)
	}
	if _, err := a.WorkerDead(1, 3, testWorker); err == nil {
		t.Error("a former epoch answers")
	}
	w.connect(a)
	a.orderLarge(key)
	eventually(t, "the order comes", func() bool { return w.workers.startsOf(key) == 1 })
	w.workers.begin(key)
	a.awaitHeard(key, "started")
	if isKnown, err := a.WorkerDead(1, 4, testWorker); !isKnown || err != nil || len(rows.ids()) != 0 {
		t.Errorf("%v, %v, listed %v", isKnown, err, rows.ids())
	}
	a.awaitHeard(key, "started", "lost")
	w.workers.end(key, messages.AttemptSucceeded)
	a.orderLarge(testKey(2))
	w.settle(a)
	if n := w.workers.startsOf(testKey(2)); n != 0 || !slices.Equal(a.heard(key), []string{"started", "lost"}) {
		t.Errorf("%d orders, heard %v", n, a.heard(key))
	}
	if got := slices.Clone(rows.begun()); !slices.Equal(got, []string{"+" + testWorker, "-" + testWorker}) {
		t.Errorf("changes %v", got)
	}
}

// TestDeadWorkerIsNotWaitedFor: the next leader knows an attempt as lost as soon as the worker is declared dead.
func TestDeadWorkerIsNotWaitedFor(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, rows := c.nodes[0], &testRows{listed: []string{testWorker, "w.2"}}
	key := testKey(1)
	a.leadWith(4, rows, key)
	for i, id := range []string{testWorker, "w.2"} {
		if got := a.heard(key); len(got) != 0 {
			t.Fatalf("after %d of 2: %v", i, got)
		}
		if isKnown, err := a.WorkerDead(1, 4, id); !isKnown || err != nil {
			t.Fatal(isKnown, err)
		}
	}
	a.awaitHeard(key, "lost")
}

// TestWorkersMayOnlyStoreCopies on a node: they read no output, and their orders do not reach its workers.
func TestWorkersMayOnlyStoreCopies(t *testing.T) {
	c := newTestCluster(t, "a")
	a, copies := c.nodes[0], newLocalListener()
	a.ServeCopies(copies)
	conn, err := grpc.NewClient("passthrough:///a", append(workerpb.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return copies.dial(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err = workerpb.NewOutputsClient(conn).Read(ctx, &workerpb.OutputRequest{Run: 3, Attempt: 1, Output: &workerpb.Output{Size: 1, Head: 1}, Length: 1})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("read: %v", err)
	}
	stream, err := workerpb.NewWorkerClient(conn).Attach(ctx)
	if err != nil {
		t.Fatal(err)
	}
	hello := new(workerpb.WorkerFrame)
	if err := stream.RecvMsg(hello); err != nil || string(hello.Hello.Name) != "a" {
		t.Fatal(hello, err)
	}
	frame := workerpb.ServerFrameFromVTPool()
	s := workerpb.Session{Partition: 1, Epoch: 99, Number: 1}
	frame.AddLead(s)
	frame.OrdersIn(s).AddOrder(&executor.Order{Key: testKey(1)})
	if err := stream.Send(frame); err != nil {
		t.Fatal(err)
	}
	a.lead(4) // would be refused by an agent that has seen epoch 99
	a.awaitRoom()
	if a.workers.startsOf(testKey(1)) != 0 {
		t.Error("the order of a worker was carried out")
	}
}

// TestTickBeforeTheHello: a node does not forget a worker that has joined and has not said hello yet. Its status
// would lack the worker for as long as the connection lasts.
func TestTickBeforeTheHello(t *testing.T) {
	a := newTestCluster(t, "a").nodes[0]
	here, there, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		a.ServeJoined(testWorker, "there", here)
	}()
	isJoined := func() bool {
		a.Fleet.mu.Lock()
		defer a.Fleet.mu.Unlock()
		return a.joined[testWorker] != ""
	}
	eventually(t, "the worker has joined", isJoined)
	a.Fleet.mu.Lock()
	a.removeRows()
	a.unlockAndDeliver()
	if !isJoined() {
		t.Error("the node has forgotten the worker")
	}
	there.Close()
	testenv.Receive(t, "the connection has ended", served)
}
