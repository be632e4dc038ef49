// Package vfs is the file system as a seam: code that must not lose what it wrote
// takes an FS, so that a test can record each sync, fail it, or cut the power
// (package internal/faults).
//
// The seam says what a POSIX file system promises, and no more:
//
//  1. What was written is on the device once File.Sync has returned nil. After an error
//     of Sync nobody knows what is there: the kernel may have dropped the pages and may
//     call the next Sync a success. Do not use that file any more.
//  2. A name (of a new file, of a renamed one, that one is gone) is on the device once
//     SyncDir of its folder has returned nil. The sync of a new file is not enough.
//  3. Rename replaces the target in one step.
//
// Its opens, and Open, OpenOwn, ReadFile and ReadGiven for those that need no seam, take regular
// files only: a FIFO in place of a file makes nobody wait.
package vfs
