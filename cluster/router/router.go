package router

import (
	"context"
	"net"
	"time"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/http"
)

// Member is the node as this package needs it: a *cluster.Member.
type Member interface {
	cluster.Directory
	// Cluster returns the ID of the cluster.
	Cluster() cluster.ID
	// Nodes returns all nodes of the cluster.
	Nodes() []cluster.Node
	// QueuedTasks returns how many tasks of a partition wait for a slot, as far as this node knows.
	QueuedTasks(partition int) int
	// ClockSkew returns how far the clock of a node is ahead of that of this one, and ClockWarnings a sentence for
	// each node whose clock is off.
	ClockSkew(node raftlog.NodeID) time.Duration
	ClockWarnings() []string
	// Status returns the state of this node's replica of a partition.
	Status(partition int) cluster.Status
	// VerifyReplicas compares the replicas of all partitions.
	VerifyReplicas(ctx context.Context) ([]cluster.PartitionVerdict, error)
	// Verdict returns the newest verdict on a partition that this node was told.
	Verdict(partition int) (cluster.PartitionVerdict, bool)
	// TransferLead and TransferAllLeads move leaderships for an operator.
	TransferLead(ctx context.Context, partition int, node string) (cluster.Transfer, error)
	TransferAllLeads(ctx context.Context, node string) ([]cluster.Transfer, error)
	// RepairReplica replaces the rows of a replica.
	RepairReplica(ctx context.Context, partition int, node string) (cluster.Repair, error)
	// RemoveNode takes a node out of all partitions.
	RemoveNode(ctx context.Context, node string) (raftlog.NodeID, error)
	Level() int
	UpgradeLevel(ctx context.Context) (from, to int, err error)
	// DeclareWorkerDead says that a worker without a node does not come back.
	DeclareWorkerDead(ctx context.Context, worker string) error
}

var _ Member = (*cluster.Member)(nil)

// Router is the cluster of a node, for package http.
type Router struct {
	member   Member
	addTasks func(*http.NodeStatus)
	workers  func() []http.WorkerStatus
}

var _ http.Cluster = (*Router)(nil)

// New returns the router of a member. addTasks adds to the state of a node what is known of its slots and tasks, and
// workers returns those without a node; they may be nil.
func New(m Member, addTasks func(*http.NodeStatus), workers func() []http.WorkerStatus) *Router {
	if addTasks == nil {
		addTasks = func(*http.NodeStatus) {}
	}
	if workers == nil {
		workers = func() []http.WorkerStatus { return nil }
	}
	return &Router{m, addTasks, workers}
}

// Self returns the ID of this node.
func (r *Router) Self() string { return string(r.member.Self()) }

// Partitions returns the number of partitions.
func (r *Router) Partitions() uint64 { return uint64(r.member.Partitions()) }

// Leader returns the node that leads a partition, and whether its engine serves here.
func (r *Router) Leader(partition uint64) (node string, isHere bool) {
	if _, _, ok := r.member.Engine(int(partition)); ok {
		return r.Self(), true
	}
	l, _ := r.member.Leader(int(partition))
	return string(l.Node), false
}

// Changed returns a channel that is closed when an answer of Leader may have changed.
func (r *Router) Changed() <-chan struct{} { return r.member.Changed() }

// Dial connects to the entrance for nodes of another one.
func (r *Router) Dial(ctx context.Context, node string) (net.Conn, error) {
	return r.member.Dial(ctx, raftlog.NodeID(node), cluster.HTTPProtocol)
}

// Nodes returns the IDs of all nodes of the cluster.
func (r *Router) Nodes() (ids []string) {
	for _, n := range r.member.Nodes() {
		ids = append(ids, string(n.ID))
	}
	return ids
}

// QueuedTasks returns how many tasks of a partition wait for a slot, as far as this node knows.
func (r *Router) QueuedTasks(partition uint64) int { return r.member.QueuedTasks(int(partition)) }

// Warnings returns what is wrong with the cluster and keeps no node from its work.
func (r *Router) Warnings() []string { return r.member.ClockWarnings() }

// Status returns the cluster as this node sees it.
func (r *Router) Status(context.Context) http.ClusterStatus {
	s := http.ClusterStatus{ID: r.member.Cluster().String(), Node: r.Self(), Workers: r.workers(), Level: r.member.Level()}
	for _, n := range r.member.Nodes() {
		node := http.NodeStatus{ID: string(n.ID), Name: n.Name, Address: n.Address, ClockSkew: r.member.ClockSkew(n.ID)}
		r.addTasks(&node)
		s.Nodes = append(s.Nodes, node)
	}
	for p := range r.member.Partitions() {
		replica := r.member.Status(p)
		status := http.PartitionStatus{Replica: replica.HasReplica, Applied: replica.Applied}
		if l, ok := r.member.Leader(p); ok {
			status.Leader, status.Term = string(l.Node), l.Term
		}
		for _, match := range replica.Match {
			if match < replica.Last {
				status.Lag = max(status.Lag, replica.Last-match)
			}
		}
		if _, epoch, ok := r.member.Engine(p); ok {
			status.Lease = r.member.HasLease(p, epoch)
		}
		if v, ok := r.member.Verdict(p); ok {
			status.Verified = v.Index
			for _, replica := range v.Replicas {
				if replica.Differs {
					status.Differing = append(status.Differing, string(replica.Node))
				}
			}
		}
		s.Partitions = append(s.Partitions, status)
	}
	return s
}

// Verify compares the replicas of all partitions.
func (r *Router) Verify(ctx context.Context) ([]http.PartitionVerification, error) {
	verdicts, err := r.member.VerifyReplicas(ctx)
	var all []http.PartitionVerification
	for i := range verdicts {
		all = append(all, verification(&verdicts[i]))
	}
	return all, err
}

func verification(v *cluster.PartitionVerdict) http.PartitionVerification {
	one := http.PartitionVerification{Index: v.Index, Equal: v.IsEqual(), Problem: v.Problem}
	for _, d := range v.Replicas {
		one.Replicas = append(one.Replicas, http.ReplicaVerification{Node: string(d.Node), Digest: d.Digest, Rows: d.Rows, Differs: d.Differs, Problem: d.Problem})
	}
	return one
}

// Transfer makes a node the leader of a partition.
func (r *Router) Transfer(ctx context.Context, partition uint64, to string) (http.LeaderTransfer, error) {
	t, err := r.member.TransferLead(ctx, int(partition), to)
	return leaderTransfer(&t), err
}

// TransferAll gives the leaderships of a node to others.
func (r *Router) TransferAll(ctx context.Context, from string) ([]http.LeaderTransfer, error) {
	found, err := r.member.TransferAllLeads(ctx, from)
	var all []http.LeaderTransfer
	for i := range found {
		all = append(all, leaderTransfer(&found[i]))
	}
	return all, err
}

func leaderTransfer(t *cluster.Transfer) http.LeaderTransfer {
	return http.LeaderTransfer{Partition: uint64(t.Partition), From: string(t.From), To: string(t.To), Problem: t.Problem}
}

// Repair replaces the rows of a replica by those of the leader.
func (r *Router) Repair(ctx context.Context, partition uint64, node string) (http.ReplicaRepair, error) {
	done, err := r.member.RepairReplica(ctx, int(partition), node)
	return http.ReplicaRepair{Partition: partition, Node: string(done.Node), Source: string(done.Source), Verification: verification(&done.Verdict)}, err
}

// Remove takes a node out of the cluster.
func (r *Router) Remove(ctx context.Context, node string) (string, error) {
	id, err := r.member.RemoveNode(ctx, node)
	return string(id), err
}

// UpgradeLevel raises the feature level of the cluster.
func (r *Router) UpgradeLevel(ctx context.Context) (from, level int, err error) {
	return r.member.UpgradeLevel(ctx)
}

// DeclareWorkerDead says that a worker without a node does not come back.
func (r *Router) DeclareWorkerDead(ctx context.Context, worker string) error {
	return r.member.DeclareWorkerDead(ctx, worker)
}
