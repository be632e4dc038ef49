// Package outputs keeps the long output of attempts: one append-only file per run.
//
//	DIR/<run/1000>/<run>.out        mode 0600
//
// An attempt's bytes are written once, after it ended, and are durable before
// Append returns; only then does anybody learn their offset. So whatever lies in
// a file and is named by no record is the rest of an append that a crash or a full
// disk cut short, and does no harm.
//
// Several processes may append to one file, each through a Store of its own, as workers
// of two versions do: the file's size, changed under flock, says where an append begins.
//
// Locks: Store.mu guards the table of open files and is held over no I/O but
// opening; file.mu guards one file's size and its state of syncing, and is held
// over no I/O but the change of its size.
package outputs
