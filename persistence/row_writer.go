package persistence

import (
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// rowWriter gives commits to Badger: one at a time, in their order, unsynced. It belongs to whoever
// holds its token. That is the writer of a local log, or the goroutine that applies a replicated
// log.
//
// A commit is one transaction, and so one request to Badger: its rows lie in one memtable
// (localLog, duty 3). Badger answers on a goroutine of its own. So the caller may go on with the
// next commit, as far as that does not need Badger.
type rowWriter struct {
	db *badger.DB
	// idle holds a token while Badger has all that it was given. begin takes the token, and
	// Badger's answer returns it. It guards entries and err.
	idle    chan struct{}
	entries []badger.Entry // of the transaction that is under way; reused
	err     error          // why Badger did not take a commit; it gets none afterwards

	onApplied func(number uint64, mutations []mutation) // Badger has the commit; called with the token taken
	alarm     func(error)                               // fails the DB
	// writeRows is writeToBadger; tests put delays and errors in front of it.
	writeRows func(mutations []mutation, number uint64, done func(error))
}

func newRowWriter(db *badger.DB, onApplied func(number uint64, mutations []mutation), alarm func(error)) *rowWriter {
	w := &rowWriter{db: db, idle: make(chan struct{}, 1), onApplied: onApplied, alarm: alarm}
	w.idle <- struct{}{}
	w.writeRows = w.writeToBadger
	return w
}

// begin waits until Badger has all earlier commits, and takes the token.
func (w *rowWriter) begin() { <-w.idle }

// end returns the token without a commit.
func (w *rowWriter) end() { w.idle <- struct{}{} }

// wait waits until Badger has all that it was given, and returns why it has not taken some of it.
func (w *rowWriter) wait() error {
	w.begin()
	defer w.end()
	return w.err
}

// apply gives Badger a commit, and returns without waiting for the answer, which returns the token.
// The rows must stay unchanged until the next begin has returned.
//
// Badger gets no commit after one that it did not take: a table with a later commit would make the
// next open skip the missing one (localLog, duty 3).
func (w *rowWriter) apply(number uint64, mutations []mutation) {
	if w.err != nil {
		w.idle <- struct{}{}
		return
	}
	w.writeRows(mutations, number, func(err error) {
		if err != nil {
			w.err = err
			w.alarm(err)
		} else {
			w.onApplied(number, mutations)
		}
		clear(w.entries)
		w.idle <- struct{}{}
	})
}

// writeToBadger gives the rows to Badger, which answers by a call of done. The rows must stay
// unchanged until then. The caller holds the token.
func (w *rowWriter) writeToBadger(mutations []mutation, number uint64, done func(error)) {
	txn := w.db.NewTransactionAt(number-1, true)
	if cap(w.entries) < len(mutations) {
		w.entries = make([]badger.Entry, 2*len(mutations))
	}
	w.entries = w.entries[:len(mutations)]
	for i, m := range mutations {
		var err error
		if m.Delete {
			if err = txn.Delete(m.Key); err != nil {
				err = fmt.Errorf("delete a row: %w", err)
			}
		} else {
			w.entries[i].Key, w.entries[i].Value = m.Key, m.Value
			if err = txn.SetEntry(&w.entries[i]); err != nil {
				err = fmt.Errorf("set a row of %d bytes, %d of %d: %w", len(m.Value), i, len(mutations), err)
			}
		}
		if err != nil {
			txn.Discard()
			done(err)
			return
		}
	}
	if err := txn.CommitAt(number, done); err != nil {
		done(err)
	}
}
