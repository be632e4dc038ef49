// Package query answers reads of runs without asking an actor.
//
// Runs' states, summaries and lists are read far more often than they change: clients poll them in
// tight loops. If such a read were a message, it would wait behind the work of the run, and the
// run would do the work of its readers. So each run publishes an immutable summary after each
// commit, and readers take it from the index, at the same cost for every run.
//
// The source of each read:
//
//   - the summary of an unfinished run: from the Index, which its actor keeps up to date
//   - the summary of a finished run, and its attempts: from the store
//   - the tasks of a finished run: from the store, by way of a cache (finished_runs.go). Those of
//     an unfinished run are the one read that is asked of the run's actor (actors/views.go): only
//     the actor has them, and it takes one copy between two commits. A dormant run, which is QUEUED
//     and has no actor yet, gets its actor for such a read
//   - lists: from the index and the store together, by ascending id
//
// Rules:
//
//  1. A summary is published after its commit. So a read shows durable states only, and an
//     answer that a reader has seen is not taken back by a crash.
//  2. The index has a run from its submission until its actor has stopped. A run that leaves the
//     index is in the store with its final state before.
//  3. Readers do not block writers: an entry is an atomic pointer, and a list holds the lock of
//     the index for one page at a time.
//
// Reading order: index.go, reader.go, lists.go, finished_runs.go.
package query
