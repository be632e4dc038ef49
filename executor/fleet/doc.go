// Package fleet lets the engines of a cluster use the workers of all nodes, under leases. A running attempt
// goes on when another node leads its partition, and the next attempt of a task begins only when the one
// before has ended, or its lease is over. Nothing of it runs on a single node.
//
// A Fleet has both sides of the protocol (worker.proto). For engines here it is an executor.Partitioned: each
// partition that is led here has a Table, which decides, and all of them share a link to the agent of each
// node. For leaders on all nodes it has the agent of this one, which hands their orders to the workers of the
// machine (package remote). To a Table the agent of a node is a worker; its name is the ID of the node.
//
// Slots is what a process knows of the slots of all nodes. Leaders tell each agent what the attempts of their
// partitions take of its node, and an agent tells all leaders the shares of all partitions. By that a Table places an order: at the node
// where the attempt fits tightest, or, if it fits nowhere, where it waits for the least (placement.go). Its knowledge
// may be old. A node does not begin more than fits, so a wrong choice costs time only: an order that waits is taken
// back while another node has room, and placed again when the first report of the next session proves that the node
// does not have it. A node whose workers cannot start attempts drains until they can; and an order that a node with room
// does not begin for long moves, too. The engine may grant the slots of all nodes that accept orders (Table.Capacity).
//
// A Table is the pure core, without a clock, a lock or I/O. It belongs to one engine, that is to a partition
// in an epoch, and begins empty with it. Its caller holds a lock over each call, passes on what comes from
// workers and from the engine, and carries out what the Table adds to a Link.
//
// Rules of a Table, in the words of package internal/model:
//
//  1. Lead begins a session with a worker. Only the first report of a session proves that the worker does not
//     have an attempt (AbsenceFromFirstReport).
//  2. An attempt of a former epoch whose worker is known is ordered under its number only when that worker
//     has reported without it (ResumeHearsAll, PlacedGrants). A Fleet does not know it (Unplaced): such an
//     attempt belongs to the first worker that reports it, and is lost when all workers with a row have
//     reported without it. In its epoch a Table knows the worker, and may choose another one by the same rule.
//  3. An order that comes back is believed in the first report of a later session: the order itself may be
//     repeated by the network, and the later session refuses it (NewestSession).
//  4. A worker is silent after a full wait since its last heartbeat, or since the Table began
//     (FullWaitAtTakeover). Its session ends before its attempts are reported as lost (SilenceEndsSession),
//     under a number that is used up (SilentIsLost).
//  5. A lease is renewed only in a session that was heard. Else an order of a former session could begin
//     under the renewal.
//  6. Attempts that the engine does not want are ended, and ends of orphans are acknowledged, only where the
//     worker may be given orders. With leases that takes a renewal in the session: a former leader could
//     lead a worker that has forgotten the epoch, and take the attempts of the present one for orphans.
//  7. The successor of a dead worker speaks for it. An attempt that the successor does not name has not
//     begun if the journal is complete, and is lost otherwise (TornJournalProvesNothing). An agent has no
//     predecessors, and does not say whether the memory of its workers is complete: an attempt that a leader has not
//     heard as begun counts as not begun if its workers have forgotten it, as after a power failure.
//
// Workers on machines without a node come and go, and each connects by itself (joined.go). To a Table such a worker
// is one more. A Table is connected to a worker, that of a node or one without, only when the worker has a row in the
// partition, which the log replicates (RegisterWorkers, register.go). What a node knows of the members of the cluster
// decides only whom it dials.
//
// A Fleet keeps the others: it orders what is committed (CommitBeforeOrder), renews after a check that it
// leads which began after the heartbeat came (RenewWhileLeading), and acknowledges what is committed
// (AcknowledgeAfterCommit). A node that takes the place of another has an ID of its own.
//
// An agent tells leaders of attempts, and little of its machine: whether it drains, as it does while its workers cannot
// start attempts. Postponed starts, slots in use and the cause reach the server of that machine alone.
//
// An agent has no memory of epochs from before its start, in place of NoteIsDurable. It accepts orders only
// under a lease that it got itself since then, which a former leader cannot renew. The processes of workers
// have the deadlines, and end attempts while the agent is dead (LeaseNeedsNoWorker). A dead worker is recovered
// by the server of its machine: if both are dead, their lease is not enforced.
//
// Nodes read the output of ended attempts from each other over the same connections (output.go). Each agent
// serves the output files of its machine to all nodes, whoever leads. The end of an attempt with output in files
// is held back until another node has a copy (copies.go). A request with a field that no node sends is refused, and
// a panic ends its call alone (recover.go), except in Attach.
//
// Reading order: fleet.go, link.go, agent.go, drain.go; table.go, session.go, report.go, placement.go; output.go,
// copies.go; joined.go, register.go.
package fleet
