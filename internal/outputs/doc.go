// Package outputs keeps the long output of attempts: one append-only file per run.
//
//	DIR/<run/1000>/<run>.out        mode 0600
//
// An attempt's bytes are written once, after it ended, and are durable before Append
// returns, with the names that lead to them; only then does anybody learn their offset.
// Whatever lies in a file without a record that names it is the rest of an append which a
// crash or a full disk cut short, and does no harm.
//
// A file is a row of sections, one for each stream of an attempt (section.go). A section
// says whose it is, and carries a checksum for each 64 KiB. Reading checks a block before
// it gives out a byte of it: what does not match is a *DamageError that names the file
// and the place in it. Verify does that for all records of a run.
//
// Several processes may append to one file, each through a Store of its own, as workers
// of two versions do: the file's size, changed under flock, says where an append begins.
//
// Locks: Store.mu guards the table of open files and is held over no I/O but
// opening; file.mu guards one file's size and its state of syncing, and is held
// over no I/O but the change of its size.
package outputs
