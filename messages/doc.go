// Package messages holds what actors say to each other and what they hand out: identities, attempt
// records, immutable views of runs, and most messages between node, shard, run, task and dispatcher. It
// imports only dag and holds no logic but that of run IDs (numbering.go). Messages that need a type of
// package actors, or that an actor sends to itself or gets from its helpers, are declared in package
// actors beside their receiver, such as attachAttempt (actors/task.go) and wake (actors/dispatcher.go).
// The type switch in an actor's Receive, and in run.handle, lists all that the actor accepts.
//
// Rules:
//
//   - Whatever is reachable from a message is immutable once it has been sent. Sender and receivers
//     share it without a lock, so neither may write to it, and slices must not be appended to.
//   - A message that asks carries a Reply. Its receiver answers once, also when the run cannot be
//     loaded or the server is shutting down (Request.Refuse).
//   - A request that names a run goes to the run's shard, never to the run itself.
//   - Times are ns since the epoch by the server's wall clock, unless a field says otherwise. The times
//     that package dag gives to changes (Summary.LastUpdate, View.Changes) and to retries
//     (RetryDue.Due) are by the run's clock, which never goes backwards and may be ahead of the wall
//     clock (actors/clock.go).
//   - Tasks are indexes into the run's plan, attempts count from 1.
//
// Reading order:
//
//	runs.go           from the node to shards and runs: submit, recover, purge, the requests of users,
//	                  and the passivation of a run's actor; Reply, the way back to a caller
//	slots.go          between runs and the dispatcher
//	tasks.go          between a run and its tasks, and a run's own commits
//	views.go          what is handed out: summaries, views, lists
//	attempts.go       attempts: their records and their output
//	subscriptions.go  the events of a run, and changes of the list of runs
//	submissions.go    a planned spec on its way in
//	numbering.go      run IDs of a partition, and the numbers of its runs
//	errors.go, principal.go
package messages
