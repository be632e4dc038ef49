package raftlog

import (
	"slices"
	"time"
)

// The read lease. A leader may answer reads from its own rows as long as no other node can be the
// leader. A member that accepts a request of a leader refuses to vote for anybody else until it has
// not heard of the leader for the heartbeat time-out (Raft.requestVote, Raft.runFollower). So if a
// majority has accepted requests that were sent at t or later, no other leader exists before t + the
// heartbeat time-out. The lease ends a good deal earlier, at t + ReadLease, for clocks that run at
// different rates.
//
// It counts from the sending of a request. VerifyLeader of the library does not: it takes any answer
// that arrives after its call. A leader that was frozen for 10 s finds answers of 10 s ago in its
// sockets, and would believe that it still leads.
//
// Two things could break the promise of a member. A restart makes it forget the leader: it is deaf
// after a restart for longer than a lease (groupStream). A transfer makes members vote for its target
// although they have a leader: the lease of a term ends for good when the leader sends TimeoutNow,
// which may arrive late. If the leader stays, the watch makes it begin another term.

// Lease reports whether reads may be answered from the rows that the engine of this epoch has, as of
// this call: ask after the answer was made. If the lease is over, it asks the other members and waits
// for them, at most for ReadLease. In a healthy group the library's heartbeats keep the lease alive,
// and Lease only compares times.
func (g *Group) Lease(epoch uint64) bool {
	inc := g.incarnation()
	if inc == nil {
		return false
	}
	if g.leaseHolds(inc, epoch) {
		return true
	}
	if leads, term := inc.leadership(); !leads || term != epoch {
		return false
	}
	limit := time.NewTimer(g.settings.ReadLease)
	defer limit.Stop()
	for {
		// VerifyLeader sends a heartbeat to all members now. It may block as long as the library's main
		// loop does, and so may its answer.
		answered := make(chan error, 1)
		go func() { answered <- inc.raft.VerifyLeader().Error() }()
		select {
		case err := <-answered:
			if g.leaseHolds(inc, epoch) {
				return true
			}
			if err != nil {
				return false
			}
			// It took an answer to an earlier request. The next one is on its way.
		case <-inc.cut:
			return false
		case <-limit.C:
			return g.leaseHolds(inc, epoch)
		}
	}
}

// leaseHolds compares the time of the newest confirmation of a majority with the lease.
func (g *Group) leaseHolds(inc *incarnation, epoch uint64) bool {
	leads, term := inc.leadership()
	if !leads || term != epoch {
		return false
	}
	if inc.followers.isVoid(epoch) {
		return false
	}
	members := inc.members()
	now := time.Now()
	var confirmed []time.Time
	for _, node := range members.Voters {
		if node == g.config.Node {
			confirmed = append(confirmed, now)
		}
	}
	inc.followers.forEach(epoch, members.Voters, func(node NodeID, n followerProgress) {
		if node != g.config.Node {
			confirmed = append(confirmed, n.confirmed)
		}
	})
	if len(confirmed) == 0 {
		return false
	}
	slices.SortFunc(confirmed, func(a, b time.Time) int { return b.Compare(a) })
	// A majority has confirmed at this time or later.
	since := confirmed[len(confirmed)/2]
	if now.Sub(since) >= g.settings.ReadLease {
		return false
	}
	// The process may have been frozen since it read the clock.
	leads, term = inc.leadership()
	return leads && term == epoch && time.Since(since) < g.settings.ReadLease
}
