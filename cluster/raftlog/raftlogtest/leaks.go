package raftlogtest

import "go.uber.org/goleak"

// LibraryLeaks are the goroutines of hashicorp/raft that may go on after a group is closed: the two
// of a transfer to a node that does not answer (its issue 696), and those that wait for a transfer or a
// proposal which the library has not answered before its end.
func LibraryLeaks() []goleak.Option {
	return []goleak.Option{
		goleak.IgnoreAnyFunction("github.com/hashicorp/raft.(*Raft).leadershipTransfer"),
		goleak.IgnoreAnyFunction("github.com/hashicorp/raft.(*Raft).leaderLoop.func2"),
		goleak.IgnoreAnyFunction("github.com/caravan-dag/caravan/cluster/raftlog.(*incarnation).awaitTransfer.func1"),
		goleak.IgnoreAnyFunction("github.com/caravan-dag/caravan/cluster/raftlog.(*incarnation).applyLog"),
	}
}
