// Package actors is the tree that does what package dag decides:
//
//	node (root)
//	 ├─ shard-0 … shard-15   own the runs whose id mod 16 is theirs
//	 │    └─ run-<id>        a run, from its first grant or request until it is finished:
//	 │         │             holds dag.Run; is the supervisor strategy of its tasks
//	 │         └─ <index>.n  a task, from its first slot until it is terminal
//	 └─ dispatcher           slots, fairness between runs, grants in batches
//
// Beside the tree stand two services without state of their own: the journal
// (persistence.Store) and the timers (one heap per node).
//
// The duties of a run actor, in this order; nothing may be carried out before it
// is durable:
//
//  1. Apply the event to dag.Run and keep its effects.
//  2. When the mailbox has been drained (a Flush that the run sends to itself),
//     append one batch to the journal: transitions, attempt records, what was generated.
//  3. When the batch is Committed, carry out the effects: publish the summary,
//     start and stop tasks, ask for slots, answer callers.
//
// While a batch is being written further events wait, so that at the moment of
// Committed the state in memory is exactly the durable one: that is when views
// are taken. What users see was durable.
//
// A task actor fails by EscalateFailure when its attempt failed; the run restarts
// it when dag's retry policy has given it another attempt and the dispatcher a
// slot. A panic arrives the same way, is logged with its stack, and is not the
// task's failure.
//
// Attempts whose executor is durable outlive the server and the run's actor. A run that
// is loaded takes its own up again, and acknowledges an end when it has written it.
//
// A run that is not in memory is loaded outside the actors (load.go). No actor waits for
// the disk, but shards for a row of a finished run.
//
// Times: clock.go has the clocks, a run's time and what it promises; steady.go the
// server's own clock, which retention and readers of changes go by.
//
// Reading order: run.go, task.go, durable.go, shard.go (waiting.go, backlog.go), dispatcher.go (slots.go, claims.go), node.go;
// for who looks on, board.go, views.go, feed.go (follow.go), hub.go.
package actors
