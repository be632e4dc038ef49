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
// and shows tombstones.
//
// # To change the storage engine
//
// Badger is the storage engine, below DB. Another one is not a second Store: it goes behind an
// interface in the files that use Badger. CONTRIBUTING.md has the steps. The code expects this of
// the storage engine:
//
//   - It applies the rows of a commit atomically, under the number that the commit log gave it, and
//     commits in their order (row_writer.go).
//   - It reads, and iterates in the order of keys in both directions, as of a past commit, while
//     later commits come. It learns the oldest commit that a read still uses, when reads may use a
//     new one (DB.publish in db.go, RunStore.publishCommit in commit.go). DB.catchUp, openReplica
//     and openView (offline.go) publish the first one. A storage engine that reads by snapshots takes one
//     before readTimestamps.publish shows the number, and drops it with its last reader: it needs
//     a hook for both in timestamps.go. With the oldest commit alone it would keep a snapshot of
//     each commit for as long as a backup takes. The last one is dropped before the storage engine is
//     closed (DB.Close, abandon, offline.go).
//   - It tells the newest commit of which its files have a row (badgerguard.NewestFlushed). They
//     then have all commits before that one, and perhaps only a part of that one; on a replica, all of
//     it (DB.openReplica). So once their folder is synced, the log may forget the commits before it
//     (localLog.retireFlushed, DB.Sync). The storage engine accepts the commits from that one on
//     again, whatever it has of them (localLog.catchUp).
//     It gets no commit again that its files have whole: Badger would not bear that
//     (TestInterruptedReplayBringsRowsBack).
//   - It says what a commit may hold. partSize, the segments and the record limit of the log, and
//     the reserve of disk space follow from the size of a memtable (badgerguard/options.go,
//     badgerguard/diskspace.go). Restore and salvage move rows from one storage engine to another, so
//     its limits on the same disk must be at least Badger's, also when Badger is gone: its backups are
//     restored. Groups of a replicated log may not grow (replicaLimits): a replica on Badger must take
//     those of a leader on the other one.
//   - A step of an iterator has a bounded cost next to deleted rows. Lists and deletions make Badger
//     show its tombstones for that (badgerguard.Iterator, rowDeletions). A storage engine that
//     hides its tombstones must bound a step in another way; one without tombstones has nothing to
//     show. TestListLearnsDeletedRuns expects them.
//   - A damaged block is the end of the rows for its iterator, without an error: scanTxn,
//     rowDeletions and badgerguard.Iterator ask for none, and the functions of iterators.go have no
//     error to return. So finishedIndex is the witness of lost rows, a backup verifies the tables
//     last (VerifyTables), and a new leader its index first (DB.verifyIndexTables). Errors of another
//     storage engine's iterators must be asked for, and they, as those of a get (getRowTxn), must wrap
//     ErrDamaged: only such errors are reported as damage (runReader.viewAt). A list takes the block
//     for the end of the rows. missingReporter then names the indexed runs from there on, and
//     confirmSuspected reads each by its key. summaryLookup.find must return the error: nil means
//     that a run is finished. A deletion must end with it (deleteMarked), or it would take the mark
//     away and leave rows.
//   - Its files are tables that never change, each with a number, and one file that names them. The
//     verifier, Offline and the inventory depend on that (verify.go; in offline.go linkTables,
//     tablesToRead, gatherRows, applyStagedBatches and openView). The inventory also has the highest run
//     ID (checkNextRun); the rest of it, and Report.Manifest, is Badger's. Offline also needs the
//     commit of each row of a table: the log that it reads has commits that tables have, too, and
//     newer rows of tables must win. Any further file that it keeps is verified, or may be lost.
//   - A scan without a prefix shows the rows of this package only (checkFormat, ReadView.Rows, digests).
//     A row that the storage engine adds, such as the number of a commit, sorts before all types of
//     rows: a table counts as one of single runs by its greatest key alone (DB.skippedByLead). Files that
//     InstallCopy, gatherRows and applyStagedBatches make have it as well.
//
// badgerguard/doc.go and commitlog/doc.go (What it relies on) have more of the contract: a close
// writes everything to files, a failed write in the background fails the DB (badgerguard.Logger),
// reserved keys, the lock of the folder.
//
// TestOlderCommitsReplayedOverNewerRows holds Badger to the first and third of these points,
// TestReplicasEndEqual to the first four together, and the tests of timestamps.go to the second.
//
// What these files use of Badger is little:
//
//	open, close  db.go (openTables, abandon, Close), offline.go (gatherRows, applyStagedBatches, openView,
//	             Close), replica_copy.go (fillFromCopy)
//	write        writeToBadger; many commits at once: replayer.flush, offline.go, writeCopiedRows
//	read         a transaction: readAt (read.go), DB.View and Backup; a row: getRowTxn, the two summaryRow of
//	             iterators.go; ErrKeyNotFound: these and decodeSummaryRow
//	iterate      scanTxn, rowDeletions, badgerguard.Iterator
//	forget       SetDiscardTs: DB.publish, RunStore.publishCommit
//	tables       localLog (retireFlushed, catchUp), openReplica, Sync, skippedByLead, DiskSpace
//
// All other functions pass a transaction or an item on.
//
// Its open files must fit into what maxConnections (cmd/caravan/process.go) keeps for the engine, at least
// 96 descriptors: its options bound them (badgerguard.Options), and maxConnections stays.
//
// internal/archtest/storage_test.go compares these lists with the code.
//
// These files use Badger: attempts.go, backup.go, commit.go, db.go, delete.go, documents.go,
// finished_index.go, iterators.go, lead.go, list.go, local_log.go, meta.go, offline.go,
// partition_copy.go, read.go, replica.go, replica_copy.go, row_writer.go, rows.go, snapshot.go,
// staged_batch.go and workers.go.
//
// These files use package badgerguard alone: mutation.go, run_store.go and verify.go.
//
// Outside of this package, cmd/caravan/check.go shows a badgerguard.Damage, and
// internal/e2e/damaged_files_test.go opens Badger.
//
// Tests know the names of its files (internal/e2e/check_test.go, internal/e2e/damaged_files_test.go,
// internal/e2e/data_folder_test.go), that of its manifest (cluster/rig_test.go, cluster/seed_test.go), and the
// size of its memtable (internal/e2e/large_runs_test.go, internal/outputs/store_test.go); bench/recovery.go
// knows that tables are named *.sst. The sizes change only if a memtable may exceed 32 MiB.
//
// These tests know Badger, its files or its tombstones: bench_test.go, commit_test.go, export_test.go,
// finished_index_test.go, iterators_test.go, lead_test.go, local_log_test.go, mutation_test.go,
// open_test.go, recovery_test.go, replay_property_test.go, replica_copy_test.go, replica_end_test.go,
// replica_test.go, run_store_test.go (it copies a folder in use, and relies on files that change in
// size when they change), timestamps_test.go and verify_test.go.
//
// Commands and the server use more of the implementation than Store: Backup with ReadView, Restore
// and VerifyTables for backups; OpenOffline, Offline and SetNextRun for check and salvage.
//
// A change of keys or values raises rowFormat (meta.go): the open refuses other row formats, and
// restored rows are opened once, so Restore refuses them, too. A change of what lies in the folder
// raises datafolder.Format: a server and a restore refuse other folder formats before they open the
// store; its comment names the price. To check and salvage another format is a finding, and they read
// on. So OpenOffline must refuse the files of another storage engine: else a salvage would keep what the
// commit log has, and leave out the tables. The commit log, the groups of a replicated log (groupFormat)
// and the copies of a replica (copyMagic) have formats of their own.
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
//	partition_copy.go  the rows of a single node, parted into copies of replicas
package persistence
