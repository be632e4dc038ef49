package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/cluster/raftlog"
)

// In a cluster of several partitions each partition prefers some nodes to others as its leader. The order
// follows from the sorted names of the nodes that have replicas, so all nodes agree on it:
//
//	partition   0   1   2   3   4   5
//	first       n1  n2  n3  n1  n2  n3
//	second      n2  n3  n1  n3  n1  n2    each node gets the same share of a lost one's partitions
//	third       n3  n1  n2  n2  n3  n1
//
// A partition passes over the nodes without a replica of it. The table of the nodes says which nodes have any;
// while it changes, two nodes may disagree for a moment, and a partition may move once more than it has to.
//
// The leader of a partition gives it to the first node of the order that is steady: it has announced itself
// without a break for steadyTime, and has nearly all of the log. Each move goes up the order, so the nodes
// need not agree on who is steady, and no partition moves in a circle.
//
// A move ends the engine of the partition. Tasks that run go on, but those that have a slot and have not
// started may be lost, and get new attempts. So only a partition at rest moves, one without a running task. A partition that is paused stays as well,
// because a pause ends with the engine. Under steady load leaders stay where they are. A partition that an
// operator has moved stays, too (transfer.go).

const (
	// steadyTime is how long a node has announced itself before it gets a partition, and how long a
	// partition was led by a node before it moves on.
	steadyTime = 10 * time.Second
	// looksPerSteadyTime is how often a node looks at what it leads.
	looksPerSteadyTime = 8
	// moveLimit bounds a move.
	moveLimit = 15 * time.Second
	// moveMemory is how long a move counts, in steadyTimes: an hour. Each one that counts doubles the time
	// until the partition may move again: the node that it prefers may be unfit to lead it.
	moveMemory = 360
	// moveLag is how many entries the next leader may lack.
	moveLag = 512
)

// preferredLeaders returns the names of the nodes in a partition's order of preference.
func preferredLeaders(partition int, names []string) []string {
	all := slices.Sorted(slices.Values(names))
	first := partition % len(all)
	others := slices.Concat(all[first+1:], all[:first])
	if len(others) > 0 {
		turn := partition / len(all) % len(others)
		others = slices.Concat(others[turn:], others[:turn])
	}
	return append([]string{all[first]}, others...)
}

// leaderOrder returns the names of a group's members, in the partition's order of preference.
func (m *Member) leaderOrder(h *host) []string {
	var members []string
	for _, id := range m.groupMembers(h.partition) {
		members = append(members, nameOfID(id))
	}
	// A node without any replica must not change the order of the others.
	names := slices.Clone(members)
	if t := m.table(); t != nil {
		for _, n := range t.Nodes {
			if t.isHost(n.ID) {
				names = append(names, nameOfID(n.ID))
			}
		}
	} else {
		names = append(names, m.nodeNames()...)
	}
	slices.Sort(names)
	order := preferredLeaders(h.partition, slices.Compact(names))
	return slices.DeleteFunc(order, func(name string) bool { return !slices.Contains(members, name) })
}

// isAtRest reports whether a partition may move without harm to a task or a pause.
func isAtRest(load actors.Load, pauseReason string) bool {
	return load.Running == 0 && !load.IsRecovering && pauseReason == ""
}

// balancer moves partitions that this node leads to the nodes that they prefer. One goroutine uses it.
type balancer struct {
	member *Member
	steady time.Duration // steadyTime, or that of a test
	ctx    context.Context
	stop   context.CancelFunc
	wait   sync.WaitGroup

	lead  map[int]steadyLead
	moves map[int][]time.Time // by partition: the attempts of the last moveMemory
}

// steadyLead is a leadership of this node, and when the balancer has first seen it.
type steadyLead struct {
	epoch uint64
	since time.Time
}

func newBalancer(m *Member, steady time.Duration) *balancer {
	b := &balancer{member: m, steady: steady, lead: map[int]steadyLead{}, moves: map[int][]time.Time{}}
	b.ctx, b.stop = context.WithCancel(context.Background())
	return b
}

// start begins to look at what this node leads.
func (b *balancer) start() {
	b.wait.Go(func() {
		ticker := time.NewTicker(max(b.steady/looksPerSteadyTime, time.Millisecond))
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				b.moveOne()
			case <-b.ctx.Done():
				return
			}
		}
	})
}

// close ends the goroutine, and a move that is under way.
func (b *balancer) close() {
	b.stop()
	b.wait.Wait()
}

// moveOne moves one partition, if there is one to move. It reports whether it has tried.
func (b *balancer) moveOne() bool {
	for h := range b.member.ownHosts() {
		p := h.partition
		to := b.destination(h)
		if to == "" {
			continue
		}
		b.moves[p] = append(b.moves[p], time.Now())
		ctx, cancel := context.WithTimeout(b.ctx, moveLimit)
		err := h.moveLead(ctx, to)
		cancel()
		switch {
		case errors.Is(err, errNotLeader): // an election has moved it, or an operator
		case err != nil:
			h.logger.Warn("the partition was not moved to the node that it prefers", "to", to, "err", err)
		default:
			h.logger.Info("the partition was moved to the node that it prefers", "to", to)
		}
		return true
	}
	return false
}

// destination returns the node that shall lead a partition instead of this one; "" = it stays.
func (b *balancer) destination(h *host) raftlog.NodeID {
	m, now, partition := b.member, time.Now(), h.partition
	l := h.published.Load()
	if l == nil || m.announcer.isStopping.Load() || m.isLeadHeld(partition) {
		delete(b.lead, partition)
		return ""
	}
	if lead := b.lead[partition]; lead.epoch != l.epoch {
		b.lead[partition] = steadyLead{l.epoch, now}
	}
	b.moves[partition] = slices.DeleteFunc(b.moves[partition], func(at time.Time) bool { return now.Sub(at) > moveMemory*b.steady })
	if pause := b.steady << min(len(b.moves[partition]), 10); now.Sub(b.lead[partition].since) < pause {
		return ""
	}
	for _, name := range m.leaderOrder(h) {
		if name == m.config.Name {
			return ""
		}
		to := m.idOf(name)
		if to == "" || !m.announcer.isSteady(to, b.steady) {
			continue
		}
		// The best node gets the partition, now or later: it would move twice otherwise.
		status := h.group.Status()
		hasLog := slices.Contains(h.group.Members().Voters, to) && status.Match[to]+moveLag >= status.Last
		if !hasLog || !isAtRest(l.engine.Load(), l.engine.Paused(b.ctx)) {
			return ""
		}
		return to
	}
	return ""
}

// moveLead ends the engine in good order and gives the leadership to another node. If that fails, this node
// leads on, with another engine. The error is errNotLeader if it has lost the partition before.
func (h *host) moveLead(ctx context.Context, to raftlog.NodeID) error {
	l := h.blockEngines()
	defer h.unblockEngines()
	if l == nil {
		return errNotLeader // it was lost a moment ago
	}
	l.retire()
	select {
	case <-l.ended:
	case <-h.ended:
		return errNotLeader
	case <-ctx.Done():
		return fmt.Errorf("the engine did not end: %w", context.Cause(ctx))
	}
	if node, _, ok := h.group.Leader(); !ok || node != h.self {
		return errNotLeader
	}
	return h.group.Transfer(ctx, to)
}
