// Package persistence stores runs: their definition, the journal of their transitions, rolling
// snapshots, attempt records, generated sets, and the indexes that find them. The seam is the Store
// interface; RunStore implements it, over the rows of a DB.
//
// Rules of the seam:
//
//  1. A batch is atomic: a crash keeps all of it or loses all of it.
//  2. Done(nil) is called only when the batch survives kill -9 and power failure.
//  3. Batches become durable in the order of Append, and Done is called in that order. Only the
//     creation of a run with a long document is overtaken by later batches.
//  4. After a commit error other than a batch's own fault the store has failed: this and every
//     later batch get ErrFailed, and no more is written.
//  5. A read returns only what is durable.
//
// Package journaltest holds every implementation to these rules, also in the middle of a commit, at
// the moments that the implementation names. How much of rule 2 that proves depends on these
// moments, and on the disk. So further tests of the implementation hold it to rule 2:
// TestPowerFailure, TestAcknowledgedIsOnTheDevice and TestAcknowledgedRunsSurviveKill; and the
// tests of timestamps.go to rule 5.
//
// # The implementation
//
// It has two halves, with one interface between them:
//
//	RunStore    runs: batches become rows (encode.go), rows of several batches become one commit
//	            (commit.go). It knows which runs are unfinished, finished and deleted.
//	commitLog   makes a commit durable and numbers it. A single node has localLog: package commitlog in
//	            front of Badger. A replica has proposedLog: an entry of a replicated log.
//	DB          rows: Badger, its files, disk space and verification, and reads as of a commit.
//
// A single node opens a store and a DB together (OpenStore). The DB of a replica (OpenDB) lives as
// long as the replica, applies the entries of the log (DB.Apply), and has a store only while its
// node leads (DB.Lead): one for each term. replica.go lists the duties of the log's owner.
//
// Package badgerguard makes up for what Badger does not do: it verifies files, watches the disk,
// and skips tombstones.
//
// # To change the engine
//
// The code expects this of the engine under it:
//
//   - It applies the rows of a commit atomically, under the number that the commit log gave it, and
//     commits in their order (row_writer.go).
//   - It reads, and iterates in the order of keys in both directions, as of a past commit, while
//     later commits come. It learns the oldest commit that a read still uses (DB.publish).
//   - It says up to which commit its files are durable, so that the log may forget
//     (localLog.retireFlushed, DB.Sync), and never has a later commit in its files without all
//     earlier ones. It accepts the commits after that one again, whatever it has of them
//     (localLog.catchUp, DB.Apply).
//   - It says what a commit may hold. partSize, the segments and the record limit of the log, and
//     the reserve of disk space follow from the size of a memtable (badgerguard/options.go,
//     badgerguard/diskspace.go).
//
// TestOlderCommitsReplayedOverNewerRows holds Badger to the first and third of these,
// TestReplicasEndEqual to all of them together, and the tests of timestamps.go to the second.
//
// These files use Badger: db.go, row_writer.go, local_log.go, replica.go, replica_copy.go,
// timestamps.go (by its numbers), meta.go, read.go, list.go, iterators.go, attempts.go,
// documents.go, snapshot.go, delete.go, staged_batch.go, finished_index.go, rows.go, backup.go,
// offline.go, and verify.go through package badgerguard. The rows themselves (encode.go, values.go,
// mutation.go) do not.
//
// Commands and the server use more of the implementation than Store: Backup with ReadView, Restore
// and VerifyTables for backups; OpenOffline, Offline and SetNextRun for check and salvage.
//
// A change of keys or values raises rowFormat (meta.go): the open refuses other row formats, and
// restored rows are opened once, so Restore refuses them, too. A change of what lies in the folder
// raises datafolder.Format: a server and a restore refuse other folder formats before they open the
// store. The commit log, the groups of a replicated log (groupFormat) and the copies of a replica
// (copyMagic) have formats of their own.
//
// Reading order:
//
//	store.go           the seam: Batch, Journal, Reader, Store
//	commit.go          the commit pipeline: stages, what overlaps, what is durable when, failure
//	local_log.go       the commit log in front of Badger, and its replay
//	encode.go          from batches to rows
//	rows.go, values.go, attempts.go, snapshot.go   keys, checksums and values of rows
//	db.go, row_writer.go   Badger: opening, closing, writing
//	run_store.go, meta.go  opening, recovery and closing of a store; rows about the folder itself
//	timestamps.go      read timestamps and the index of unfinished runs
//	read.go, list.go, iterators.go, finished_index.go, deleted_ids.go   reading runs and lists of runs
//	documents.go, staged_batch.go   documents and batches that are too large for one commit
//	delete.go          deletion of runs, of journal records before a snapshot, of expired keys
//	verify.go, backup.go, offline.go   verification, backup, and reading a damaged folder
//	replica.go, lead.go, replica_copy.go   a DB as one replica of a replicated log
package persistence
