// Package replay makes the state of a run from what is stored of it: the definition and the
// generated sets become a plan, and the last snapshot with the journal after it becomes the
// state of every task.
//
// It is what a run's actor is loaded by, what readers of finished runs are served from, and
// what a check of a stored run proves. It reads the store and does not write.
//
// Rules:
//
//  1. A definition that was accepted stays valid: limits that have become tighter hold for what
//     a run generates from now on (AcceptedLimits).
//  2. One long document is planned at a time, and its plan is shared (LongPlans): planning takes
//     seconds and hundreds of MB.
//  3. An error names the part that cannot be replayed. A run is replayed whole or not at all.
//
// Reading order: run.go, long_plans.go, check.go.
package replay
