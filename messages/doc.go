// Package messages holds what actors say to each other and what they hand out: identities, attempt
// records, immutable views of runs, and the closed sets of messages between node, shard, run, task and
// dispatcher. It imports only dag and holds no logic.
//
// Rules:
//
//   - Whatever is reachable from a message is immutable once it has been sent. Sender and receivers
//     share it without a lock, so neither may write to it, and slices must not be appended to.
//   - A message that asks carries a Reply. Its receiver answers once, also when the run cannot be
//     loaded or the server is shutting down (Request.Refuse).
//   - A request that names a run goes to the run's shard, never to the run itself.
//   - Times are ns since the epoch by the server's wall clock, unless a field says otherwise. Tasks are
//     indexes into the run's plan, attempts count from 1.
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
//	errors.go, principal.go
package messages
