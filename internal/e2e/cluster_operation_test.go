package e2e_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// operate runs a command of an operator at a node, and returns what it prints and whether it has succeeded.
func (c *testCluster) operate(at *clusterNode, args ...string) (output string, ok bool) {
	out, err := exec.Command(e2etest.Binary(), append(args, "--server", at.server.URL)...).CombinedOutput()
	return string(out), err == nil
}

// TestLeadershipIsTransferred proves that an operator moves the leadership while a task runs, which goes on
// with its attempt, and is told why it cannot move.
func TestLeadershipIsTransferred(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "--partitions", "2")
	ctx := t.Context()
	run, begun, release := waitingTask(t, c.client(c.nodes[0]))
	partition := []string{"0", "1"}[run%2]
	leader := func() *clusterNode {
		found, err := c.client(c.nodes[0]).Cluster(ctx)
		if err != nil {
			return nil
		}
		for _, n := range c.nodes {
			if n.name == found.NameOf(found.Partitions[run%2].Leader) {
				return n
			}
		}
		return nil
	}
	for _, to := range c.nodes {
		e2etest.Eventually(t, "the leadership moves to "+to.name, func() bool {
			if leader() == to {
				return true
			}
			out, ok := c.operate(c.nodes[0], "cluster", "transfer", partition, to.name)
			if ok && !strings.HasPrefix(out, "partition "+partition+": "+to.name+" leads in place of n") {
				t.Errorf("it prints %q", out)
			}
			return ok
		})
		e2etest.Eventually(t, "the task is RUNNING", func() bool {
			s, err := c.client(to).Summary(ctx, run)
			return err == nil && s.State == client.Running
		})
	}
	e2etest.Eventually(t, "it says that the node leads already", func() bool {
		now := leader()
		if now == nil {
			return false
		}
		out, ok := c.operate(c.nodes[0], "cluster", "transfer", partition, now.name)
		return !ok && strings.Contains(out, "node "+now.name+" leads partition "+partition+" already")
	})
	drained := c.nodes[2]
	e2etest.Eventually(t, "the node leads nothing", func() bool {
		out, ok := c.operate(c.nodes[1], "cluster", "transfer", "--all-from", drained.name)
		if !ok {
			t.Log(out)
			return false
		}
		found, err := c.client(c.nodes[1]).Cluster(ctx)
		if err != nil {
			return false
		}
		for _, p := range found.Partitions {
			if name := found.NameOf(p.Leader); name == "" || name == drained.name {
				return false
			}
		}
		return true
	})
	release()
	if _, err := c.client(c.nodes[0]).Wait(ctx, run, client.WaitOptions{Outage: e2etest.Patience}); err != nil {
		t.Fatal(err)
	}
	if s, err := c.client(c.nodes[0]).Summary(ctx, run); err != nil || s.State != client.Completed {
		t.Errorf("%+v, %v", s, err)
	}
	if text := begun(); len(text) != 2 || text[0] != "1" {
		t.Errorf("attempts: %v", text)
	}
}

// loadInterval is the time between two submissions at a node that are the load of a test: enough that changes
// meet them at any moment, and little work for a machine that runs other tests beside them.
const loadInterval = 10 * time.Millisecond

// submitNoops submits runs at nodes in turn until end, and returns those that were accepted.
func (c *testCluster) submitNoops(nodes ...*clusterNode) (accepted func() int, end func() []uint64) {
	ctx, cancel := context.WithCancel(c.t.Context())
	var lock sync.Mutex
	var runs []uint64
	var wait sync.WaitGroup
	for _, n := range nodes {
		api := c.client(n)
		wait.Go(func() {
			tick := time.NewTicker(loadInterval)
			defer tick.Stop()
			for ctx.Err() == nil {
				<-tick.C
				run, err := api.Submit(ctx, []byte(`{"tasks":{"a":{"job":{"executor":"noop"}}}}`), client.SubmitOptions{})
				if err == nil {
					lock.Lock()
					runs = append(runs, run)
					lock.Unlock()
				}
			}
		})
	}
	c.t.Cleanup(cancel)
	accepted = func() int {
		lock.Lock()
		defer lock.Unlock()
		return len(runs)
	}
	return accepted, func() []uint64 {
		cancel()
		wait.Wait()
		return runs
	}
}

// flipBits changes bytes in the blocks of each table of a node's rows, below a running server.
func flipBits(t *testing.T, n *clusterNode) {
	t.Helper()
	tables, err := filepath.Glob(filepath.Join(n.config.Data, "cluster", "p", "0", "db-*", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("tables of %s: %v, %v", n.name, tables, err)
	}
	for _, path := range tables {
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		info, err := file.Stat()
		if err != nil {
			t.Fatal(err)
		}
		for part := range int64(5) { // the end of a table is its index
			at, b := info.Size()*(part+1)/9, make([]byte, 1)
			if _, err := file.ReadAt(b, at); err != nil {
				t.Fatal(err)
			}
			b[0] ^= 0x55
			if _, err := file.WriteAt(b, at); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestReplicaIsRepaired proves that a replica whose disk has lost bits is named by verify, and equal to the others
// after a repair, under load, and that the node counts for the majority then.
func TestReplicaIsRepaired(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "--partitions", "1")
	ctx := t.Context()
	leads, bad := c.leader(c.nodes[0])
	accepted, end := c.submitNoops(leads)
	e2etest.Eventually(t, "runs are accepted", func() bool { return accepted() > 50 })
	if code, _, err := bad.server.Stop(e2etest.Patience); code != 0 || err != nil {
		t.Errorf("exit %d, %v", code, err)
	}
	c.launch(bad) // from here on its rows are in tables
	if err := bad.server.AwaitReady(); err != nil {
		t.Fatal(err)
	}
	flipBits(t, bad)
	var out string
	e2etest.Eventually(t, "verify names the replica", func() bool {
		var ok bool
		out, ok = c.operate(leads, "cluster", "verify")
		return !ok && strings.Contains(out, "the replica of "+bad.name)
	})
	t.Log(out)
	now := accepted()
	e2etest.Eventually(t, "the replica is repaired", func() bool {
		var ok bool
		out, ok = c.operate(leads, "cluster", "repair", "0", bad.name)
		t.Log(out)
		return ok && strings.Contains(out, "partition 0: the replica of "+bad.name+" has the rows of ") && strings.Contains(out, "3 replicas are equal")
	})
	e2etest.Eventually(t, "runs are accepted", func() bool { return accepted() > now+20 })
	e2etest.Eventually(t, "verify finds all equal", func() bool { _, ok := c.operate(bad, "cluster", "verify"); return ok })
	runs := end()
	if code, _, err := bad.server.Stop(e2etest.Patience); code != 0 || err != nil { // its next start reads all tables
		t.Errorf("exit %d, %v", code, err)
	}
	c.launch(bad)
	if err := bad.server.AwaitReady(); err != nil {
		t.Fatal(err)
	}
	leads, _ = c.leader(bad)
	if leads == bad {
		leads = c.nodes[0]
		if bad == leads {
			leads = c.nodes[1]
		}
	}
	leads.server.Kill()
	leads.server = nil
	api := c.client(bad)
	for _, run := range runs {
		e2etest.Eventually(t, "the run is COMPLETED", func() bool {
			s, err := api.Summary(ctx, run)
			return err == nil && s.State == client.Completed
		})
	}
}

// TestNodeIsRemoved proves that a node of four can be taken out once it is stopped and the lease of its tasks is over,
// that it ends with the reason when it comes back, and that the other three survive the loss of one more. The cluster
// has as many partitions as one that is started without the option.
func TestNodeIsRemoved(t *testing.T) {
	t.Parallel()
	const lease = 5 * time.Second
	c := prepareNodes(t, 4, "--worker-lease", lease.String())
	c.start()
	ctx := t.Context()
	gone, asked := c.nodes[3], c.nodes[0]
	if found, err := c.client(asked).Cluster(ctx); err != nil || len(found.Partitions) != 6 {
		t.Errorf("a new cluster without the option has %+v, %v", found, err)
	}
	accepted, end := c.submitNoops(asked)
	e2etest.Eventually(t, "runs are accepted", func() bool { return accepted() > 10 })
	e2etest.Eventually(t, "a node that runs is not removed", func() bool {
		out, ok := c.operate(asked, "cluster", "remove", gone.name)
		if ok {
			t.Fatalf("a node that runs was removed: %q", out)
		}
		return strings.Contains(out, "node n4 runs: stop it first")
	})
	stopped := time.Now()
	if code, _, err := gone.server.Stop(e2etest.Patience); code != 0 || err != nil {
		t.Errorf("exit %d, %v", code, err)
	}
	gone.server = nil
	var out string
	isAwaited := false
	testenv.RepeatWithin(t, 3*e2etest.Patience, "the node is removed", func() (ok bool) {
		out, ok = c.operate(asked, "cluster", "remove", gone.name)
		isAwaited = isAwaited || strings.Contains(out, "tasks of node n4 may run on without it")
		return ok
	})
	if took := time.Since(stopped); took < lease {
		t.Errorf("the node is removed after %v, and its tasks may go on for longer than %v", took, lease)
	}
	if !isAwaited { // a slow machine may need longer for the first attempt
		t.Logf("no attempt was made before the tasks of the node had ended")
	}
	if !strings.HasPrefix(out, "n4-") || !strings.HasSuffix(out, " was removed\n") {
		t.Errorf("it prints %q", out)
	}
	now := accepted()
	e2etest.Eventually(t, "runs are accepted", func() bool { return accepted() > now+10 })
	runs := end()

	c.launch(gone)
	e2etest.Eventually(t, "the removed node says why it ends", func() bool {
		return strings.Contains(gone.server.Log(), "it was removed from the cluster as n4-")
	})
	<-gone.server.Ended()
	if code := gone.server.ExitCode(); code != 1 {
		t.Errorf("exit %d", code)
	}
	gone.server = nil

	c.nodes[1].server.Kill()
	c.nodes[1].server = nil
	api := c.client(c.nodes[2])
	for _, run := range runs {
		e2etest.Eventually(t, "the run is COMPLETED", func() bool {
			s, err := api.Summary(ctx, run)
			return err == nil && s.State == client.Completed
		})
	}
}
