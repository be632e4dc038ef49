// Package persistence stores runs: their definition, the journal of their transitions, rolling
// snapshots, attempt records, generated sets, and the indexes that find them. The seam is the Store
// interface; Badger implements it.
//
// Rules of the seam (package journaltest holds every implementation to them):
//
//  1. A batch is atomic: a crash keeps all of it or loses all of it.
//  2. Done(nil) is called only when the batch survives kill -9 and power failure.
//  3. Batches become durable in the order of Append, and Done is called in that order. Only the
//     creation of a run with a long document is overtaken by later batches.
//  4. After a commit error other than a batch's own fault the store has failed: this and every later
//     batch get ErrFailed, and no more is written.
//  5. A read returns only what is durable.
//
// # The implementation
//
// A batch becomes rows (encode.go), rows of several batches become one commit (commit.go), and a
// commit is durable once the commit log has it (package commitlog). Then Badger gets the same rows
// (wal.go), for reads. Package badgerguard makes up for what Badger does not do: it verifies files,
// watches the disk, and skips tombstones.
//
// Reading order:
//
//	store.go           the seam: Batch, Journal, Reader, Store
//	commit.go          the commit pipeline: stages, what overlaps, what is durable when, failure
//	wal.go             the commit log in front of Badger, and its replay
//	encode.go          from batches to rows
//	rows.go, values.go, attempts.go, snapshot.go   keys, checksums and values of rows
//	badger.go, meta.go opening, recovery, closing; rows about the folder itself
//	timestamps.go      read timestamps and the index of unfinished runs
//	read.go, list.go, iterators.go, finished_index.go   reading runs and lists of runs
//	documents.go, large_batch.go   documents and batches that are too large for one transaction
//	delete.go          deletion of runs, of journal records before a snapshot, of expired keys
//	verify.go, backup.go, offline.go   verification, backup, and reading a damaged folder
package persistence
