package persistence

import (
	"slices"

	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/dgraph-io/badger/v4"
)

// Lists and indexes read rows through badgerguard.Iterator, which shows tombstones. Without that
// one step could pass over any number of rows that finished and deleted runs have left.

// summaryLookup finds the summaries of given runs, which must ascend. It suits runs that follow
// closely: a lookup steps to a near row and seeks to a distant one.
type summaryLookup struct{ it *badgerguard.Iterator }

// newSummaryLookup finds summaries of unfinished runs, or of finished ones, by the type of the row.
func newSummaryLookup(txn *badger.Txn, typ byte) summaryLookup {
	return summaryLookup{badgerguard.NewIterator(txn, []byte{typ})}
}

// find returns the row of a run, nil when it is missing. The row is valid until the next call.
func (l summaryLookup) find(run messages.RunID) *badger.Item {
	if !l.it.SeekForward(uint64(run)) {
		return nil
	}
	if id, _ := l.it.ID(); id != uint64(run) || l.it.Deleted() {
		return nil
	}
	return l.it.Item()
}

// indexCursor reads the index of a tag, or of a label.
type indexCursor struct{ it *badgerguard.Iterator }

func newIndexCursor(txn *badger.Txn, prefix []byte) indexCursor {
	return indexCursor{badgerguard.NewIterator(txn, prefix)}
}

// firstFrom returns run when the index has it, else a later run; the index lacks all runs between.
// ok is false at the end of the index. Runs must ascend.
func (x indexCursor) firstFrom(run messages.RunID) (at messages.RunID, ok bool) {
	if !x.it.SeekForward(uint64(run)) {
		return 0, false
	}
	id, _ := x.it.ID()
	if x.it.Deleted() {
		return messages.RunID(id) + 1, id < 1<<64-1
	}
	return messages.RunID(id), true
}

// candidateReader reads the index rows and summaries of candidates of a list, which ascend.
type candidateReader struct {
	txn       *badger.Txn
	numbering messages.Numbering
	indexes   []indexCursor
	near      *summaryLookup // of candidates that follow closely; nil before the first one
	last      messages.RunID
	started   bool
}

// nearCandidates is the distance, in runs, up to which a lookup by iterator is cheaper than a get by
// key.
const nearCandidates = 16

func (c *candidateReader) close() {
	for _, x := range c.indexes {
		x.it.Close()
	}
	if c.near != nil {
		c.near.it.Close()
	}
}

// nextInAllIndexes returns run when each index has it, else a later run; each run between is
// missing in some index. ok is false at the end of an index.
func (c *candidateReader) nextInAllIndexes(run messages.RunID) (at messages.RunID, ok bool) {
	at = run
	for _, x := range c.indexes {
		next, ok := x.firstFrom(run)
		if !ok {
			return 0, false
		}
		at = max(at, next)
	}
	return at, true
}

// summaryRow returns the summary of a finished run, nil when it is missing. The row is valid until
// the next call.
func (c *candidateReader) summaryRow(run messages.RunID) (*badger.Item, error) {
	near := c.started && c.numbering.Number(run-c.last) <= nearCandidates
	c.started, c.last = true, run
	if near {
		if c.near == nil {
			lookup := newSummaryLookup(c.txn, typeFinished)
			c.near = &lookup
		}
		return c.near.find(run), nil
	}
	item, err := c.txn.Get(runKey(typeFinished, run))
	if err == badger.ErrKeyNotFound {
		return nil, nil
	}
	return item, err
}

// finishedIterator reads summaries of finished runs in ascending order: of all runs, or those that
// the index of a tag or label has. Its zero value is empty.
//
// It jumps over runs that are known to be deleted. At a tombstone of an unknown run it learns: a
// run without a summary that is not among the unfinished ones no longer exists. So each tombstone
// is stepped over once after the store was opened.
type finishedIterator struct {
	txn        *badger.Txn
	it         *badgerguard.Iterator
	byIndex    bool // it reads an index, not summaries
	deleted    *deletedRunIDs
	unfinished []messages.RunID // may be unfinished, up to end
	end        messages.RunID
	// Runs [foundFirst, foundLast] were found to be deleted and are not yet in deleted.
	foundFirst, foundLast uint64
	found                 bool
}

// newFinishedIterator starts at the first run at or after from. unfinished are the runs up to end
// that may be unfinished, at the transaction's read timestamp.
func newFinishedIterator(txn *badger.Txn, q *messages.ListQuery, from, end messages.RunID, unfinished []messages.RunID, deleted *deletedRunIDs) *finishedIterator {
	f := &finishedIterator{txn: txn, deleted: deleted, unfinished: unfinished, end: end}
	prefix := []byte{typeFinished}
	if indexes := indexPrefixes(q); len(indexes) > 0 {
		prefix, f.byIndex = indexes[0], true
	}
	f.it = badgerguard.NewIterator(txn, prefix)
	f.it.Seek(deleted.NextExisting(uint64(from)))
	f.skipDeleted()
	return f
}

func (f *finishedIterator) close() {
	if f.it != nil {
		f.flushFound()
		f.it.Close()
	}
}

// skipDeleted moves to the next row that is not a tombstone, up to end.
func (f *finishedIterator) skipDeleted() {
	for {
		run, ok := f.run()
		if !ok || run > f.end || !f.it.Deleted() {
			return
		}
		if _, unfinished := slices.BinarySearch(f.unfinished, run); !unfinished {
			f.addFound(uint64(run))
		}
		f.skipRun(run)
	}
}

// addFound notes that a run no longer exists. Neighbours are gathered into one range.
func (f *finishedIterator) addFound(id uint64) {
	if f.found && !f.deleted.areNeighbours(f.foundLast, id) {
		f.flushFound()
	}
	if !f.found {
		f.foundFirst, f.found = id, true
	}
	f.foundLast = id
}

func (f *finishedIterator) flushFound() {
	if f.found {
		f.deleted.Add(f.foundFirst, f.foundLast)
	}
	f.found = false
}

// skipRun moves past a run, and past the deleted runs that follow it.
func (f *finishedIterator) skipRun(run messages.RunID) {
	if next := uint64(run) + 1; next > 0 {
		if to := f.deleted.NextExisting(next); to > next {
			f.it.Seek(to)
			return
		}
	}
	f.it.Next()
}

// run returns the current run; ok is false past the last one.
func (f *finishedIterator) run() (run messages.RunID, ok bool) {
	if f.it == nil {
		return 0, false
	}
	id, ok := f.it.ID()
	return messages.RunID(id), ok
}

// summaryRow returns the current run's summary, valid until next.
func (f *finishedIterator) summaryRow() (*badger.Item, error) {
	if !f.byIndex {
		return f.it.Item(), nil
	}
	run, _ := f.run()
	return f.txn.Get(runKey(typeFinished, run))
}

func (f *finishedIterator) next() {
	run, _ := f.run()
	f.skipRun(run)
	f.skipDeleted()
}
