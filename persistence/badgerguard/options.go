package badgerguard

import (
	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// Options returns the options with which every Badger of this program is opened. They keep memory
// small (three memtables and two small caches), keep every value in the tree, and leave durability
// to the commit log.
func Options(dir string, memTable int64) badger.Options {
	o := badger.DefaultOptions(dir).
		WithSyncWrites(false).      // the commit log is what is synced
		WithDetectConflicts(false). // there is one writer
		WithMetricsEnabled(false).
		WithMemTableSize(memTable).
		WithNumMemtables(2).
		WithNumLevelZeroTables(4).
		WithNumLevelZeroTablesStall(12).
		WithNumCompactors(3). // the third one keeps the last level free of tombstones
		WithCompression(options.Snappy).
		WithChecksumVerificationMode(options.OnBlockRead). // a damaged row is missing, never another row
		WithBlockCacheSize(8 << 20).
		WithIndexCacheSize(8 << 20).
		WithValueThreshold(min(1<<20, 15*memTable/100)). // no value ever goes to the value log
		WithValueLogFileSize(1 << 20)
	o.LmaxCompaction = true
	if memTable < 16<<20 {
		// A small disk: a single compaction must not need much space.
		o.LmaxCompaction = false
		o.NumLevelZeroTables, o.NumLevelZeroTablesStall = 2, 6
	}
	return o
}

// MemTableSize returns the memtable size that suits a file system of this size, both in bytes.
// Badger holds up to three memtables in memory, their files, and several tables of that size on
// disk.
func MemTableSize(fileSystem int64) int64 {
	switch {
	case fileSystem < 64<<20:
		return 1 << 20
	case fileSystem < 1<<30:
		return 4 << 20
	case fileSystem < 8<<30:
		return 16 << 20
	}
	return 32 << 20
}

// MemTableSizeFor returns the smallest memtable size whose transactions, and so the values that
// are kept in the tree, may have n bytes.
func MemTableSizeFor(n int64) int64 { return (n*100/12>>20 + 1) << 20 }

// rowOverhead is what Badger counts for a row beyond key and value, rounded up, in bytes.
const rowOverhead = 24

// RowSize returns what a row takes of Limits.Bytes. A deletion has no value.
func RowSize(key, value int) int64 { return int64(key+value) + rowOverhead }

// Limits are what one Badger transaction accepts. Beyond them Badger fails with ErrTxnTooBig.
type Limits struct {
	Rows  int
	Bytes int64 // of all rows by RowSize
	Value int   // bytes of one row's value
}

// TransactionLimits returns Badger's own limits, with a margin. A transaction takes 15 % of the
// memtable, and as many rows as the memtable has nodes of 96 bytes.
func TransactionLimits(memTable int64) Limits {
	limit := 15 * memTable / 100
	return Limits{Rows: int(limit / 128), Bytes: limit * 8 / 10, Value: int(min(512<<10, limit/3))}
}

// Fits reports whether this many rows with this many bytes may be one transaction.
func (l Limits) Fits(rows int, bytes int64) bool { return rows <= l.Rows && bytes <= l.Bytes }
