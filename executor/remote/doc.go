// Package remote is an executor.Durable: it has attempts carried out by a worker
// process (package worker), which outlives the server.
//
// It talks to all workers of a data folder, each by a peer (peer.go), and gives new
// orders to one of them, the active one: of this binary's version and settings. One
// goroutine, the keeper (keeper.go), sees to it that there is one, again and again:
//
//  0. Once: the workers are listed by their folders, by the registry, and by the marks of
//     living processes. Where only marks are left the worker is treated as one that died.
//  1. The estate of a worker that died is taken: what runs of it is ended, its ends and
//     losses are reported, what it had not begun is ordered again.
//  2. Nothing is ordered before every worker that lives has said what it knows.
//  3. A worker of another version is drained. The slots that it still uses are not
//     the active one's.
//  4. Without an active worker one is started.
//  5. What waits is ordered, in the order in which it came.
//
// What becomes of an order that is given again after the server's restart
// (Order.Resume):
//
//	a worker, or an estate, knows it   its start and its end are reported, as they come or came
//	none knows it, and its run is      it never began: it is ordered
//	not in doubt
//	else                               it is lost
//
// A run is in doubt when something that a worker knew was lost since its attempts were
// granted (doubts.go): a folder of a worker is missing, a journal or the registry is not
// whole, the machine was restarted.
//
// A key may have served in another history of the data folder, when the store has lost its
// end and gives numbers again. The time of the grant tells the two attempts apart: the
// former one is ended, and an order whose key is taken is lost (entry.foreign).
//
// Reports go out one after the other, with no lock held. Locks: Remote.mu guards
// everything, the peers too.
package remote
