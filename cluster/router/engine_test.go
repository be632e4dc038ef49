package router_test

import (
	"context"
	"errors"
	"net"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/cluster/router"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/http"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

func TestMain(m *testing.M) { testenv.VerifyNoLeaks(m) }

// directory is a member whose leaders the test sets.
type directory struct {
	mu                      sync.Mutex
	leader                  raftlog.NodeID
	engine                  *engine // nil = this node does not serve
	epoch                   uint64
	hasLease                bool
	askedLease, askedLeader int
	changed                 chan struct{}
}

func newDirectory(e *engine) *directory {
	return &directory{leader: "n1", engine: e, epoch: 1, hasLease: true, changed: make(chan struct{})}
}

func (d *directory) update(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
	close(d.changed)
	d.changed = make(chan struct{})
}

// asked counts the questions for the leader.
func (d *directory) asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.askedLeader
}

func (d *directory) Self() raftlog.NodeID { return "n1" }
func (d *directory) Partitions() int      { return 1 }
func (d *directory) Leader(int) (cluster.Leadership, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.askedLeader++
	return cluster.Leadership{Node: d.leader, Term: d.epoch}, d.leader != ""
}
func (d *directory) Engine(int) (cluster.Engine, uint64, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.engine == nil {
		return nil, 0, false
	}
	return d.engine, d.epoch, true
}
func (d *directory) HasLease(_ int, epoch uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.askedLease++
	return d.hasLease && epoch == d.epoch
}
func (d *directory) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}
func (d *directory) Dial(context.Context, raftlog.NodeID, string) (net.Conn, error) {
	return nil, errors.New("not here")
}
func (d *directory) HasRun(context.Context, messages.RunID) (bool, error) {
	return false, errors.New("not here")
}
func (d *directory) Listen(string) (net.Listener, error) { return nil, errors.New("not here") }

func (d *directory) Cluster() cluster.ID { return cluster.ID{15: 7} }
func (d *directory) Nodes() []cluster.Node {
	return []cluster.Node{{ID: "n1", Name: "one", Address: "10.0.0.1:1"}, {ID: "n2", Name: "two"}}
}
func (d *directory) ClockSkew(node raftlog.NodeID) (skew time.Duration) {
	if node == "n2" {
		skew = time.Hour
	}
	return skew
}

func (d *directory) ClockWarnings() []string { return []string{"a clock is off"} }

func (d *directory) QueuedTasks(partition int) int { return 10 * partition }
func (d *directory) VerifyReplicas(context.Context) ([]cluster.PartitionVerdict, error) {
	return []cluster.PartitionVerdict{d.verdict()}, nil
}
func (d *directory) Verdict(int) (cluster.PartitionVerdict, bool) { return d.verdict(), true }
func (d *directory) TransferLead(_ context.Context, p int, to string) (cluster.Transfer, error) {
	return cluster.Transfer{Partition: p, From: "n1", To: raftlog.NodeID(to), Problem: "none"}, nil
}
func (d *directory) TransferAllLeads(ctx context.Context, from string) ([]cluster.Transfer, error) {
	one, err := d.TransferLead(ctx, 2, "n2")
	return []cluster.Transfer{one}, err
}
func (d *directory) RepairReplica(_ context.Context, p int, node string) (cluster.Repair, error) {
	return cluster.Repair{Node: raftlog.NodeID(node), Source: "n1", Verdict: d.verdict()}, nil
}
func (d *directory) DeclareWorkerDead(context.Context, string) error { return nil }

func (d *directory) Level() int { return 0 }

func (d *directory) UpgradeLevel(context.Context) (from, to int, err error) { return 0, 0, nil }

func (d *directory) RemoveNode(_ context.Context, node string) (raftlog.NodeID, error) {
	return raftlog.NodeID(node), nil
}
func (d *directory) verdict() cluster.PartitionVerdict {
	return cluster.PartitionVerdict{Index: 12, Replicas: []cluster.ReplicaDigest{{Node: "n1", Digest: "aa", Rows: 3}, {Node: "n2", Digest: "ab", Rows: 3, Differs: true}}}
}
func (d *directory) Status(int) (s cluster.Status) {
	s.HasReplica, s.Applied, s.Last, s.Match = true, 17, 20, map[raftlog.NodeID]uint64{"n2": 18, "n3": 20}
	return s
}

// engine answers every call with err, and with a log or a subscription that counts its closing.
type engine struct {
	err       error
	calls     int
	closed    int
	isCommit  bool   // each call commits a group
	committed uint64 // groups
}

func (e *engine) did() error {
	e.calls++
	if e.isCommit {
		e.committed++
	}
	return e.err
}
func (e *engine) Proposals() (proposed, committed uint64) { return e.committed, e.committed }

func (e *engine) NextNumber() uint64            { return 0 }
func (e *engine) RaiseNextNumber(uint64)        {}
func (e *engine) Load() actors.Load             { return actors.Load{} }
func (e *engine) Paused(context.Context) string { e.calls++; return "a reason" }
func (e *engine) Submit(context.Context, *messages.Submission) (messages.RunID, error) {
	return 4, e.did()
}
func (e *engine) SubmitAll(context.Context, []*messages.Submission) ([]messages.Result[messages.RunID], error) {
	return nil, e.did()
}
func (e *engine) SetState(context.Context, messages.RunID, dag.RunState) error { return e.did() }
func (e *engine) SetPaused(context.Context, string) error                      { return e.did() }
func (e *engine) Kill(context.Context, messages.RunID) error                   { return e.did() }
func (e *engine) KillTask(context.Context, messages.RunID, string) error       { return e.did() }
func (e *engine) Ready(context.Context) error                                  { return e.did() }
func (e *engine) AcceptsRuns(context.Context) error                            { return e.did() }
func (e *engine) Healthy(context.Context) error                                { return e.did() }
func (e *engine) Damaged(context.Context) error                                { return e.did() }
func (e *engine) Summary(context.Context, messages.RunID) (*messages.Summary, error) {
	return &messages.Summary{}, e.did()
}
func (e *engine) Summaries(context.Context, messages.ListQuery, func(*messages.Summary) bool) error {
	return e.did()
}
func (e *engine) View(context.Context, messages.RunID, uint32, uint32) (*messages.View, error) {
	return &messages.View{}, e.did()
}
func (e *engine) Task(context.Context, messages.RunID, string) (*messages.View, error) {
	return &messages.View{}, e.did()
}
func (e *engine) Attempts(context.Context, messages.RunID, uint32, uint32, func(*messages.AttemptRecord) bool) error {
	return e.did()
}
func (e *engine) Await(context.Context, messages.RunID, func(*messages.Summary) bool) (*messages.Summary, error) {
	return &messages.Summary{State: dag.RunRunning}, e.did()
}
func (e *engine) Follow(context.Context, messages.RunID, uint64) (messages.Subscription, error) {
	return subscription{e}, e.did()
}
func (e *engine) Listen(context.Context, messages.ListQuery, int64) (messages.RunListSubscription, error) {
	return listSubscription{e}, e.did()
}
func (e *engine) OpenLog(context.Context, messages.RunID, string, uint32, messages.Stream) (messages.Log, error) {
	return openLog{e: e}, e.did()
}
func (e *engine) Output(context.Context, messages.RunID, *messages.AttemptRecord, messages.Stream) (messages.Log, error) {
	return openLog{e: e}, e.did()
}

type subscription struct{ e *engine }

func (s subscription) Next(context.Context) (*messages.RunEvents, error) { return nil, nil }
func (s subscription) Close()                                            { s.e.closed++ }

type listSubscription struct{ e *engine }

func (s listSubscription) Next(context.Context) (*messages.RunListEvents, error) { return nil, nil }
func (s listSubscription) Close()                                                { s.e.closed++ }

type openLog struct {
	messages.Log
	e *engine
}

func (l openLog) Close() error { l.e.closed++; return nil }

// The methods of http.Engine, by what they may answer when this node does not lead.
var (
	changes = []string{"Submit", "SubmitAll", "SetState", "SetPaused", "Kill", "KillTask"}
	reads   = []string{"Summary", "Summaries", "View", "Task", "Attempts", "Await", "Follow", "Listen", "OpenLog", "Output"}
	ofNode  = []string{"Ready", "AcceptsRuns", "Healthy", "Damaged", "Paused"}
)

// call calls a method with zero arguments and returns its results; the last one is the error.
func call(e *router.Engine, name string) (any, error) {
	method := reflect.ValueOf(e).MethodByName(name)
	in := make([]reflect.Value, method.Type().NumIn())
	for i := range in {
		in[i] = reflect.Zero(method.Type().In(i))
	}
	in[0] = reflect.ValueOf(context.Background())
	out := method.Call(in)
	err, _ := out[len(out)-1].Interface().(error)
	if len(out) == 1 {
		return nil, err
	}
	return out[0].Interface(), err
}

func codeOf(err error) messages.ErrorCode {
	var m *messages.Error
	if !errors.As(err, &m) {
		return messages.Internal
	}
	return m.Code
}

func newEngine(t *testing.T, d *directory) *router.Engine {
	t.Helper()
	e := router.NewEngine(d, func(context.Context) error { return nil }, func() error { return nil })
	t.Cleanup(e.Close)
	return e
}

// TestAllMethodsAreListed: a new method of http.Engine needs its place in one of the lists, and so its
// tests.
func TestAllMethodsAreListed(t *testing.T) {
	of := reflect.TypeFor[http.Engine]()
	all := slices.Concat(changes, reads, ofNode)
	for i := range of.NumMethod() {
		if !slices.Contains(all, of.Method(i).Name) {
			t.Errorf("%s is in no list", of.Method(i).Name)
		}
	}
	if of.NumMethod() != len(all) {
		t.Errorf("%d methods, %d listed", of.NumMethod(), len(all))
	}
}

// TestNodeThatDoesNotLead answers NotLeader, without asking any engine.
func TestNodeThatDoesNotLead(t *testing.T) {
	e := newEngine(t, newDirectory(nil))
	for _, name := range slices.Concat(changes, reads) {
		if _, err := call(e, name); codeOf(err) != messages.NotLeader {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEngineAnswers: the results and errors of the engine are passed on while the lease holds.
func TestEngineAnswers(t *testing.T) {
	for _, want := range []error{nil, errors.New("marked")} {
		behind := &engine{err: want}
		e := newEngine(t, newDirectory(behind))
		for i, name := range slices.Concat(changes, reads) {
			got, err := call(e, name)
			if err != want || behind.calls != i+1 {
				t.Errorf("%s: %v %v, after %d calls", name, got, err, behind.calls)
			}
		}
		if opened := 4; want != nil && behind.closed != opened || want == nil && behind.closed != 0 {
			t.Errorf("with the error %v, %d of %d are closed", want, behind.closed, opened)
		}
	}
}

// TestReadsNeedTheLeaseAfterwards: an answer that may be old is not returned, and what was opened for it is
// closed. A change has the answer of the log.
func TestReadsNeedTheLeaseAfterwards(t *testing.T) {
	behind := &engine{}
	d := newDirectory(behind)
	d.hasLease = false
	e := newEngine(t, d)
	for _, name := range reads {
		if got, err := call(e, name); codeOf(err) != messages.NotLeader || name == "Await" && !reflect.ValueOf(got).IsNil() {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
	if behind.calls != len(reads) || d.askedLease != len(reads) || behind.closed != 4 {
		t.Errorf("%d calls, %d questions for the lease, %d closed", behind.calls, d.askedLease, behind.closed)
	}
	behind.isCommit = true
	for _, name := range changes {
		if _, err := call(e, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestChangesWithoutAnEntryNeedTheLease: a deposed leader may find that there is nothing to change. The results
// of a batch have an outcome each.
func TestChangesWithoutAnEntryNeedTheLease(t *testing.T) {
	d := newDirectory(&engine{committed: 7})
	e := newEngine(t, d)
	for _, hasLease := range []bool{true, false} {
		d.update(func() { d.hasLease = hasLease })
		for _, name := range changes {
			_, err := call(e, name)
			if isRefused := codeOf(err) == messages.NotLeader; isRefused != (!hasLease && name != "SubmitAll") || err != nil && !isRefused {
				t.Errorf("%s with the lease %v: %v", name, hasLease, err)
			}
		}
	}
}

// TestChangeAtALostEngine: one that was refused goes to the next leader, one whose outcome is unknown does
// not.
func TestChangeAtALostEngine(t *testing.T) {
	for _, c := range []struct {
		code     messages.ErrorCode
		hasLease bool
		want     messages.ErrorCode
	}{
		{messages.Unavailable, false, messages.NotLeader},
		{messages.Unavailable, true, messages.Unavailable},
		{messages.OutcomeUnknown, false, messages.OutcomeUnknown},
		{messages.Invalid, false, messages.NotLeader},
		{messages.NotFound, false, messages.NotLeader},
		{messages.NotFound, true, messages.NotFound},
		{messages.Internal, false, messages.Internal},
	} {
		d := newDirectory(&engine{err: &messages.Error{Code: c.code}})
		d.hasLease = c.hasLease
		e := newEngine(t, d)
		for _, name := range changes {
			if _, err := call(e, name); codeOf(err) != c.want {
				t.Errorf("%s with %v, lease %v: %v, want code %v", name, c.code, c.hasLease, codeOf(err), c.want)
			}
		}
	}
}

// TestReady: a node is ready when it knows all leaders, and stays so for the time of an election.
func TestReady(t *testing.T) {
	d := newDirectory(nil)
	d.leader = ""
	e := newEngine(t, d)
	if e.Ready(t.Context()) == nil {
		t.Error("a node that has not heard of a leader is ready")
	}
	d.update(func() { d.leader = "n2" })
	testenv.Eventually(t, "ready", func() bool { return e.Ready(t.Context()) == nil })
	seen := d.asked()
	d.update(func() { d.leader = "" })
	testenv.Eventually(t, "the loss of the leader is seen", func() bool { return d.asked() > seen })
	if err := e.Ready(t.Context()); err != nil {
		t.Errorf("at the begin of an election: %v", err)
	}
	d.update(func() { d.leader = "n1" }) // and the engine starts
	d.update(func() { d.engine = &engine{} })
	testenv.Eventually(t, "ready", func() bool { return e.Ready(t.Context()) == nil })
}

// TestHealthOfANode is that of the node and of the engines that run here.
func TestHealthOfANode(t *testing.T) {
	behind := &engine{err: errors.New("a disk is low")}
	d := newDirectory(behind)
	var own, damage error
	e := router.NewEngine(d, func(context.Context) error { return own }, func() error { return damage })
	defer e.Close()
	for _, name := range []string{"AcceptsRuns", "Healthy", "Damaged"} {
		if _, err := call(e, name); err != behind.err {
			t.Errorf("%s: %v", name, err)
		}
	}
	if e.Paused(t.Context()) != "a reason" {
		t.Error("the pause of the engine is hidden")
	}
	own = errors.New("the node is ill")
	if err := e.Healthy(t.Context()); err != own {
		t.Error(err)
	}
	d.update(func() { d.engine = nil })
	own = nil
	if err := errors.Join(e.AcceptsRuns(t.Context()), e.Healthy(t.Context()), e.Damaged(t.Context())); err != nil || e.Paused(t.Context()) != "" {
		t.Errorf("without an engine: %v", err)
	}
	damage = errors.New("an output file is damaged")
	if err := e.Damaged(t.Context()); err != damage {
		t.Errorf("damage of a node that leads nothing: %v", err)
	}
}

// TestRouter tells package http who leads.
func TestRouter(t *testing.T) {
	d := newDirectory(nil)
	r := router.New(d, func(s *http.NodeStatus) {
		if s.ID == "n2" {
			s.Running = 3
		}
	}, func() []http.WorkerStatus { return []http.WorkerStatus{{ID: "gpu.1"}} })
	if node, isHere := r.Leader(0); node != "n1" || isHere {
		t.Errorf("while the engine starts: %q %v", node, isHere)
	}
	d.update(func() { d.engine = &engine{} })
	if node, isHere := r.Leader(0); node != "n1" || !isHere {
		t.Errorf("led here: %q %v", node, isHere)
	}
	want := http.ClusterStatus{ID: d.Cluster().String(), Node: "n1", Workers: []http.WorkerStatus{{ID: "gpu.1"}}, Nodes: []http.NodeStatus{{ID: "n1", Name: "one", Address: "10.0.0.1:1"}, {ID: "n2", Name: "two", Running: 3, ClockSkew: time.Hour}},
		Partitions: []http.PartitionStatus{{Replica: true, Leader: "n1", Term: 1, Applied: 17, Lag: 2, Lease: true, Verified: 12, Differing: []string{"n2"}}}}
	if got := r.Status(t.Context()); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	if w := r.Warnings(); len(w) != 1 || w[0] != "a clock is off" {
		t.Errorf("warnings %q", w)
	}
	if n := r.QueuedTasks(7); n != 70 {
		t.Errorf("%d tasks wait", n)
	}
	if ids := r.Nodes(); !slices.Equal(ids, []string{"n1", "n2"}) {
		t.Errorf("%q", ids)
	}
	d.update(func() { d.engine, d.leader = nil, "" })
	if node, isHere := r.Leader(0); node != "" || isHere {
		t.Errorf("without a leader: %q %v", node, isHere)
	}
}
