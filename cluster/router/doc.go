// Package router serves the REST API on a node of a cluster. Package http forwards a request to the node
// that leads its partition; this package tells it which node that is, and is the engine of the partitions
// that this node leads.
//
//	client → http.Server → forwarding   Router.Leader says who leads: this node, or another one
//	                       handler    → Engine → cluster.Directory.Engine → actors.Node of the partition
//	node   → NewEntrance → http.Server  a request that another node has forwarded
//
// # Rules
//
//  1. An answer that was read from an engine is returned only if its node still had the lease of the
//     partition afterwards (cluster.Directory.HasLease). A leader that was deposed unnoticed, because it
//     was frozen or cut off, could otherwise answer with an old state.
//  2. The code NotLeader promises that the call had no effect, so that it may be repeated at the leader.
//     Reads have it whenever the lease is over. A change has it only if no engine of the partition is
//     published here, or if a deposed engine says that it has not carried out the change, or that there was
//     nothing to change.
//  3. A call uses one engine from its begin to its end. A later engine of the same partition answers the
//     next call.
//
// Reading order: router.go is what package http asks about the cluster, engine.go the engine behind it, and
// entrance.go the way in for other nodes.
//
// Engine has one goroutine, which notes when a partition loses its leader. Engine.mu is a leaf.
package router
