package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// clusterNode is one node of a testCluster.
type clusterNode struct {
	name   string
	config testenv.Config
	server *testenv.Server // nil while it is down
}

// testCluster is three nodes, or as many as a test prepares, of the real binary on the loopback interface, with certificates that the
// command line has made.
type testCluster struct {
	t         *testing.T
	nodes     []*clusterNode
	dir       string   // has ca, the folder of the authority
	addresses []string // of the nodes, for each other
}

// startCluster starts three nodes with further options, and returns when all of them are ready.
func startCluster(t *testing.T, options ...string) *testCluster {
	t.Helper()
	c := prepareCluster(t, options...)
	c.start()
	return c
}

// prepareCluster is startCluster without the start.
func prepareCluster(t *testing.T, options ...string) *testCluster {
	t.Helper()
	return prepareNodes(t, 3, options...)
}

// prepareNodes prepares a cluster of more than three nodes.
func prepareNodes(t *testing.T, count int, options ...string) *testCluster {
	t.Helper()
	dir := t.TempDir()
	c := &testCluster{t: t, dir: dir}
	ca := filepath.Join(dir, "ca")
	command(t, "tls", "init", "--ca-dir", ca)
	var list []string
	for i := range count {
		c.addresses = append(c.addresses, freeAddress(t))
		list = append(list, fmt.Sprintf("n%d=%s", i+1, c.addresses[i]))
	}
	for i := range count {
		n := &clusterNode{name: fmt.Sprintf("n%d", i+1)}
		certificates := filepath.Join(dir, n.name+"-tls")
		command(t, "tls", "node", n.name, "--ca-dir", ca, "--tls-dir", certificates)
		n.config = testenv.Config{Binary: e2etest.Binary(), Data: filepath.Join(dir, n.name), Args: append([]string{
			"--cores", "2", "--memory-mb", "1000", "--node", n.name, "--cluster", strings.Join(list, ","), "--tls-dir", certificates}, options...)}
		if i == 2 { // it listens on all addresses
			_, port, err := net.SplitHostPort(list[i][len("n3="):])
			if err != nil {
				t.Fatal(err)
			}
			n.config.Args = append([]string{"--cluster-listen", ":" + port}, n.config.Args...)
		}
		c.nodes = append(c.nodes, n)
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			if n.server != nil {
				if _, _, err := n.server.Stop(e2etest.Patience); err != nil {
					t.Error(err)
				}
			}
			if err := testenv.EndWorkers(n.config.Data, e2etest.Patience); err != nil {
				t.Error(err)
			}
			if t.Failed() && n.server != nil {
				t.Logf("log of %s:\n%s", n.name, n.server.Log())
			}
		}
	})
	return c
}

// start starts all nodes and waits until they are ready.
func (c *testCluster) start() {
	c.t.Helper()
	for _, n := range c.nodes {
		c.launch(n)
	}
	for _, n := range c.nodes {
		if err := n.server.AwaitReady(); err != nil {
			c.t.Fatal(err)
		}
	}
}

// freeAddress returns an address for a node, which must be known before the node listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	address, err := testenv.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// command runs the program, which must succeed.
func command(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(e2etest.Binary(), args...).CombinedOutput(); err != nil {
		t.Fatalf("caravan %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// launch starts a node, and does not wait for it.
func (c *testCluster) launch(n *clusterNode) {
	c.t.Helper()
	var err error
	if n.server, err = testenv.Launch(n.config); err != nil {
		c.t.Fatal(err)
	}
}

// client returns a client of a node.
func (c *testCluster) client(n *clusterNode) *client.Client {
	c.t.Helper()
	api, err := client.New(client.Config{Server: n.server.URL})
	if err != nil {
		c.t.Fatal(err)
	}
	return api
}

// submitUntilAccepted submits a document until it is accepted, under a key that finds the run again: on a busy machine a
// partition may have no leader for longer than a request waits.
func submitUntilAccepted(t *testing.T, api *client.Client, document string) (run uint64) {
	t.Helper()
	key := fmt.Sprintf("%016x", rand.Uint64())
	var err error
	testenv.Poll(e2etest.Patience, func() bool {
		run, err = api.Submit(t.Context(), []byte(document), client.SubmitOptions{IdempotencyKey: key})
		return !errors.Is(err, client.ErrUnavailable)
	})
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// submit is submitUntilAccepted at a node.
func (c *testCluster) submit(n *clusterNode, document string) (run uint64) {
	c.t.Helper()
	return submitUntilAccepted(c.t, c.client(n), document)
}

// metrics returns the answer of a node to GET /metrics.
func (c *testCluster) metrics(n *clusterNode) []byte {
	c.t.Helper()
	resp, err := http.Get(n.server.URL + "/metrics")
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		c.t.Fatalf("metrics of %s: %d, %v", n.name, resp.StatusCode, err)
	}
	return body
}

// leader returns the node that leads the only partition, as another one knows it, and a node that does not.
func (c *testCluster) leader(asked *clusterNode) (leads, follows *clusterNode) {
	c.t.Helper()
	api := c.client(asked)
	e2etest.Eventually(c.t, "a leader is known", func() bool {
		found, err := api.Cluster(c.t.Context())
		if err != nil || len(found.Partitions) != 1 {
			return false
		}
		leads, follows = nil, nil
		for _, n := range c.nodes {
			if n.name == found.NameOf(found.Partitions[0].Leader) {
				leads = n
			} else if n.server != nil {
				follows = n
			}
		}
		return leads != nil && leads.server != nil && follows != nil
	})
	return leads, follows
}

// awaitSlots waits until a leader grants the slots of all nodes. Until then its tasks go to those that it has heard:
// later a task that fits everywhere alike goes to the node that leads.
func (c *testCluster) awaitSlots(leads *clusterNode) {
	c.t.Helper()
	all := regexp.MustCompile(`(?m)^caravan_slots_capacity_cores(\{.*\})? 6$`)
	e2etest.Eventually(c.t, leads.name+" has the slots of all nodes", func() bool { return all.Match(c.metrics(leads)) })
}

// idOf returns the ID of a node, as another one knows it; "" when it cannot say.
func (c *testCluster) idOf(asked, n *clusterNode) string {
	found, err := c.client(asked).Cluster(c.t.Context())
	if err != nil {
		return ""
	}
	for _, node := range found.Nodes {
		if node.Name == n.name {
			return node.ID
		}
	}
	return ""
}

// onePartition is for tests about the node that leads: testCluster.leader finds it.
var onePartition = []string{"--partitions", "1"}

// TestClusterNode proves with the real binary what docs/cluster.md promises: a planned stop that no caller
// notices, a crash, a node that lost its folder and is replaced by one that has all runs, and the loss of the
// majority.
func TestClusterNode(t *testing.T) {
	t.Parallel()
	c := startCluster(t, onePartition...)
	ctx := t.Context()
	leads, follows := c.leader(c.nodes[0])
	c.awaitSlots(leads)
	api := c.client(follows)
	run := submitUntilAccepted(t, api, `{"tasks":{"short":{"job":{"command":["echo","hello"]}},"long":{"job":{"command":["seq","20000"]}}}}`)
	if _, err := api.Wait(ctx, run, client.WaitOptions{Outage: e2etest.Patience}); err != nil {
		t.Fatal(err)
	}

	// Planned stops of all nodes in turn: no call fails at a client that repeats those that are answered with 503.
	load := c.startRepeatingClients()
	first := leads
	c.stopUnderLoad(first, load)
	c.leader(follows) // another node leads

	// The output of the first node has a copy on another one.
	log := func(task string) (string, error) {
		body, err := api.Log(ctx, run, task, client.LogOptions{})
		if err != nil {
			return "", err
		}
		defer body.Close()
		text, err := io.ReadAll(body)
		return string(text), err
	}
	if text, err := log("short"); err != nil || text != "hello\n" {
		t.Errorf("short output: %q, %v", text, err)
	}
	e2etest.Eventually(t, "the long output can be read", func() bool {
		text, err := log("long")
		return err == nil && strings.HasSuffix(text, "\n19999\n20000\n")
	})
	c.restart(first)
	load.use(first)
	stopped := []*clusterNode{first}
	for len(stopped) < len(c.nodes) {
		next, _ := c.leader(first)
		if slices.Contains(stopped, next) { // the one that is left follows
			next = c.nodes[slices.IndexFunc(c.nodes, func(n *clusterNode) bool { return !slices.Contains(stopped, n) })]
		}
		c.stopUnderLoad(next, load)
		c.restart(next)
		load.use(next)
		stopped = append(stopped, next)
	}
	c.checkListed(first, load.end())
	leads, follows = c.leader(first)
	api = c.client(follows)

	// A crash with the loss of the folder: the others go on, and the node is refused.
	lost := leads
	formerID := c.idOf(follows, lost)
	lost.server.Kill()
	if err := testenv.EndWorkers(lost.config.Data, e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(lost.config.Data); err != nil {
		t.Fatal(err)
	}
	lost.server = nil
	leads, follows = c.leader(follows)
	if s, err := c.client(follows).Summary(ctx, run); err != nil || s.State != client.Completed {
		t.Errorf("the run after the crash: %+v, %v", s, err)
	}
	var later uint64
	e2etest.Eventually(t, "a run without the lost node is COMPLETED", func() bool {
		api := c.client(leads)
		var err error
		if later, err = api.Submit(ctx, []byte(`{"tasks":{"a":{"job":{"executor":"noop"}}}}`), client.SubmitOptions{IdempotencyKey: "later"}); err != nil {
			return false
		}
		s, err := api.Wait(ctx, later, client.WaitOptions{Outage: e2etest.Patience})
		return err == nil && s.State == client.Completed
	})
	c.launch(lost)
	e2etest.Eventually(t, "the node without its folder is refused", func() bool { return strings.Contains(lost.server.Log(), "the folder of that node was lost") })
	<-lost.server.Ended()
	if code := lost.server.ExitCode(); code != 1 {
		t.Errorf("exit %d", code)
	}
	if err := os.RemoveAll(lost.config.Data); err != nil { // the refused start has made one
		t.Fatal(err)
	}
	lost.config.Args = append(lost.config.Args, "--replace")
	c.launch(lost)
	if err := lost.server.AwaitReady(); err != nil {
		t.Fatal(err)
	}
	e2etest.Eventually(t, "the new node has all entries", func() bool {
		found, err := c.client(leads).Cluster(ctx)
		id := c.idOf(leads, lost)
		return err == nil && found.Partitions[0].Lag == 0 && found.Partitions[0].Lease && id != "" && id != formerID
	})
	e2etest.Eventually(t, "the new node says so", func() bool { return strings.Contains(lost.server.Log(), "this node is in place of the former one") })
	follows.server.Kill()
	for _, run := range []uint64{run, later} {
		e2etest.Eventually(t, "the new node counts for the majority, and has the runs", func() bool {
			s, err := c.client(lost).Summary(ctx, run)
			return err == nil && s.State == client.Completed
		})
	}
	c.submit(lost, `{"tasks":{"a":{"job":{"executor":"noop"}}}}`)
	c.launch(follows)
	if err := follows.server.AwaitReady(); err != nil {
		t.Fatal(err)
	}
	if s, err := c.client(lost).Summary(ctx, run); err != nil || s.State != client.Completed {
		t.Errorf("the run at the new node: %+v, %v", s, err)
	}

	// It is a node like any other: its folder ignores the option from now on.
	if code, _, err := lost.server.Stop(e2etest.Patience); code != 0 || err != nil {
		t.Errorf("exit %d, %v", code, err)
	}
	c.launch(lost)
	if err := lost.server.AwaitReady(); err != nil {
		t.Fatal(err)
	}
	lost.server.Kill()
	lost.server = nil

	// One of three: no answer is better than an old one.
	follows.server.Kill()
	follows.server = nil
	alone := c.client(leads)
	e2etest.Eventually(t, "the last node answers 503", func() bool {
		_, err := alone.Summary(ctx, run)
		return errors.Is(err, client.ErrUnavailable)
	})
	e2etest.Eventually(t, "the last node is not ready", func() bool { return errors.Is(alone.Ready(ctx), client.ErrUnavailable) })
	c.launch(follows)
	if err := follows.server.AwaitReady(); err != nil {
		t.Fatal(err)
	}
	if s, err := c.client(follows).Summary(ctx, run); err != nil || s.State != client.Completed {
		t.Errorf("the run after the majority is back: %+v, %v", s, err)
	}

	// The folder of a node is not that of a single server.
	if err := leads.server.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-leads.server.Ended()
	single := exec.Command(e2etest.Binary(), "serve", "--listen", "127.0.0.1:0", "--data", leads.config.Data)
	if out, err := single.CombinedOutput(); err == nil || !strings.Contains(string(out), "it is the folder of a node of a cluster") {
		t.Errorf("a single server on the folder of a node: %v: %s", err, out)
	}
	leads.server = nil
}

// TestClusterOfSeveralPartitions proves that each node lists the runs of all partitions and finds each of
// them, also after the loss of a node, and that the number of partitions is fixed: a node that comes back
// without the option has that of its folder. TestNodeIsRemoved has the default number.
func TestClusterOfSeveralPartitions(t *testing.T) {
	t.Parallel()
	const partitions = 3
	options := []string{"--partitions", strconv.Itoa(partitions)}
	c := startCluster(t, options...)
	ctx := t.Context()
	runs := map[uint64]bool{}
	parts := map[uint64]bool{}
	for i := range 12 {
		run := c.submit(c.nodes[i%3], `{"tasks":{"a":{"job":{"executor":"noop"}}}}`)
		runs[run], parts[run%partitions] = true, true
	}
	if len(runs) != 12 || len(parts) < 2 {
		t.Errorf("runs %v are in partitions %v", runs, parts)
	}
	checkAll := func(n *clusterNode) {
		t.Helper()
		api := c.client(n)
		for run := range runs {
			e2etest.Eventually(t, fmt.Sprintf("run %d is COMPLETED at %s", run, n.name), func() bool {
				s, err := api.Summary(ctx, run)
				return err == nil && s.State == client.Completed
			})
		}
		listed := 0
		for s, err := range api.Runs(ctx, client.ListOptions{All: true}) {
			if err != nil || !runs[s.RunID] {
				t.Fatalf("%s lists %+v, %v", n.name, s, err)
			}
			listed++
		}
		if listed != len(runs) {
			t.Errorf("%s lists %d of %d runs", n.name, listed, len(runs))
		}
	}
	var metrics [][]byte
	for _, n := range c.nodes {
		checkAll(n)
		metrics = append(metrics, c.metrics(n))
	}
	written, shown := slices.Compact(e2etest.DocumentedMetrics(t, "operations.md", "cluster.md")), e2etest.ShownMetrics(metrics...)
	if !slices.Equal(written, shown) {
		t.Errorf("the documents have\n%q, the nodes\n%q", written, shown)
	}
	c.nodes[0].server.Kill()
	for _, n := range c.nodes[1:] {
		e2etest.Eventually(t, "all partitions have a leader", func() bool { return c.client(n).Ready(ctx) == nil })
		checkAll(n)
	}
	back := c.nodes[0]
	back.server = nil
	back.config.Args = back.config.Args[:len(back.config.Args)-len(options)]
	other := back.config
	other.Args = append(slices.Clip(other.Args), "--partitions", "4")
	s, err := testenv.Launch(other)
	if err != nil {
		t.Fatal(err)
	}
	<-s.Ended()
	if !strings.Contains(s.Log(), fmt.Sprintf("has %d partitions, not 4", partitions)) || s.ExitCode() != 1 {
		t.Errorf("exit %d: %s", s.ExitCode(), s.Log())
	}
	c.launch(back)
	if err := back.server.AwaitReady(); err != nil {
		t.Fatal(err)
	}
	checkAll(back)
	if found, err := c.client(back).Cluster(ctx); err != nil || len(found.Partitions) != partitions {
		t.Errorf("without the option: %+v, %v", found, err)
	}
}

// TestFirstStartWaitsForAllNodes proves that a node of a new cluster answers 503 until the others start,
// and that a signal ends its wait.
func TestFirstStartWaitsForAllNodes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, certificates := filepath.Join(dir, "ca"), filepath.Join(dir, "tls")
	command(t, "tls", "init", "--ca-dir", ca)
	command(t, "tls", "node", "n1", "--ca-dir", ca, "--tls-dir", certificates)
	address := freeAddress(t)
	s, err := testenv.Launch(testenv.Config{Binary: e2etest.Binary(), Data: filepath.Join(dir, "data"), Args: []string{
		"--node", "n1", "--cluster", "n1=" + address + ",n2=127.0.0.1:1,n3=127.0.0.1:2", "--tls-dir", certificates}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.Log())
		}
	})
	e2etest.Eventually(t, "it says for whom it waits", func() bool { return strings.Contains(s.Log(), "waiting for the other nodes of the list") })
	_, rest, _ := strings.Cut(s.Log(), "address=")
	listens, _, _ := strings.Cut(rest, " ")
	api, err := client.New(client.Config{Server: listens})
	if err != nil {
		t.Fatal(err)
	}
	if err := api.Ready(t.Context()); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("ready: %v", err)
	}
	if _, err := api.Summary(t.Context(), 0); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("summary: %v", err)
	}
	if code, took, err := s.Stop(e2etest.Patience); code != 0 || err != nil || took > e2etest.Patience/2 {
		t.Errorf("exit %d after %v, %v: %s", code, took, err, s.Log())
	}
}
