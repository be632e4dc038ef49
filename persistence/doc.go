// Package persistence keeps runs: their definition, the journal of their
// transitions, rolling snapshots, attempt records, generated sets, and the
// indexes that find them. Badger implements it; the seam is the Store interface.
//
// Rules of the seam (held by persistence/journaltest for every implementation):
//
//  1. A batch is atomic: after a crash all of it is there or nothing.
//  2. Done(nil) is called only when the batch survives kill -9 and power failure.
//  3. Batches become durable in the order of Append; Done is called in that order. Only
//     the creation of a run with a long document is overtaken by what comes behind it.
//  4. After a commit error other than a batch's own fault the store is failed: this
//     and every later batch get ErrFailed, and nothing more is written.
//  5. What is read was durable.
package persistence
