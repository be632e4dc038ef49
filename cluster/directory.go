package cluster

import (
	"context"
	"net"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/http"
	"github.com/caravan-dag/caravan/messages"
)

// Names of the protocols that share the port of a member (ALPN). The protocol of the replicated log is
// raftlog.Protocol.
const (
	// HTTPProtocol carries requests that one member forwards to another, as HTTP over the connection.
	HTTPProtocol = "caravan-http/1"
	// WorkerProtocol carries what leaders say to the workers of another node (worker.proto).
	WorkerProtocol = "caravan-worker/2"
	// formationProtocol carries the introductions of members: see formation.go.
	formationProtocol = "caravan-form/1"
)

// Directory says where the partitions are led, and connects to other members. A router needs no more
// of a member than this. Its methods may be called from any goroutine. Only HasLease, HasRun and Dial wait.
type Directory interface {
	// Self returns the ID of this node.
	Self() raftlog.NodeID
	// Partitions returns the number of partitions, which never changes. Run r is of partition
	// r mod Partitions.
	Partitions() int
	// Leader returns the leader of a partition as far as this node knows. ok is false while none is
	// known. The answer may be out of date if it is another node: that node then refuses the request.
	Leader(partition int) (l Leadership, ok bool)
	// Engine returns the engine of a partition that this node leads, and its epoch. ok is false when
	// this node does not lead the partition, or its engine is still starting. An engine that has lost its
	// leadership answers every call with the code Unavailable or OutcomeUnknown.
	Engine(partition int) (engine Engine, epoch uint64, ok bool)
	// HasLease reports whether an answer that the engine of this epoch has given may be sent: no other
	// node can have led the partition at the moment of this call. Ask after the answer was made. The call
	// compares times in a healthy group, and else waits for the other replicas for up to
	// raftlog.Settings.ReadLease.
	HasLease(partition int, epoch uint64) bool
	// HasRun reports whether a run of any partition exists. It asks the leader, and waits for one for a while;
	// an error is a *messages.Error with the code Unavailable.
	HasRun(ctx context.Context, run messages.RunID) (bool, error)
	// Changed returns a channel that is closed when a leader or an engine may have changed. Take it
	// before you look at Leader or Engine, and wait for it when they do not help yet.
	Changed() <-chan struct{}
	// Dial connects to another member for one of the protocols that share its port. The connection is
	// authenticated, and the other end is that node of this cluster, or Dial fails.
	Dial(ctx context.Context, node raftlog.NodeID, protocol string) (net.Conn, error)
	// Listen returns the listener of a protocol on this member's port. The connections come from members
	// of this cluster. A protocol has one listener at a time; the caller closes it.
	Listen(protocol string) (net.Listener, error)
}

// Leadership is who leads a partition, and since which term.
type Leadership struct {
	Node    raftlog.NodeID
	Address string // of the node's port; "" when the node is unknown here
	Term    uint64
}

// Engine is the engine of one partition for one term.
type Engine interface {
	http.Engine
	// NextNumber returns the number, in the partition, of the next run.
	NextNumber() uint64
	// RaiseNextNumber makes the numbers of later runs at least number.
	RaiseNextNumber(number uint64)
	// Load returns how much work the engine has.
	Load() actors.Load
	// Proposals returns how many groups of rows the engine has proposed to the log, and the number of the
	// newest one that is committed, counted from 1. If one was committed that was proposed after some
	// moment, this node led the partition after that moment.
	Proposals() (proposed, committed uint64)
}
