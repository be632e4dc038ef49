package raftlog

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// followerTable notes what the members have confirmed to this node while it leads. The library keeps the
// same in private fields. The transport writes it, on the library's goroutines; the watch, the lease
// and Transfer read it.
type followerTable struct {
	clock func() int64

	mu sync.Mutex
	// term is the term of the newest request. Notes of older terms are dropped.
	term uint64
	// void is the highest term whose read lease has ended for good.
	void uint64
	all  map[NodeID]*followerProgress
}

// followerProgress is what one member has confirmed in the present term.
type followerProgress struct {
	// match is the highest index up to which its log is known to agree, 0 if unknown.
	match uint64
	// confirmed is the time when the newest request was sent that it has accepted.
	confirmed time.Time
	// heard is the time, by the watch's clock, of its last answer of any kind; tried is that of the last append
	// request or snapshot, answered or failed. Heartbeats do not count.
	heard, tried int64
	// sending is set while a snapshot is on its way. lastFailed says that the last append request or
	// snapshot was refused or did not arrive: the library then pauses.
	sending, lastFailed bool
}

// longestRetryPause is how long the library waits at most after failed requests until it sends the next one:
// 10 ms times 2 to the power of 10 (its maxFailureScale). Answered heartbeats do not end the pause.
const longestRetryPause = 10240 * time.Millisecond

// stuckAfter returns after how long without a request a follower that is heard and lacks entries is stuck. One
// that was away for some time, or refuses snapshots for lack of space, is not: the library pauses.
func (n *followerProgress) stuckAfter(s *Settings) time.Duration {
	if n.lastFailed {
		return s.ReplicationStall + longestRetryPause
	}
	return s.ReplicationStall
}

// isHeard reports whether a member has answered lately.
func (n *followerProgress) isHeard(now int64, s *Settings) bool {
	return n.heard > 0 && now-n.heard < int64(2*s.Heartbeat)
}

// isStuck reports whether a follower is heard, lacks entries up to last, and has got no request for stuckAfter.
func (n *followerProgress) isStuck(now int64, last uint64, s *Settings) bool {
	return n.isHeard(now, s) && !n.sending && n.match < last && now-n.tried >= int64(n.stuckAfter(s))
}

func newFollowerTable(clock func() int64) *followerTable {
	return &followerTable{clock: clock, all: map[NodeID]*followerProgress{}}
}

// progressOf returns the notes on a member for a term, nil if the term is over. It needs the lock.
func (f *followerTable) progressOf(node NodeID, term uint64) *followerProgress {
	if term < f.term {
		return nil
	}
	if term > f.term {
		f.term, f.all = term, map[NodeID]*followerProgress{}
	}
	if f.all[node] == nil {
		now := f.clock()
		f.all[node] = &followerProgress{heard: now, tried: now}
	}
	return f.all[node]
}

// isHeartbeat reports whether the other side answers a request on its connection's own goroutine,
// before its log has a part in it. The library has the same rule in NetworkTransport.handleCommand.
func isHeartbeat(r *raft.AppendEntriesRequest) bool {
	return len(r.Entries) == 0 && r.PrevLogEntry == 0 && r.PrevLogTerm == 0 && r.LeaderCommitIndex == 0
}

// noteAnswer notes an answer, or the failure, of an append request or heartbeat.
func (f *followerTable) noteAnswer(node NodeID, sent time.Time, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse, err error) {
	now := f.clock()
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.progressOf(node, args.Term)
	if n == nil {
		return
	}
	if !isHeartbeat(args) {
		n.tried, n.lastFailed = now, err != nil || !resp.Success
	}
	if err != nil {
		return
	}
	n.heard = now
	if !resp.Success || resp.Term > args.Term {
		return
	}
	if sent.After(n.confirmed) {
		n.confirmed = sent
	}
	match := args.PrevLogEntry
	if last := len(args.Entries); last > 0 {
		match = args.Entries[last-1].Index
	}
	n.match = max(n.match, match)
}

func (f *followerTable) snapshotBegins(node NodeID, term, index uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.progressOf(node, term); n != nil {
		n.sending = true
		n.match = max(n.match, index) // the log keeps what comes after it; the answer will confirm it
	}
}

func (f *followerTable) snapshotEnds(node NodeID, args *raft.InstallSnapshotRequest, ok bool) {
	now := f.clock()
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.progressOf(node, args.Term)
	if n == nil {
		return
	}
	n.sending, n.tried, n.lastFailed = false, now, !ok
	if ok {
		n.heard = now
	} else {
		n.match = 0
	}
}

// voidLease ends the read lease of the present term for good.
func (f *followerTable) voidLease() {
	f.mu.Lock()
	f.void = max(f.void, f.term)
	f.mu.Unlock()
}

// isVoid reports whether the read lease of a term has ended for good.
func (f *followerTable) isVoid(term uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.void >= term
}

// forEach calls a function with the notes of a term on each member. Members that were never asked in that
// term have the zero value. The function must not block.
func (f *followerTable) forEach(term uint64, nodes []NodeID, each func(NodeID, followerProgress)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, node := range nodes {
		var n followerProgress
		if f.term == term && f.all[node] != nil {
			n = *f.all[node]
		}
		each(node, n)
	}
}
