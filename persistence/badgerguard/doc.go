// Package badgerguard makes up for what Badger does not do by itself, so that package persistence can
// use Badger as an ordered set of rows that are whole.
//
// Package persistence relies on more properties of Badger than the parts below do:
//
//   - A managed Badger takes the version of each row from the caller, and reads at a past commit until
//     SetDiscardTs gives that commit up.
//   - A commit of a transaction is one request, and one memtable has all of its rows.
//   - A transaction keeps slices of keys and values until it has ended: they must not change.
//   - DB.Close writes all memtables to tables.
//   - Keys that begin with !badger! are reserved. No key of package persistence begins with '!'.
//   - The size of memtables decides the limits of a transaction, and so the size of a row's part, the
//     segments of the commit log, how often the log checks what tables have, and the reserve of disk
//     space, which the reserve for outputs takes into account.
//
// Each part exists for one reason, relies on certain properties of Badger v4.9.6, and has a test that
// fails when a new Badger lacks one of them:
//
//	verify.go, table.go, manifest.go
//	    why       Badger opens damaged folders and serves what is left of them
//	    relies on file names, the layouts of table/builder.go and manifest.go, CRC32C, blocks in
//	              Snappy or plain, no encryption
//	    tests     TestFoldersOfThisBadgerVerify, TestEveryFlippedBitIsFound
//	inventory.go
//	    why       a manifest that has lost its end looks like one that was never longer
//	    relies on the manifest grows until it is rewritten whole, under another name
//	    tests     TestFoldersOfThisBadgerVerify, TestCrashesAreNotDamage
//	collect.go
//	    why       Badger cannot open a part of a folder
//	    relies on a manifest may name any table, also one behind a symbolic link
//	    tests     TestCollectedTablesOpen
//	folder.go
//	    why       Badger's log files are mapped and not trustworthy, and the commit log replaces them
//	    relies on tables come in the order of commits; a table is durable before the manifest names
//	              it; flock on the folder
//	    tests     TestTablesHoldRowsWithoutBadgersLogs, TestLockIsBadgers
//	options.go
//	    why       transactions are limited, and values outside of the tree are not verified
//	    relies on the limits of transactions, the value threshold
//	    tests     TestBadgerAcceptsTheLimits, TestNoValueGoesToTheValueLog
//	diskspace.go
//	    why       a full disk is SIGBUS, not an error
//	    relies on the sizes of memtables and of the output of compactions, DB.Tables
//	    tests     TestTablesReportTheirSizes, TestFullDisk of package persistence
//	iterator.go
//	    why       one step of Badger's iterator passes over any number of tombstones
//	    relies on AllVersions shows tombstones, the newest version first
//	    tests     TestIteratorShowsTombstones, TestSeekForwardAgreesWithAScan
//	logger.go
//	    why       a failed flush is only logged, and retried for ever
//	    relies on the texts of two lines
//	    tests     TestBadgerStillLogsTheseLines
//
// Not all of the package is Badger's. Another storage engine shares Damage, ErrInUse, Limits, VerifyOptions,
// Fingerprint, NextRun of Inventory, Report except for Manifest, and what the comment of DiskSpace calls
// independent of Badger.
//
// # Verification
//
// A folder is verified without Badger: its files are read as bytes, never written to, and whatever
// they hold is an error, not a panic. Badger itself verifies no checksum of a block by default; a
// block that cannot be read is the end of the data to an iterator; and tables that the manifest
// does not name are deleted. So verification comes before Badger opens the folder, and its errors
// name the file and the offset. It proves, and each violation is a *Damage:
//
//  1. MANIFEST exists when any other file does. It parses to its end, except for a torn tail: the
//     beginning of a record that was being written, or zeros.
//  2. Every table that MANIFEST names exists. Its blocks lie back to back from its first byte to
//     its index, index and blocks have the right checksums, and the keys ascend.
//  3. A table that MANIFEST does not name was deleted by it, or was being made.
//  4. KEYREGISTRY, when it exists, is that of a folder without encryption.
//  5. The folder agrees with its inventory (file INVENTORY, ours, see Inventory): a manifest only
//     grows, until Badger rewrites it whole; a table is never replaced by another one.
//
// Verification sees the tables that exist. A compaction that meets a damaged block takes it for the end of
// that table, reports no error, and deletes the table: the rows from the block on are missing in its result,
// which is whole (TestCompactionDropsADamagedBlock). Badger has no hook before that. So such damage is
// found if a verification or a read of the block comes before the compaction. After it, only the rows
// themselves can show what is missing: journal records and parts of documents are numbered, the index of
// finished runs knows their summaries until the store is closed, and replicas compare digests.
//
// Reading order: folder.go, options.go, verify.go; then the part at hand.
package badgerguard
