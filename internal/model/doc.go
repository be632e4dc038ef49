// Package model is the protocol by which a partition changes its leader and keeps its attempts, as a
// program that visits every state which the protocol can reach. It is a specification: package
// executor/fleet, which lets leaders use workers, is written against it. Only tests run it.
//
// # What is promised
//
//   - OneCopy: two processes of one task never live at once. OneStart: an attempt, which is a task's
//     try with a number, never starts twice.
//   - KeptEnd, FinalEnd, NoRerun: an acknowledged end is durable, it stays as it is, and the task
//     never runs again.
//   - DurableGrant: an attempt starts only when its grant is durable.
//   - From every state a state can be reached in which the task has ended. The model does not say how
//     soon. It shows that the protocol cannot get stuck, and that the properties above do not hold
//     because it does too little.
//
// # Who takes part
//
// A partition is a group of replicas with one log. The group elects a leader for a term, which a later
// term ends. Terms only grow. A node that led may not know for any length of time that another one
// leads: a message is late, or the node was frozen.
//
// An engine decides. It runs on the node that leads, begins with a takeover, which is an entry of the
// log, and has the term of that entry as its epoch. It changes rows by proposals: an entry carries the
// rows and the engine's epoch. When leadership is lost, the outcome of a proposal is unknown: the
// entry is lost, or the next leader has it and commits it before its own takeover.
//
// A worker starts the processes of attempts, on its own machine, and outlives nodes and engines. Each
// node has a connection to each worker. A worker has a journal and a note on disk, a table of attempts
// in memory, and for each partition a lease. Each process of a worker is a new incarnation.
//
// # Frames
//
//	Lead      node to worker   epoch, session. The node leads the partition; the session begins
//	Report    worker to node   epoch, session; all attempts that the worker knows, and whether its
//	                           memory is complete. The answer to Lead
//	Order     node to worker   epoch, session, attempt
//	End       worker to node   attempt, and whether it ended by itself or was lost. It is repeated
//	                           until it is acknowledged
//	Ack       node to worker   attempt: its end is durable, and may be forgotten
//	Heartbeat worker to node   numbered; the worker remembers when it has sent each one
//	Renewal   node to worker   epoch; the number of the heartbeat that it answers
//	Ignored   worker to node   epoch, session of an order that is not accepted, and the highest epoch.
//	                           It does not tell an engine what became of the attempt: an engine
//	                           of a lower epoch has to end, and others ignore it
//
// Frames may be late, lost, repeated, and arrive in any order. One thing is relied on: a frame to a
// process that has died does not reach its successor, because it was on a connection to that process.
//
// # The engine
//
//  1. It begins when its takeover is committed, with all rows committed before (TakeoverReadsAll). On
//     one node, a second engine of the same term begins only when the last proposal of the first is
//     resolved (ResolveBeforeRestart).
//  2. Its entries change rows only in the log term of its epoch (FenceByTerm). It does no more about a
//     task while a proposal about that task is under way, and ends when the outcome is unknown
//     (UnknownEndsEngine).
//  3. It registers a worker in the rows of its partition before it opens the first session with this
//     incarnation of it (RegisterWorkers, RegisterIncarnations). The list of workers that may have
//     attempts is the one in the rows that it began with.
//  4. It sends Lead with its epoch and a session number that is higher than those before, to each
//     registered worker. The first report of a session tells what the worker has. Absence from any
//     later report does not prove that the attempt has not begun (AbsenceFromFirstReport).
//  5. It orders a new attempt at once, on any session that was reported, when the grant is committed
//     (CommitBeforeOrder).
//  6. The granted attempt of a former epoch goes on at the worker that reports it. If all registered
//     workers have reported without it, it has not begun, and is ordered under its number
//     (ResumeHearsAll).
//  7. The same holds in one epoch, for an attempt that was ordered to a worker: if the first report of
//     a later session does not have it, it has not begun. Such an attempt may also be revoked by an
//     entry: the task is ready again, for an attempt of the same number.
//  8. An attempt is lost if a worker that may have it is silent or dead (SilentIsLost), or reports an
//     incomplete memory without the attempt (TornJournalProvesNothing). Its number is used up: when
//     the loss is committed, the task is ready for its next attempt.
//  9. It ends the session with a silent worker before it proposes the loss (SilenceEndsSession).
//  10. It acknowledges an end when the end is committed (AcknowledgeAfterCommit).
//
// # The worker
//
//  1. It notes the highest epoch, on disk, before it reports (NoteIsDurable). Lead of a lower epoch, or
//     of an epoch's earlier session, is ignored.
//  2. It accepts orders of the newest session of the highest epoch (HighestEpoch, NewestSession), and
//     only under a lease (BeginUnderLease).
//  3. It starts an attempt once (StartOnce), and writes the intent to its journal before the fork
//     (IntentBeforeFork). It writes the end before it tells it.
//  4. The successor of a dead worker, on the same machine, ends the processes that are left
//     (EndProcessesFirst), and then reports for it: ends from the journal, begun attempts as lost
//     (RecoverDeadWorkers). After a power failure its memory is incomplete.
//
// # The lease
//
//  1. A worker whose lease is over ends the partition's attempts, and drops its orders
//     (LeaseEndsAttempts). That also happens while the worker's process is dead or stopped
//     (LeaseNeedsNoWorker): a guard beside it has the deadline.
//  2. A lease that is over stays over until all orders and attempts under it have ended (OverIsOver). An
//     order that still waited would begin under the next lease, when the attempt is lost long since.
//  3. The lease counts from the moment at which the worker has sent the heartbeat that the renewal
//     answers (LeaseFromSending). The leader counts the silence from the moment at which it received
//     that heartbeat, which is later. So each renewal that is lost or late errs on the safe side.
//  4. A node renews only when a check that it leads, which has begun after the heartbeat came, says so
//     (RenewWhileLeading). So a lease that was renewed by a former leader is over within the wait of
//     the next one, which begins with the takeover (FullWaitAtTakeover).
//  5. A worker is silent when the lease and a margin have passed. The margin exceeds what the clocks
//     drift apart in that time and the grace of ended attempts, together (MarginCoversGrace).
//  6. Without leases, only the successor of a worker or the operator can say that it is dead
//     (OperatorDeclaresDeath). The model trusts the operator.
//
// # Rules that are easy to miss
//
// testdata/counterexamples.txt has, for each rule, a shortest way to break the protocol without it.
// These would be missed by a design that fences orders by epochs and ends attempts by leases:
//
//   - A lease that any frame renews, at the moment of its arrival, may end at any time:
//     frames reach a worker whose answers are lost, or reach it late (LeaseFromSending).
//   - A former leader that does not know of its end renews leases which the present leader counts as
//     over (RenewWhileLeading).
//   - A worker that has just joined has not seen an epoch. A former leader can be the first
//     to reach it, and the present one need not know that it exists (RegisterWorkers).
//   - A process that is dead or stopped does not end its tasks (LeaseNeedsNoWorker).
//   - The grace between SIGTERM and SIGKILL comes after the lease (MarginCoversGrace).
//   - An order that waits at the worker outlives the lease (OverIsOver), and one that is under way
//     outlives the silence of its worker (SilenceEndsSession).
//   - An epoch does not tell two engines of one term apart, or two connections (NewestSession).
//
// One of NoteIsDurable and RegisterIncarnations is enough: a former leader cannot register a worker that
// was restarted, and so it does not matter that the worker has forgotten the epoch. Both are kept.
// Other rules that are missing here are not needed for these promises: that a worker writes an end to
// its journal before it tells the end saves work when both die, and the attempt would be lost
// otherwise.
//
// # Placed grants
//
// The variant Model.PlacedGrants keeps the promises with less: the row of a grant names the worker, that
// is this process of it, which alone may be given the attempt. Another worker needs another entry. So
// workers are not registered, a new leader waits for the one worker that the row names and not for
// all, and the note of the highest epoch need not survive the worker. All other rules are needed as
// before. A worker that does not answer then holds up its own attempts only.
//
// # What the model leaves out
//
// Replication below the log: that a committed entry survives, and that there is one leader a term, is
// what Raft proves. Slots, the queue of a worker, timeouts, kills by users and output files. A node
// with a lost disk comes back under a new id, so for this protocol it is one that does not come back.
// A worker with a lost disk does the same.
//
// # How to read it
//
//	rules.go         the rules, each of which can be switched off, and the properties
//	state.go         a state of the model
//	model.go         the scope of a check; which states are the same
//	steps_*.go       what can happen
//	step.go          the texts of a trace
//	checker.go       the visit of all states, for any system
//	model_test.go    the scopes; what each rule is needed for
//
// A frozen node takes its next step late, so it needs no step of its own. A step that the model offers may
// always be left out, except that time waits for attempts to be ended in time.
//
// The states of a scope are those that can be reached within its faults. A fault that a scope lacks, or
// one more of them, is not checked: small scopes find most faults of a protocol, and a proof would be
// more. Where it makes states fewer without a loss, the model is coarser than a program:
// one heartbeat at a time, a former leader that cannot order any more counts as ended
// (Model.isPowerless), and an engine learns the outcome of a commit in the step that commits.
package model
