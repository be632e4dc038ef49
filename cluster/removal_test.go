package cluster

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// awaitRefusedRemoval removes a node, asked at another one, and waits until that is refused for a reason.
func (c *testCluster) awaitRefusedRemoval(at *testNode, name string, code messages.ErrorCode, text string) {
	c.t.Helper()
	var err error
	isRefused := testenv.Poll(patience, func() bool {
		_, err = at.running().RemoveNode(c.t.Context(), name)
		e, ok := errors.AsType[*messages.Error](err)
		return ok && e.Code == code && strings.Contains(e.Text, text)
	})
	if !isRefused {
		c.t.Fatalf("removal of %s: %v, want %s", name, err, text)
	}
}

// TestNodeIsRemoved: of four nodes one that was stopped is removed, under load, and the other three are a cluster
// that survives the loss of one more. The removed node is refused when it comes back, and so is its name in the list
// from then on optional. With an empty folder it joins again.
func TestNodeIsRemoved(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 4, 2)
	c.removalSilence = 2 * time.Second // far longer than a busy machine keeps a node that runs from answering
	c.each((*testNode).start)
	gone, asked := c.nodes[3], c.nodes[0]
	load := c.startLoad(4)
	for p := range 2 {
		load.awaitAccepted(p, 10)
	}
	id := gone.running().Self()
	c.awaitRefusedRemoval(asked, gone.name, messages.Conflict, "node n4 runs: stop it first")
	c.awaitRefusedRemoval(gone, gone.name, messages.Conflict, "node n4 is the one that you ask")
	gone.close()
	c.areWorkersHeard.Store(true) // the log is not the only way to the node
	testenv.EventuallyWithin(t, patience, "the leaders have waited", func() bool {
		for p := range 2 {
			leader, _ := c.findLeader(p)
			if leader == nil || leader.running().Status(p).Silent[id] < 2*c.removalSilence {
				return false
			}
		}
		return true
	})
	c.awaitRefusedRemoval(asked, gone.name, messages.Conflict, "tasks of node n4 may run on without it")
	c.areWorkersHeard.Store(false)
	var err error
	testenv.EventuallyWithin(t, 2*patience, "the node is removed", func() bool {
		if _, err = asked.running().RemoveNode(t.Context(), gone.name); err != nil {
			t.Log(err)
		}
		return err == nil
	})
	for _, n := range c.others(gone) {
		testenv.EventuallyWithin(t, patience, n.name+" knows three nodes", func() bool {
			for _, h := range n.running().hosts {
				if len(h.group.Members().Voters) != 3 {
					return false
				}
			}
			return len(n.running().Nodes()) == 3
		})
	}
	c.awaitRefusedRemoval(asked, gone.name, messages.NotFound, `unknown node "n4": the cluster has [n1 n2 n3]`)
	for p := range 2 {
		load.awaitAccepted(p, 5)
	}
	accepted := load.stop()
	c.awaitTable("the table lacks the removed node", func(table *nodeTable) bool { return table.node(id) == nil && len(table.Nodes) == 3 })

	gone.start()
	testenv.EventuallyWithin(t, patience, "the removed node ends", func() bool { return len(gone.fatals()) > 0 })
	for _, err := range gone.forgetFatals() {
		if _, ok := errors.AsType[*RefusedError](err); !ok || !strings.Contains(err.Error(), "it was removed from the cluster as "+string(id)) {
			t.Error(err)
		}
	}
	gone.close()
	gone.forgetFatals()

	all := c.nodes
	c.nodes = all[:3]
	for _, n := range c.nodes { // with the list of three
		n.close()
		n.start()
	}
	c.checkRuns(accepted)
	c.checkReplicas()
	lost := c.nodes[1]
	lost.wipe()
	lost.replace = true
	lost.start()
	lost.awaitAdmission()
	leader, _ := c.leaderOf(0)
	leader.close()
	accepted[0] = append(accepted[0], c.mustSubmit(0, 3)...)
	accepted[1] = append(accepted[1], c.mustSubmit(1, 3)...)
	leader.start()

	c.nodes = all
	for _, n := range c.nodes[:3] {
		n.close()
		n.start()
	}
	gone.wipe()
	gone.replace = true
	gone.start()
	gone.awaitAdmission()
	c.awaitOwnTable()
	c.checkRuns(accepted)
	c.checkReplicas()
}

// TestRemovalIsRefused while tasks of the node may run, and when too few replicas would remain.
func TestRemovalIsRefused(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 1)
	c.removalSilence = time.Hour
	c.each((*testNode).start)
	c.mustSubmit(0, 1)
	leader, _ := c.leaderOf(0)
	gone := c.others(leader)[0]
	c.awaitRefusedRemoval(leader, "n9", messages.NotFound, `unknown node "n9"`)
	gone.close()
	c.awaitRefusedRemoval(c.others(gone)[0], gone.name, messages.Conflict, "tasks of node "+gone.name+" may run on without it: partition 0 has waited")
	for _, n := range c.others(gone) {
		n.running().config.RemovalSilence = 0
	}
	c.awaitRefusedRemoval(c.others(gone)[1], gone.name, messages.Conflict, "partition 0 would have 2 replicas with nearly all of the log, and needs 3: start node "+gone.name+", or replace it")
	gone.start()
	leader, _ = c.leaderOf(0)
	if voters := leader.running().hosts[0].group.Members().Voters; len(voters) != 3 {
		t.Errorf("the voters are %v", voters)
	}
}

// TestListLacksAMember: a node does not start with a list that lacks a member of its groups.
func TestListLacksAMember(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	n := c.nodes[0]
	n.close()
	config := n.config()
	config.Nodes = config.Nodes[:2]
	if m, err := Open(t.Context(), config); err == nil || !strings.Contains(err.Error(), "the list of nodes lacks n3, which is a member of partition 0") {
		t.Errorf("it starts: %v", err)
		if err == nil {
			n.setRunning(m)
			n.close()
		}
	}
	config = n.config()
	config.Nodes = append(config.Nodes, NodeAddress{Name: "n7", Address: "n7"})
	if _, err := Open(t.Context(), config); err == nil || !strings.Contains(err.Error(), "and the list has") {
		t.Errorf("it starts with a further node: %v", err)
	}
	n.start()
}

// TestRemovedNodeHearsALeader: the log may go on with heartbeats to a node that was removed, so a node does not take
// them for a proof that it is a member.
func TestRemovedNodeHearsALeader(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 1)
	c.reluctant = 1
	c.each((*testNode).start)
	c.mustSubmit(0, 1)
	heard := c.nodes[2] // it asks the leader, so it must not lead
	m := heard.running()
	testenv.EventuallyWithin(t, patience, "the node hears a leader", func() bool {
		_, ok := m.Leader(0)
		return ok
	})
	identity := *m.identity
	identity.ID = raftlog.NodeID(heard.name + "-0123456789abcdef")
	removed := &Member{config: m.config, identity: &identity, cluster: m.cluster, port: m.port, hosts: m.hosts}
	var fatal []error
	removed.config.Fatal = func(err error) { fatal = append(fatal, err) }
	if removed.confirmMembership(0) || len(fatal) != 1 || !strings.Contains(fatal[0].Error(), "it was removed from the cluster as "+string(identity.ID)) {
		t.Errorf("the node goes on, or ends with %v", fatal)
	}
	for _, n := range c.nodes {
		if !n.running().confirmMembership(0) {
			t.Errorf("%s is not a member", n.name)
		}
	}
}

// TestNodeOfTwoIDsIsRemoved: a node that was taking the place of a former one is a member of some partitions under
// another ID. All of its IDs are removed, and it does not ask for admission when it comes back.
func TestNodeOfTwoIDsIsRemoved(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 4, 2)
	c.each((*testNode).start)
	for p := range 2 {
		c.mustSubmit(p, 1)
	}
	gone := c.nodes[3]
	gone.close()
	var id identity
	if err := readJSON(vfs.OS{}, gone.dir+"/"+identityFile, &id); err != nil {
		t.Fatal(err)
	}
	id.IsReplacement, id.AdmittedTo = true, []int{0} // partition 1 had not admitted it
	if err := writeJSON(vfs.OS{}, gone.dir, identityFile, &id); err != nil {
		t.Fatal(err)
	}
	const former = raftlog.NodeID("n4-0123456789abcdef")
	change := func(p int, change func(*raftlog.Membership)) {
		t.Helper()
		testenv.EventuallyWithin(t, patience, "the members change", func() bool {
			leader, _ := c.findLeader(p)
			if leader == nil {
				return false
			}
			group := leader.running().hosts[p].group
			want := group.Members()
			want = raftlog.Membership{Voters: slices.Clone(want.Voters), Learners: slices.Clone(want.Learners)}
			change(&want)
			return group.Change(want) == nil
		})
	}
	change(1, func(m *raftlog.Membership) {
		if !slices.Contains(m.Learners, former) {
			m.Learners = append(m.Learners, former)
		}
	})
	change(0, func(m *raftlog.Membership) { // partition 0 does not know the ID of now
		if !slices.Contains(m.Learners, former) {
			m.Learners = append(m.Learners, former)
		}
	})
	change(0, func(m *raftlog.Membership) {
		m.Voters = slices.DeleteFunc(m.Voters, func(other raftlog.NodeID) bool { return other == id.ID })
	})
	areGone := func() bool {
		for p := range 2 {
			leader, _ := c.findLeader(p)
			if leader == nil {
				return false
			}
			members := leader.running().hosts[p].group.Members()
			if len(members.Voters) != 3 || len(members.Learners) != 0 {
				return false
			}
		}
		return true
	}
	testenv.EventuallyWithin(t, 2*patience, "all IDs of the node are removed", func() bool {
		_, err := c.nodes[0].running().RemoveNode(t.Context(), gone.name)
		if err != nil {
			t.Log(err)
		}
		// Without its answer the members may be those of a change that is not committed.
		return areGone() && (err == nil || code(err) == messages.NotFound)
	})
	gone.start()
	testenv.EventuallyWithin(t, patience, "the removed node ends", func() bool { return len(gone.fatals()) > 0 })
	for _, err := range gone.forgetFatals() {
		if !strings.Contains(err.Error(), "it was removed from the cluster") {
			t.Error(err)
		}
	}
	gone.close()
	gone.forgetFatals()
	testenv.EventuallyWithin(t, patience, "it is a member of no partition", areGone)
}

// TestRemovalWithOtherMembersThanChecked: a removal that was checked for other members than those of the group is
// refused. Two removals at once could leave too few replicas otherwise.
func TestRemovalWithOtherMembersThanChecked(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	testenv.RepeatWithin(t, patience, "one node leads from the first look to the refusal", func() bool {
		leader, _ := c.leaderOf(0)
		h := leader.running().hosts[0]
		checked := h.group.Members()
		checked.Learners = nil // of an earlier try
		between := raftlog.Membership{Voters: checked.Voters, Learners: []raftlog.NodeID{"n9-0123456789abcdef"}}
		if h.group.Change(between) != nil {
			return false
		}
		gone := c.others(leader)[0].running().Self()
		err := h.removeMembers(checked, []raftlog.NodeID{gone})
		if members := h.group.Members(); !slices.Contains(members.Voters, gone) {
			t.Fatalf("%s was removed: the members are %v", gone, members)
		}
		return err != nil && strings.Contains(err.Error(), "differ")
	})
}
