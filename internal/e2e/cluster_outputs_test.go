package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// numbers returns what `seq n` prints.
func numbers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, i+1)
	}
	return b.String()
}

// readLog reads output of a task at a node.
func (c *testCluster) readLog(n *clusterNode, run uint64, task string, o client.LogOptions) (string, error) {
	body, err := c.client(n).Log(c.t.Context(), run, task, o)
	if err != nil {
		return "", err
	}
	defer body.Close()
	text, err := io.ReadAll(body)
	return string(text), err
}

// readRange reads a range of a task's output, without the client.
func (c *testCluster) readRange(n *clusterNode, run uint64, task string, from, to int) (string, error) {
	request, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, fmt.Sprintf("%s/v1/dagrun/%d/task/%s/log", n.server.URL, run, task), nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusPartialContent {
		err = fmt.Errorf("%s: %s", answer.Status, text)
	}
	return string(text), err
}

// awaitOutput waits until a node has a task's whole output, and reads it by ranges and as a follower, too.
func (c *testCluster) awaitOutput(n *clusterNode, run uint64, task, want string) {
	c.t.Helper()
	var text string
	var err error
	defer func() {
		if c.t.Failed() {
			c.t.Logf("the last read of %s at %s: %d bytes, %v", task, n.name, len(text), err)
		}
	}()
	e2etest.Eventually(c.t, fmt.Sprintf("the output of %s at %s", task, n.name), func() bool {
		text, err = c.readLog(n, run, task, client.LogOptions{})
		return err == nil && text == want
	})
	e2etest.Eventually(c.t, "a range", func() bool {
		text, err = c.readRange(n, run, task, 70_001, 70_100)
		return err == nil && text == want[70_001:70_100]
	})
	e2etest.Eventually(c.t, "the followed output from an offset", func() bool {
		text, err = c.readLog(n, run, task, client.LogOptions{Follow: true, Offset: 50_000})
		return err == nil && text == want[50_000:]
	})
}

// restart starts a node again and waits until it is ready.
func (c *testCluster) restart(n *clusterNode) {
	c.t.Helper()
	c.launch(n)
	if err := n.server.AwaitReady(); err != nil {
		c.t.Fatal(err)
	}
}

// lose ends a node and its tasks, with its disk.
func (c *testCluster) lose(n *clusterNode) {
	c.t.Helper()
	n.server.Kill()
	n.server = nil
	if err := testenv.EndWorkers(n.config.Data, e2etest.Patience); err != nil {
		c.t.Fatal(err)
	}
	if err := os.RemoveAll(n.config.Data); err != nil {
		c.t.Fatal(err)
	}
}

// printingTask submits a run with a task that ends, and one that prints and waits until release is called.
func printingTask(t *testing.T, api *client.Client) (run uint64, release func()) {
	t.Helper()
	gate := filepath.Join(t.TempDir(), "gate")
	wait := fmt.Sprintf("seq 20000; until [ -e %s ]; do sleep 0.05; done; echo over", gate)
	run = submitUntilAccepted(t, api, fmt.Sprintf(`{"tasks":{"ends":{"job":{"command":["seq","20000"]}},"runs":{"job":{"commandString":%q}}}}`, wait))
	release = func() {
		if err := os.WriteFile(gate, nil, 0o600); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(release)
	return run, release
}

// printed runs both tasks of printingTask to their end, and returns the node that ran them.
func (c *testCluster) printed() (ran *clusterNode, run uint64) {
	c.t.Helper()
	leads, follows := c.leader(c.nodes[0])
	c.awaitSlots(leads) // both tasks go to the node that leads
	run, release := printingTask(c.t, c.client(follows))
	release()
	if _, err := c.client(follows).Wait(c.t.Context(), run, client.WaitOptions{Outage: e2etest.Patience}); err != nil {
		c.t.Fatal(err)
	}
	var ranAt string // another node leads if an election was faster
	e2etest.Eventually(c.t, "the record says where the tasks ran", func() bool {
		found, err := c.client(follows).Get(c.t.Context(), run)
		if err != nil {
			return false
		}
		for _, attempts := range found.TaskAttempts {
			for _, a := range attempts {
				ranAt = a.Node
			}
		}
		return true
	})
	for _, n := range c.nodes {
		if n.name == ranAt {
			return n, run
		}
	}
	c.t.Fatalf("the tasks ran at %q", ranAt)
	return nil, 0
}

// TestOutputIsReadAtEveryNode proves that output of a task that ran on one node, or runs there, is read at every
// node while others lead: after a planned stop, and after a kill.
func TestOutputIsReadAtEveryNode(t *testing.T) {
	t.Parallel()
	c := startCluster(t, onePartition...)
	leads, follows := c.leader(c.nodes[0])
	c.awaitSlots(leads)
	run, release := printingTask(t, c.client(follows))
	want := numbers(20000)
	for _, n := range c.nodes {
		c.awaitOutput(n, run, "ends", want)
	}
	ran := leads
	if code, _, err := ran.server.Stop(e2etest.Patience); code != 0 || err != nil {
		t.Errorf("exit %d, %v", code, err)
	}
	ran.server = nil
	leads, _ = c.leader(follows)
	c.restart(ran)
	live := make(chan string, len(c.nodes))
	begun := make([]io.ReadCloser, len(c.nodes))
	for i, n := range c.nodes {
		c.awaitOutput(n, run, "ends", want)
		e2etest.Eventually(t, "live output at "+n.name, func() bool {
			text, err := c.readLog(n, run, "runs", client.LogOptions{})
			if err != nil || text != want {
				return false
			}
			begun[i], err = c.client(n).Log(t.Context(), run, "runs", client.LogOptions{Follow: true, Offset: 50_000})
			return err == nil
		})
	}
	for _, body := range begun {
		begin := make([]byte, len(want)-50_000)
		if _, err := io.ReadFull(body, begin); err != nil || string(begin) != want[50_000:] {
			t.Fatalf("followed output of a running task: %v", err)
		}
		go func() {
			rest, err := io.ReadAll(body)
			body.Close()
			live <- fmt.Sprint(string(rest), err)
		}()
	}

	// Another kill: the third node leads, or the one that ran the task.
	release()
	for range begun {
		if rest := <-live; rest != "over\n<nil>" {
			t.Errorf("a follower has at the end: %q", rest)
		}
	}
	leads.server.Kill()
	leads.server = nil
	c.leader(ran)
	for _, n := range c.nodes {
		if n != leads {
			c.awaitOutput(n, run, "ends", want)
			c.awaitOutput(n, run, "runs", want+"over\n")
		}
	}
	c.restart(leads)
	c.awaitOutput(leads, run, "runs", want+"over\n")
}

// outputFile returns the output file of a run on a node, or "".
func (n *clusterNode) outputFile(run uint64) string {
	name := filepath.Join(n.config.Data, "output", fmt.Sprint(run/1000), fmt.Sprintf("%d.out", run))
	if _, err := os.Stat(name); err != nil {
		return ""
	}
	return name
}

// damageOutput changes a byte in the middle of a node's output file of a run.
func damageOutput(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, 80_000); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, 80_000); err != nil {
		t.Fatal(err)
	}
}

// TestSecondCopyOfOutput proves that output outlives the disk of the node that ran its task, and damage there:
// another node has a copy when the task has ended. If the copy is lost as well, the answer says so of each node.
func TestSecondCopyOfOutput(t *testing.T) {
	t.Parallel()
	c := startCluster(t, onePartition...)
	ran, run := c.printed()
	var copied, third *clusterNode
	for _, n := range c.nodes {
		switch {
		case n == ran:
		case n.outputFile(run) != "":
			copied = n
		default:
			third = n
		}
	}
	if ran.outputFile(run) == "" || copied == nil || third == nil {
		t.Fatalf("the nodes have the files %q, %q and %q", c.nodes[0].outputFile(run), c.nodes[1].outputFile(run), c.nodes[2].outputFile(run))
	}
	want := numbers(20000)
	damageOutput(t, ran.outputFile(run))
	for _, n := range c.nodes {
		c.awaitOutput(n, run, "ends", want)
		c.awaitOutput(n, run, "runs", want+"over\n")
	}
	former := c.idOf(copied, ran)
	c.lose(ran)
	for _, n := range []*clusterNode{copied, third} {
		c.awaitOutput(n, run, "ends", want)
		c.awaitOutput(n, run, "runs", want+"over\n")
	}
	ran.config.Args = append(ran.config.Args, "--replace")
	c.restart(ran)
	c.awaitOutput(ran, run, "ends", want)
	e2etest.Eventually(t, "the new node has all entries", func() bool {
		if !strings.Contains(ran.server.Log(), "this node is in place of the former one") {
			return false
		}
		leads, _ := c.leader(third)
		found, err := c.client(leads).Cluster(t.Context())
		id := c.idOf(leads, ran)
		return err == nil && found.Partitions[0].Lag == 0 && found.Partitions[0].Lease && id != "" && id != former
	})
	c.lose(copied)
	e2etest.Eventually(t, "no node has the output", func() bool {
		_, err := c.readLog(third, run, "ends", client.LogOptions{})
		return errors.Is(err, client.ErrUnavailable) &&
			strings.Contains(err.Error(), "node "+ran.name+": the output was lost with the former data folder") &&
			strings.Contains(err.Error(), "node "+copied.name+": the node does not answer")
	})
}

// TestOutputOfDeletedRunsIsRemoved proves that all nodes remove the output of a run that was deleted, also one
// that was down at the time.
func TestOutputOfDeletedRunsIsRemoved(t *testing.T) {
	t.Parallel()
	c := startCluster(t, append(onePartition, "--retain-runs", "1")...)
	ran, run := c.printed()
	at := slices.IndexFunc(c.nodes, func(n *clusterNode) bool { return n != ran && n.outputFile(run) != "" })
	if at < 0 || ran.outputFile(run) == "" {
		t.Fatal("the output has no two copies")
	}
	copied := c.nodes[at]
	copied.server.Kill()
	copied.server = nil
	var last uint64
	for range 2 {
		last = c.submit(ran, `{"tasks":{"a":{"job":{"command":["seq","20000"]}}}}`)
		if _, err := c.client(ran).Wait(t.Context(), last, client.WaitOptions{Outage: e2etest.Patience}); err != nil {
			t.Fatal(err)
		}
	}
	e2etest.Eventually(t, "the run is deleted", func() bool {
		_, err := c.client(ran).Summary(t.Context(), run)
		return errors.Is(err, client.ErrNotFound)
	})
	if copied.outputFile(run) == "" {
		t.Error("the file of a node that is down is gone")
	}
	c.restart(copied)
	for _, n := range []*clusterNode{ran, copied} {
		e2etest.Eventually(t, n.name+" removes the output", func() bool { return n.outputFile(run) == "" })
	}
	if ran.outputFile(last) == "" {
		t.Error("the output of a run that exists is removed")
	}
}

// TestOutputOfALostNode proves that a reader is told which node has the only copy of the output, while that is
// down, and that it is lost when the node was replaced.
func TestOutputOfALostNode(t *testing.T) {
	t.Parallel()
	c := startCluster(t, append(onePartition, "--log-copies", "1")...)
	ran, run := c.printed()
	follows := c.nodes[0]
	if follows == ran {
		follows = c.nodes[1]
	}
	c.lose(ran)
	var err error
	e2etest.Eventually(t, "another node leads", func() bool {
		_, err = c.readLog(follows, run, "ends", client.LogOptions{})
		return errors.Is(err, client.ErrUnavailable) && strings.Contains(err.Error(), "node "+ran.name+": the node does not answer")
	})
	ran.config.Args = append(ran.config.Args, "--replace")
	c.restart(ran)
	e2etest.Eventually(t, "the new node has not the output of the former one", func() bool {
		_, err = c.readLog(follows, run, "ends", client.LogOptions{})
		return errors.Is(err, client.ErrNotFound) && strings.Contains(err.Error(), "node "+ran.name+": the output was lost with the former data folder")
	})
}
