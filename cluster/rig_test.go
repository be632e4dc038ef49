package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/cluster/raftlog/raftlogtest"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/clustertls"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

func TestMain(m *testing.M) { testenv.VerifyNoLeaks(m, raftlogtest.LibraryLeaks()...) }

// smallStorage is the configuration of rows: tests open hundreds of replicas.
var smallStorage = persistence.Config{HasSmallMemTables: true}

// patience is the deadline of a step that needs an election, or several on a busy machine.
const patience = 2 * time.Minute

// chain is a run of three tasks, one after the other, without processes.
const chain = `{"tasks":{"a":{"job":{"executor":"noop"}},"b":{"job":{"executor":"noop"},"parents":["a"]},"c":{"job":{"executor":"noop"},"parents":["b"]}}}`

// fastSettings are shorter than the defaults by a factor of about two on a quiet machine.
func fastSettings() raftlog.Settings {
	s := raftlog.DefaultSettings()
	s.Heartbeat, s.Election = 400*time.Millisecond, 400*time.Millisecond
	s.LeaderLease, s.ReadLease = 400*time.Millisecond, 250*time.Millisecond
	s.Request = time.Second
	s.TransferStall = 1200 * time.Millisecond
	s.Tick = 20 * time.Millisecond
	s.SegmentBytes = 64 << 10
	return raftlogtest.ForThisMachine(s)
}

// testNode is one node of a testCluster: its folder, and the member while it runs.
type testNode struct {
	cluster  *testCluster
	name     string
	dir      string
	registry *prometheus.Registry
	outputs  *outputs.Store

	// listener and credentials are set for a cluster on loopback.
	listener    net.Listener
	credentials *clustertls.Credentials

	replace          bool // see Config
	hasJoined        bool // after the others, whose lists lack it
	level            *int // the highest level of an older program; nil for this one
	afterRestoreStep func(partition, step int) error

	dialsFail atomic.Bool // new connections to others fail, and those that are open go on

	clockStep atomic.Int64 // of its time of day, in nanoseconds

	isLosing atomic.Bool // the disk loses the rows of entries, and lost counts them
	lost     atomic.Int64
	damage   atomic.Pointer[error]      // of all DBs
	term     atomic.Pointer[EngineTerm] // of the newest engine

	mu     sync.Mutex
	member *Member // nil while it is down
	fatal  []error
}

func (n *testNode) running() *Member {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.member
}

func (n *testNode) setRunning(m *Member) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.member = m
}

func (n *testNode) fatals() []error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fatal
}

// forgetFatals returns the fatal errors so far, which a test expects.
func (n *testNode) forgetFatals() []error {
	n.mu.Lock()
	defer n.mu.Unlock()
	fatal := n.fatal
	n.fatal = nil
	return fatal
}

// logCounter is a log that counts the lines with a text.
type logCounter struct {
	text  string
	lines atomic.Int64
}

func (l *logCounter) Write(line []byte) (int, error) {
	if strings.Contains(string(line), l.text) {
		l.lines.Add(1)
	}
	return len(line), nil
}

// testCluster is nodes in one process, on a network in memory.
type testCluster struct {
	t          *testing.T
	network    *raftlogtest.Network
	partitions int
	placement  func(partition int) []string // see Config
	// adaptEngine changes the configuration of each engine; nil: it stays.
	adaptEngine func(*actors.Config)
	settings    raftlog.Settings
	steadyTime  time.Duration // of the balancers; an hour unless the test is about them
	// removalSilence is Config.RemovalSilence of all nodes.
	removalSilence time.Duration
	// areWorkersHeard says that the workers of all nodes have been heard a moment ago.
	areWorkersHeard atomic.Bool
	nodes           []*testNode
	// reluctant is how many of the nodes, the last ones, stand for election only long after the others: a test spoils
	// them, or looks at them as followers.
	reluctant int
	log       io.Writer // nil: discard
	// damagedLeadPause is that of all nodes, in nanoseconds.
	damagedLeadPause atomic.Int64
}

// newTestCluster makes nodes that do not run yet. At the end of the test all of them are closed.
func newTestCluster(t *testing.T, nodes, partitions int) *testCluster {
	t.Helper()
	c := &testCluster{t: t, network: raftlogtest.NewNetwork(), partitions: partitions, settings: fastSettings(), steadyTime: time.Hour}
	for i := range nodes {
		n := &testNode{cluster: c, name: fmt.Sprintf("n%d", i+1), dir: filepath.Join(t.TempDir(), "data")}
		var err error
		if n.outputs, err = outputs.Open(t.TempDir()); err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, n)
	}
	t.Cleanup(func() {
		c.network.HealAll()
		c.each(func(n *testNode) {
			n.close()
			if err := n.outputs.Close(); err != nil {
				t.Error(err)
			}
			for _, err := range n.fatals() {
				t.Errorf("%s: %v", n.name, err)
			}
		})
	})
	return c
}

// startCluster makes a cluster of three nodes that runs.
func startCluster(t *testing.T, partitions int) *testCluster {
	t.Helper()
	c := newTestCluster(t, 3, partitions)
	c.each((*testNode).start)
	return c
}

// each calls f for all nodes at once, and waits.
func (c *testCluster) each(f func(*testNode)) {
	var wait sync.WaitGroup
	for _, n := range c.nodes {
		wait.Go(func() { f(n) })
	}
	wait.Wait()
}

func (c *testCluster) list() (list []NodeAddress) {
	for _, n := range c.nodes {
		address := n.name
		if n.listener != nil {
			address = n.listener.Addr().String()
		}
		list = append(list, NodeAddress{Name: n.name, Address: address})
	}
	return list
}

func (c *testCluster) names() (names []raftlog.NodeID) {
	for _, n := range c.nodes {
		names = append(names, raftlog.NodeID(n.name))
	}
	return names
}

func (c *testCluster) logger() *slog.Logger {
	if os.Getenv("CLUSTER_TRACE") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	if c.log != nil {
		return slog.New(slog.NewTextHandler(c.log, nil))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

// config is the configuration of a node.
func (n *testNode) config() Config {
	c := n.cluster
	n.registry = prometheus.NewRegistry()
	logger := c.logger()
	log := c.settings
	if slices.Index(c.nodes, n) >= len(c.nodes)-c.reluctant {
		log.Heartbeat, log.Election, log.TransferStall = 5*log.Heartbeat, 5*log.Election, 5*log.TransferStall
	}
	list := slices.DeleteFunc(c.list(), func(node NodeAddress) bool {
		return node.Name != n.name && slices.ContainsFunc(c.nodes, func(other *testNode) bool { return other.name == node.Name && other.hasJoined })
	})
	config := Config{
		Name: n.name, Nodes: list, Partitions: c.partitions, Dir: n.dir, Replace: n.replace, RemovalSilence: c.removalSilence,
		WorkersHeard: func(raftlog.NodeID) (at time.Time) {
			if c.areWorkersHeard.Load() {
				at = time.Now()
			}
			return at
		},
		Listener: c.network.Listen(raftlog.NodeID(n.name)), Dial: c.network.Dial(raftlog.NodeID(n.name)),
		Engine: func(term EngineTerm) actors.Config {
			n.term.Store(&term)
			engine := actors.Config{
				Outputs: n.outputs, CPUMillis: 2000, MemoryBytes: 1 << 30, KillGrace: time.Second, Logger: logger,
				Executors: map[string]func(executor.Sink) (executor.Executor, error){
					"noop": func(s executor.Sink) (executor.Executor, error) { return executor.NewNoop(s.Report), nil },
				},
			}
			if c.adaptEngine != nil {
				c.adaptEngine(&engine)
			}
			return engine
		},
		Clock:   steppedClock{actors.SystemClock(), &n.clockStep},
		Storage: smallStorage, Log: log, Logger: logger, Registerer: n.registry, steadyTime: c.steadyTime,
		Fatal: func(err error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.fatal = append(n.fatal, err)
		},
		afterRestoreStep: n.afterRestoreStep, testLevel: n.level, placement: c.placement,
		damagedLeadPause: func() time.Duration { return time.Duration(c.damagedLeadPause.Load()) },
		loseEntry: func(uint64) bool {
			m := n.running()
			if !n.isLosing.Load() || m == nil {
				return false
			}
			if _, _, leads := m.Engine(0); leads {
				return false // the engine would take its own rows for written
			}
			n.lost.Add(1)
			return true
		},
		findDamage: func() error {
			if err := n.damage.Load(); err != nil {
				return *err
			}
			return nil
		},
	}
	dial := config.Dial
	config.Dial = func(ctx context.Context, address string) (net.Conn, error) {
		if n.dialsFail.Load() {
			return nil, errors.New("no connection is made: a test wants it so")
		}
		return dial(ctx, address)
	}
	if n.listener != nil {
		config.Listener, config.Credentials, config.Dial = n.listener, n.credentials, nil
	}
	return config
}

// start opens the member.
func (n *testNode) start() {
	n.cluster.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m, err := Open(ctx, n.config())
	if err != nil {
		n.cluster.t.Errorf("%s: %v", n.name, err)
		return
	}
	n.setRunning(m)
}

// close closes the member without ceremony.
func (n *testNode) close() {
	n.cluster.t.Helper()
	m := n.running()
	if m == nil {
		return
	}
	n.setRunning(nil)
	if err := m.Close(); err != nil {
		n.cluster.t.Errorf("%s: %v", n.name, err)
	}
	if families, err := n.registry.Gather(); err != nil || len(families) > 0 {
		n.cluster.t.Errorf("%s: %d metrics are left, %v", n.name, len(families), err)
	}
}

// kill closes the member and leaves its folder as a kill -9 would: without what a close writes.
func (n *testNode) kill() {
	n.cluster.t.Helper()
	m := n.running()
	for h := range m.ownHosts() { // from here on no entry is written or applied
		if err := h.group.Close(); err != nil {
			n.cluster.t.Error(err)
		}
	}
	image := n.copyFolder()
	n.close()
	n.dir = image
}

// copyFolder copies the folder while Badger works in it.
func (n *testNode) copyFolder() (to string) {
	n.cluster.t.Helper()
	manifests := func() (all []byte) {
		paths, _ := filepath.Glob(filepath.Join(n.dir, "p", "*", "db-*", "MANIFEST"))
		for _, path := range paths {
			text, _ := os.ReadFile(path)
			all = append(all, text...)
		}
		return all
	}
	for range 100 {
		to = filepath.Join(n.cluster.t.TempDir(), "data")
		before := manifests()
		if err := os.CopyFS(to, os.DirFS(n.dir)); err == nil && bytes.Equal(before, manifests()) {
			return to
		}
	}
	n.cluster.t.Fatal("the folder does not come to rest")
	return ""
}

// isolate cuts a node off from all others.
func (n *testNode) isolate() {
	n.cluster.network.Isolate(raftlog.NodeID(n.name), n.cluster.names()...)
}

// leaderOf returns the node whose engine of a partition is published, has the highest epoch, and answers under
// its lease.
func (c *testCluster) leaderOf(partition int, except ...*testNode) (leader *testNode, epoch uint64) {
	c.t.Helper()
	found := testenv.Poll(patience, func() bool {
		leader, epoch = c.findLeader(partition, except...)
		return leader != nil
	})
	if !found {
		c.t.Fatalf("partition %d has no leader within %v", partition, patience)
	}
	return leader, epoch
}

func (c *testCluster) findLeader(partition int, except ...*testNode) (leader *testNode, epoch uint64) {
	for _, n := range c.nodes {
		m := n.running()
		if m == nil || contains(except, n) {
			continue
		}
		if _, e, ok := m.Engine(partition); ok && e > epoch && m.HasLease(partition, e) {
			leader, epoch = n, e
		}
	}
	return leader, epoch
}

// leadershipOf returns the leader of a partition with the leadership that its host has. The one that leaderOf
// has found may have ended.
func (c *testCluster) leadershipOf(partition int) (leader *testNode, l *leadership) {
	c.t.Helper()
	testenv.EventuallyWithin(c.t, patience, fmt.Sprintf("partition %d has a leader", partition), func() bool {
		if leader, _ = c.findLeader(partition); leader == nil {
			return false
		}
		l = leader.running().hosts[partition].currentLeadership()
		return l != nil
	})
	return leader, l
}

// handOver makes another node lead a partition. A busy machine may be too slow for one transfer.
func (c *testCluster) handOver(partition int) {
	c.t.Helper()
	testenv.RepeatWithin(c.t, patience, fmt.Sprintf("the leader of partition %d hands over", partition), func() bool {
		leader, _ := c.leaderOf(partition)
		h := leader.running().hosts[partition]
		if err := h.handOver(c.t.Context()); err != nil {
			c.t.Log(err)
			return false
		}
		h.unblockEngines()
		return true
	})
}

func contains(all []*testNode, n *testNode) bool {
	for _, other := range all {
		if other == n {
			return true
		}
	}
	return false
}

// plan makes a submission of a spec.
func plan(t testing.TB, spec string) *messages.Submission {
	t.Helper()
	s, problems := specjson.Decode([]byte(spec))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	p, problems := dag.NewPlan(s, dag.Limits{})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return &messages.Submission{Plan: p, Body: []byte(spec), At: time.Now().UnixNano(), BodyHash: sha256.Sum256([]byte(spec))}
}

// submit submits a run at the leader of a partition, whichever that is, until it is accepted or its outcome
// is unknown.
func (c *testCluster) submit(ctx context.Context, partition int) (id messages.RunID, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, _ := c.findLeader(partition)
		if n == nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		m := n.running()
		if m == nil {
			continue
		}
		engine, _, ok := m.Engine(partition)
		if !ok {
			continue
		}
		id, err := engine.Submit(ctx, plan(c.t, chain))
		if err == nil || code(err) == messages.OutcomeUnknown {
			return id, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func code(err error) messages.ErrorCode {
	var e *messages.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return messages.Internal
}

// mustSubmit submits runs until n are accepted. Those whose outcome is unknown do not count.
func (c *testCluster) mustSubmit(partition, n int) (ids []messages.RunID) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for len(ids) < n {
		id, err := c.submit(ctx, partition)
		switch {
		case err == nil:
			ids = append(ids, id)
		case code(err) != messages.OutcomeUnknown:
			c.t.Fatal(err)
		}
	}
	return ids
}

// load is clients that submit runs to all partitions until stop.
type load struct {
	c    *testCluster
	end  context.CancelFunc
	wait sync.WaitGroup

	mu       sync.Mutex
	accepted [][]messages.RunID // by partition
	unknown  int
}

func (c *testCluster) startLoad(clients int) *load {
	ctx, end := context.WithCancel(context.Background())
	l := &load{c: c, end: end, accepted: make([][]messages.RunID, c.partitions)}
	for i := range clients {
		partition := i % c.partitions
		l.wait.Go(func() {
			for ctx.Err() == nil {
				id, err := c.submit(ctx, partition)
				l.mu.Lock()
				switch {
				case err == nil:
					l.accepted[partition] = append(l.accepted[partition], id)
				case code(err) == messages.OutcomeUnknown:
					l.unknown++
				}
				l.mu.Unlock()
			}
		})
	}
	return l
}

// stop ends the clients and returns the accepted runs of each partition.
func (l *load) stop() [][]messages.RunID {
	l.end()
	l.wait.Wait()
	l.c.t.Logf("%d partitions, accepted: %v, unknown: %d", l.c.partitions, lengths(l.accepted), l.unknown)
	return l.accepted
}

func (l *load) count(partition int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.accepted[partition])
}

func lengths(of [][]messages.RunID) (n []int) {
	for _, ids := range of {
		n = append(n, len(ids))
	}
	return n
}

// awaitAccepted waits until n more runs of a partition are accepted.
func (l *load) awaitAccepted(partition, n int) {
	l.c.t.Helper()
	want := l.count(partition) + n
	testenv.EventuallyWithin(l.c.t, patience, fmt.Sprintf("partition %d accepts %d more runs", partition, n),
		func() bool { return l.count(partition) >= want })
}

// checkRuns waits until all accepted runs are completed at the leader of their partition, each task by
// exactly one attempt.
func (c *testCluster) checkRuns(accepted [][]messages.RunID) {
	c.t.Helper()
	for partition, ids := range accepted {
		seen := map[messages.RunID]bool{}
		for _, id := range ids {
			if seen[id] {
				c.t.Errorf("run %d was accepted twice", id)
			}
			seen[id] = true
			var state dag.RunState
			var attempts map[uint32]int
			var err error
			// On a busy machine the leader may change in the meantime.
			isRead := testenv.Poll(patience, func() bool {
				state, attempts, err = c.readRun(partition, id)
				return err == nil || code(err) != messages.NotLeader && code(err) != messages.Unavailable
			})
			if !isRead || err != nil {
				c.t.Fatalf("the accepted run %d: %v", id, err)
			}
			if state != dag.RunCompleted {
				c.t.Errorf("run %d is %s", id, state)
			}
			if attempts[0] != 1 || attempts[1] != 1 || attempts[2] != 1 || len(attempts) != 3 {
				c.t.Errorf("run %d: its tasks were completed so often: %v", id, attempts)
			}
		}
	}
}

// readRun waits until a run has ended at the leader of its partition. It returns its state, and how many
// attempts of each task have succeeded.
func (c *testCluster) readRun(partition int, id messages.RunID) (state dag.RunState, succeeded map[uint32]int, err error) {
	leader, _ := c.leaderOf(partition)
	engine, _, ok := leader.running().Engine(partition)
	if !ok {
		return 0, nil, &messages.Error{Code: messages.NotLeader, Text: "the leader has lost the partition"}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := engine.Await(ctx, id, func(s *messages.Summary) bool { return s.State.Final() })
	if err != nil {
		return 0, nil, err
	}
	succeeded = map[uint32]int{}
	err = engine.Attempts(ctx, id, 0, 3, func(a *messages.AttemptRecord) bool {
		if a.Result == messages.AttemptSucceeded {
			succeeded[a.Task]++
		}
		return true
	})
	return s.State, succeeded, err
}

// checkReplicas compares the digests of all replicas of all partitions as of one entry each. A replica that
// gets a copy has no digest as of the entries that it skips, so another entry is tried then.
func (c *testCluster) checkReplicas() {
	c.t.Helper()
	for partition := range c.partitions {
		var all map[string]Verification
		var problem string
		limit := 250 * time.Millisecond
		if !testenv.Poll(patience, func() bool {
			limit = min(2*limit, 10*time.Second) // looks without a leader are many, and take no time
			all, problem = c.verifyReplicas(partition, limit)
			return problem == ""
		}) {
			c.t.Fatalf("partition %d: %s", partition, problem)
		}
		var first *Verification
		for name, v := range all {
			switch {
			case v.Err != nil:
				c.t.Errorf("%s: partition %d: %v", name, partition, v.Err)
			case first == nil:
				first = &v
			case *first != v:
				c.t.Errorf("%s: partition %d: the rows differ: %d rows, %x; and %d rows, %x", name, partition, v.Rows, v.Digest, first.Rows, first.Digest)
			}
		}
	}
}

// verifyReplicas returns the digests of all nodes that run as of a new entry, or what is in the way for longer
// than limit.
func (c *testCluster) verifyReplicas(partition int, limit time.Duration) (all map[string]Verification, problem string) {
	leader, _ := c.findLeader(partition)
	if leader == nil {
		return nil, "no leader"
	}
	index, err := leader.running().Verify(partition)
	if err != nil {
		return nil, err.Error()
	}
	all = map[string]Verification{}
	testenv.Poll(limit, func() bool {
		problem = ""
		for _, n := range c.nodes {
			m := n.running()
			if m == nil || m.host(partition) == nil {
				continue
			}
			v, ok := m.Verification(partition, index)
			if !ok || v.IsIncomparable {
				problem = fmt.Sprintf("%s has no digest as of entry %d: %+v", n.name, index, m.Status(partition))
			}
			if v.IsIncomparable { // it stays so
				return true
			}
			all[n.name] = v
		}
		return problem == ""
	})
	return all, problem
}

// newSeed returns the random numbers of a test, and prints how to have the same ones again.
func newSeed(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	if text := os.Getenv("CLUSTER_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CLUSTER_SEED=%d go test ./cluster -run %s", seed, strings.Split(t.Name(), "/")[0])
	return rand.New(rand.NewPCG(seed, 1))
}
