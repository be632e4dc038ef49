package router_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	nethttp "net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/cluster/raftlog/raftlogtest"
	"github.com/caravan-dag/caravan/cluster/router"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/http"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// chain is a run of three tasks, one after the other, without processes.
const chain = `{"tasks":{"a":{"job":{"executor":"noop"}},"b":{"job":{"executor":"noop"},"parents":["a"]},"c":{"job":{"executor":"noop"},"parents":["b"]}}}`

// patience is the deadline of a step that needs an election, or several on a busy machine.
const patience = 2 * time.Minute

// node is a whole node in this process: a member of a cluster, and a server of the REST API.
type node struct {
	t      *testing.T
	name   string
	member *cluster.Member
	server *http.Server
	engine *router.Engine
	addr   string
	served chan error
	client *nethttp.Client
}

// startNodes starts three nodes on a network in memory; clients come over the loopback interface.
func startNodes(t *testing.T, partitions int) (map[raftlog.NodeID]*node, *raftlogtest.Network) {
	t.Helper()
	network := raftlogtest.NewNetwork()
	var list []cluster.NodeAddress
	for i := range 3 {
		name := fmt.Sprint("n", i+1)
		list = append(list, cluster.NodeAddress{Name: name, Address: name})
	}
	settings := raftlog.DefaultSettings()
	settings.Heartbeat, settings.Election = 400*time.Millisecond, 400*time.Millisecond
	settings.LeaderLease, settings.ReadLease = 400*time.Millisecond, 250*time.Millisecond
	settings.Request, settings.TransferStall = time.Second, 1200*time.Millisecond
	settings.SegmentBytes = 64 << 10
	settings = raftlogtest.ForThisMachine(settings)
	all := make([]*node, 3)
	var wait sync.WaitGroup
	for i, a := range list {
		stored, err := outputs.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stored.Close() })
		n := &node{t: t, name: a.Name, served: make(chan error, 2), client: &nethttp.Client{Transport: &nethttp.Transport{}}}
		all[i] = n
		config := cluster.Config{
			Name: a.Name, Nodes: list, Partitions: partitions, Dir: filepath.Join(t.TempDir(), "data"), Log: settings,
			Listener: network.Listen(raftlog.NodeID(a.Name)), Dial: network.Dial(raftlog.NodeID(a.Name)),
			Fatal: func(err error) { t.Errorf("%s: %v", a.Name, err) },
			Engine: func(cluster.EngineTerm) actors.Config {
				return actors.Config{Outputs: stored, CPUMillis: 2000, MemoryBytes: 1 << 30, KillGrace: time.Second,
					Logger: slog.New(slog.DiscardHandler),
					Executors: map[string]func(executor.Sink) (executor.Executor, error){
						"noop": func(s executor.Sink) (executor.Executor, error) { return executor.NewNoop(s.Report), nil },
					}}
			},
		}
		wait.Go(func() { n.start(config) })
	}
	wait.Wait()
	nodes := map[raftlog.NodeID]*node{}
	for _, n := range all {
		if n.member == nil {
			t.FailNow()
		}
		nodes[n.member.Self()] = n
	}
	t.Cleanup(func() {
		network.HealAll()
		for _, n := range all {
			n.stop()
		}
	})
	return nodes, network
}

// start opens the member and serves. It may be called from any goroutine.
func (n *node) start(config cluster.Config) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m, err := cluster.Open(ctx, config)
	if err != nil {
		n.t.Errorf("%s: %v", n.name, err)
		return
	}
	n.member = m
	n.engine = router.NewEngine(m, func(context.Context) error { return nil }, func() error { return nil })
	n.server = http.New(http.Config{Engine: n.engine, Cluster: router.New(m, nil, nil), Logger: slog.New(slog.DiscardHandler)})
	entrance, err := router.NewEntrance(m)
	if err != nil {
		n.t.Error(err)
		return
	}
	public, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.t.Error(err)
		return
	}
	n.addr = public.Addr().String()
	for _, l := range []net.Listener{public, entrance} {
		go func() { n.served <- n.server.Serve(l) }()
	}
}

// stop ends the node, as a planned stop does: it stops serving, and hands its leaderships over. A busy
// machine may be too slow for another node to take them.
func (n *node) stop() {
	if n.server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	n.client.CloseIdleConnections()
	if err := n.server.Shutdown(ctx); err != nil {
		n.t.Errorf("%s: %v", n.name, err)
	}
	for range 2 {
		if err := <-n.served; err != nil {
			n.t.Errorf("%s: %v", n.name, err)
		}
	}
	n.engine.Close()
	if err := n.member.HandOver(ctx); err != nil {
		n.t.Logf("%s: %v", n.name, err)
	}
	if err := n.member.Close(); err != nil {
		n.t.Errorf("%s: %v", n.name, err)
	}
	n.server = nil
}

// do sends a request and returns status and body.
func (n *node) do(method, path, body string, header ...string) (int, string) {
	req, err := nethttp.NewRequest(method, "http://"+n.addr+path, strings.NewReader(body))
	if err != nil {
		n.t.Error(err)
		return 0, ""
	}
	req.Header.Set("Content-Type", "application/json")
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Set(name, value)
	}
	resp, err := n.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(text)
}

// doUntil repeats a request until the answer is right: with another election in between it may be 503.
func (n *node) doUntil(what, method, path, body string, isRight func(status int, body string) bool, header ...string) (answer string) {
	n.t.Helper()
	var status int
	if !testenv.Poll(patience, func() bool {
		status, answer = n.do(method, path, body, header...)
		return isRight(status, answer)
	}) {
		n.t.Fatalf("%s: %s: %d %s", n.name, what, status, answer)
	}
	return answer
}

// submit creates a run, and repeats 503 as a client should.
func (n *node) submit(key string) (run uint64) {
	deadline := time.Now().Add(patience)
	for {
		status, body := n.do("POST", "/v1/dagrun", chain, "Idempotency-Key: "+key)
		switch {
		case status == 200:
			var answer struct{ RunID uint64 }
			if err := json.Unmarshal([]byte(body), &answer); err != nil {
				n.t.Errorf("%v in %s", err, body)
			}
			return answer.RunID
		case status != 503 || time.Now().After(deadline):
			n.t.Errorf("%s: a submission: %d %s", n.name, status, body)
			return 0
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// complete waits until a run is completed, as this node sees it.
func (n *node) complete(run uint64) {
	n.t.Helper()
	last := ""
	testenv.EventuallyWithin(n.t, patience, "run is completed", func() bool {
		_, last = n.do("GET", fmt.Sprintf("/v1/dagrun/%d/state", run), "")
		return strings.Contains(last, "COMPLETED")
	})
}

// sortedIDs returns the IDs of all nodes, in order.
func sortedIDs(nodes map[raftlog.NodeID]*node) []raftlog.NodeID {
	return slices.Sorted(maps.Keys(nodes))
}

// leaderOf returns the node that serves, once there is one among the given nodes.
func leaderOf(t *testing.T, nodes map[raftlog.NodeID]*node) *node {
	t.Helper()
	var leader *node
	testenv.EventuallyWithin(t, patience, "a node serves", func() bool {
		for _, n := range nodes {
			if _, epoch, ok := n.member.Engine(0); ok && n.member.HasLease(0, epoch) {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

// TestAnyNodeServes: runs are submitted and read at every node, by any route.
func TestAnyNodeServes(t *testing.T) {
	for _, partitions := range []int{1, 3} {
		t.Run(fmt.Sprint(partitions), func(t *testing.T) { anyNodeServes(t, partitions) })
	}
}

func anyNodeServes(t *testing.T, partitions int) {
	nodes, _ := startNodes(t, partitions)
	for _, n := range nodes {
		testenv.EventuallyWithin(t, patience, "ready", func() bool { status, _ := n.do("GET", "/ready", ""); return status == 200 })
		run := n.submit(n.name)
		for _, other := range nodes {
			other.complete(run)
			if again := other.submit(n.name); again != run {
				t.Errorf("the key of run %d has made run %d at another node", run, again)
			}
		}
	}
	// Lines of a batch are spread, and their runs found anywhere.
	for _, n := range []*node{nodes[sortedIDs(nodes)[0]], nodes[sortedIDs(nodes)[1]]} {
		var lines strings.Builder
		for k := range 8 {
			fmt.Fprintf(&lines, "{\"idempotencyKey\":\"line-%d\",\"spec\":%s}\n", k, chain)
		}
		body := n.doUntil("a batch", "POST", "/v1/dagruns", lines.String(), func(status int, body string) bool {
			return status == 200 && strings.Count(body, "runID") == 8
		}, "Content-Type: application/x-ndjson")
		for line := range strings.SplitSeq(strings.TrimSpace(body), "\n") {
			var answer struct{ RunID uint64 }
			if err := json.Unmarshal([]byte(line), &answer); err != nil {
				t.Fatal(err)
			}
			n.complete(answer.RunID)
		}
	}
	var lists []string
	for _, n := range nodes {
		lists = append(lists, n.doUntil("the list", "GET", "/v1/dagruns?all=1", "", func(status int, _ string) bool { return status == 200 }))
		if status, body := n.do("GET", "/v1/cluster", ""); status != 200 || strings.Count(body, `"name"`) != 3 || strings.Count(body, `"partition":`) != partitions {
			t.Errorf("%d %s", status, body)
		}
	}
	for _, n := range nodes {
		for _, state := range []string{"PAUSED", "RUNNING"} {
			n.doUntil("a pause, or its end", "PATCH", "/v1/server/state/"+state, "", func(status int, body string) bool {
				return status == 200 && strings.Contains(body, state)
			})
		}
	}
	if lists[0] != lists[1] || lists[1] != lists[2] || strings.Count(lists[0], "runID") != 3+8 {
		t.Errorf("the nodes list %q", lists)
	}
}

// TestRequestsOutliveTheirLeader: while leaders stop and are cut off, each submission is answered in the
// end and its run is found; a deposed leader gives no old answers.
func TestRequestsOutliveTheirLeader(t *testing.T) {
	nodes, network := startNodes(t, 1)
	old := leaderOf(t, nodes)
	run := old.submit("first")
	old.complete(run)
	delete(nodes, old.member.Self())
	for _, n := range nodes {
		network.Isolate(raftlog.NodeID(old.name), raftlog.NodeID(n.name))
	}
	for _, n := range nodes {
		run = n.submit("during/" + n.name)
		n.complete(run)
	}
	// The deposed leader does not know this run: it must not say so.
	if status, body := old.do("GET", fmt.Sprintf("/v1/dagrun/%d", run), ""); status != 503 {
		t.Errorf("a leader that is cut off answers %d %s", status, body)
	}
	network.HealAll()
	nodes[old.member.Self()] = old
	old.complete(old.submit("after"))

	// A planned stop: the others take over, and no submission is lost.
	leader := leaderOf(t, nodes)
	delete(nodes, leader.member.Self())
	var wait sync.WaitGroup
	runs := make(chan uint64, 64)
	for _, n := range nodes {
		wait.Go(func() {
			for i := range 10 {
				runs <- n.submit(fmt.Sprintf("%s/%d", n.name, i))
			}
		})
	}
	leader.stop()
	wait.Wait()
	close(runs)
	seen := map[uint64]bool{}
	for run := range runs {
		if seen[run] {
			t.Errorf("run %d is the answer to two submissions", run)
		}
		seen[run] = true
		for _, n := range nodes {
			n.complete(run)
		}
	}
}

// TestNodeThatIsCutOffFromTheLeaderAlone hears of no leader after a while, and its requests reach the leader by
// way of the third node.
func TestNodeThatIsCutOffFromTheLeaderAlone(t *testing.T) {
	nodes, network := startNodes(t, 1)
	var leader, entry *node
	knowsNoLeader := func() bool {
		_, ok := entry.member.Leader(0)
		return !ok
	}
	// On a busy machine the third node may miss the leader as well, and elect another one with the entry node.
	for deadline := time.Now().Add(patience); ; {
		network.HealAll()
		leader = leaderOf(t, nodes)
		leader.complete(leader.submit("first"))
		rest := maps.Clone(nodes)
		delete(rest, leader.member.Self())
		entry = rest[sortedIDs(rest)[0]]
		network.Isolate(raftlog.NodeID(entry.name), raftlog.NodeID(leader.name))
		if testenv.Poll(5*time.Second, knowsNoLeader) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the node always knows a leader")
		}
	}
	for i := range 3 {
		// On a busy machine the other two may elect again.
		testenv.EventuallyWithin(t, patience, fmt.Sprint("submission ", i, " is accepted"), func() bool {
			status, _ := entry.do("POST", "/v1/dagrun", chain, fmt.Sprint("Idempotency-Key: cut-", i))
			return status == 200
		})
	}
	run := leader.submit("cut-0")
	entry.complete(run)
}

// TestRequestsWaitLongerThanAnElection: a follower misses a leader that is killed within twice the heartbeat
// time-out, and an election without a result is repeated within twice the election time-out.
func TestRequestsWaitLongerThanAnElection(t *testing.T) {
	s := raftlog.DefaultSettings()
	if elected := 2*s.Heartbeat + 2*s.Election; http.LeaderWait <= elected {
		t.Errorf("a request waits for %v, a leader is elected within %v", http.LeaderWait, elected)
	}
}
