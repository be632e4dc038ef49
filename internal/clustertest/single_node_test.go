package clustertest_test

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/clustertest"
	"github.com/caravan-dag/caravan/internal/clustertest/history"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "seed of the plan of faults and of the clients; 0 = a random one, which is printed")
	stepsFlag = flag.Int("steps", 6, "number of faults in a round")
)

func roundSeed(t *testing.T) uint64 {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("repeat it with -run %s -seed %d", t.Name(), seed)
	return seed
}

// TestSingleNodeHistory proves harness and rules on the real binary, as one node without a cluster:
// clients use it while it is killed, cut off, and loses its power. It keeps its guarantees, so its
// history breaks no rule.
func TestSingleNodeHistory(t *testing.T) {
	bin := realBinary(t)
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", plain), func(t *testing.T) {
			seed := roundSeed(t)
			c := clustertest.New(t, clustertest.Options{
				Names: []string{"n1"}, Binary: bin, PlainFolders: plain, Proxies: plain, Seed: seed,
				// The network is private to the test, so everybody on it may call the server.
				Arguments: func(*clustertest.Node) []string { return []string{"--cores", "4", "--memory-mb", "4000", "--insecure"} },
			})
			kinds := []clustertest.Fault{clustertest.KillServer, clustertest.StopServer, clustertest.KillMachine, clustertest.FreezeNode,
				clustertest.CutClients, clustertest.SlowLinks}
			if can := c.Capabilities(); can.Disks && can.Packets {
				kinds = append(kinds, clustertest.PowerCut, clustertest.StallDisk, clustertest.BreakDisk, clustertest.FullDisk, clustertest.BadLinks)
			}
			c.LaunchAll()
			load := startLoad(c, seed, 3)
			err := c.RunPlan(context.Background(), clustertest.NewPlan(seed, []string{"n1"}, clustertest.PlanOptions{
				Steps: *stepsFlag, Kinds: kinds, MaxPause: 700 * time.Millisecond, MaxLasts: 500 * time.Millisecond}))
			if err != nil {
				t.Fatal(err)
			}
			mustDo(t, c.Revive())
			load.end(t)
			load.awaitFollowers()
			h := c.Check("n1", nil, history.Options{})
			describeHistory(t, h)
		})
	}
	t.Run("wiped", func(t *testing.T) { checkThatLossIsFound(t, bin) })
	t.Run("members", func(t *testing.T) { checkMemberArguments(t, bin) })
}

// checkMemberArguments looks at the arguments of the members of a cluster: each has a certificate of
// its own from the same authority, and all have the same list.
func checkMemberArguments(t *testing.T, bin string) {
	c := clustertest.New(t, clustertest.Options{Names: []string{"n1", "n2", "n3", "n4"}, Members: 3, Binary: bin})
	lists, authorities := map[string]bool{}, map[string]bool{}
	fourth := c.Node("n4").MemberArguments()
	for _, n := range c.Nodes()[:3] {
		args := n.MemberArguments()
		if flagOf(args, "--node") != n.Name {
			t.Errorf("the arguments of %s: %q", n.Name, args)
		}
		list := flagOf(args, "--cluster")
		_, dial := n.Endpoint(clustertest.ClusterPort)
		if !strings.Contains(list, n.Name+"="+dial) || !strings.Contains(flagOf(fourth, "--join"), dial) {
			t.Errorf("node %s, at %s, is not in the list %s or in the arguments %q", n.Name, dial, list, fourth)
		}
		lists[list] = true
		dir := flagOf(args, "--tls-dir")
		authority, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
		mustDo(t, err)
		authorities[string(authority)] = true
		if _, err := tls.LoadX509KeyPair(filepath.Join(dir, "node.pem"), filepath.Join(dir, "node-key.pem")); err != nil {
			t.Error(err)
		}
	}
	if flagOf(fourth, "--cluster") != "" || flagOf(fourth, "--node") != "n4" {
		t.Errorf("the arguments of a node that joins: %q", fourth)
	}
	if err := c.Node("n1").SetClock(time.Hour); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("the clock of a released binary is set: %v", err)
	}
	if len(lists) != 1 || len(authorities) != 1 {
		t.Errorf("the members have %d lists and %d authorities", len(lists), len(authorities))
	}
}

// checkThatLossIsFound uses a node that loses its disk: it forgets what it has acknowledged, and
// begins again with the same run IDs and keys.
func checkThatLossIsFound(t *testing.T, bin string) {
	c := clustertest.New(t, clustertest.Options{Names: []string{"n1"}, Binary: bin,
		Arguments: func(*clustertest.Node) []string { return []string{"--insecure"} }})
	c.LaunchAll()
	n, user := c.Node("n1"), c.NewClient(1)
	defer user.Close()
	user.CallLimit = clustertest.Patience
	submit := func(document clustertest.Document, key string) uint64 {
		t.Helper()
		run, err := user.Submit("n1", document, key)
		mustDo(t, err)
		return run
	}
	noop := map[string]clustertest.Task{"a": {}}
	submit(c.NewDocument("first", noop), "")
	keyed := c.NewDocument("keyed", noop)
	lost := submit(keyed, "key")
	mustDo(t, c.AwaitFinished("n1", clustertest.Patience))
	if state, err := user.State("n1", lost); state != client.Completed {
		t.Fatalf("run %d is %q, %v", lost, state, err)
	}
	n.Kill()
	mustDo(t, n.Wipe())
	mustDo(t, n.Launch())
	mustDo(t, n.AwaitReady(clustertest.Patience))
	if state, err := user.State("n1", lost); err == nil {
		t.Fatalf("the wiped node knows run %d as %s", lost, state)
	}
	submit(keyed, "key")
	mustDo(t, c.AwaitFinished("n1", clustertest.Patience))
	output, err := c.RunCommand(t.Context(), "ls", "--all", "--server", n.URL())
	mustDo(t, err)
	if !strings.Contains(output, "keyed") {
		t.Errorf("the command line lists\n%s", output)
	}
	h, err := c.History("n1", nil)
	mustDo(t, err)
	found := map[string]bool{}
	for _, v := range history.Check(h, history.Options{}) {
		found[v.Rule] = true
	}
	for _, rule := range []string{"register", "keys", "found", "origin"} {
		if !found[rule] {
			t.Errorf("the rule %s does not find it, only %v do", rule, found)
		}
	}
}

// notInShort skips a test that adds little to the others for the race detector: the binary is without.
func notInShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("the processes are the subject of this test: make test has it")
	}
}

// TestFaultyBinary: a binary with the tag faults has the clock and the errors of calls that a test
// sets, for one node.
func TestFaultyBinary(t *testing.T) {
	notInShort(t)
	bin, err := testenv.BuildAs(t.TempDir(), false, "", "faults")
	if err != nil {
		t.Fatal(err)
	}
	c := clustertest.New(t, clustertest.Options{Names: []string{"n1", "n2"}, Binary: bin, Faulty: true,
		Arguments: func(*clustertest.Node) []string { return []string{"--insecure"} }})
	first, second := c.Node("n1"), c.Node("n2")
	mustDo(t, first.SetClock(time.Hour))
	c.LaunchAll()
	user := c.NewClient(1)
	defer user.Close()
	user.CallLimit = clustertest.Patience
	begin := time.Now()
	for _, n := range c.Nodes() {
		_, err := user.Submit(n.Name, c.NewDocument("at "+n.Name, map[string]clustertest.Task{"a": {}}), "")
		mustDo(t, err)
		mustDo(t, c.AwaitFinished(n.Name, clustertest.Patience))
		h, err := c.History(n.Name, nil)
		mustDo(t, err)
		changes := h.Records[0].StateChanges // the first is of the HTTP server, which has the real time
		ahead := time.Unix(0, changes[len(changes)-1].Nanos).Sub(begin)
		if isAhead := ahead > 50*time.Minute; isAhead != (n == first) {
			t.Errorf("the clock of node %s is %v ahead", n.Name, ahead)
		}
	}
	mustDo(t, first.FailCalls(faults.Fault{Op: faults.Write, Path: "0*", Err: syscall.EIO}))
	for _, n := range c.Nodes() {
		if _, err := user.Submit(n.Name, c.NewDocument("more at "+n.Name, map[string]clustertest.Task{"a": {}}), ""); (err != nil) != (n == first) {
			t.Errorf("node %s: a submission: %v", n.Name, err)
		}
	}
	testenv.ReceiveWithin(t, clustertest.Patience, "the end of the node whose disk fails", first.Server().Ended())
	if !second.IsRunning() {
		t.Error("the other node has ended, too")
	}
	mustDo(t, first.FailCalls())
	mustDo(t, c.Revive())
}

// describeHistory logs what a round was worth, and fails one in which little happened.
func describeHistory(t *testing.T, h *history.History) {
	t.Helper()
	outcomes := map[history.Outcome]int{}
	for _, o := range h.Operations {
		outcomes[o.Outcome]++
	}
	events := 0
	for _, s := range h.Streams {
		events += len(s.Events)
	}
	t.Logf("%d operations %v, %d runs, %d events in %d streams, %d marks", len(h.Operations), outcomes, len(h.Records), events, len(h.Streams), len(h.Marks))
	if outcomes[history.Acknowledged] < leastAcknowledged || len(h.Marks) == 0 || events == 0 {
		t.Error("hardly anything happened")
	}
}

// leastAcknowledged is how many operations make a round worth anything.
const leastAcknowledged = 30

// load is clients that submit, read and change runs until it ends.
type load struct {
	cluster   *clustertest.Cluster
	stop      context.CancelFunc
	clients   sync.WaitGroup
	followers sync.WaitGroup
	giveUp    context.CancelFunc // of the followers

	acknowledged atomic.Int64 // submissions and reads
}

func startLoad(c *clustertest.Cluster, seed uint64, clients int) *load {
	ctx, stop := context.WithCancel(context.Background())
	following, giveUp := context.WithTimeout(context.Background(), 2*clustertest.Patience)
	l := &load{cluster: c, stop: stop, giveUp: giveUp}
	for number := range clients {
		l.clients.Go(func() {
			l.useCluster(ctx, following, number, rand.New(rand.NewPCG(seed, uint64(number))))
		})
	}
	return l
}

// useCluster makes calls one after the other.
func (l *load) useCluster(ctx, following context.Context, number int, rng *rand.Rand) {
	c := l.cluster.NewClient(number)
	defer c.Close()
	c.CallLimit = 6 * time.Second // a node answers 503 before that when it waits for a leader
	var runs []uint64
	for i := 0; ctx.Err() == nil; i++ {
		node := l.cluster.Nodes()[rng.IntN(len(l.cluster.Nodes()))].Name
		choice := rng.IntN(20)
		if len(runs) == 0 {
			choice = 0
		}
		switch {
		case choice < 6:
			key := ""
			if choice%2 == 1 {
				key = fmt.Sprintf("key-%d-%d", number, i)
			}
			document := randomDocument(l.cluster, fmt.Sprintf("c%d-%d", number, i), rng)
			run, err := c.Submit(node, document, key)
			for try := 0; err != nil && key != "" && try < 3 && ctx.Err() == nil; try++ {
				run, err = c.Submit(node, document, key)
			}
			if err == nil {
				l.acknowledged.Add(1)
				if runs = append(runs, run); len(runs)%8 == 1 {
					l.follow(following, 100*number+len(runs), run)
				}
			}
		case choice < 7:
			_, _ = c.List(node) // outcomes are in the history
		case choice < 17:
			if _, err := c.State(node, runs[rng.IntN(len(runs))]); err == nil {
				l.acknowledged.Add(1)
			}
		default:
			state := []string{client.Killed, client.Paused, client.Running, client.Queued}[rng.IntN(4)]
			_ = c.SetState(node, runs[len(runs)-1-rng.IntN(min(len(runs), 5))], state)
		}
		wait(ctx, time.Duration(rng.IntN(20))*time.Millisecond)
	}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// randomDocument is a chain of three tasks, with processes or without.
func randomDocument(c *clustertest.Cluster, tag string, rng *rand.Rand) clustertest.Document {
	body := func(script string) string {
		if rng.IntN(4) > 0 {
			return ""
		}
		return script
	}
	return c.NewDocument(tag, map[string]clustertest.Task{
		"first":  {Body: body("sleep 0.05"), MaxRetries: 1},
		"second": {Body: body(`[ "$CARAVAN_ATTEMPT" -gt 1 ]`), Parents: []string{"first"}, MaxRetries: 2},
		"third":  {Body: body("sleep 0.02"), Parents: []string{"first", "second"}},
	})
}

func (l *load) follow(ctx context.Context, number int, run uint64) {
	l.followers.Go(func() {
		c := l.cluster.NewClient(number)
		defer c.Close()
		var nodes []string
		for _, n := range l.cluster.Nodes() {
			nodes = append(nodes, n.Name)
		}
		_ = c.Follow(ctx, run, nodes...) // a stream without its end breaks a rule
	})
}

// end stops the clients, kills what they have left paused, and waits until all runs have ended. A call that a client
// gave up may take effect later, so a run may be paused, or go on, after a look.
func (l *load) end(t *testing.T) {
	t.Helper()
	testenv.EventuallyWithin(t, clustertest.Patience, "enough operations are acknowledged after the last fault of a busy machine",
		func() bool { return l.acknowledged.Load() >= leastAcknowledged })
	l.stop()
	l.clients.Wait()
	c := l.cluster.NewClient(99)
	defer c.Close()
	c.CallLimit = clustertest.Patience
	node := l.cluster.Nodes()[0].Name
	var last error
	testenv.Poll(2*clustertest.Patience, func() bool {
		listed, err := c.List(node)
		if last = err; err != nil {
			return false // the leaders of a busy machine may change
		}
		for _, run := range listed {
			if run.State == client.Paused {
				_ = c.SetState(node, run.Run, client.Killed) // the next list shows what has become of it
			}
		}
		last = l.cluster.AwaitFinished(node, 3*time.Second)
		return last == nil
	})
	mustDo(t, last)
}

// awaitFollowers waits for the ends of all streams: their runs have ended.
func (l *load) awaitFollowers() {
	l.followers.Wait()
	l.giveUp()
}
