package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/messages"
)

// An operator moves the leadership of a partition with TransferLead, and all those of a node with
// TransferAllLeads. Unlike the moves of balance.go these come at once, also while tasks run: they go on under
// their lease. Balance does not undo them:
//
//	after TransferLead      the next leader holds the partition for holdTime: it gives it to no other node
//	after TransferAllLeads  the node announces for holdTime that it is stopping, so that no other node gives
//	                        it a partition. An election may still choose it
//
// A node keeps both in memory, so its restart ends them. A later transfer to the node ends them, too.

// holdTime is how long balance does not undo a transfer of an operator.
const holdTime = time.Hour

// Transfer is a change of a partition's leader that an operator has asked for.
type Transfer struct {
	Partition int
	From, To  raftlog.NodeID // To is "" if no node was found
	// Problem says why the leadership did not move; "" = it did, and the next leader serves.
	Problem string
}

// Questions of a transfer.
const (
	// transferInquiry asks the leader of a partition to give its leadership to another node (inquiry.Node), or
	// to one that it chooses. The answer has the node.
	transferInquiry inquiryKind = "transfer"
	// readyInquiry asks a node whether it may lead a partition, which it is about to get. If so, it holds the
	// partition for moveLimit: a holdInquiry may come only after the first look of its balance.
	readyInquiry inquiryKind = "ready"
	// holdInquiry tells the next leader of a partition that an operator wants it there.
	holdInquiry inquiryKind = "hold"
	// serviceInquiry asks whether the engine of a partition serves on a node.
	serviceInquiry inquiryKind = "service"
	// drainInquiry tells a node to announce that others shall keep their leaderships, and asks which ones it has.
	drainInquiry inquiryKind = "drain"
)

// refuse returns an error for the operator.
func refuse(code messages.ErrorCode, format string, args ...any) error {
	return &messages.Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

// memberNode returns the ID under which a node is a member of a partition, or else of another one or of none. The node is given
// by its name or its ID. A node that takes the place of another one has two IDs in the cluster for a while.
func (m *Member) memberNode(node string, partition int) (raftlog.NodeID, error) {
	names := map[string]bool{}
	find := func(ids []raftlog.NodeID) raftlog.NodeID {
		for _, id := range ids {
			if nameOfID(id) == node || string(id) == node {
				return id
			}
			names[nameOfID(id)] = true
		}
		return ""
	}
	if id := find(m.knownHosts(partition)); id != "" {
		return id, nil
	}
	for p := range m.Partitions() {
		if id := find(m.knownHosts(p)); id != "" {
			return id, nil
		}
	}
	for _, n := range m.Nodes() { // those without any replica
		if id := find([]raftlog.NodeID{n.ID}); id != "" {
			return id, nil
		}
	}
	return "", refuse(messages.NotFound, "unknown node %q: the cluster has %s", node, slices.Sorted(maps.Keys(names)))
}

// checkPartition refuses a partition that the cluster does not have.
func (m *Member) checkPartition(partition int) error {
	if partition < 0 || partition >= m.Partitions() {
		return refuse(messages.NotFound, "unknown partition %d: there are 0 to %d", partition, m.Partitions()-1)
	}
	return nil
}

// TransferLead makes a node the leader of a partition, and returns when it serves. The node is given by its name
// or ID. It may be called on any node. An error is a *messages.Error; after one with the code Unavailable the
// leadership may have moved.
func (m *Member) TransferLead(ctx context.Context, partition int, node string) (t Transfer, err error) {
	if err := m.checkPartition(partition); err != nil {
		return t, err
	}
	to, err := m.memberNode(node, partition)
	if err != nil {
		return t, err
	}
	return m.transferLead(ctx, partition, to)
}

// transferLead is TransferLead for a node's ID. "" = the leader chooses the next one.
func (m *Member) transferLead(ctx context.Context, partition int, to raftlog.NodeID) (t Transfer, err error) {
	a, err := m.askLeader(ctx, &inquiry{Kind: transferInquiry, Partition: partition, Node: to})
	if err != nil {
		return t, asUnavailable(err)
	}
	t = Transfer{Partition: partition, From: a.From, To: a.Node}
	return t, m.awaitService(ctx, partition, t.To)
}

// asUnavailable makes an error one for the operator.
func asUnavailable(err error) error {
	if _, ok := errors.AsType[*messages.Error](err); ok {
		return err
	}
	return refuse(messages.Unavailable, "%v", err)
}

// awaitService waits until the engine of a partition serves on a node.
func (m *Member) awaitService(ctx context.Context, partition int, node raftlog.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, moveLimit)
	defer cancel()
	for {
		changed := m.Changed()
		a, err := m.ask(ctx, node, &inquiry{Kind: serviceInquiry, Partition: partition})
		if err == nil && a.Serves {
			return nil
		}
		select {
		case <-ctx.Done():
			return refuse(messages.Unavailable, "node %s was made the leader of partition %d, and does not serve it within %v", nameOfID(node), partition, moveLimit)
		case <-changed:
		case <-time.After(inquiryPause):
		}
	}
}

// TransferAllLeads gives all leaderships of a node to others, and returns when those serve. From then on others
// keep theirs from the node for holdTime, or until its restart. A problem with one partition does not keep the
// others.
func (m *Member) TransferAllLeads(ctx context.Context, node string) (all []Transfer, err error) {
	from, err := m.memberNode(node, 0)
	if err != nil {
		return nil, err
	}
	a, err := m.ask(ctx, from, &inquiry{Kind: drainInquiry})
	if err != nil {
		return nil, asUnavailable(err)
	}
	for _, p := range a.Partitions {
		if p < 0 || p >= m.Partitions() {
			continue
		}
		// The node itself is asked: another leader keeps its partition.
		a, err := m.ask(ctx, from, &inquiry{Kind: transferInquiry, Partition: p})
		if errors.Is(err, errNotLeader) {
			continue // it was lost a moment ago
		}
		if err == nil {
			err = m.awaitService(ctx, p, a.Node)
		}
		t := Transfer{Partition: p, From: from, To: a.Node}
		if err != nil {
			t.Problem = err.Error()
		}
		all = append(all, t)
		if err := context.Cause(ctx); err != nil {
			return all, err
		}
	}
	return all, nil
}

// transferHere gives the leadership of a partition to a node, if this node leads it. It returns the node.
func (m *Member) transferHere(ctx context.Context, partition int, to raftlog.NodeID) (raftlog.NodeID, error) {
	h := m.host(partition)
	if h == nil {
		return "", errNotLeader
	}
	ctx, cancel := context.WithTimeout(ctx, moveLimit)
	defer cancel()
	if err := m.awaitEngine(ctx, partition); err != nil {
		return "", err
	}
	if to == m.Self() {
		m.holdHere(partition) // an election was faster, and would not keep balance from it
		return "", refuse(messages.Conflict, "node %s leads partition %d already", nameOfID(to), partition)
	}
	if to == "" {
		if to = m.nextLeader(h); to == "" {
			return "", refuse(messages.Conflict, "partition %d: no other node is heard, has nearly all of the log and does not differ", partition)
		}
	} else if err := m.checkNextLeader(ctx, h, to); err != nil {
		return "", err
	}
	if _, err := m.ask(ctx, to, &inquiry{Kind: readyInquiry, Partition: partition}); err != nil {
		return "", refuse(messages.Conflict, "node %s cannot lead partition %d: %v", nameOfID(to), partition, err)
	}
	if err := h.moveLead(ctx, to); errors.Is(err, errNotLeader) {
		return "", err
	} else if err != nil {
		return "", refuse(messages.Unavailable, "the leadership of partition %d does not go to node %s: %v", partition, nameOfID(to), err)
	}
	h.logger.Info("the partition was moved by an operator", "to", to)
	m.holdLead(partition, 0)
	if _, err := m.ask(ctx, to, &inquiry{Kind: holdInquiry, Partition: partition}); err != nil {
		h.logger.Warn("balance may move the partition again: its leader was not told to hold it", "err", err)
	}
	return to, nil
}

// awaitEngine waits while this node leads a partition and its engine starts.
func (m *Member) awaitEngine(ctx context.Context, partition int) error {
	for {
		changed := m.Changed()
		if _, _, ok := m.Engine(partition); ok {
			return nil
		}
		if !m.leadsGroup(partition) {
			return errNotLeader
		}
		select {
		case <-ctx.Done():
			return refuse(messages.Unavailable, "the engine of partition %d does not start: %v", partition, context.Cause(ctx))
		case <-changed:
		case <-time.After(inquiryPause):
		}
	}
}

// differs reports whether the newest verdict that this node was told says that a replica is different.
func (m *Member) differs(partition int, node raftlog.NodeID) bool {
	v, _ := m.Verdict(partition)
	return slices.ContainsFunc(v.Replicas, func(r ReplicaDigest) bool { return r.Node == node && r.Differs })
}

// readyHere answers a readyInquiry.
func (m *Member) readyHere(partition int) error {
	h, err := m.replica(partition)
	if err != nil {
		return err
	}
	if err := h.machine.damage(); err != nil {
		return fmt.Errorf("its rows are damaged: %w", err)
	}
	if !m.isLeadHeld(partition) {
		m.holdLead(partition, moveLimit)
	}
	return nil
}

// checkNextLeader says why a node cannot lead a partition, which this one leads. It waits a moment for one of
// which the leader has not heard in this term yet.
func (m *Member) checkNextLeader(ctx context.Context, h *host, to raftlog.NodeID) error {
	group, partition := h.group, h.partition
	if !slices.Contains(group.Members().Voters, to) {
		return refuse(messages.Conflict, "node %s has no replica of partition %d that may lead", nameOfID(to), partition)
	}
	if m.differs(partition, to) {
		return refuse(messages.Conflict, "node %s cannot lead partition %d: its rows differ from those of the others; repair it first", nameOfID(to), partition)
	}
	for began := time.Now(); ; {
		if slices.Contains(group.CaughtUpVoters(), to) {
			return nil
		}
		if time.Since(began) > betterLeaderWait {
			break
		}
		select {
		case <-ctx.Done():
			return asUnavailable(context.Cause(ctx))
		case <-time.After(inquiryPause):
		}
	}
	s := group.Status()
	return refuse(messages.Conflict, "node %s cannot lead partition %d: %s", nameOfID(to), partition, lagProblem(s.Match[to], s.Last))
}

// lagProblem says why a voter is not among raftlog.Group.CaughtUpVoters.
func lagProblem(match, last uint64) string {
	if match > 0 && match+moveLag < last {
		return fmt.Sprintf("it has %d of %d entries", match, last)
	}
	return "it is not heard"
}

// nextLeader returns the node that shall lead a partition in place of this one: of those that can, the one that
// the partition prefers. "" = no other node can.
func (m *Member) nextLeader(h *host) (next raftlog.NodeID) {
	voters := slices.DeleteFunc(h.group.CaughtUpVoters(), func(id raftlog.NodeID) bool { return m.differs(h.partition, id) })
	var names []string
	for _, id := range voters {
		names = append(names, nameOfID(id))
	}
	if len(names) == 0 {
		return ""
	}
	order := slices.DeleteFunc(m.leaderOrder(h), func(name string) bool { return !slices.Contains(names, name) })
	for _, name := range order {
		id := voters[slices.Index(names, name)]
		// One that stops comes last.
		if m.announcer == nil || m.announcer.isSteady(id, 0) {
			return id
		}
		if next == "" {
			next = id
		}
	}
	return next
}

// nodeNames returns the names of all nodes of the list.
func (m *Member) nodeNames() (names []string) {
	for _, node := range m.config.Nodes {
		names = append(names, node.Name)
	}
	return names
}

// holdLead makes balance leave a partition on this node for some time. The time 0 ends that.
func (m *Member) holdLead(partition int, d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heldUntil[partition] = time.Now().Add(d)
}

// isLeadHeld reports whether an operator wants this node to lead a partition.
func (m *Member) isLeadHeld(partition int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Before(m.heldUntil[partition])
}

// holdHere answers a holdInquiry: this node shall lead a partition.
func (m *Member) holdHere(partition int) {
	m.holdLead(partition, holdTime)
	if m.announcer != nil {
		m.announcer.drain(0)
	}
}

// drainHere answers a drainInquiry, and returns the partitions that this node leads.
func (m *Member) drainHere() (leads []int) {
	if m.announcer != nil {
		m.announcer.drain(holdTime)
	}
	for p := range m.Partitions() {
		m.holdLead(p, 0)
		if m.leadsGroup(p) { // its engine may be starting
			leads = append(leads, p)
		}
	}
	return leads
}

// servesHere answers a serviceInquiry.
func (m *Member) servesHere(partition int) bool {
	_, epoch, ok := m.Engine(partition)
	return ok && m.HasLease(partition, epoch)
}
