package raftlog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// Propose appends rows to the log and returns when a majority has them on disk and this node's machine
// has applied them. The index is that of the entry.
//
// The errors are ErrTooBig and *LostError. The slice may be used again when Propose returns. Proposals
// from several goroutines are appended in any order.
func (g *Group) Propose(epoch uint64, rows []byte) (index uint64, err error) {
	if len(rows) > MaxRows {
		return 0, ErrTooBig
	}
	inc := g.incarnation()
	if inc == nil {
		return 0, g.closedError()
	}
	if leads, term := inc.leadership(); !leads || term != epoch {
		return 0, &LostError{Cause: ErrNotLeader}
	}
	result, err := g.propose(inc, rowsEntry, epoch, rows)
	return result.index, err
}

// Verify makes the machine of every member compute its digest at the same index, which it returns.
func (g *Group) Verify(epoch uint64) (index uint64, err error) {
	inc := g.incarnation()
	if inc == nil {
		return 0, g.closedError()
	}
	if leads, term := inc.leadership(); !leads || term != epoch {
		return 0, &LostError{Cause: ErrNotLeader}
	}
	result, err := g.propose(inc, verifyEntry, epoch, nil)
	return result.index, err
}

// Takeover begins an epoch. The epoch is the term of an entry of its own, which this node has applied,
// and with it all that earlier leaders have committed: the machine's rows are complete. No entry of an
// earlier epoch changes a row after it.
//
// The leader's host calls it once for each term that it leads, before it starts an engine.
func (g *Group) Takeover() (epoch, index uint64, err error) {
	inc := g.incarnation()
	if inc == nil {
		return 0, 0, g.closedError()
	}
	leads, term := inc.leadership()
	if !leads {
		return 0, 0, &LostError{Cause: ErrNotLeader}
	}
	// The entry may end up in a later term, if this node loses and wins an election before it is
	// appended. Then that term is the epoch.
	result, err := g.propose(inc, takeoverEntry, term, nil)
	return result.term, result.index, err
}

func (g *Group) closedError() error {
	if err := g.Err(); err != nil {
		return &LostError{Cause: fmt.Errorf("%w: %w", ErrClosed, err)}
	}
	return &LostError{Cause: ErrClosed} // or between two incarnations
}

// propose appends an entry and waits until it is applied here, or lost.
func (g *Group) propose(inc *incarnation, kind entryKind, epoch uint64, body []byte) (applyResult, error) {
	flight := g.watch.beginFlight()
	isApplied := false
	defer func() { g.watch.endFlight(flight, isApplied) }()
	type outcome struct {
		result any
		err    error
	}
	done := make(chan outcome, 1)
	log := raft.Log{Data: encodeEntry(kind, epoch, body)}
	go func() { // it waits as long as the disk
		result, err := inc.applyLog(log)
		done <- outcome{result, err}
	}()
	select {
	case o := <-done:
		result, _ := o.result.(applyResult)
		err := g.translateOutcome(result, o.err)
		isApplied = err == nil
		return result, err
	case <-inc.cut:
		return applyResult{}, &LostError{Unknown: true, Cause: ErrClosed}
	}
}

// translateOutcome translates the library's answer.
func (g *Group) translateOutcome(result applyResult, err error) error {
	isRefusedByTransfer := errors.Is(err, raft.ErrLeadershipTransferInProgress)
	g.watch.transferRefused(isRefusedByTransfer)
	switch {
	case isRefusedByTransfer:
		return &LostError{Cause: err}
	case errors.Is(err, raft.ErrNotLeader):
		return &LostError{Cause: ErrNotLeader}
	case err != nil:
		// ErrLeadershipLost: a majority may have it. ErrRaftShutdown: the library does not say whether
		// it has appended the entry. An error of the log: a part of it may be on the disk.
		return &LostError{Unknown: true, Cause: err}
	case result.err != nil:
		return &LostError{Unknown: true, Cause: result.err}
	case result.fenced:
		return &LostError{Cause: ErrFenced}
	}
	return nil
}

// Leader returns the leader as far as this node knows, and the term. It may be out of date for another
// node. For this node it is not: an engine of this term may start, after a Takeover.
func (g *Group) Leader() (node NodeID, term uint64, ok bool) {
	inc := g.incarnation()
	if inc == nil {
		return "", 0, false
	}
	leads, term := inc.leadership()
	if leads {
		return g.config.Node, term, true
	}
	_, id := inc.raft.LeaderWithID()
	return NodeID(id), term, id != "" && NodeID(id) != g.config.Node
}

// Transfer makes another voter the leader: the given one, or if to is empty the one with the most of
// the log among those that are heard. If that one does not begin to lead, Transfer tries the others. It
// takes an election time-out for each of them, and after the first one up to two requests.
//
// The caller ends its engine first: proposals are refused while the transfer is under way, and there is
// no read lease after it in this term, even if it fails. When ctx ends, Transfer returns and tries no other
// voter; the library ends the attempt at hand within an election time-out.
func (g *Group) Transfer(ctx context.Context, to NodeID) error {
	inc := g.incarnation()
	if inc == nil {
		return g.closedError()
	}
	leads, term := inc.leadership()
	if !leads {
		return ErrNotLeader
	}
	voters := inc.members().Voters
	targets := []NodeID{to}
	switch {
	case to == "":
		targets = nil
		for _, t := range g.transferTargets(inc, term, voters) {
			targets = append(targets, t.node)
		}
	case !slices.Contains(voters, to):
		return fmt.Errorf("transfer of leadership to %s: it is not a voter", to)
	}
	if len(targets) == 0 {
		return errors.New("transfer of leadership: no other voter is heard")
	}
	var errs []error
	for i, target := range targets {
		err := g.transferTo(ctx, inc, target, i > 0)
		if leads, now := inc.leadership(); err == nil || i > 0 && (!leads || now != term) {
			return nil
		}
		errs = append(errs, fmt.Errorf("transfer of leadership to %s: %w", target, err))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// CaughtUpVoters returns the other voters that are heard and lack few entries: a transfer to them can succeed
// at once. The one with the most of the log comes first. On a node that does not lead there are none.
func (g *Group) CaughtUpVoters() (nodes []NodeID) {
	inc := g.incarnation()
	if inc == nil {
		return nil
	}
	leads, term := inc.leadership()
	if !leads {
		return nil
	}
	last := inc.raft.LastIndex()
	for _, t := range g.transferTargets(inc, term, inc.members().Voters) {
		if t.isHeard && t.match+promotionLag >= last {
			nodes = append(nodes, t.node)
		}
	}
	return nodes
}

// transferTarget is a voter that may take the leadership.
type transferTarget struct {
	node    NodeID
	isHeard bool
	match   uint64
}

// transferTargets returns the other voters whose place in the log is known: those that are heard before others,
// and then by what they have of the log.
func (g *Group) transferTargets(inc *incarnation, term uint64, voters []NodeID) (all []transferTarget) {
	now := g.watch.clock()
	inc.followers.forEach(term, voters, func(node NodeID, n followerProgress) {
		if node != g.config.Node && n.match > 0 {
			all = append(all, transferTarget{node, n.isHeard(now, &g.settings), n.match})
		}
	})
	slices.SortStableFunc(all, func(a, b transferTarget) int {
		if a.isHeard != b.isHeard {
			if a.isHeard {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.match, a.match)
	})
	return all
}

// transferTo asks the library for one transfer. The library takes the next one a while after it has
// answered the one before: as long as a request to a node that does not answer. isNext waits for that.
func (g *Group) transferTo(ctx context.Context, inc *incarnation, to NodeID, isNext bool) error {
	for begin := time.Now(); ; {
		if inc.isCut() {
			return ErrClosed
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := inc.awaitTransfer(ctx, inc.raft.LeadershipTransferToServer(raft.ServerID(to), raft.ServerAddress(to)))
		if !isNext || !errors.Is(err, raft.ErrLeadershipTransferInProgress) || time.Since(begin) >= 2*g.settings.Request {
			return err
		}
		select {
		case <-time.After(g.settings.Tick):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// promotionLag is how many entries a learner may lack when it becomes a voter, and a voter when it is counted
// among CaughtUpVoters. One that lacks more would delay commits.
const promotionLag = 1024

// Members returns the members of the group as this node knows them.
func (g *Group) Members() Membership {
	if inc := g.incarnation(); inc != nil {
		return inc.members()
	}
	return Membership{}
}

// Change makes one change of members, and returns when it is committed: want differs from Members in
// one member that is added, removed, promoted or demoted. A learner that lacks many entries is not
// promoted. This node must lead.
func (g *Group) Change(want Membership) error {
	inc := g.incarnation()
	if inc == nil {
		return g.closedError()
	}
	leads, term := inc.leadership()
	if !leads {
		return ErrNotLeader
	}
	is := inc.members()
	node, err := differentMember(is, want)
	if err != nil {
		return err
	}
	if node == "" { // Members has what another call has begun and what may still be lost
		return inc.awaitAnswer(inc.raft.Barrier(0))
	}
	id, address := raft.ServerID(node), raft.ServerAddress(node)
	var future raft.Future
	switch {
	case slices.Contains(want.Voters, node):
		var match uint64
		inc.followers.forEach(term, []NodeID{node}, func(_ NodeID, n followerProgress) { match = n.match })
		if last := inc.raft.LastIndex(); node != g.config.Node && match+promotionLag < last {
			return fmt.Errorf("node %s has %d of %d entries: too few for a voter", node, match, last)
		}
		future = inc.raft.AddVoter(id, address, 0, 0)
	case slices.Contains(is.Voters, node) && slices.Contains(want.Learners, node):
		future = inc.raft.DemoteVoter(id, 0, 0)
	case slices.Contains(want.Learners, node):
		future = inc.raft.AddNonvoter(id, address, 0, 0)
	default:
		future = inc.raft.RemoveServer(id, 0, 0)
	}
	return inc.awaitAnswer(future)
}

// differentMember returns the one member in which two memberships differ, "" if they are equal.
func differentMember(is, want Membership) (NodeID, error) {
	role := func(m Membership, node NodeID) int {
		switch {
		case slices.Contains(m.Voters, node):
			return 2
		case slices.Contains(m.Learners, node):
			return 1
		}
		return 0
	}
	var differ []NodeID
	for _, node := range slices.Concat(is.Voters, is.Learners, want.Voters, want.Learners) {
		if role(is, node) != role(want, node) && !slices.Contains(differ, node) {
			differ = append(differ, node)
		}
	}
	switch {
	case len(want.Voters) == 0:
		return "", errors.New("change of members: a group needs a voter")
	case len(differ) > 1:
		return "", fmt.Errorf("change of members: %v differ, one may", differ)
	case len(differ) == 0:
		return "", nil
	}
	return differ[0], nil
}

// Status is the state of a replica, for operators and for tests.
type Status struct {
	Leads           bool
	Term            uint64
	Last            uint64 // the last entry of the log
	First           uint64 // the first one, 0 if the log is empty
	Committed       uint64 // as far as this replica knows
	Applied         uint64 // the last entry of this package or of a change of members that was applied here
	Snapshot        uint64 // the entry of the last snapshot
	Fenced          int64  // entries whose rows were not written, since Open
	Restarts        int64  // of the library, by the watch
	Stalls          Stalls
	SnapshotsSent   int64
	SnapshotsGotten int64
	// Match is, for the leader, the last entry that each other member has confirmed in this term.
	Match map[NodeID]uint64
	// Silent is, for the leader, for how long it has heard no answer of each other member, by a clock that stands
	// still while the process does not run. It begins with the term.
	Silent map[NodeID]time.Duration
}

// Status returns the state of the replica. After the end of the group it has the counters only.
func (g *Group) Status() Status {
	g.mu.Lock()
	s := Status{Restarts: g.restarts}
	inc := g.current
	g.mu.Unlock()
	at, _, _ := g.applier.currentPosition()
	own, _ := g.snapshots.ownRecord()
	s.Applied, s.Snapshot, s.Fenced, s.Stalls = at.index, own.Index, g.applier.fenced.Load(), g.watch.stalls()
	s.SnapshotsSent, s.SnapshotsGotten = g.snapshots.sent.Load(), g.snapshots.gotten.Load()
	if inc == nil {
		return s
	}
	s.Leads, s.Term = inc.leadership()
	s.Last, s.Committed = inc.raft.LastIndex(), inc.raft.CommitIndex()
	s.First, _ = g.logs.FirstIndex()
	if s.Leads {
		s.Match, s.Silent = map[NodeID]uint64{}, map[NodeID]time.Duration{}
		now := g.watch.clock()
		inc.followers.forEach(s.Term, inc.members().others(g.config.Node), func(node NodeID, n followerProgress) {
			s.Match[node] = n.match
			if n.heard > 0 {
				s.Silent[node] = time.Duration(now - n.heard)
			}
		})
	}
	return s
}

// snapshot makes a periodic snapshot now.
func (g *Group) snapshot(inc *incarnation) error {
	// The library counts the entries that stay, and they differ in size by five orders of magnitude.
	config := inc.raft.ReloadableConfig()
	config.TrailingLogs = g.trailingEntries(inc.raft.LastIndex())
	if err := inc.raft.ReloadConfig(config); err != nil {
		return err
	}
	return inc.awaitAnswer(inc.raft.Snapshot())
}

// trailingEntries returns how many entries stay in the log after a snapshot: at least one, because a log
// that is emptied by a trim would lose those that a follower needs (logStore.DeleteRange).
func (g *Group) trailingEntries(last uint64) uint64 {
	from := g.logs.trailingFrom(g.settings.TrailingBytes)
	inBytes := max(last+1, from+1) - from
	return min(g.settings.TrailingEntries, inBytes)
}
