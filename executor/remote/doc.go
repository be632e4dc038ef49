// Package remote is an executor.Durable: a worker process (package worker), which outlives the server,
// carries out its attempts.
//
// It talks to all workers of a data folder, each through a peer (peer.go), and gives new orders to one
// of them, the active one, which has this binary's version and settings. One goroutine, the supervisor
// (supervisor.go), makes sure that there is an active worker. Its duties, in this order, whenever
// something changed:
//
//  0. Once: list the workers by their folders, by the registry, and by the marks of living processes.
//     A worker of which only marked processes are left is treated as one that died.
//  1. Recover each worker that died: end the processes that it left, report its ends and losses, and
//     order again what it had not begun.
//  2. Wait with all orders until every worker that lives has said what it knows.
//  3. Drain a worker of another version. The slots that it still uses are not the active one's.
//  4. Start a worker when an active one is missing.
//  5. Give the orders that wait to the active worker, in the order in which they came.
//
// A peer has one session with its worker on each connection (worker.proto), and all sessions are of
// partition 0 and epoch 0: also on a node of a cluster, where package fleet decides in its place about
// attempts (Config.ForLeaders, leaders.go).
//
// What becomes of an order that is given again after the server's restart (Order.Resume):
//
//	a worker, living or dead, knows it   its start and its end are reported, as they come or came
//	workers do not know it, and its      it never began: it is ordered
//	run is not in doubt
//	else                                 it is lost
//
// A run is in doubt when some memory of a worker was lost since its attempts were granted (doubts.go):
// a worker's folder is missing, a journal or the registry is incomplete, or the machine was restarted.
//
// A key may have served in another history of the data folder, when the store has lost its end and
// gives numbers again. The time of the grant tells the two attempts apart: the former one is ended,
// and an order whose key is taken is lost (trackedAttempt.isForeign).
//
// Reports go out one after the other, with no lock held. Locks: Remote.mu guards everything, the peers
// too.
//
// Reading order: remote.go, supervisor.go, peer.go, attempts.go, doubts.go, heartbeat.go, health.go.
package remote
