// Package actors is the tree that does what package dag decides:
//
//	node (root)
//	 ├─ shard-0 … shard-15   own the runs whose number mod 16 is theirs (messages.Numbering)
//	 │    └─ run-<id>        a run, from its first grant or request until it is finished:
//	 │         │             holds dag.Run; is the supervisor strategy of its tasks
//	 │         └─ <index>.n  a task, while an attempt is live or its retry waits
//	 └─ dispatcher           owns the slots: package scheduler decides, grants go out in batches
//
// Outside the tree are two services without state of their own: the journal
// (persistence.Store) and the timers (one heap per node).
//
// What is an actor, and when:
//
//   - a run: from its first grant, or the first request that needs its tasks or changes it,
//     until it is passivated after its end (passivation.go). Until then the run is dormant:
//     QUEUED, and an entry in its shard (shard.go).
//   - a task: while it is GRANTED or RUNNING. After a failed attempt its actor is kept, suspended,
//     until the next attempt: of a run at most 4,096, and none across a load (supervision.go).
//     Any other task is a byte in its run.
//   - shards, dispatcher and node: always.
//
// Reads of runs' states, summaries, lists and finished runs, and all subscriptions, go around the
// actors (packages query and watch): they are frequent, and as messages they would wait behind
// the work of a run. Only the tasks of an unfinished run are read through its actor (views.go).
//
// The duties of a run actor, in this order. Effects are applied only once the batch is
// durable:
//
//  1. Apply the event to dag.Run and keep its effects.
//  2. When the mailbox has been drained (a Flush that the run sends to itself),
//     append one batch to the journal: transitions, attempt records, generated tasks.
//  3. When the batch is committed (BatchCommitted), apply the effects: publish the summary,
//     start and stop tasks, ask for slots, answer callers.
//
// While a batch is being written further events wait, so that at the moment of
// BatchCommitted the state in memory is exactly the durable one: that is when views
// are taken. Users see only durable states.
//
// A task actor fails by EscalateFailure when its attempt failed; the run restarts
// it when dag's retry policy has given it another attempt and the dispatcher a
// slot. A panic arrives the same way, is logged with its stack, and is not the
// task's failure. supervision.go has the whole way.
//
// Attempts whose executor is durable outlive the server and the run's actor. A run that
// is loaded resumes its attempts, and acknowledges an end once the end is durable.
//
// A run that is not in memory is loaded outside the actors (load.go). The only waits of an actor for
// the disk are those for one row: of a shard for a finished run (forwardRequest), and of the node for
// an idempotency key (submitWithKey).
//
// Times: clock.go has the machine's clocks, a run's time and its guarantees, and the
// server's own clock, which retention and resumed subscriptions use.
//
// Goroutines: the methods of an actor run on one goroutine at a time, one of a pool's
// (pool.go); those of Node on its callers'. Sinks of executors, the journal's Done, timers and loads
// come on goroutines of their own, and only send a message or store an atomic value.
//
// # An engine for one term
//
// A server on its own starts one engine, with Epoch 0, and closes it at its end. A partition of a
// replicated log has one engine for each term in which it is led here. These are the duties of its owner,
// one goroutine for each partition, in this order:
//
//  1. Take the term over: its first entry is committed, and every entry before that is applied here.
//  2. Open the store of the term: persistence.DB.Lead, with the Numbering of the partition.
//  3. Start, with that store and Numbering, the term as Epoch, the front of each executor that engines
//     share (executor.Shared.Front), and a Registerer that adds a label of the partition.
//  4. Publish the engine to those who pass requests on to it.
//
// When the term is over, Failed is closed, or the leadership is to be transferred:
//
//  5. Take the engine back from those who pass requests on. They pass an answer of a read on only if
//     the lease of the leadership holds then: the engine knows nothing of leases.
//  6. Detach, once, before a transfer of the leadership.
//  7. Close the store. The DB stays open.
//
// The owner also watches persistence.DB.Failed, for as long as the DB is open: an engine that leads no
// longer does not tell that the disk fails.
//
// What the owner may rely on:
//
//   - An error of Lead, Start, Detach or Node.Err that wraps persistence.ErrLost ends this engine alone.
//     After Start the owner goes on with step 7, after Failed with 5; then the next term may begin. Any
//     other error of Lead, Start or Node.Err ends the server.
//   - Start that fails leaves only the store.
//   - When Detach has returned, the engine has no goroutine and no metric, it gives no order to an
//     executor, and no report reaches it. Its attempts go on. What was never given to a worker stays
//     in the journal as granted.
//   - Detach waits for callers (awaitChanges, at most 1 s), for runs that are being loaded, for rows
//     that the janitor deletes and for the mark of the clock. The last two, and Close of the store,
//     return when Propose does. So Propose must return soon after the leadership is lost.
//   - A second engine of a partition cannot be open in one process: Lead and Front refuse it.
//   - A caller whose change was not written gets NotLeader, and one whose change the log may have gets
//     OutcomeUnknown (calls.go). A read gets NotLeader. So what answers with NotLeader may be repeated.
//   - Nothing is started, killed or answered unless its batch is committed and applied here. No-op tasks
//     are begun before: they leave no trace outside the journal.
//   - The clock of the engine begins at the newest time that the store has (clock.go), and numbers of
//     runs at its newest run. RaiseNextNumber may be called at any time until Detach.
//   - An attempt that the journal has and the executors here do not know is lost, and its task runs
//     again under the next number. Nothing ends that attempt where it was ordered.
//
// Reading order: run.go, requests.go, task.go, supervision.go, shard.go, passivation.go, recovery.go
// and load.go, dispatcher.go (and package scheduler), node.go. For readers of runs: package query,
// views.go, package watch.
package actors
