package http

import (
	"context"
	"net"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"
)

// Cluster is what a server must know when it is one node of a cluster. The runs of a cluster are parted
// into partitions: run n is of partition n mod P, and each partition has one leader at a time, whose
// engine serves it. A request that arrives at another node is forwarded (forward.go).
//
// The methods may be called from any goroutine. They answer at once, except Dial, Verify, and Status on a node
// that leads without a lease.
type Cluster interface {
	// Self returns the ID of this node. IDs consist of letters, digits, '-', '_' and '.'.
	Self() string
	// Partitions returns P, which never changes.
	Partitions() uint64
	// Leader returns the node that leads a partition, as far as this node knows; "" = unknown.
	// isHere tells that this node leads it and that its engine serves. While the engine is still
	// starting, the leader is this node and isHere is false.
	Leader(partition uint64) (node string, isHere bool)
	// Changed returns a channel that is closed when an answer of Leader may have changed. Call it
	// before Leader.
	Changed() <-chan struct{}
	// Dial connects to the listener for forwarded requests of another node (Entrance.CheckNode). The
	// connection is authenticated in both directions.
	Dial(ctx context.Context, node string) (net.Conn, error)
	// Nodes returns the IDs of all nodes, this one among them, in the same order each time.
	Nodes() []string
	// QueuedTasks returns how many tasks of a partition wait for a slot, as far as this node knows; 0 while it
	// has not heard of its leader. It does not wait.
	QueuedTasks(partition uint64) int
	// Warnings returns what is wrong with the cluster and keeps no node from its work, a sentence each. It does not
	// wait.
	Warnings() []string
	// Status returns what GET /v1/cluster shows.
	Status(ctx context.Context) ClusterStatus
	// Verify compares the replicas of each partition, and returns the results by partition. It takes as long as
	// the replicas need to read all their rows. An error is that of all partitions.
	Verify(ctx context.Context) ([]PartitionVerification, error)
	// Transfer makes a node, given by its name or ID, the leader of a partition, and returns when it serves.
	// TransferAll does so for all partitions that a node leads. Errors are *messages.Error.
	Transfer(ctx context.Context, partition uint64, to string) (LeaderTransfer, error)
	TransferAll(ctx context.Context, from string) ([]LeaderTransfer, error)
	// Repair replaces the rows of a node's replica by those of the partition's leader, and compares the replicas
	// before and after. An error is a *messages.Error.
	Repair(ctx context.Context, partition uint64, node string) (ReplicaRepair, error)
	// Remove takes a node that does not run out of the cluster, and returns its ID. An error is a
	// *messages.Error.
	Remove(ctx context.Context, node string) (id string, err error)
	// UpgradeLevel raises the feature level to the highest one that all nodes support, and returns the former and the
	// present one. An error is a *messages.Error.
	UpgradeLevel(ctx context.Context) (from, level int, err error)
	// DeclareWorkerDead says that a worker without a node, given by its ID, does not come back, and returns when its
	// attempts are lost. An error is a *messages.Error.
	DeclareWorkerDead(ctx context.Context, worker string) error
}

// partitionKey is the key of a context's partition.
type partitionKey struct{}

// PartitionOf returns the partition that a call of the engine is about, where its arguments do not tell: a
// submission, a part of a list or of the events of all runs, a pause. ok is false for a call that is about
// a run, and on a server that is not part of a cluster.
func PartitionOf(ctx context.Context) (partition uint64, ok bool) {
	partition, ok = ctx.Value(partitionKey{}).(uint64)
	return partition, ok
}

// withPartition returns a context for calls of the engine that are about a partition.
func withPartition(ctx context.Context, partition uint64) context.Context {
	return context.WithValue(ctx, partitionKey{}, partition)
}

// setPartition sets the partition of the request's calls of the engine.
func setPartition(ctx *fasthttp.RequestCtx, partition uint64) {
	if c := connOf(ctx); c != nil {
		c.request.Load().partition = partition + 1
	}
}

// ClusterStatus is a cluster as one of its nodes sees it.
type ClusterStatus struct {
	ID         string // of the cluster
	Node       string // the ID of the node that answers
	Nodes      []NodeStatus
	Partitions []PartitionStatus // by number
	Workers    []WorkerStatus    // those without a node, by their IDs
	Level      int               // the feature level
}

// WorkerStatus is a worker without a node.
type WorkerStatus struct {
	ID, Name string
	Address  string // from which it has connected to the answering node; "" = unknown
	// State is "connected", "draining", or "silent" for a worker that is not connected to the answering node, while
	// a partition that this node leads may have tasks there.
	State            string
	Slots, Taken     Slots
	Running, Waiting int
}

// NodeStatus is a node of the cluster.
type NodeStatus struct {
	ID, Name string
	Address  string // HOST:PORT for other nodes; "" = unknown
	// Slots is what the node has for tasks, and Taken what those of all partitions take, as far as the answering node
	// knows. Both are zero until it has heard of the node.
	Slots, Taken     Slots
	Running, Waiting int  // tasks that run there, and tasks whose orders wait there
	Draining         bool // it starts no more tasks
	// ClockSkew is how far the clock of the node is ahead (+) of or behind (-) that of the answering one, at least;
	// 0 = unknown, or no more than the delay of an answer can explain.
	ClockSkew time.Duration
}

// Slots is an amount of a machine.
type Slots struct{ CPUMillis, MemoryBytes int64 }

// appendSlots appends an amount as a JSON object, in cores and megabytes.
func appendSlots(dst []byte, s Slots) []byte {
	dst = strconv.AppendFloat(append(dst, `{"cores":`...), float64(s.CPUMillis)/1000, 'f', -1, 64)
	return append(strconv.AppendInt(append(dst, `,"memoryMB":`...), s.MemoryBytes>>20, 10), '}')
}

// PartitionStatus is a partition, as the answering node knows it.
type PartitionStatus struct {
	Replica bool   // the node has a replica; Applied and Lag are 0 without one
	Leader  string // node ID; "" = unknown
	Term    uint64 // of that leader
	Applied uint64 // the log entry up to which this replica has the rows
	Lag     uint64 // entries that the replica which is furthest behind lacks; 0 unless this node leads
	Lease   bool   // this node leads the partition and may answer reads now
	// Verified is the log entry as of which the replicas were compared last, as far as this node was told since
	// its start; 0 = never. Differing are the nodes whose replicas had other rows than most.
	Verified  uint64
	Differing []string // node IDs
}

// clusterStatus is GET /v1/cluster. Every node answers for itself, also one that is cut off from the
// others.
func (s *Server) clusterStatus(ctx *fasthttp.RequestCtx) error {
	if s.cfg.Cluster == nil {
		return &refusal{fasthttp.StatusNotFound, "this server is not a node of a cluster"}
	}
	st := s.cfg.Cluster.Status(contextOf(ctx))
	dst := appendString(append(make([]byte, 0, 512), `{"id":`...), st.ID)
	dst = appendString(append(dst, `,"node":`...), st.Node)
	dst = append(dst, `,"nodes":[`...)
	for i, n := range st.Nodes {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(append(dst, `{"id":`...), n.ID)
		dst = appendString(append(dst, `,"name":`...), n.Name)
		dst = appendString(append(dst, `,"address":`...), n.Address)
		dst = appendSlots(append(dst, `,"slots":`...), n.Slots)
		dst = appendSlots(append(dst, `,"taken":`...), n.Taken)
		dst = strconv.AppendInt(append(dst, `,"running":`...), int64(n.Running), 10)
		dst = strconv.AppendInt(append(dst, `,"waiting":`...), int64(n.Waiting), 10)
		dst = strconv.AppendBool(append(dst, `,"draining":`...), n.Draining)
		dst = append(strconv.AppendFloat(append(dst, `,"clockSkewSeconds":`...), n.ClockSkew.Seconds(), 'f', -1, 64), '}')
	}
	dst = append(dst, `],"partitions":[`...)
	for i, p := range st.Partitions {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = strconv.AppendInt(append(dst, `{"partition":`...), int64(i), 10)
		dst = strconv.AppendBool(append(dst, `,"replica":`...), p.Replica)
		dst = appendString(append(dst, `,"leader":`...), p.Leader)
		dst = strconv.AppendUint(append(dst, `,"term":`...), p.Term, 10)
		dst = strconv.AppendUint(append(dst, `,"applied":`...), p.Applied, 10)
		dst = strconv.AppendUint(append(dst, `,"lag":`...), p.Lag, 10)
		dst = strconv.AppendBool(append(dst, `,"lease":`...), p.Lease)
		dst = strconv.AppendUint(append(dst, `,"verified":`...), p.Verified, 10)
		dst = append(dst, `,"differing":[`...)
		for i, node := range p.Differing {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendString(dst, node)
		}
		dst = append(dst, "]}"...)
	}
	dst = append(dst, `],"workers":[`...)
	for i, w := range st.Workers {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(append(dst, `{"id":`...), w.ID)
		dst = appendString(append(dst, `,"name":`...), w.Name)
		dst = appendString(append(dst, `,"address":`...), w.Address)
		dst = appendString(append(dst, `,"state":`...), w.State)
		dst = appendSlots(append(dst, `,"slots":`...), w.Slots)
		dst = appendSlots(append(dst, `,"taken":`...), w.Taken)
		dst = strconv.AppendInt(append(dst, `,"running":`...), int64(w.Running), 10)
		dst = append(strconv.AppendInt(append(dst, `,"waiting":`...), int64(w.Waiting), 10), '}')
	}
	dst = strconv.AppendInt(append(dst, `],"level":`...), int64(st.Level), 10)
	answerJSON(ctx, append(dst, '}'))
	return nil
}
