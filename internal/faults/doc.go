// Package faults provides failing file systems for tests.
//
//   - FS passes calls on to another file system, records them, and fails, delays or blocks the calls
//     that a Rule selects. With FollowScript it takes its rules from a file, so that a test reaches
//     the processes of a binary with the tag faults.
//
//   - Disk models what a power failure would leave of a real folder: the content of each file as of
//     its last Sync, the names of each folder as of its last SyncDir. PowerCut writes the model to
//     another folder.
//
//   - Damage damages a file as a disk may.
//
//   - Ext4 is a real file system in a file, whose power can be cut, and which fills up, stalls or
//     becomes read-only (root only).
//
//   - Lease and HangingFolder are a program and a folder that do not answer.
//
//     seam                      what a test can do                     who sees it
//     vfs.FS in a package       FS.Add, FS.Calls, Disk.PowerCut        code of this process that takes an FS
//     DATA.faults of a binary   WriteScript, ScriptHits                server and worker built with the tag
//     a file                    Damage                                 every program, also Badger
//     a path                    HoldLease, MountHanging                every program, also the kernel's exec
//     a folder                  NewExt4                                every program
//
// Released binaries lack it: cmd/caravan imports the package with the build tag faults alone.
//
// To cut the power at each sync, use an FS over a Disk, with a Rule whose Do calls PowerCut.
package faults
