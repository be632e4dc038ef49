package raftlog

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// incarnation is one run of the library. A group has several, one after the other, when the watch
// restarts it.
type incarnation struct {
	self         NodeID
	raft         *raft.Raft
	transport    *transport
	followers    *followerTable
	observations chan raft.Observation
	// cut is closed when the connections are. Whoever waits for the library must select on it: the main
	// loop of a library whose disk hangs never answers.
	cut     chan struct{}
	stopped chan struct{} // closed when all goroutines of the library have ended
	once    sync.Once
}

// startLibrary runs the library over the files of the group.
func (g *Group) startLibrary() (*incarnation, error) {
	opensAt := time.Now()
	if g.votes.isOld() {
		opensAt = opensAt.Add(g.settings.LeaderLease) // it may have confirmed a leader: see lease.go
	}
	stream, err := g.config.Mux.openStream(g.config.Group, g.config.Node, opensAt)
	if err != nil {
		return nil, err
	}
	inc := &incarnation{self: g.config.Node, followers: newFollowerTable(g.watch.clock),
		observations: make(chan raft.Observation, 8), cut: make(chan struct{}), stopped: make(chan struct{})}
	network := raft.NewNetworkTransport(stream, poolSize, g.settings.Request, libraryLog{g.logger})
	inc.transport = &transport{NetworkTransport: network, stream: stream, followers: inc.followers}
	if err := g.newRaft(inc); err != nil {
		network.Close()
		return nil, err
	}
	g.votes.started.Store(true)
	inc.raft.RegisterObserver(raft.NewObserver(inc.observations, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	}))
	return inc, nil
}

// newRaft starts the library. NewRaft panics where it cannot read the log or write the term.
func (g *Group) newRaft(inc *incarnation) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("library: %v", cause)
		}
	}()
	g.votes.started.Store(false) // an error of the first write returns to this goroutine
	config := g.settings.library(g.config.Node)
	config.Logger = newLibraryLogger(g.logger)
	inc.raft, err = raft.NewRaft(config, g.applier, g.logs, g.votes, g.snapshots, inc.transport)
	return err
}

// cutAndStop cuts the connections, so that other members miss this one at once, and stops the library. The
// channel is closed when it has stopped.
func (i *incarnation) cutAndStop() <-chan struct{} {
	i.once.Do(func() {
		close(i.cut)
		i.transport.Close()
		i.transport.CloseStreams()
		stopping := i.raft.Shutdown()
		go func() {
			stopping.Error()
			close(i.stopped)
		}()
	})
	return i.stopped
}

// isCut reports whether the incarnation is being stopped.
func (i *incarnation) isCut() bool {
	select {
	case <-i.cut:
		return true
	default:
		return false
	}
}

// leadership reports whether this node leads, and the term. The library has the two in separate fields: the
// term is the same before and after only if the state between them belongs to it, because terms only
// grow and a node leads at most once in a term.
func (i *incarnation) leadership() (bool, uint64) {
	for {
		term := i.raft.CurrentTerm()
		state := i.raft.State()
		if i.raft.CurrentTerm() == term {
			return state == raft.Leader, term
		}
	}
}

// Membership is the members of a group. Learners get the log and have no vote.
type Membership struct{ Voters, Learners []NodeID }

func (m Membership) others(self NodeID) []NodeID {
	all := slices.Concat(m.Voters, m.Learners)
	return slices.DeleteFunc(all, func(node NodeID) bool { return node == self })
}

// members returns the newest configuration in the log, which need not be committed.
func (i *incarnation) members() (m Membership) {
	for _, server := range i.raft.GetConfiguration().Configuration().Servers {
		if server.Suffrage == raft.Voter {
			m.Voters = append(m.Voters, NodeID(server.ID))
		} else {
			m.Learners = append(m.Learners, NodeID(server.ID))
		}
	}
	return m
}

// awaitAnswer waits for an answer of the library's main loop.
func (i *incarnation) awaitAnswer(future raft.Future) error {
	answered := make(chan error, 1)
	go func() { answered <- future.Error() }()
	return i.awaitError(context.Background(), answered)
}

// applyLog appends an entry, and returns what the applier says of it. A library that ends may leave entries
// unanswered that it has passed on to the applier: the goroutine then stays (raftlogtest.LibraryLeaks).
func (i *incarnation) applyLog(log raft.Log) (result any, err error) {
	future := i.raft.ApplyLog(log, 0)
	if err := future.Error(); err != nil {
		return nil, err
	}
	return future.Response(), nil
}

// awaitTransfer is awaitAnswer for a transfer. A main loop that ends may leave one transfer unanswered, because
// such a future does not end with the library: the goroutine then stays (raftlogtest.LibraryLeaks).
func (i *incarnation) awaitTransfer(ctx context.Context, future raft.Future) error {
	answered := make(chan error, 1)
	go func() { answered <- future.Error() }()
	return i.awaitError(ctx, answered)
}

func (i *incarnation) awaitError(ctx context.Context, answered <-chan error) error {
	select {
	case err := <-answered:
		return err
	case <-i.cut:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
