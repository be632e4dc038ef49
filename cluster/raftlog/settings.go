package raftlog

import (
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// Settings are the times and sizes of a group. All replicas of a group should have the same.
type Settings struct {
	// Heartbeat is the time without a leader after which a follower becomes a candidate (once to
	// twice as long, at random). The leader sends a heartbeat every tenth to fifth of it. With 0.5 s an
	// overloaded machine of two cores loses leaders.
	Heartbeat time.Duration
	// Election is the time without a result after which a candidate tries again. At least Heartbeat.
	Election time.Duration
	// LeaderLease is the time without answers of a majority after which a leader gives up. At most
	// Heartbeat. A replica is deaf for so long after a start.
	LeaderLease time.Duration
	// ReadLease is how long a leader answers reads after a majority has confirmed it. Less than
	// LeaderLease.
	ReadLease time.Duration
	// Request is the limit of a request to another member and its answer. Less than ReplicationStall,
	// so that a follower that is slow shows as failed requests, not as a stall. A snapshot has this time
	// for each 256 KiB, and at least once: a follower that needs longer would get another one.
	Request time.Duration

	// CommitStall is how long proposals may be in flight on a leader without one that is applied.
	CommitStall time.Duration
	// ReplicationStall is how long the library may send no entries to a follower that lacks some.
	ReplicationStall time.Duration
	// TransferStall is how long the library may refuse proposals because of a transfer. A transfer takes
	// at most two election time-outs.
	TransferStall time.Duration
	// Tick is the interval of the watch.
	Tick time.Duration

	// SnapshotBytes of entries, or SnapshotInterval with any entry, cause a snapshot.
	SnapshotBytes    int64
	SnapshotInterval time.Duration
	// TrailingEntries stay in the log after a snapshot, for followers that were away for a moment; fewer if
	// they have more than TrailingBytes. An entry has up to MaxRows.
	TrailingEntries uint64
	TrailingBytes   int64
	// HeldBytes bounds the entries that stay longer because a follower is catching up.
	HeldBytes int64
	// SegmentBytes is the size of a file of the log: the unit in which a trim gives space back.
	// raft-wal's default of 64 MiB would keep that much for each of the groups of a node.
	SegmentBytes int
}

// DefaultSettings returns the settings for production.
func DefaultSettings() Settings {
	return Settings{
		Heartbeat:   time.Second,
		Election:    time.Second,
		LeaderLease: 500 * time.Millisecond,
		ReadLease:   400 * time.Millisecond,
		Request:     5 * time.Second,

		CommitStall:      5 * time.Second,
		ReplicationStall: 10 * time.Second,
		TransferStall:    3 * time.Second,
		Tick:             100 * time.Millisecond,

		SnapshotBytes:    128 << 20,
		SnapshotInterval: 10 * time.Minute,
		TrailingEntries:  16384,
		TrailingBytes:    256 << 20,
		HeldBytes:        1 << 30,
		SegmentBytes:     16 << 20,
	}
}

const (
	// maxAppendEntries bounds the entries of one request, and those that the leader writes by one sync.
	maxAppendEntries = 64
	// commitInterval is how often an idle leader tells the followers the commit index (once to twice as
	// long). Nothing waits for it but the rows of followers, after the last entry of a burst: further entries
	// carry the index, and a next leader applies what is left. Each message wakes both nodes for each
	// partition and follower. With 50 ms a node with 6 partitions used 1.4 times the processor time at rest.
	commitInterval = 200 * time.Millisecond
	// poolSize is how many idle connections the library keeps to each member: for heartbeats, votes.
	poolSize = 3
	// never is an interval for what the library shall not do by itself.
	never = 1000 * time.Hour
)

func (s *Settings) check() error {
	switch {
	case s.ReadLease >= s.LeaderLease:
		return fmt.Errorf("read lease of %v: must be shorter than the leader's lease of %v", s.ReadLease, s.LeaderLease)
	case s.Request >= s.ReplicationStall:
		return fmt.Errorf("request limit of %v: must be shorter than the replication stall of %v", s.Request, s.ReplicationStall)
	case s.TransferStall <= 2*s.Election:
		return fmt.Errorf("transfer stall of %v: must be longer than two election time-outs of %v", s.TransferStall, s.Election)
	case s.Tick <= 0 || s.Tick > s.CommitStall/4:
		return fmt.Errorf("tick of %v: must be at most a quarter of the commit stall of %v", s.Tick, s.CommitStall)
	}
	return nil
}

// library returns the library's configuration.
func (s *Settings) library(self NodeID) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(self)
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = s.Heartbeat, s.Election, s.LeaderLease
	c.CommitTimeout = commitInterval
	c.MaxAppendEntries = maxAppendEntries
	// The machine is durable by itself, and is not to be replaced by a snapshot at each start.
	c.NoSnapshotRestoreOnStart = true
	// A removed replica stays a follower until its owner closes it.
	c.ShutdownOnRemove = false
	c.TrailingLogs = s.TrailingEntries
	c.SnapshotInterval = never // the watch asks for snapshots, by bytes
	c.NoLegacyTelemetry = true
	return c
}
