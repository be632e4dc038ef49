package e2e_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// TestLeaderWithABadDisk proves that the server of a leader ends, with the reason, when its disk refuses a sync of the
// log. The others go on without it, and so do the tasks of its machine. When the disk is repaired, the node has all
// runs, and each task has ended once.
func TestLeaderWithABadDisk(t *testing.T) {
	t.Parallel()
	c := prepareCluster(t, onePartition...)
	for _, n := range c.nodes {
		e2etest.Faulty(t)(&n.config)
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
}
