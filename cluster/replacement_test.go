package cluster

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/clustertls"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// wipe closes a node and removes its folder.
func (n *testNode) wipe() {
	n.cluster.t.Helper()
	n.close()
	if err := os.RemoveAll(n.dir); err != nil {
		n.cluster.t.Fatal(err)
	}
}

// awaitAdmission waits until a node is a voter of all partitions, and the only one of its name.
func (n *testNode) awaitAdmission() {
	n.cluster.t.Helper()
	m := n.running()
	testenv.EventuallyWithin(n.cluster.t, patience, n.name+" is in place of the former node", func() bool {
		for _, h := range m.hosts {
			voters := h.group.Members().Voters
			if len(voters) != len(n.cluster.nodes) || !slices.Contains(voters, m.Self()) {
				return false
			}
		}
		return true
	})
}

// TestReplacementOfAWipedNode: one node after the other is lost with its folder and replaced under load, by
// the log or by a copy. In the end no node has a folder of the beginning, and no run is lost.
func TestReplacementOfAWipedNode(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 2)
	c.settings.TrailingEntries, c.settings.SnapshotInterval, c.settings.SegmentBytes = 10, 50*time.Millisecond, 4<<10
	c.each((*testNode).start)
	l := c.startLoad(4)
	for round, n := range c.nodes {
		for p := range c.partitions {
			l.awaitAccepted(p, 10)
		}
		former := n.running().Self()
		n.wipe()
		if round == 1 { // the others' logs do not begin at the first entry any more
			for _, other := range c.nodes {
				if other != n {
					other.close()
					other.start()
				}
			}
		}
		n.replace = true
		n.start()
		if n.running().Self() == former {
			t.Fatalf("%s has its former ID", n.name)
		}
		n.awaitAdmission()
		testenv.EventuallyWithin(t, patience, "its folder says that it is admitted", func() bool {
			var id identity
			return readJSON(n.running().config.FS, n.dir+"/"+identityFile, &id) == nil && id.IsAdmitted
		})
		n.close() // a replacement is a node like any other, also when it is started again
		n.start()
	}
	for p := range c.partitions {
		l.awaitAccepted(p, 10)
	}
	nodes := c.nodes[0].running().Nodes()
	if len(nodes) != 3 || nodes[2].ID != c.nodes[2].running().Self() || nodes[2].Name != "n3" || nodes[2].Address != "n3" {
		t.Errorf("the nodes are %+v", nodes)
	}
	accepted := l.stop()
	c.awaitOwnTable()
	c.checkRuns(accepted)
	c.checkReplicas()
	leader, _ := c.leaderOf(0)
	leader.close()
	c.checkRuns(accepted[:1])
}

// TestReplacementIsInterrupted: a replacement that is killed before it is admitted goes on afterwards, and
// one that loses its folder as well is replaced like the first.
func TestReplacementIsInterrupted(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	accepted := [][]messages.RunID{c.mustSubmit(0, 10)}
	n := c.nodes[1]
	n.wipe()
	n.replace = true
	for _, interrupt := range []func(){n.kill, n.wipe, n.close} {
		n.start()
		m := n.running()
		testenv.EventuallyWithin(t, patience, "the leader knows the new node", func() bool {
			leader, _ := c.findLeader(0, n)
			if leader == nil {
				return false
			}
			members := leader.running().hosts[0].group.Members()
			return slices.Contains(slices.Concat(members.Voters, members.Learners), m.Self())
		})
		interrupt()
	}
	n.start()
	n.awaitAdmission()
	accepted[0] = append(accepted[0], c.mustSubmit(0, 5)...)
	c.checkRuns(accepted)
	c.checkReplicas()
}

// TestReplacementThatHasLostALog: a replacement notes each partition that has admitted it, before all have, and
// does not start without the log of such a one.
func TestReplacementThatHasLostALog(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2)
	c.mustSubmit(0, 3)
	c.mustSubmit(1, 3)
	n := c.nodes[1]
	n.wipe()
	config := n.config()
	files := faults.New(vfs.OS{})
	config.Replace, config.FS = true, files
	m, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	n.setRunning(m)
	n.awaitAdmission()
	path := filepath.Join(n.dir, identityFile)
	var id identity
	testenv.EventuallyWithin(t, patience, "its folder says that it is admitted", func() bool {
		return readJSON(vfs.OS{}, path, &id) == nil && id.IsAdmitted
	})
	writes := 0
	for _, call := range files.Calls() {
		if call.Op == faults.Rename && strings.HasPrefix(filepath.Base(call.Path), identityFile) {
			writes++
		}
	}
	if want := 6; writes != want { // new, formed, opened, two partitions, admitted
		t.Errorf("%s was written %d times, not %d", identityFile, writes, want)
	}
	n.kill()
	id.IsAdmitted, id.AdmittedTo = false, []int{0} // as before partition 1 has admitted it
	if err := writeJSON(vfs.OS{}, n.dir, identityFile, &id); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(n.dir, "p", "0", "group", "log")); err != nil {
		t.Fatal(err)
	}
	if m, err = Open(t.Context(), n.config()); err == nil {
		n.setRunning(m)
		t.Fatal("it starts")
	}
	if !strings.Contains(err.Error(), "partition 0") {
		t.Error(err)
	}
}

// TestReplacementIsRefused: a node that runs is not replaced, nor is one of another name admitted. A node
// that leads needs no admission.
func TestReplacementIsRefused(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	newID := func(n *testNode) raftlog.NodeID { return raftlog.NodeID(n.name + "-0123456789abcdef") }
	for want, request := range map[string]func(leader, other *testNode) admissionRequest{
		"still runs as": func(_, other *testNode) admissionRequest { return admissionRequest{Name: other.name, ID: newID(other)} },
		"not of this cluster": func(leader, other *testNode) admissionRequest {
			return admissionRequest{Name: leader.name, ID: newID(other)}
		},
		"partition 7": func(_, other *testNode) admissionRequest {
			return admissionRequest{Partition: 7, Name: other.name, ID: newID(other)}
		},
	} {
		if answer := c.admit(request); answer.IsVoter || !strings.Contains(answer.Error, want) {
			t.Errorf("%s: %+v", want, answer)
		}
	}
	testenv.EventuallyWithin(t, patience, "a node that does not lead says so", func() bool {
		leader, _ := c.leaderOf(0)
		other := c.others(leader)[0]
		return other.running().admit(t.Context(), &admissionRequest{Name: other.name, ID: newID(other)}) == (admissionAnswer{})
	})
	testenv.EventuallyWithin(t, patience, "a node that leads needs no admission", func() bool {
		leader, _ := c.leaderOf(0)
		return leader.running().requestAdmission(0).IsVoter
	})
	if voters := c.nodes[0].running().hosts[0].group.Members().Voters; len(voters) != 3 {
		t.Errorf("the voters are %v", voters)
	}
}

// TestSlowNodeIsNotReplaced: a node that answers heartbeats runs, also when no new connection to it can be made.
func TestSlowNodeIsNotReplaced(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	answer := c.admit(func(leader, other *testNode) admissionRequest {
		leader.dialsFail.Store(true)
		return admissionRequest{Name: other.name, ID: raftlog.NodeID(other.name + "-0123456789abcdef")}
	})
	if !strings.Contains(answer.Error, "still runs") {
		t.Errorf("the answer is %+v", answer)
	}
}

// admit asks a leader to admit a node, until it answers as the leader.
func (c *testCluster) admit(request func(leader, other *testNode) admissionRequest) (answer admissionAnswer) {
	c.t.Helper()
	testenv.RepeatWithin(c.t, patience, "a leader answers", func() bool {
		leader, _ := c.leaderOf(0)
		r := request(leader, c.others(leader)[0])
		answer = leader.running().admit(c.t.Context(), &r)
		return answer != (admissionAnswer{})
	})
	return answer
}

// TestReplacementOverTLS: a new node is admitted by its certificate, and asks for itself alone.
func TestReplacementOverTLS(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 1)
	a := newAuthority(t)
	c.overTLS(a)
	c.each((*testNode).start)
	accepted := [][]messages.RunID{c.mustSubmit(0, 5)}
	leader, _ := c.leaderOf(0)
	m := leader.running()
	var n, third *testNode
	for _, other := range c.nodes {
		if other != leader {
			n, third = other, n
		}
	}
	id := raftlog.NodeID(n.name + "-0123456789abcdef")
	conn, err := third.running().Dial(t.Context(), m.Self(), admissionProtocol)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(testenv.Patience)); err != nil {
		t.Fatal(err)
	}
	var answer admissionAnswer
	if err := writeJSONLine(conn, admissionRequest{Name: n.name, ID: id}); err != nil {
		t.Error(err)
	}
	if err := readJSONLine(conn, &answer); err == nil {
		t.Errorf("a node asks for another one, and is answered: %+v", answer)
	}
	conn.Close()
	n.wipe()
	c.overTLSAgain(n, issue(t, a, clustertls.Identity{Role: clustertls.Node, Name: n.name}))
	n.replace = true
	n.start()
	n.awaitAdmission()
	c.checkRuns(accepted)
	c.checkReplicas()
}

// TestUnknownNameIsNotAdmitted: a node takes the place of one that the cluster has, and of no other.
func TestUnknownNameIsNotAdmitted(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	answer := c.admit(func(_, _ *testNode) admissionRequest {
		return admissionRequest{Name: "n9", ID: "n9-0123456789abcdef"}
	})
	if answer.Error == "" {
		t.Errorf("the answer is %+v", answer)
	}
	leader, _ := c.leaderOf(0)
	if learners := leader.running().hosts[0].group.Members().Learners; len(learners) > 0 {
		t.Errorf("%v became members", learners)
	}
}
