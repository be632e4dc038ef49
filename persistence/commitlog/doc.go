// Package commitlog keeps commits in their order until they are kept elsewhere: a
// write-ahead log in front of a store that syncs nothing by itself.
//
// It is a log of our own because that of the store below (Badger's *.mem files) cannot
// be trusted and is slow: it is a mapped, sparse file, so that a sync writes page faults,
// block allocations and a commit of the file system's journal, and a full disk is a
// signal; its replay takes the first damaged entry for the end, so that one flipped bit
// silently loses all that lies behind it; and the name of a new file is not synced.
//
// # Files
//
//	0000000007.log  segments: a header page and then records, one behind the other
//	state           what the log is, and how far it was used (state.go)
//	*.spare, *.new  files that wait to be used again, and that are being made
//	LOCK            held while the log is open
//
// A segment is full of zeros, or of what it held in a former life, before its first
// record comes. So a commit is one write into blocks that are there, and one fdatasync
// that has no metadata to write.
//
// # Rules
//
//  1. Each record's number is one more than that of the record before. A gap is damage.
//  2. A record's checksum covers number and length and is bound to log, segment and
//     offset. Nothing that lies elsewhere, or lay there before, passes for it.
//  3. One record is written at a time, and the next one when it is synced. So a crash
//     tears at most the last one, and no record lies behind a torn one.
//  4. What cannot be read is a torn tail if no whole record lies behind it and none from
//     there on was acknowledged. The first is found by looking at every place where a
//     record could lie, the second by the witness: a number that is written, unsynced,
//     after each sync. Everything else is damage: a DamageError names file and offset,
//     nothing is changed, and nothing is opened.
//  5. A name is used when its folder is synced: that of a new segment before its first
//     record, that of a retired one before its content changes.
//  6. After a failed write or sync the log has failed for good. The kernel may have
//     dropped what it could not write and call the next sync a success.
//
// What is not found: damage to the very last record after a power failure that came
// before the witness reached the device (the kernel writes it within some 30 s). It
// looks like a record whose write the failure interrupted.
//
// # The caller's duties
//
//  1. Open; Replay, and apply what comes to the store: all behind Applied.
//  2. For each commit: Append, Sync, and only then acknowledge it. What the store gets
//     beside the sync must not be shown before.
//  3. Retire what the store has made durable by itself. Without that the log grows.
//  4. Close when the store is closed; clean when all was retired.
//
// Reading order: record.go, segment.go, state.go, scan.go (what is a tail, what is
// damage), log.go (the writer), keep.go (files).
package commitlog
