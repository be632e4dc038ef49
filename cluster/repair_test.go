package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// spoil makes the disk of a reluctant node lose rows. As a leader it would give IDs twice.
func (c *testCluster) spoil(l *load, bad *testNode) {
	c.t.Helper()
	former := bad.lost.Load()
	bad.isLosing.Store(true)
	testenv.EventuallyWithin(c.t, patience, "the disk loses rows", func() bool { return bad.lost.Load() > former })
	bad.isLosing.Store(false)
	l.awaitAccepted(0, 5)
}

// repair repairs a replica, asked at a node, until that succeeds: an election may come in between.
func (c *testCluster) repair(at, bad *testNode) (r Repair) {
	c.t.Helper()
	testenv.EventuallyWithin(c.t, 4*patience, "the replica of "+bad.name+" is repaired", func() bool {
		var err error
		if r, err = at.running().RepairReplica(c.t.Context(), 0, bad.name); err != nil {
			c.t.Log(err)
		}
		return err == nil
	})
	return r
}

// TestReplicaIsRepaired: a replica that has lost rows is equal to the others after a repair, while runs are
// submitted, and after its restart. Its node keeps its ID, also when it leads at first.
func TestReplicaIsRepaired(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 1)
	c.settings.TrailingEntries, c.settings.SnapshotInterval, c.settings.SegmentBytes = 10, 50*time.Millisecond, 4<<10
	c.reluctant = 1
	c.each((*testNode).start)
	l := c.startLoad(4)
	l.awaitAccepted(0, 10)
	bad := c.nodes[2]
	c.spoil(l, bad)
	id := bad.running().Self()
	if v := c.verify(bad); !slices.Equal(differing(v), []raftlog.NodeID{id}) {
		t.Fatalf("before: %+v", v)
	}
	for _, at := range []*testNode{bad, c.others(bad)[0]} {
		r := c.repair(at, bad)
		if r.Node != id || r.Source == id || len(differing(r.Verdict)) > 0 {
			t.Errorf("%+v", r)
		}
		l.awaitAccepted(0, 5)
		if v := c.verify(at); !v.IsEqual() {
			t.Errorf("after the repair: %+v", v)
		}
		if v, ok := bad.running().Verdict(0); !ok || len(differing(v)) > 0 {
			t.Errorf("its status shows %+v", v)
		}
	}
	if files, err := filepath.Glob(filepath.Join(bad.dir, "p", "0", receivedRows+"*")); err != nil || len(files) > 0 {
		t.Errorf("left: %v, %v", files, err)
	}
	bad.kill()
	bad.start()
	if bad.running().Self() != id {
		t.Error("it has another ID")
	}
	leader, _ := c.leaderOf(0)
	if r := c.repair(bad, leader); r.Source == leader.running().Self() { // gives its leadership away
		t.Errorf("%+v", r)
	}
	accepted := l.stop()
	c.checkRuns(accepted)
	c.checkReplicas()
	leader, _ = c.leaderOf(0)
	leader.close()
	c.checkRuns(accepted)
}

// TestDamagedReplicaIsRepaired: a repair ends the damage that was found in the rows.
func TestDamagedReplicaIsRepaired(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	accepted := [][]messages.RunID{c.mustSubmit(0, 5)}
	leader, _ := c.leaderOf(0)
	bad := c.others(leader)[0]
	damage := errors.New("a block does not have its checksum")
	bad.damage.Store(&damage)
	m := bad.running()
	if _, _, err := m.viewForCopy(&copyRequest{}); !errors.Is(err, damage) {
		t.Errorf("a damaged replica is copied: %v", err)
	}
	var none error
	bad.damage.Store(&none)
	third := c.others(leader, bad)[0]
	stopped := third.running()
	third.close()
	if _, _, err := stopped.viewForCopy(&copyRequest{}); !errors.Is(err, errStopped) {
		t.Errorf("a copy of a node that has stopped: %v", err)
	}
	third.start()
	bad.damage.Store(&damage)
	former := m.hosts[0].machine.db.Load()
	c.repair(leader, bad)
	if now := m.hosts[0].machine.db.Load(); now == former {
		t.Error("it has the former rows")
	}
	bad.damage.Store(&none)
	c.checkRuns(accepted)
	c.checkReplicas()
}

// TestRepairIsRefused unless most replicas are known to be right, and the replica stays as it is.
func TestRepairIsRefused(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 1)
	c.reluctant = 2
	c.each((*testNode).start)
	l := c.startLoad(2)
	leader, bad, other := c.nodes[0], c.nodes[1], c.nodes[2]
	c.spoil(l, bad)
	c.spoil(l, other)
	l.stop()
	check := func(partition int, node string, code messages.ErrorCode, text string) {
		t.Helper()
		_, err := leader.running().RepairReplica(t.Context(), partition, node)
		if e, ok := errors.AsType[*messages.Error](err); !ok || e.Code != code || !strings.Contains(e.Text, text) {
			t.Errorf("%s: %v, want %s", node, err, text)
		}
	}
	check(4, bad.name, messages.NotFound, "unknown partition 4")
	check(0, "n7", messages.NotFound, `unknown node "n7"`)
	former := bad.running().hosts[0].machine.db.Load()
	testenv.EventuallyWithin(t, 2*patience, "it is refused", func() bool {
		_, err := leader.running().RepairReplica(t.Context(), 0, bad.name)
		e, ok := errors.AsType[*messages.Error](err)
		return ok && e.Code == messages.Conflict && strings.Contains(e.Text, "are known to be right besides that of node "+bad.name) &&
			strings.Contains(e.Text, "node "+other.name)
	})
	if bad.running().hosts[0].machine.db.Load() != former {
		t.Error("its rows were replaced")
	}
	m := bad.running()
	if a, err := m.ask(t.Context(), m.Self(), &inquiry{Kind: progressInquiry}); err != nil || !strings.Contains(a.Repair.Error, "started again") {
		t.Errorf("a repair that was never begun: %+v, %v", a.Repair, err)
	}
	if err := m.repairHere(m.hosts[0], m.Self()); !errors.Is(err, errNotLeader) && (err == nil || !strings.Contains(err.Error(), errNotLeader.Error())) && !strings.Contains(fmt.Sprint(err), "answers there") {
		t.Errorf("a copy of its own rows: %v", err)
	}
}

// TestRepairIsInterrupted at each of its last steps: the node starts again with its former rows or with the copy, and
// the next repair succeeds.
func TestRepairIsInterrupted(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 1)
	c.reluctant = 1
	c.each((*testNode).start)
	l := c.startLoad(2)
	bad := c.nodes[2]
	c.spoil(l, bad)
	for step := 1; step <= 3; step++ {
		bad.close()
		crash := errors.New("the machine stops here")
		bad.afterRestoreStep = func(_, s int) error {
			if s == step {
				return crash
			}
			return nil
		}
		bad.start()
		testenv.EventuallyWithin(t, 2*patience, "the repair breaks off", func() bool {
			at := c.others(bad)[0].running()
			_, err := at.RepairReplica(t.Context(), 0, bad.name)
			return err != nil && len(bad.fatals()) > 0
		})
		for _, err := range bad.forgetFatals() {
			if !errors.Is(err, crash) {
				t.Error(err)
			}
		}
		bad.kill()
		bad.afterRestoreStep = nil
		bad.forgetFatals()
		bad.start()
		if list, err := os.ReadDir(filepath.Join(bad.dir, "p", "0")); err != nil || len(list) != 3 { // replica.json, group, db-<n>
			t.Errorf("step %d leaves %v, %v", step, list, err)
		}
		l.awaitAccepted(0, 5)
	}
	c.repair(c.others(bad)[0], bad)
	accepted := l.stop()
	c.checkRuns(accepted)
	c.checkReplicas()
}

// TestRightReplicas is the rule by which a repair is refused.
func TestRightReplicas(t *testing.T) {
	replica := func(node string, differs bool, problem string) ReplicaDigest {
		return ReplicaDigest{Node: raftlog.NodeID(node + "-0123456789abcdef"), Differs: differs, Problem: problem}
	}
	a, b, c := replica("a", false, ""), replica("b", false, ""), replica("c", true, "")
	for i, tc := range []struct {
		replicas []ReplicaDigest
		but      ReplicaDigest
		right    int
	}{
		{[]ReplicaDigest{a, b, c}, c, 2}, {[]ReplicaDigest{a, b, c}, b, 0}, {[]ReplicaDigest{a, b, replica("d", false, "")}, a, 2},
		{[]ReplicaDigest{a, b, replica("d", false, "it is damaged")}, replica("d", false, ""), 2},
		{[]ReplicaDigest{a, replica("b", false, "away"), c}, c, 0}, {[]ReplicaDigest{a, b}, b, 0}, {[]ReplicaDigest{a, b, c}, replica("e", false, ""), 0},
	} {
		v := PartitionVerdict{Replicas: tc.replicas}
		right, err := v.rightReplicas(tc.but.Node)
		if len(right) != tc.right || (err == nil) != (tc.right > 0) {
			t.Errorf("%d: %v, %v", i, right, err)
		}
	}
	if _, err := (&PartitionVerdict{Problem: "no leader"}).rightReplicas(a.Node); code(err) != messages.Unavailable {
		t.Error(err)
	}
}
