// Package commitlog is a write-ahead log: it keeps commits in their order until they are durable
// elsewhere. It stands in front of Badger, which then need not sync.
//
// # Why it exists
//
// Badger's own log files (*.mem) are neither trustworthy nor fast:
//
//   - They are mapped, sparse files. A sync writes page faults, block allocations and a commit of the
//     file system's journal, and a full disk is a signal (SIGBUS) instead of an error.
//   - Their replay takes the first damaged entry for the end. One flipped bit silently loses all
//     entries after it.
//   - The name of a new file is not synced.
//
// # What it relies on
//
// It does not use Badger. Its user (localLog of package persistence, duty 3) needs these properties of
// Badger, so that the log may forget what tables have:
//
//   - The rows of a commit are one request to Badger, and lie in one memtable.
//   - Memtables become tables in the order in which they were filled, so tables come in the order of
//     the commits.
//   - A table's content is synced before the manifest names it, and the manifest before DB.Tables
//     shows it.
//   - DB.Tables tells the number of a table's newest commit.
//
// TestTablesHoldRowsWithoutBadgersLogs of package badgerguard fails when tables of a new Badger come in
// another order. TestPowerFailure and TestBadgerLogsDoNotCount of package persistence fail when a
// crash loses what the log has forgotten.
//
// It relies on fdatasync and on fsync of folders: TestPowerFailure loses power at
// each operation, TestFilesAreSyncedBeforeUse checks the order of the syncs.
//
// # Files
//
//	0000000007.log  segments: a header page and then records without gaps
//	state           identifies the log and says how far it was used (state.go)
//	*.spare, *.new  files that wait to be reused, and files that are being made
//	LOCK            held while the log is open
//
// Before its first record, a segment is full of zeros, or of its former content. So a commit is one
// write into existing blocks, and one fdatasync without metadata.
//
// # Rules
//
//  1. Each record's number is one more than that of the record before. A gap is damage.
//  2. A record's checksum covers number and length and is bound to log, segment and offset. Bytes that
//     lie elsewhere, or lay there before, never pass for it.
//  3. One record is written at a time, and the next one when it is synced. So a crash tears at most the
//     last record, and a torn record is never followed by another one.
//  4. Bytes that cannot be read are a torn tail if they are followed by no whole record, and if no
//     record from there on was acknowledged. For the first, every place where a record could lie is
//     searched. For the second there is the witness: a number that is written, unsynced, after each
//     sync. Everything else is damage: a DamageError names file and offset, no file is changed, and the
//     log is not opened.
//  5. A name counts when its folder is synced: that of a new segment before its first record, that of a
//     retired one before its content changes.
//  6. After a failed write or sync the log has failed for good. The kernel may have dropped what it
//     could not write, and report the next sync as a success.
//
// One damage stays undetected: that of the very last record after a power failure that came before
// the witness reached the device (the kernel writes it within some 30 s). Such a record looks like
// one whose write the failure has interrupted.
//
// # The caller's duties
//
//  1. Open; then Replay, and apply all records after Applied to the store.
//  2. For each commit: Append, Sync, and only then acknowledge it. Rows that the
//     store gets at the same time must stay invisible until then.
//  3. Retire what the store has made durable by itself. Without that the log grows.
//  4. Close when the store is closed; clean when all was retired.
//
// Reading order: record.go, segment.go, state.go, scan.go (what is a tail, what is damage), log.go
// (the writer), preparer.go (making, reusing and retiring segments).
package commitlog
