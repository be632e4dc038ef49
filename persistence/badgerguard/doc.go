// Package badgerguard makes up for what Badger does not do by itself. It holds all code that works
// around Badger, so that package persistence can use Badger as an ordered set of rows that are
// whole, and so that another engine could do without this package.
//
// Each part exists for one reason, relies on certain properties of Badger v4.9.6, and has a test
// that fails when a new Badger lacks one of them:
//
//	part             why it exists                          relies on                                test
//	verify.go        Badger opens damaged folders           file names, layouts of table/builder.go  TestOwnFolders,
//	table.go         and serves what is left of them        and manifest.go, CRC32C, Snappy or       TestEveryBit
//	manifest.go                                             plain, no encryption
//	inventory.go     a lost end of the manifest looks       the manifest grows until it is           TestOwnFolders,
//	                 like a shorter manifest                rewritten whole, under another name      TestCrashes
//	collect.go       Badger cannot open a part of a         a manifest may name any table, also      TestCollectedTablesOpen
//	                 folder                                 behind a symbolic link
//	folder.go        its log files are mapped, not          a table is durable before the manifest   TestTablesHoldRowsWithoutBadgersLogs,
//	                 trustworthy, and not needed behind     names it; tables come in the order of    TestLockIsBadgers
//	                 the commit log                         commits; flock on the folder
//	options.go       values outside of the tree are not     the limits of transactions, the value    TestBadgerAcceptsTheLimits,
//	                 verified                               threshold                                TestNoValueGoesToTheValueLog
//	large_batch.go   a transaction is limited               the same limits                          TestBadgerAcceptsTheLimits
//	diskspace.go     a full disk is SIGBUS, not an error    sizes of memtables and compactions,      TestTablesReportTheirSizes; TestFullDisk
//	                                                        DB.Tables                                of package persistence
//	iterator.go      a hidden iterator step passes over     AllVersions shows tombstones, newest     TestIteratorShowsTombstones
//	deleted_ids.go   any number of tombstones               version first
//	logger.go        a failed flush is only logged          the texts of two lines                   TestBadgerStillLogsTheseLines
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
// Reading order: folder.go, options.go, verify.go; then the part at hand.
package badgerguard
