// Package faults has file systems that go wrong, for tests.
//
//   - FS passes calls on to another file system, records them, and fails, delays or
//     stops at the calls that a Rule chooses. One that Follows a script takes its rules
//     from a file instead: so a test reaches the processes of a binary (tag faults).
//   - Disk keeps beside a real folder what a power failure would leave of it: of each
//     file the content as of its last Sync, of each folder the names as of its last
//     SyncDir. PowerCut writes that down as another folder.
//   - Damage changes a file as a disk may.
//   - Lease and HangingFolder are a program and a folder that do not answer.
//
// To cut the power at each sync: FS over Disk, with a Rule whose Do calls PowerCut.
package faults
