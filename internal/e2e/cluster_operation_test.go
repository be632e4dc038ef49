package e2e_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
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
	if _, err := c.client(c.nodes[0]).Wait(ctx, run, client.WaitOptions{}); err != nil {
		t.Fatal(err)
	}
	if s, err := c.client(c.nodes[0]).Summary(ctx, run); err != nil || s.State != client.Completed {
		t.Errorf("%+v, %v", s, err)
	}
	if text := begun(); len(text) != 2 || text[0] != "1" {
		t.Errorf("attempts: %v", text)
	}
}
