// Package raftlog replicates rows among the nodes of a cluster. It is the only package that imports
// hashicorp/raft and raft-wal.
//
// A Group is one replica of one Raft group. The engine of a partition runs only where its group leads.
// It proposes rows; every replica of the group passes the same rows to its Machine in the same order. The
// leader decides, the log carries the result. A Machine has no logic, so replicas agree whatever version
// they run.
//
// # What a caller may rely on
//
//  1. Propose returns nil only when the entry is on the disks of a majority and applied here.
//  2. The term is the fence. Rows reach a machine only if the epoch in the entry is the term of the log
//     entry, on every replica and at every replay.
//  3. After Takeover the machine has applied all that earlier leaders have committed, and no entry of an
//     earlier epoch changes a row any more.
//  4. Lease returns true only if no other node can have led at the moment of the call.
//  5. After an error of a file the group ends and writes to that file no more (Failed, Err).
//  6. Open refuses a replica that has lost its vote, entries or rows.
//
// # Duties of the caller
//
//  1. One process at a time uses a folder: the caller locks it.
//  2. A node that lost its folder gets a new NodeID. Bootstrap is for the first start of all members.
//  3. An engine ends at the first LostError. The next one begins with a Takeover.
//  4. The engine ends before Transfer.
//  5. When a group has failed, the owner closes it. After a storage error or ErrDiskStalled the process
//     should exit.
//  6. A Machine keeps its contract: absolute rows, no clock, no configuration, the same result again.
//
// # Reading order
//
// entry.go is the format of an entry and the fence. machine.go is what becomes of a committed entry.
// propose.go is how one gets there; group.go and incarnation.go are the life of a replica. stable.go,
// logstore.go (with segments.go) and snapshots.go are what it keeps: the files `vote`, `log/`,
// `snapshot`, all record files (record.go) but for the segments of the log. mux.go, dials.go, pipeline.go
// and followers.go are the connections, exchange.go replaces the rows of a replica, lease.go the read lease, and watch.go looks after what the library
// does not notice.
//
// # Locks
//
// Group.mu, followers.mu, logStore.mu, voteStore.mu, applier.mu, snapshotStore.mu and dialer.mu are
// leaves: no call leaves this package under them, except that voteStore.mu and snapshotStore.mu are held
// over writes of record files, and dialer.mu when a connection is closed. applier.applying is taken
// before applier.restoring, and that before applier.mu and snapshotStore.mu. Group.snapshotting is taken
// before all of them. logStore.closing is held over a read of the log, or while it is closed; it
// is a leaf, too.
//
// # What this package relies on in hashicorp/raft v1.8.0 and raft-wal v0.4.1
//
// The right column fails when a new release breaks it, or shows that the cure is not needed any more:
//
//	persistVote writes LastVoteTerm, then LastVoteCand                     TestVoteIsCutBetweenItsCalls, TestVoteErrorIsLatched
//	setCurrentTerm panics on an error; Goexit in its place ends            TestFailedTermEndsTheReplica
//	  the goroutine and lets Shutdown return
//	an AppendPipeline answers in the order of its requests, and            TestFollowerIsFedAfterRefusals
//	  AppendEntries waits until its answers are taken (issues 611, 612)
//	a follower that has heard the leader within the heartbeat time-out     TestLateAnswersGiveNoLease, TestRandomFaults
//	  refuses to vote, except after TimeoutNow; an answer with Success     TestTransferEndsTheLease
//	  is such a hearing
//	heartbeats go on while the main loop waits for the disk                TestLeaderWithStalledDiskEnds
//	  (issues 503, 666)
//	a transfer may stay "in progress" for ever (issue 696)                 TestTransferThatHangs
//	InstallSnapshot empties a monotonic log,                               TestFollowerCatchesUpWhileTheLogIsTrimmed
//	  and forgets to reset the                                             TestDivergedReplicaGetsASnapshot
//	  end of the log in memory (see applier.Restore; cf. issue 697)
//	Snapshot asks the FSM between two entries; sendLatestSnapshot uses     TestReplacedReplica, TestSnapshotIsOnlyASync
//	  the metadata that Open returns, not that of List
//	NewRaft starts to apply after the index of the newest snapshot         TestSnapshotIsOnlyASync
//	  when NoSnapshotRestoreOnStart is set
//	GetLog is asked for the entry before the first one of a request        TestFollowerCatchesUpWhileTheLogIsTrimmed
//	a type assertion finds WithPreVote on the transport                    TestReturningFollowerRaisesNoTerm, TestOneWayCutRaisesNoTerm
//	raft-wal goes on after a failed sync                                   TestLogErrorIsLatched, TestFailedSyncIsNotRetried
//	raft-wal v0.4.0 seals a segment without an index when it removes the   TestShortenedLogIsReadableLater
//	  end of the log (issue 31); v0.4.1 does not
//	raft-wal cannot append after a crash between the append that seals a   TestPowerFailure
//	  segment and the new list of segments: see finishRotation
//	raft-wal does not check sums of entries that it reads                  TestDamagedEntriesAreRefused, TestDamagedEntryIsNotSent
//	raft-wal writes through types.VFS and types.MetaStore only             TestPowerFailure
package raftlog
