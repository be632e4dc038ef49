package cluster

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/messages"
)

// A node has replicas of some partitions, those that node.json lists (identity.Replicas), and forwards the requests
// of the others. Its knowledge of a partition comes from these sources:
//
//	                  with a replica     without one
//	leader and term   the group's log    the leader's announcements (announcements.go), while it is heard
//	members           the group's log    the same; while none is heard, the table of the nodes
//	engine, lease     here if it leads   never here
//
// An inquiry about a partition without a replica here is answered errNotLeader, or names the partition.

// hasReplica reports whether a node has a replica of a partition: an identity without a list has all.
func (i *identity) hasReplica(partition int) bool {
	return i.Replicas == nil || slices.Contains(i.Replicas, partition)
}

// firstHosts returns the members that a partition begins with.
func (m *Member) firstHosts(partition int) (ids []raftlog.NodeID) {
	if m.config.placement == nil {
		return m.identity.ids()
	}
	for _, member := range m.identity.Members {
		if slices.Contains(m.config.placement(partition), member.Name) {
			ids = append(ids, member.ID)
		}
	}
	return ids
}

// firstReplicas returns the partitions of which the node of a name has a replica in a new cluster; nil = of all.
func (c *Config) firstReplicas(name string) []int {
	if c.placement == nil {
		return nil
	}
	replicas := []int{}
	for p := range c.Partitions {
		if slices.Contains(c.placement(p), name) {
			replicas = append(replicas, p)
		}
	}
	return replicas
}

// host returns the host of a partition; nil where this node lacks a replica of it, and before Open has opened it.
func (m *Member) host(partition int) *host {
	if partition >= len(m.hosts) {
		return nil
	}
	return m.hosts[partition]
}

// replica is host, with an error for an operator where this node lacks a replica.
func (m *Member) replica(partition int) (*host, error) {
	if h := m.host(partition); h != nil {
		return h, nil
	}
	return nil, refuse(messages.Conflict, "node %s has no replica of partition %d", m.config.Name, partition)
}

// ownHosts yields the hosts of this node's replicas, by partition.
func (m *Member) ownHosts() iter.Seq[*host] {
	return func(yield func(*host) bool) {
		for _, h := range m.hosts {
			if h != nil && !yield(h) {
				return
			}
		}
	}
}

// Partitions returns the number of partitions of the cluster.
func (m *Member) Partitions() int { return m.config.Partitions }

// Leader returns the leader of a partition as far as this node knows.
func (m *Member) Leader(partition int) (Leadership, bool) {
	var l Leadership
	var ok bool
	if h := m.host(partition); h != nil {
		l.Node, l.Term, ok = h.group.Leader()
	} else {
		l.Node, l.Term, ok = m.announcer.leaderOf(partition)
	}
	if !ok {
		return Leadership{}, false
	}
	place, _ := m.placeOf(l.Node)
	l.Address = place.Address
	return l, true
}

// leadsGroup reports whether this node leads the group of a partition. Its engine may be starting.
func (m *Member) leadsGroup(partition int) bool {
	h := m.host(partition)
	if h == nil {
		return false
	}
	node, _, ok := h.group.Leader()
	return ok && node == m.Self()
}

// groupMembers returns the members of a partition's group, as the replica here knows them, or else as the leader
// has announced them; nil while neither is known.
func (m *Member) groupMembers(partition int) []raftlog.NodeID {
	if h := m.host(partition); h != nil {
		members := h.group.Members()
		return slices.Concat(members.Voters, members.Learners)
	}
	return m.announcer.membersOf(partition)
}

// knownHosts is groupMembers, or what the table of the nodes says while the members are unknown.
func (m *Member) knownHosts(partition int) []raftlog.NodeID {
	members := m.groupMembers(partition)
	if t := m.table(); len(members) == 0 && t != nil && partition < len(t.Hosts) {
		members = t.Hosts[partition]
	}
	return members
}

// hostsByName returns the partitions that have replicas on the nodes of a name; nil if all nodes have all, or while the
// hosts of a partition are unknown.
func (m *Member) hostsByName() map[string][]int {
	hosts := map[string][]int{}
	for _, n := range m.Nodes() {
		hosts[n.Name] = []int{}
	}
	for p := range m.Partitions() {
		known := m.knownHosts(p)
		if len(known) == 0 {
			return nil
		}
		for _, id := range known {
			if name := nameOfID(id); !slices.Contains(hosts[name], p) { // two nodes may share it for a while
				hosts[name] = append(hosts[name], p)
			}
		}
	}
	for _, partitions := range hosts {
		if len(partitions) < m.Partitions() {
			return hosts
		}
	}
	return nil
}

// replicasOfFormer returns the replicas that a node gets which takes the place of the former one of its name: nil =
// of all partitions. known are introductions of members. isKnown is false while they do not say it.
func replicasOfFormer(name string, known []*introduction) (replicas []int, isKnown bool, err error) {
	isPartial := false
	for _, other := range known {
		isPartial = isPartial || other.Replicas != nil
		if other.Hosts == nil {
			continue
		}
		if replicas = other.Hosts[name]; len(replicas) == 0 {
			return nil, false, refusedBecause("node %s of the cluster had no replica, or was removed: it has no place that another node can take", name)
		}
		return replicas, true, nil
	}
	return nil, !isPartial, nil
}

// otherHosts names the nodes to ask about a partition without a replica here.
func (m *Member) otherHosts(partition int) string {
	var names []string
	for _, id := range m.knownHosts(partition) {
		names = append(names, nameOfID(id))
	}
	if len(names) == 0 {
		return "another node"
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), " or ")
}

// leadership returns the leadership of a partition whose engine is published here; nil without one.
func (m *Member) leadership(partition int) *leadership {
	if h := m.host(partition); h != nil {
		return h.published.Load()
	}
	return nil
}

// Engine returns the engine of a partition, if this node leads it.
func (m *Member) Engine(partition int) (Engine, uint64, bool) {
	l := m.leadership(partition)
	if l == nil {
		return nil, 0, false
	}
	return l.served, l.epoch, true
}

// HasLease reports whether an answer of the engine of an epoch may be sent.
func (m *Member) HasLease(partition int, epoch uint64) bool {
	h := m.host(partition)
	return h != nil && h.group.Lease(epoch)
}

// Status is the state of one replica, for operators and for tests.
type Status struct {
	raftlog.Status
	HasReplica bool   // this node has a replica; all else is zero without one
	Epoch      uint64 // of the engine that runs here; 0 without one
	Takeovers  int64  // engines that were started here
	Synced     uint64 // the entry up to which the rows are durable
}

// lag returns the number of entries that the slowest replica lacks. It is 0 unless this node leads.
func (s *Status) lag() (entries uint64) {
	for _, match := range s.Match {
		if match < s.Last {
			entries = max(entries, s.Last-match)
		}
	}
	return entries
}

// Status returns the state of this node's replica of a partition.
func (m *Member) Status(partition int) Status {
	h := m.host(partition)
	if h == nil {
		return Status{}
	}
	s := Status{Status: h.group.Status(), HasReplica: true, Takeovers: h.takeovers.Load()}
	if l := h.published.Load(); l != nil {
		s.Epoch = l.epoch
	}
	s.Synced = h.machine.currentRecord().Index
	return s
}

// Verify makes all replicas of a partition compute their digests as of one entry of the log, and returns the
// entry. This node must lead the partition. Verification returns the result of a replica.
func (m *Member) Verify(partition int) (index uint64, err error) {
	l := m.leadership(partition)
	if l == nil {
		return 0, fmt.Errorf("partition %d is not led here", partition)
	}
	return l.host.group.Verify(l.epoch)
}

// Verification returns the digest of this node's replica as of an entry, once it is computed. It is
// unknown, too, where this node lacks a replica.
func (m *Member) Verification(partition int, index uint64) (v Verification, ok bool) {
	h := m.host(partition)
	if h == nil {
		return v, false
	}
	return h.machine.verification(index)
}
