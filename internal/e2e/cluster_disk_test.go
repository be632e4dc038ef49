package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// TestLeaderWithABadDisk proves that the server of a leader ends, with the reason, when its disk refuses a sync of the
// log. The others go on without it, and so do the tasks of its machine. When the disk is repaired, the node has all
// runs, and each task has ended once. Then the clock of a node is off by an hour, and all nodes warn.
func TestLeaderWithABadDisk(t *testing.T) {
	t.Parallel()
	c := prepareCluster(t, onePartition...)
	for _, n := range c.nodes {
		e2etest.Faulty(t)(&n.config)
		n.config.Env = append(n.config.Env, "CARAVAN_FAULT_CLOCK="+clockFile(n))
	}
	c.start()
	leads, _ := c.leader(c.nodes[0])
	c.awaitSlots(leads)
	l := c.startLiving(leads, 6, 1) // two on each node
	bad, follows := c.leader(leads) // by now
	acknowledged := map[string]uint64{"living": l.run, "before": c.submitUnderKey(bad, "before", noopRun)}
	server := bad.server
	if err := faults.WriteScript(e2etest.Script(bad.config.Data), faults.Fault{Op: faults.Sync, Path: "*.wal", Err: syscall.EIO}); err != nil {
		t.Fatal(err)
	}
	for i := range 3 { // the log of each node is written
		name := fmt.Sprint("during-", i)
		acknowledged[name] = c.submitUnderKey(follows, name, noopRun)
	}
	testenv.ReceiveWithin(t, 2*e2etest.Patience, "the server with the bad disk ends", server.Ended())
	if code, log := server.ExitCode(), server.Log(); code != 1 || !strings.Contains(log, "the server cannot go on") || !strings.Contains(log, "input/output error") {
		t.Errorf("it ends with code %d", code)
	}
	bad.server = nil
	begun := l.read()
	acknowledged["after"] = c.submitUnderKey(follows, "after", noopRun)
	e2etest.Eventually(t, "all tasks go on", func() bool {
		for task, s := range l.read() {
			if s.lines < begun[task].lines+2 {
				return false
			}
		}
		return true
	})
	if err := faults.WriteScript(e2etest.Script(bad.config.Data)); err != nil {
		t.Fatal(err)
	}
	c.restart(bad)
	l.open()
	l.checkRecord(c, bad)
	for task, s := range l.read() {
		if s.attempt != begun[task].attempt || s.ends != 1 {
			t.Errorf("%s wrote %+v, when the server ended %+v", task, s, begun[task])
		}
	}
	c.checkFound(acknowledged)
	c.checkClockWarnings()
}

// clockFile is the file by which a test sets the clock of a node: what is added to the time of day.
func clockFile(n *clusterNode) string { return n.config.Data + ".clock" }

// checkClockWarnings sets the clock of the leader forward by an hour while a retry waits. The retry is neither early nor late. The
// others name the node, and the warnings end when the clock is right again.
func (c *testCluster) checkClockWarnings() {
	c.t.Helper()
	off, other := c.leader(c.nodes[0])
	const retry = `{"tasks":{"a":{"job":{"commandString":"test $CARAVAN_ATTEMPT -gt 1"},"maxRetries":1,"retryIntervalSeconds":2}}}`
	run := c.submitUnderKey(off, "retry", retry)
	api := c.client(off)
	e2etest.Eventually(c.t, "the task waits for its retry", func() bool {
		found, err := api.Get(c.t.Context(), run)
		return err == nil && len(found.TaskAttempts["a"]) == 1 && found.TaskAttempts["a"][0].StopTime > 0
	})
	if err := os.WriteFile(clockFile(off), []byte("1h"), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if _, err := api.Wait(c.t.Context(), run, client.WaitOptions{Outage: e2etest.Patience}); err != nil {
		c.t.Fatal(err)
	}
	if found, err := api.Get(c.t.Context(), run); err != nil || len(found.TaskAttempts["a"]) != 2 {
		c.t.Errorf("a retry while the clock is set: %+v, %v", found, err)
	} else if a := found.TaskAttempts["a"]; time.Duration(a[1].StartTime-a[0].StopTime) < 2*time.Second || time.Duration(a[1].StartTime-a[0].StopTime) > e2etest.Patience {
		c.t.Errorf("the retry waits for %v", time.Duration(a[1].StartTime-a[0].StopTime))
	}
	health := func(n *clusterNode) string {
		status, text := c.send(n, "GET", "/healthz", "")()
		if status != http.StatusOK {
			c.t.Errorf("/healthz of %s: %d %s", n.name, status, text)
		}
		return text
	}
	// The reading of a clock 1 h ahead is 3600 s less the delay of an answer.
	measured := regexp.MustCompile(`(?m)^caravan_cluster_clock_skew_seconds\{node="` + off.name + `-[^}]*"\} (359\d|3600)`)
	e2etest.Eventually(c.t, other.name+" warns of the clock of "+off.name, func() bool {
		return strings.Contains(health(other), `"warnings":["the clock of node `+off.name+` is `) && measured.Match(c.metrics(other))
	})
	if out, ok := c.operate(other, "cluster", "status"); !ok || strings.Count(out, " ahead") != 1 {
		c.t.Errorf("the status is %s", out)
	}
	e2etest.Eventually(c.t, off.name+" warns of both others", func() bool { return strings.Count(health(off), "behind that of this node") == 2 })
	if err := os.WriteFile(clockFile(off), []byte("0s"), 0o600); err != nil {
		c.t.Fatal(err)
	}
	for _, n := range c.nodes {
		e2etest.Eventually(c.t, n.name+" no longer warns", func() bool { return !strings.Contains(health(n), "warnings") })
	}
}
