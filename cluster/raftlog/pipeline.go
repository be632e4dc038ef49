package raftlog

import (
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// transport is the library's NetworkTransport. It notes what each follower has confirmed, for the watch
// and the read lease, and gives out pipelines whose answers are always taken.
//
// It embeds the NetworkTransport rather than raft.Transport: the library looks for the methods of
// raft.WithPreVote by a type assertion, and goes without pre-votes if they are missing.
type transport struct {
	*raft.NetworkTransport
	stream    *groupStream
	followers *followerTable
}

var (
	_ raft.Transport   = (*transport)(nil)
	_ raft.WithPreVote = (*transport)(nil)
	_ raft.WithClose   = (*transport)(nil)
)

// AppendEntries sends entries or a heartbeat, and waits for the answer.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	sent := time.Now()
	err := t.NetworkTransport.AppendEntries(id, target, args, resp)
	t.followers.noteAnswer(NodeID(id), sent, args, resp, err)
	return err
}

// AppendEntriesPipeline opens a pipeline.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	return drainPipeline(inner, func(answer raft.AppendFuture, sent time.Time) {
		t.followers.noteAnswer(NodeID(id), sent, answer.Request(), answer.Response(), answer.Error())
	}), nil
}

// InstallSnapshot sends a snapshot. The entries after it stay in the log until the follower has them.
func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	t.followers.snapshotBegins(NodeID(id), args.Term, args.LastLogIndex)
	err := t.NetworkTransport.InstallSnapshot(id, target, args, resp, data)
	t.followers.snapshotEnds(NodeID(id), args, err == nil && resp.Success)
	return err
}

// TimeoutNow tells a follower to become the leader, with votes that disregard the present leader.
// From here on the read lease of this term is void: see lease.go.
func (t *transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	t.followers.voidLease()
	return t.NetworkTransport.TimeoutNow(id, target, args, resp)
}

// RequestPreVote asks whether a follower would vote. When answers are missing the candidate asks again,
// and what it has asked before does not go on waiting for a connection.
func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	t.stream.dropVotes(NodeID(target))
	return t.NetworkTransport.RequestPreVote(id, target, args, resp)
}

// RequestVote asks for a vote, as RequestPreVote does.
func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	t.stream.dropVotes(NodeID(target))
	return t.NetworkTransport.RequestVote(id, target, args, resp)
}

// drainedPipeline takes every answer of a pipeline as it comes, whether the library reads it or not.
//
// The library reads answers on one goroutine and sends requests on another. After a refusal the reader
// stops, and the sender is to notice. But the sender may be inside AppendEntries, which waits until the
// answer before the last one has been taken: then both wait for each other, heartbeats go on, and the
// follower gets no entry any more (hashicorp/raft issues 611 and 612). Here the queue takes the answer,
// so that AppendEntries returns and the sender notices.
//
// The queue is short: at most the requests that the sender makes before it looks, one or two.
type drainedPipeline struct {
	raft.AppendPipeline
	answers chan raft.AppendFuture
	closed  chan struct{}
	once    sync.Once

	mu   sync.Mutex
	sent []time.Time // of the requests without an answer, in order
}

func drainPipeline(inner raft.AppendPipeline, note func(raft.AppendFuture, time.Time)) *drainedPipeline {
	p := &drainedPipeline{AppendPipeline: inner, answers: make(chan raft.AppendFuture), closed: make(chan struct{})}
	go p.drain(note)
	return p
}

// drain moves answers from the inner pipeline to the library, until Close. The inner pipeline answers
// in the order of the requests.
func (p *drainedPipeline) drain(note func(raft.AppendFuture, time.Time)) {
	var queue []raft.AppendFuture
	for {
		var first raft.AppendFuture
		var out chan raft.AppendFuture // nil, and so never ready, while the queue is empty
		if len(queue) > 0 {
			first, out = queue[0], p.answers
		}
		select {
		case answer := <-p.AppendPipeline.Consumer():
			note(answer, p.oldest())
			queue = append(queue, answer)
		case out <- first:
			queue = queue[1:]
		case <-p.closed:
			return
		}
	}
}

// AppendEntries sends a request. The library calls it from one goroutine.
func (p *drainedPipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	p.mu.Lock()
	p.sent = append(p.sent, time.Now()) // before the request, which may be answered before it returns
	p.mu.Unlock()
	return p.AppendPipeline.AppendEntries(args, resp)
}

func (p *drainedPipeline) oldest() (sent time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sent, p.sent = p.sent[0], p.sent[1:]
	return sent
}

// Consumer returns the channel from which the library reads the answers.
func (p *drainedPipeline) Consumer() <-chan raft.AppendFuture { return p.answers }

// Close closes the connection.
func (p *drainedPipeline) Close() error {
	p.once.Do(func() { close(p.closed) })
	return p.AppendPipeline.Close()
}
