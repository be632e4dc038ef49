// Package datafolder opens data folders: it locks them, finds out whose they are, and
// refuses one that is damaged, incomplete, open to others, or not a data folder at all.
//
//	DATA/identity, identity.copy   who this folder is, twice (identity.go)
//	DATA/db/                       rows
//	DATA/output/                   what tasks printed
//	DATA/worker/                   workers' folders: sockets and journals
//	DATA/slurm/                    attempts that are jobs of Slurm, if the server has it
//	DATA/aside/                    worker/ and slurm/ of the folder that this one is a copy of
//
// There are three ways in, and each holds a lock on the folder until Close:
//
//	Open     a server's. It makes a new folder, and gives a copy a new identity.
//	Inspect  reads only; several at once, but not beside a server. It changes nothing.
//	Make     restore's and salvage's. The folder is valid once Draft.Finish has returned.
//
// The lock is flock(2) on the folder itself, so it belongs to this folder and not to a
// copy of it, and it cannot be removed.
//
// # Copies
//
// The identity says where the folder was when it was opened last: the inode number of
// DATA and its time of birth, and for the present boot of the machine the device
// number. A folder that is elsewhere is a copy. It gets a new ID, its worker/ and
// slurm/ are moved to aside/, so that nothing in it leads to processes or jobs of the
// original, and it is paused until somebody resumes it.
//
//	cp, rsync, tar, a move to another file system   a copy
//	mv on one file system, a bind mount, a symlink  the same folder
//	a volume that moves to another machine          the same folder
//	a restart of the machine                        the same folder
//	a snapshot mounted beside the original          a copy (another device)
//	another mount under another device number       a copy, though nothing was copied
//	a whole disk or machine that was cloned         not recognised: use serve --paused
//	a snapshot that was rolled back in its place    not recognised: use serve --paused
//
// Without a time of birth (some network file systems) the inode number alone decides
// between two boots.
//
// # Order of writes
//
//  1. A new folder gets db/, output/ and worker/ first, then its identity, in state new.
//     A folder without an identity is taken for a half-made one only if nothing lies in
//     those three.
//  2. Folder.Begin makes the state used, before the first request is served. Until then
//     nothing was acknowledged, so db/ may be incomplete, and is emptied when the folder is opened again.
//     Afterwards an empty or missing db/ is an error.
//  3. Of a copy, worker/ and slurm/ are moved before the new identity is written. After a
//     crash in between the folder is still a copy.
//  4. Each of the two identity files is written to a temporary file, synced, renamed,
//     and its name synced, before the other one is touched. The higher revision counts.
package datafolder
