package clustertest_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/clustertest"
	"github.com/caravan-dag/caravan/internal/clustertest/history"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// newMembers makes a cluster of three nodes of the real binary, and starts it. In folders it has the partitions
// of a new cluster. The disks of the nodes have room for the replicas of one.
func newMembers(t *testing.T, plain bool, seed uint64) *clustertest.Cluster {
	t.Helper()
	notInShort(t)
	c := clustertest.New(t, clustertest.Options{
		Binary: realBinary(t), PlainFolders: plain, Proxies: plain, Seed: seed,
		Arguments: func(n *clustertest.Node) []string {
			arguments := append(n.MemberArguments(), "--cores", nodeCores, "--memory-mb", "4000", "--insecure")
			if !plain {
				arguments = append(arguments, "--partitions", "1")
			}
			return arguments
		},
	})
	c.LaunchAll()
	return c
}

// longTasks starts a run with a task at each node that goes on until end is called. The faults meet attempts of
// it. A round is far shorter than a lease, so attempts of one task never overlap, whatever happens to their
// nodes and leaders.
func longTasks(t *testing.T, c *clustertest.Cluster) (end func()) {
	t.Helper()
	gate := filepath.Join(c.Dir(), "gate")
	tasks := map[string]clustertest.Task{}
	for _, n := range c.Nodes() {
		tasks["at-"+n.Name] = clustertest.Task{Cores: longTaskCores, Body: "until [ -e " + gate + " ]; do sleep 0.2; done"}
	}
	user := c.NewClient(98)
	defer user.Close()
	user.CallLimit = clustertest.Patience
	document := c.NewDocument("long", tasks)
	var err error
	testenv.Poll(clustertest.Patience, func() bool { // the first leaders of a busy machine may be lost at once
		_, err = user.Submit("n1", document, "long")
		return err == nil
	})
	mustDo(t, err)
	return func() { mustDo(t, os.WriteFile(gate, nil, 0o600)) }
}

// Two long tasks do not fit into one node, and leave room for the tasks of the load.
const (
	nodeCores     = "5"
	longTaskCores = 3
)

// judge ends the load when the cluster has recovered, and checks and returns what its clients saw.
func judge(t *testing.T, c *clustertest.Cluster, l *load) *history.History {
	t.Helper()
	mustDo(t, c.Revive())
	l.end(t)
	l.awaitFollowers()
	digests, err := c.Digests("n1")
	mustDo(t, err)
	h := c.Check("n1", digests, history.Options{})
	describeHistory(t, h)
	return h
}

// TestClusterHistory: clients use a cluster of three nodes of the real binary while random faults meet
// one node after the other. Their history breaks no rule.
func TestClusterHistory(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", plain), func(t *testing.T) {
			seed := roundSeed(t)
			c := newMembers(t, plain, seed)
			endLongTasks := longTasks(t, c)
			load := startLoad(c, seed, 3)
			mustDo(t, c.RunPlan(context.Background(), clustertest.NewPlan(seed, []string{"n1", "n2", "n3"}, clustertest.PlanOptions{
				Steps: *stepsFlag / 2, Kinds: c.Capabilities().Kinds(), MaxPause: time.Second, MaxLasts: 3 * time.Second})))
			endLongTasks()
			judge(t, c, load)
		})
	}
}

// TestClusterLosesPower: the power of all nodes fails at a time, under load. Everything that was
// acknowledged is on the disks of a majority, so it is there when the nodes are back.
func TestClusterLosesPower(t *testing.T) {
	seed := roundSeed(t)
	c := newMembers(t, false, seed)
	if !c.Capabilities().Disks {
		t.Skip("power cuts need root, loop devices and mkfs.ext4")
	}
	load := startLoad(c, seed, 3)
	for range 2 {
		wait(t.Context(), time.Second)
		var all sync.WaitGroup
		for _, n := range c.Nodes() {
			all.Go(func() {
				if err := n.CutPower(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		mustDo(t, c.Revive())
	}
	judge(t, c, load)
}

// TestClusterWithoutQuorum: two of three nodes are down. The third refuses what it cannot do, and
// forgets nothing.
func TestClusterWithoutQuorum(t *testing.T) {
	seed := roundSeed(t)
	c := newMembers(t, false, seed)
	load := startLoad(c, seed, 3)
	wait(t.Context(), time.Second)
	c.Node("n1").Kill()
	mustDo(t, c.Node("n2").KillMachine())
	user := c.NewClient(50)
	defer user.Close()
	run, err := user.Submit("n3", c.NewDocument("without quorum", map[string]clustertest.Task{"a": {}}), "")
	if err == nil {
		t.Errorf("a node without the others acknowledges run %d", run)
	}
	judge(t, c, load)
}
