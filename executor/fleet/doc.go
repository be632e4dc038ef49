// Package fleet is the leader's side of the workers that serve a partition: which of them has which attempt,
// what an engine may order, and what it has to count as lost. Its other side is package worker.
//
// A Table is the pure core, without a clock, a lock or I/O. It belongs to one engine, that is to a partition
// in an epoch, and begins empty with it. Its caller holds a lock over each call, passes on what comes from
// workers and from the engine, and carries out what the Table adds to a Link.
//
// A grant names the worker process that alone may be given the attempt. So a Table never compares two
// workers: an attempt waits for the one that its row names, and another worker needs another grant.
//
// Rules, in the words of package internal/model:
//
//  1. Lead begins a session with a worker. Only the first report of a session proves that the worker does not
//     have an attempt whose row names it (AbsenceFromFirstReport).
//  2. An attempt of a former epoch is ordered under its number only when its worker has reported without it
//     (ResumeHearsAll, PlacedGrants).
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
//     begun if the journal is complete, and is lost otherwise (TornJournalProvesNothing).
//
// The caller keeps the others: it orders what is committed (CommitBeforeOrder), renews after a check that it
// leads which began after the heartbeat came (RenewWhileLeading), and acknowledges what is committed
// (AcknowledgeAfterCommit).
//
// Reading order: table.go, session.go, report.go.
package fleet
