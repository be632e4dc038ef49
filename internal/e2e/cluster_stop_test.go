package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// longestStopGap bounds the time between two answers to a client during a planned stop. The gap that
// docs/cluster.md promises is far shorter, and bench-cluster-stop measures it on an idle machine. This one
// also holds while the machine runs other tests.
const longestStopGap = 3 * time.Second

// repeatingClients submit runs without a pause, each at a node of its own. A call that is answered with 503, or
// finds no server, is repeated at the next node. So is one that meets the end of the server that stops: it closes
// connections that are idle, and may do so at the moment of a request. Any other error is a failed call.
type repeatingClients struct {
	t       *testing.T
	cluster *testCluster
	stop    context.CancelFunc
	wait    sync.WaitGroup

	mu       sync.Mutex
	nodes    []*client.Client  // by the order of the cluster
	stopping int               // the place there of the node that stops
	runs     map[string]uint64 // acknowledged, by idempotency key
	answered []time.Time       // the last answer to each client
	longest  time.Duration     // between two answers to one client, since the last call of longestGap
	failed   []error
}

// startRepeatingClients starts a client for each node.
func (c *testCluster) startRepeatingClients() *repeatingClients {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	r := &repeatingClients{t: c.t, stop: cancel, runs: map[string]uint64{}}
	c.t.Cleanup(func() { cancel(); r.wait.Wait() })
	r.cluster, r.nodes = c, make([]*client.Client, len(c.nodes))
	for _, n := range c.nodes {
		r.use(n)
		r.answered = append(r.answered, time.Now())
	}
	for i := range c.nodes {
		r.wait.Go(func() { r.submitAll(ctx, i) })
	}
	return r
}

// use tells the clients the address of a node, which changes with each start.
func (r *repeatingClients) use(n *clusterNode) {
	r.t.Helper()
	api, err := client.New(client.Config{Server: n.server.URL, Retries: -1})
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes[slices.Index(r.cluster.nodes, n)] = api
}

// node returns the next node to ask, and whether it is the one that stops.
func (r *repeatingClients) node(i int) (api *client.Client, isStopping bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i %= len(r.nodes)
	return r.nodes[i], i == r.stopping
}

// expectStop says that the server of a node will end.
func (r *repeatingClients) expectStop(n *clusterNode) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopping = slices.Index(r.cluster.nodes, n)
}

// submitAll is the client with a number. It asks the node of that number first.
func (r *repeatingClients) submitAll(ctx context.Context, number int) {
	tick := time.NewTicker(loadInterval)
	defer tick.Stop()
	at := number
	for call := 0; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		key := fmt.Sprintf("stop-%d-%d", number, call)
		api, isStopping := r.node(at)
		run, err := api.Submit(ctx, []byte(noopRun), client.SubmitOptions{IdempotencyKey: key})
		switch {
		case err == nil:
			r.noteAnswer(number, key, run)
			call++
		case ctx.Err() != nil:
			return
		case errors.Is(err, client.ErrUnavailable), errors.Is(err, client.ErrNoServer), isStopping && errors.Is(err, client.ErrUnreachable):
			at++
		default:
			r.mu.Lock()
			r.failed = append(r.failed, err)
			r.mu.Unlock()
			return
		}
	}
}

func (r *repeatingClients) noteAnswer(number int, key string, run uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.longest = max(r.longest, now.Sub(r.answered[number]))
	r.answered[number] = now
	r.runs[key] = run
}

// awaitAnswers waits until each client has an answer that came after this call.
func (r *repeatingClients) awaitAnswers() {
	r.t.Helper()
	since := time.Now()
	e2etest.Eventually(r.t, "all clients have answers", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.failed) > 0 {
			r.t.Fatalf("failed calls: %v", r.failed)
		}
		for _, at := range r.answered {
			if at.Before(since) {
				return false
			}
		}
		return true
	})
}

// longestGap returns the longest time between two answers to one client since the last call.
func (r *repeatingClients) longestGap() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	longest := r.longest
	r.longest = 0
	return longest
}

// end stops the clients, and returns the runs that were acknowledged.
func (r *repeatingClients) end() map[string]uint64 {
	r.t.Helper()
	r.stop()
	r.wait.Wait()
	if len(r.failed) > 0 {
		r.t.Errorf("failed calls: %v", r.failed)
	}
	return r.runs
}

// stopUnderLoad stops a node as planned. The clients have answers before, while and after it stops.
func (c *testCluster) stopUnderLoad(n *clusterNode, clients *repeatingClients) {
	c.t.Helper()
	clients.awaitAnswers()
	steady := clients.longestGap()
	clients.expectStop(n)
	code, took, err := n.server.Stop(e2etest.Patience)
	if code != 0 || err != nil {
		c.t.Errorf("%s: exit %d after %v, %v", n.name, code, took, err)
	}
	n.server = nil
	clients.awaitAnswers()
	gap := clients.longestGap()
	c.t.Logf("%s stops in %v: the longest gap of a client is %v, before the stop %v", n.name,
		took.Round(time.Millisecond), gap.Round(time.Millisecond), steady.Round(time.Millisecond))
	if gap > longestStopGap {
		c.t.Errorf("%s stops: a client has no answer for %v", n.name, gap)
	}
}

// checkListed fails unless a node lists all acknowledged runs, each of them once.
func (c *testCluster) checkListed(asked *clusterNode, acknowledged map[string]uint64) {
	c.t.Helper()
	times := map[uint64]int{}
	for s, err := range c.client(asked).Runs(c.t.Context(), client.ListOptions{All: true}) {
		if err != nil {
			c.t.Fatalf("%s lists runs: %v", asked.name, err)
		}
		times[s.RunID]++
	}
	keys := map[uint64]string{}
	for key, run := range acknowledged {
		if times[run] != 1 {
			c.t.Errorf("%s lists run %d (%s) %d times", asked.name, run, key, times[run])
		}
		if keys[run] != "" {
			c.t.Errorf("run %d has the keys %s and %s", run, keys[run], key)
		}
		keys[run] = key
	}
}
