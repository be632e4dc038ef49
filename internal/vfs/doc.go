// Package vfs makes the file system replaceable. Code whose writes must survive takes an FS, so that
// a test can record each sync, fail it, or cut the power (package internal/faults).
//
// An FS promises what a POSIX file system promises:
//
//  1. Written content is durable once File.Sync has returned nil. After an error of Sync the content
//     is unknown: the kernel may have dropped the pages and may report success for the next Sync.
//     Such a file must not be used any more.
//  2. A change of names (a new, renamed or removed file) is durable once SyncDir of the folder has
//     returned nil. Syncing the new file itself is not enough.
//  3. Rename replaces the target atomically.
//
// All functions that open a file accept regular files only, so that a FIFO in place of a file does
// not block the caller. Open, OpenNoFollow, ReadFile and ReadUserFile are for code that does not need
// an FS.
package vfs
