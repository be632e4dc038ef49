// Package actors is the tree that does what package dag decides:
//
//	node (root)
//	 ├─ shard-0 … shard-15   own the runs whose id mod 16 is theirs
//	 │    └─ run-<id>        a run, from its first grant or request until it is finished:
//	 │         │             holds dag.Run; is the supervisor strategy of its tasks
//	 │         └─ <index>.n  a task, from its first slot until it is terminal
//	 └─ dispatcher           owns the slots: package scheduler decides, grants go out in batches
//
// Beside the tree stand two services without state of their own: the journal
// (persistence.Store) and the timers (one heap per node).
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
// task's failure.
//
// Attempts whose executor is durable outlive the server and the run's actor. A run that
// is loaded resumes its attempts, and acknowledges an end once the end is durable.
//
// A run that is not in memory is loaded outside the actors (load.go). The only actors
// that wait for the disk are shards, for a row of a finished run.
//
// Times: clock.go has the machine's clocks, a run's time and its guarantees, and the
// server's own clock, which retention and resumed subscriptions use.
//
// Reading order: run.go, effects.go, task.go, attempts.go, shard.go, recovery.go,
// dispatcher.go (and package scheduler), node.go; for readers of runs summary_index.go, views.go,
// event_log.go, subscriptions.go.
package actors
