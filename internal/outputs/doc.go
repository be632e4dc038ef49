// Package outputs stores the long output of attempts: one append-only file per run.
//
//	DIR/<run/1000>/<run>.out        mode 0600
//
// The output of an attempt is written once, after its end. It is durable before Append returns,
// including the names of its file and folder; only then is its offset recorded. Bytes of a file that
// no record refers to are the rest of an append that a crash or a full disk interrupted. They are
// harmless.
//
//	append                                              read
//	admitAppend  is there room beyond the reserve?      Log       record → file and offset
//	acquire      the open file, or a new one            checkHeader  the section is the record's
//	reserveSpace the file grows, under flock            loadBlock    64 KiB, checked
//	writeParts   sections, without any lock
//	sync         one fdatasync for all that wait
//
// The server has a Store for reads, for Slurm's output and for backups. Each worker has one for
// appends (executor). The record of an attempt, in the journal, is written after the append, so a
// record never refers to bytes that are not durable.
//
// A file is a sequence of sections, one for each stream of an attempt (section.go). A section names
// its attempt and has a checksum for each 64 KiB. A read verifies a block before it returns any byte
// of it. A mismatch is a *DamageError with the file and the position. Verify checks all records of a
// run.
//
// In a cluster each node has a Store with the output of its own attempts. OpenCopies reads a stream from
// whichever node can give it: a Section is the part of a Log that may be elsewhere.
//
// Several processes may append to one file, each through its own Store, as workers of two versions
// do. The size of the file, changed under flock, determines where an append begins.
//
// Locks: Store.mu guards the table of open files and is held during no I/O except opening a file.
// file.mu guards the size and the sync state of one file and is held during no I/O except a change
// of the size.
//
// Reading order: section.go is the format, store.go appends, log.go reads, file.go shares files
// between goroutines and processes, copies.go reads from several nodes, transfer.go and verify.go
// serve backups, salvage and check.
package outputs
