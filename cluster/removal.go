package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/clustertls"
	"github.com/caravan-dag/caravan/messages"
)

// An operator takes a node that does not run any more out of the cluster with RemoveNode: the leader of each
// partition removes the replica of that node from its members. Each leader refuses
//
//   - a node that answers at its address: its tasks may run. The operator stops it first;
//   - a node that was heard within Config.RemovalSilence, in this term or perhaps just before it, by the log or by
//     the link to its workers: until then its tasks may go on, and the next leader would not know that there is a
//     node to wait for. The log does not hear a node without a replica, so its time begins with the leadership;
//   - a removal that leaves fewer than minReplicas replicas that are heard and have nearly all of the log.
//
// All leaders are asked before the first one acts. A removal that breaks off is safe, because each partition is
// changed by one entry of its log, and another call does the rest.
//
// A node that was removed and runs again hears no leader. It asks the others whether it is a member, and ends when
// a leader says no. An empty folder may take its place in the list again (Config.Replace).

const (
	// minReplicas is how many replicas of a partition a removal leaves at least.
	minReplicas = 3
	// membershipPause is between two looks for a leader, and between two questions without one.
	membershipPause = time.Second
)

// Questions of a removal, to the leader of a partition.
const (
	// removableInquiry asks whether a node can be removed, and why it cannot.
	removableInquiry inquiryKind = "removable"
	// removeInquiry asks to remove it.
	removeInquiry inquiryKind = "remove"
)

// RemoveNode takes a node, given by its name or ID, out of all partitions, under every ID that it has there: one that
// was taking the place of a former node may have two. It may be called on any other node. An error is a
// *messages.Error; after one with the code Unavailable the node may be removed from some partitions.
func (m *Member) RemoveNode(ctx context.Context, node string) (raftlog.NodeID, error) {
	id, err := m.memberNode(node, 0)
	if err != nil {
		return "", err
	}
	name := nameOfID(id)
	if name == m.config.Name {
		return "", refuse(messages.Conflict, "node %s is the one that you ask, and it runs: stop it and ask another one", name)
	}
	for _, kind := range []inquiryKind{removableInquiry, removeInquiry} {
		// The first partition comes last: Nodes has the members of it, and an interrupted removal is repeated.
		for p := m.Partitions() - 1; p >= 0; p-- {
			if _, err := m.askLeader(ctx, &inquiry{Kind: kind, Partition: p, Name: name}); err != nil {
				return "", asUnavailable(err)
			}
		}
	}
	return id, nil
}

// checkRemoval says why a node cannot be removed from a partition, which this node leads. It returns the members that
// it looked at, and the IDs under which the node is one of them.
func (m *Member) checkRemoval(ctx context.Context, partition int, name string) (members raftlog.Membership, ids []raftlog.NodeID, err error) {
	l := m.leadership(partition)
	if l == nil || !m.servesHere(partition) {
		return members, nil, errNotLeader
	}
	group := l.host.group
	members = group.Members()
	for _, id := range slices.Concat(members.Voters, members.Learners) {
		if nameOfID(id) == name {
			ids = append(ids, id)
		}
	}
	for _, id := range m.idsOf(name, ids) {
		if m.isReachable(ctx, id) {
			return members, nil, refuse(messages.Conflict, "node %s runs: stop it first", name)
		}
		silent := group.Status().Silent[id]
		if !slices.Contains(ids, id) { // it lacks a replica of this partition, and may run tasks of it
			silent = time.Since(l.began)
		}
		if m.config.WorkersHeard != nil {
			if at := m.config.WorkersHeard(id); !at.IsZero() {
				silent = min(silent, time.Since(at))
			}
		}
		if silent < m.config.RemovalSilence {
			return members, nil, refuse(messages.Conflict, "tasks of node %s may run on without it: partition %d has waited %s of %s for their end",
				name, partition, silent.Truncate(time.Second), m.config.RemovalSilence)
		}
	}
	if len(ids) == 0 {
		return members, nil, nil
	}
	remaining := 1 // this one
	for _, id := range group.CaughtUpVoters() {
		if nameOfID(id) != name {
			remaining++
		}
	}
	if remaining < minReplicas {
		return members, nil, refuse(messages.Conflict, "partition %d would have %d replicas with nearly all of the log, and needs %d: start node %s, or replace it",
			partition, remaining, minReplicas, name)
	}
	return members, ids, nil
}

// idsOf returns the IDs that a node of a name has: those given, and those without a replica of their partition.
func (m *Member) idsOf(name string, ids []raftlog.NodeID) []raftlog.NodeID {
	all := slices.Clone(ids)
	for _, n := range m.Nodes() {
		if n.Name == name && !slices.Contains(all, n.ID) {
			all = append(all, n.ID)
		}
	}
	return all
}

// removeHere removes a node from a partition, if this node leads it: one change for each of its IDs. Without any it
// waits until that is committed, because an earlier call may not have ended yet.
func (m *Member) removeHere(ctx context.Context, partition int, name string) error {
	checked, ids, err := m.checkRemoval(ctx, partition, name)
	if err != nil {
		return err
	}
	h := m.host(partition) // not nil: it was checked
	if len(ids) == 0 {
		want := h.group.Members()
		if slices.ContainsFunc(slices.Concat(want.Voters, want.Learners), func(id raftlog.NodeID) bool { return nameOfID(id) == name }) {
			return errNotLeader // the members of another leader have come in between
		}
		if err := h.group.Change(want); err != nil {
			return refuse(messages.Unavailable, "partition %d: the removal of node %s is not committed yet: %v", partition, name, err)
		}
	}
	if err := h.removeMembers(checked, ids); err != nil || partition != 0 {
		return err
	}
	err = m.tables.changeTable(func(t *nodeTable) error {
		t.setLeaving(name)
		m.updateTable(t)
		return nil
	})
	if errors.Is(err, errOldTable) { // the groups decide, and this leader changes no table
		return nil
	}
	return err
}

// removeMembers removes members of a group. checked are the members that the checks of the removal were made for:
// if another change has come in between, the group refuses this one.
func (h *host) removeMembers(checked raftlog.Membership, ids []raftlog.NodeID) error {
	want := checked
	for _, id := range ids {
		isNode := func(other raftlog.NodeID) bool { return other == id }
		want.Voters = slices.DeleteFunc(slices.Clone(want.Voters), isNode)
		want.Learners = slices.DeleteFunc(slices.Clone(want.Learners), isNode)
		if err := h.group.Change(want); err != nil {
			return refuse(messages.Unavailable, "partition %d: node %s is not removed yet: %v", h.partition, id, err)
		}
		h.logger.Warn("a node was removed from the partition by an operator", "removed", id, "voters", want.Voters)
	}
	return nil
}

// checkList refuses a list of nodes that lacks a member. The list may lack nodes that were removed, which only the
// groups know.
func (m *Member) checkList() error {
	names := m.nodeNames()
	for h := range m.ownHosts() {
		for _, id := range m.groupMembers(h.partition) {
			if !slices.Contains(names, nameOfID(id)) {
				return fmt.Errorf("the list of nodes lacks %s, which is a member of partition %d as far as this node knows: add it, and if it was removed start once with the former list",
					nameOfID(id), h.partition)
			}
		}
	}
	return nil
}

// membershipAnswer says whether a node is a member of a partition, or for partition 0 a node of the cluster without
// a replica of it.
type membershipAnswer struct {
	Leads    bool `json:"leads"` // the node that answers leads the partition, and is sure to
	IsMember bool `json:"isMember"`
}

// membershipProtocol carries the question whether a node is a member: an admissionRequest, and a membershipAnswer.
const membershipProtocol = "caravan-membership/1"

// answerMemberships answers until the listener closes.
func (m *Member) answerMemberships(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		m.background.Go(func() {
			if err := m.answerMembership(conn); err != nil {
				m.config.Logger.Info("question of a node whether it is a member", "err", err)
			}
		})
	}
}

func (m *Member) answerMembership(conn net.Conn) error {
	defer conn.Close()
	defer context.AfterFunc(m.port.ctx, func() { conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(inquiryLimit)); err != nil {
		return err
	}
	var request admissionRequest
	if err := readJSONLine(conn, &request); err != nil {
		return err
	}
	if secure, ok := conn.(*tls.Conn); ok {
		peer, err := clustertls.PeerOf(secure.ConnectionState())
		if err != nil {
			return err
		}
		if peer.Name != request.Name {
			return fmt.Errorf("%s asks for node %s", peer, request.Name)
		}
	}
	if err := m.checkPartition(request.Partition); err != nil {
		return err
	}
	a := membershipAnswer{IsMember: slices.Contains(m.groupMembers(request.Partition), request.ID) ||
		request.Partition == 0 && m.table().isListedWithout(request.ID)}
	a.Leads = m.servesHere(request.Partition) // after the look at the members
	return writeJSONLine(conn, a)
}

// watchMembership ends this node if it was removed: it hears no leader of a partition, and another node that leads
// it says twice that this one is not a member. The list that it goes by the first time need not be committed. A node
// that was removed a moment ago may hear a leader for a while: see confirmMembership.
func (m *Member) watchMembership() {
	removed := map[int]bool{}
	for m.pauseMembership() {
		for _, p := range m.watchedPartitions() {
			switch isMember, err := m.isMemberOf(p); {
			case err != nil: // it is not known
			case isMember:
				delete(removed, p)
			case removed[p]:
				m.failAsRemoved()
				return
			default:
				removed[p] = true
			}
		}
	}
}

// watchedPartitions returns the partitions whose leaders know whether this node is a member: those that it has
// replicas of, or without any partition 0, whose leader has the table of the nodes.
func (m *Member) watchedPartitions() (partitions []int) {
	for h := range m.ownHosts() {
		partitions = append(partitions, h.partition)
	}
	if len(partitions) == 0 {
		return []int{0}
	}
	return partitions
}

// confirmMembership waits until the leader of a partition that has admitted this node says whether the node is still
// a member. It reports whether the node goes on. To hear the leader is not enough: when a member that does not answer is
// removed, the library's pause between two requests to it, of up to 10 s, goes on, and so do heartbeats. The node would
// ask other partitions to admit it, and end as a voter of those alone.
func (m *Member) confirmMembership(partition int) bool {
	for removed := false; ; {
		isMember, err := m.askMembership(partition)
		if m.leadsGroup(partition) {
			isMember, err = true, nil
		}
		switch {
		case err != nil:
		case isMember:
			return true
		case removed:
			m.failAsRemoved()
			return false
		default:
			removed = true
		}
		if !m.pauseMembership() {
			return false
		}
	}
}

// pauseMembership waits, and reports whether this node goes on.
func (m *Member) pauseMembership() bool {
	select {
	case <-m.port.ctx.Done():
		return false
	case <-time.After(membershipPause):
		return true
	}
}

func (m *Member) failAsRemoved() {
	m.config.Fatal(refusedBecause("it was removed from the cluster as %s: an empty folder can join with --replace", m.Self()))
}

// isMemberOf reports whether this node is a member of a partition: it hears a leader, or one says so.
func (m *Member) isMemberOf(partition int) (isMember bool, err error) {
	if _, ok := m.Leader(partition); ok {
		return true, nil
	}
	return m.askMembership(partition)
}

// askMembership asks the other nodes whether this one is a member of a partition, until its leader answers.
func (m *Member) askMembership(partition int) (isMember bool, err error) {
	err = errNotLeader
	for _, node := range m.config.Nodes {
		if node.Name == m.config.Name {
			continue
		}
		a, aerr := m.askMembershipOf(node, partition)
		if aerr == nil && a.Leads {
			return a.IsMember, nil
		}
		err = errors.Join(err, aerr)
	}
	return false, err
}

func (m *Member) askMembershipOf(node NodeAddress, partition int) (a membershipAnswer, err error) {
	ctx, cancel := context.WithTimeout(m.port.ctx, 2*inquiryLimit)
	defer cancel()
	conn, err := m.port.dialNode(ctx, node, membershipProtocol, m.cluster, "") // its present ID is not known
	if err != nil {
		return a, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err = writeJSONLine(conn, admissionRequest{Partition: partition, Name: m.config.Name, ID: m.Self()})
	if err == nil {
		err = readJSONLine(conn, &a)
	}
	return a, err
}
