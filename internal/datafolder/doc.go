// Package datafolder opens data folders. It locks a folder, determines its identity, and refuses a
// folder that is damaged, incomplete, accessible to others, or not a data folder at all.
//
//	DATA/identity, identity.copy   the identity of this folder, twice (identity.go)
//	DATA/db/                       the store of a single server
//	DATA/cluster/                  the replicas of a node of a cluster, in place of db/ (node.go)
//	DATA/output/                   output of tasks
//	DATA/worker/                   folders of workers: sockets and journals
//	DATA/slurm/                    attempts that are jobs of Slurm, if the server has it
//	DATA/aside/                    worker/ and slurm/ of the original, in a copy
//
// There are three ways to open a folder. Each holds a lock on it until Close:
//
//	Open         for a server. It creates a new folder, and gives a copy a new identity.
//	Inspect      read-only. Several at a time, but not together with a server. InspectNode is that of a node.
//	CreateDraft  for restore and salvage. The folder is valid once Draft.Finish has returned.
//
// The lock is flock(2) on the folder itself. Therefore it belongs to this folder and not to a copy
// of it, and it cannot be removed.
//
// # Copies
//
// The identity records the location of the folder when it was last opened: the inode number of
// DATA and its birth time, and, for the same boot of the machine, the device number. A folder at
// another location is a copy. It gets a new ID, its worker/ and slurm/ are moved to aside/, so that
// nothing in it refers to processes or jobs of the original, and it is paused until it is resumed.
//
//	cp, rsync, tar, a move to another file system   a copy
//	mv on one file system, a bind mount, a symlink  the same folder
//	a volume that moves to another machine          the same folder
//	a restart of the machine                        the same folder
//	a snapshot mounted beside the original          a copy (another device)
//	another mount under another device number       a copy, although it is the same data
//	a clone of a whole disk or machine              not recognized: use serve --paused
//	a snapshot rolled back in place                 not recognized: use serve --paused
//
// On file systems without birth times (some network file systems) only the inode number decides
// between two boots.
//
// # Order of writes
//
//  1. A new folder gets db/, output/ and worker/ first, then its identity, in state new. A folder
//     without an identity counts as new only if these three are empty.
//  2. Folder.MarkUsed changes the state to used, before the first request is served. Before that the
//     folder has not acknowledged anything, so db/ may be incomplete and is emptied when the folder
//     is opened again. After that an empty or missing db/ is an error.
//  3. In a copy, worker/ and slurm/ are moved before the new identity is written. After a crash in
//     between the folder is still recognized as a copy.
//  4. Each of the two identity files is written to a temporary file, synced, renamed, and its name
//     synced, before the other one is touched. The higher revision is valid.
package datafolder
