package raftlog

import (
	"errors"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// WithFiles returns the configuration with another file system.
func (c Config) WithFiles(files vfs.FS) Config {
	c.FS = files
	return c
}

// WithRefusal returns the configuration with a function that may refuse entries of a leader, as a
// follower does whose disk returns an error.
func (c Config) WithRefusal(refuse func() error) Config {
	c.refuse = func([]*raft.Log) error { return refuse() }
	return c
}

// ProposeUnchecked appends rows without a look at the term, as a proposal does whose leader loses and
// wins an election between the look and the append.
func (g *Group) ProposeUnchecked(epoch uint64, rows []byte) (uint64, error) {
	result, err := g.propose(g.incarnation(), rowsEntry, epoch, rows)
	return result.index, err
}

// ProposeUnknownKind appends an entry as a newer version might.
func (g *Group) ProposeUnknownKind(epoch uint64) error {
	_, err := g.propose(g.incarnation(), verifyEntry+1, epoch, nil)
	return err
}

// Snapshot makes a periodic snapshot now.
func (g *Group) Snapshot() error { return g.snapshot(g.incarnation()) }

// TransferTargets returns the voters that a Transfer to any of them tries, in this order.
func (g *Group) TransferTargets() (nodes []NodeID) {
	inc := g.incarnation()
	if inc == nil {
		return nil
	}
	_, term := inc.leadership()
	for _, t := range g.transferTargets(inc, term, inc.members().Voters) {
		nodes = append(nodes, t.node)
	}
	return nodes
}

// Nominate makes a replica stand for election at once, as a transfer of leadership does.
func (g *Group) Nominate() {
	if inc := g.incarnation(); inc != nil {
		self, server := raft.ServerID(g.config.Node), raft.ServerAddress(g.config.Node)
		_ = inc.transport.NetworkTransport.TimeoutNow(self, server, &raft.TimeoutNowRequest{
			RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(self), Addr: []byte(server)},
		}, &raft.TimeoutNowResponse{})
	}
}

// PretendStuck makes the notes on a follower look as if the library had sent it nothing for long.
func (g *Group) PretendStuck(node NodeID) {
	inc := g.incarnation()
	if inc == nil {
		return
	}
	_, term := inc.leadership()
	f := inc.followers
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.progressOf(node, term); n != nil {
		n.heard, n.tried, n.match, n.lastFailed = f.clock(), f.clock()-int64(g.settings.ReplicationStall), 0, false
	}
}

// PretendTransfer ends the lease as a transfer does whose last message is lost.
func (g *Group) PretendTransfer() { g.incarnation().followers.voidLease() }

// PretendRefused is a proposal that the library refuses because of a transfer.
func (g *Group) PretendRefused() {
	_ = g.translateOutcome(applyResult{}, raft.ErrLeadershipTransferInProgress)
}

// RefusesProposals reports whether the library has refused the newest proposal because of a transfer.
func (g *Group) RefusesProposals() bool {
	g.watch.mu.Lock()
	defer g.watch.mu.Unlock()
	return g.watch.refusedSince > 0
}

func discardLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }

// IsStuck reports whether the watch takes a follower for stuck that lacks entries, whose last append
// succeeded or failed such a time ago, and that has just answered a heartbeat.
func (s Settings) IsStuck(since time.Duration, succeeded bool) (isStuck bool) {
	var now int64 = 1
	f := newFollowerTable(func() int64 { return now })
	answer, err := &raft.AppendEntriesResponse{Term: 1, Success: true}, error(nil)
	if !succeeded {
		answer, err = nil, errors.New("connection refused")
	}
	f.noteAnswer("n2", time.Now(), &raft.AppendEntriesRequest{Term: 1, PrevLogEntry: 7, PrevLogTerm: 1}, answer, err)
	now += int64(since)
	f.noteAnswer("n2", time.Now(), &raft.AppendEntriesRequest{Term: 1}, &raft.AppendEntriesResponse{Term: 1, Success: true}, nil)
	f.forEach(1, []NodeID{"n2"}, func(_ NodeID, n followerProgress) { isStuck = n.isStuck(now, 100, &s) })
	return isStuck
}

// MaxLateDials is the most dials to one node that may be under way.
const MaxLateDials = maxLateDials

// ConnRequests returns how many requests wait for a connection to a node.
func (m *Mux) ConnRequests(node NodeID) int {
	m.dialer.mu.Lock()
	defer m.dialer.mu.Unlock()
	if n := m.dialer.nodes[node]; n != nil {
		return len(n.requests)
	}
	return 0
}
