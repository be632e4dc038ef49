package persistence

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// summaryRows reads summaries of unfinished runs, or of finished ones, of candidates in
// ascending order.
type summaryRows struct {
	it  *badger.Iterator
	typ byte
	key []byte
}

// nearRows is how many rows are passed over before the next one is looked for.
const nearRows = 16

// newSummaryRows shows what is deleted, too: else one step could pass over any number of
// rows.
func newSummaryRows(txn *badger.Txn, typ byte) *summaryRows {
	return &summaryRows{it: txn.NewIterator(badger.IteratorOptions{Prefix: []byte{typ}, AllVersions: true}), typ: typ}
}

func (l *summaryRows) close() { l.it.Close() }

// row is the row of a run, nil when there is none. It is valid until the next call.
func (l *summaryRows) row(run messages.RunID) *badger.Item {
	begun := l.key != nil
	l.key = appendRunKey(l.key[:0], l.typ, run)
	for range nearRows {
		if !begun || !l.it.Valid() || bytes.Compare(l.it.Item().Key(), l.key) >= 0 {
			break
		}
		l.it.Next()
	}
	if !begun || l.it.Valid() && bytes.Compare(l.it.Item().Key(), l.key) < 0 {
		l.it.Seek(l.key)
	}
	// Of a row's versions the newest comes first.
	if !l.it.Valid() || !bytes.Equal(l.it.Item().Key(), l.key) || l.it.Item().IsDeletedOrExpired() {
		return nil
	}
	return l.it.Item()
}

// finalRows reads summaries of finished runs in ascending order: of all, or by the index
// of a tag. The zero finalRows is of none.
//
// It is shown deleted rows, too, and jumps from the first of some over all that are known
// to be gone. A run whose row is deleted, and that is none of those that may be
// unfinished, is gone: so each is passed over once after the store was opened.
type finalRows struct {
	txn    *badger.Txn
	it     *badger.Iterator
	prefix []byte
	gone   *gone
	live   []messages.RunID // may be unfinished, up to end
	end    messages.RunID
	found  idRange // are gone, and will be noted
	some   bool    // found is not empty
}

// newFinalRows begins with the first run from one on. live are those up to end that may
// be unfinished, of the same moment.
func newFinalRows(txn *badger.Txn, q *messages.ListQuery, from, end messages.RunID, live []messages.RunID, gone *gone) *finalRows {
	f := &finalRows{txn: txn, prefix: []byte{typeFinal}, gone: gone, live: live, end: end}
	if indexes := indexesOf(q); len(indexes) > 0 {
		f.prefix = indexes[0]
	}
	f.it = txn.NewIterator(badger.IteratorOptions{Prefix: f.prefix, AllVersions: true})
	f.seek(gone.after(from))
	f.settle()
	return f
}

func (f *finalRows) close() {
	if f.it != nil {
		f.note()
		f.it.Close()
	}
}

func (f *finalRows) seek(run messages.RunID) {
	f.it.Seek(binary.BigEndian.AppendUint64(bytes.Clone(f.prefix), uint64(run)))
}

// settle passes over deleted rows.
func (f *finalRows) settle() {
	for {
		run, ok := f.run()
		if !ok || run > f.end || !f.it.Item().IsDeletedOrExpired() {
			return
		}
		if _, unfinished := slices.BinarySearch(f.live, run); !unfinished {
			if f.some && f.found.last+1 != run {
				f.note()
			}
			if !f.some {
				f.found, f.some = idRange{first: run}, true
			}
			f.found.last = run
		}
		f.pass(run)
	}
}

// note notes the runs that were found to be gone.
func (f *finalRows) note() {
	if f.some {
		f.gone.add(f.found.first, f.found.last)
	}
	f.some = false
}

// pass goes behind a run's row, all its versions, and the runs behind it that are gone.
func (f *finalRows) pass(run messages.RunID) {
	if run < 1<<64-1 {
		if to := f.gone.after(run + 1); to > run+1 {
			f.seek(to)
			return
		}
	}
	for at, ok := run, true; ok && at == run; at, ok = f.run() {
		f.it.Next()
	}
}

// run is the present one, false when there is none.
func (f *finalRows) run() (messages.RunID, bool) {
	for f.it != nil && f.it.Valid() && !wholeKey(f.it.Item().Key()) {
		f.it.Next()
	}
	if f.it == nil || !f.it.Valid() {
		return 0, false
	}
	key := f.it.Item().Key()
	return messages.RunID(binary.BigEndian.Uint64(key[len(key)-8:])), true
}

// row is the present run's row. It is valid until next.
func (f *finalRows) row() (*badger.Item, error) {
	item := f.it.Item()
	if f.prefix[0] == typeFinal {
		return item, nil
	}
	key := item.Key()
	return f.txn.Get(append([]byte{typeFinal}, key[len(key)-8:]...))
}

// next goes on.
func (f *finalRows) next() {
	run, _ := f.run()
	f.pass(run)
	f.settle()
}

// finishedRows reads what is stored of candidates, in ascending order.
type finishedRows struct {
	txn     *badger.Txn
	indexes []*indexCursor
	near    *summaryRows // of candidates that follow closely
	last    messages.RunID
	begun   bool
}

func (f *finishedRows) close() {
	for _, x := range f.indexes {
		x.it.Close()
	}
	if f.near != nil {
		f.near.close()
	}
}

// agree returns the run when each index has it, else a later one before which there is none
// that each has; ok is false when there is none at all.
func (f *finishedRows) agree(run messages.RunID) (at messages.RunID, ok bool) {
	at = run
	for _, x := range f.indexes {
		next, ok := x.from(run)
		if !ok {
			return 0, false
		}
		at = max(at, next)
	}
	return at, true
}

// row is the row of a run, nil when it is not found. It is valid until the next call.
func (f *finishedRows) row(run messages.RunID) (*badger.Item, error) {
	close := f.begun && run-f.last <= nearRows
	f.begun, f.last = true, run
	if close {
		if f.near == nil {
			f.near = newSummaryRows(f.txn, typeFinal)
		}
		return f.near.row(run), nil
	}
	item, err := f.txn.Get(runKey(typeFinal, run))
	if err == badger.ErrKeyNotFound {
		return nil, nil
	}
	return item, err
}

// indexCursor reads the index of a tag, or of a label.
type indexCursor struct {
	it     *badger.Iterator
	prefix []byte
	key    []byte
	begun  bool
}

// newIndexCursor shows what is deleted, too: else one step could pass over any number of rows.
func newIndexCursor(txn *badger.Txn, prefix []byte) *indexCursor {
	return &indexCursor{it: txn.NewIterator(badger.IteratorOptions{Prefix: prefix, AllVersions: true}), prefix: prefix}
}

// from returns the run when the index has it, else a later one before which it has none; ok
// is false when it has none at all. Runs must ascend.
func (x *indexCursor) from(run messages.RunID) (at messages.RunID, ok bool) {
	x.key = binary.BigEndian.AppendUint64(append(x.key[:0], x.prefix...), uint64(run))
	for range nearRows {
		if !x.begun || !x.it.Valid() || bytes.Compare(x.it.Item().Key(), x.key) >= 0 {
			break
		}
		x.it.Next()
	}
	if !x.begun || x.it.Valid() && bytes.Compare(x.it.Item().Key(), x.key) < 0 {
		x.it.Seek(x.key)
	}
	x.begun = true
	for x.it.Valid() && !wholeKey(x.it.Item().Key()) {
		x.it.Next()
	}
	if !x.it.Valid() {
		return 0, false
	}
	at = messages.RunID(binary.BigEndian.Uint64(x.it.Item().Key()[len(x.prefix):]))
	if x.it.Item().IsDeletedOrExpired() { // of a row's versions the newest comes first
		return at + 1, at < 1<<64-1
	}
	return at, true
}
