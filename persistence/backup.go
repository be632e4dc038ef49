package persistence

import (
	"context"
	"fmt"
	"slices"

	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/dgraph-io/badger/v4"
)

// ReadView is all rows as of one commit. It is valid within Backup's fn, or until Close.
type ReadView struct {
	db  *DB
	txn *badger.Txn
	at  uint64
}

// View returns the rows as of the newest commit that can be read. Commits go on. The caller closes
// the view: until then Badger keeps the versions of its moment, and a Close of the DB waits. Once such
// a Close has begun, View returns ErrClosed.
func (db *DB) View() (*ReadView, error) {
	if err := db.beginView(); err != nil {
		return nil, err
	}
	at := db.timestamps.acquire()
	if err := db.Err(); err != nil { // a failure ends the wait for announced commits, as in readAt
		db.timestamps.release(at)
		db.readers.RUnlock()
		return nil, err
	}
	return &ReadView{db: db, txn: db.badger.NewTransactionAt(at, false), at: at}, nil
}

// Close ends a view that View has returned.
func (m *ReadView) Close() {
	m.txn.Discard()
	m.db.timestamps.release(m.at)
	m.db.readers.RUnlock()
}

// Backup calls fn with a view of the newest published commit. Commits and reads go on, but the
// store cannot be closed before fn has returned.
func (s *runReader) Backup(fn func(*ReadView) error) error {
	return s.view(func(txn *badger.Txn) error { return fn(&ReadView{db: s.db, txn: txn, at: txn.ReadTs()}) })
}

// VerifyTables reads all tables while the store works. A backup calls it, because readers take a
// damaged block for the end of the rows.
func (db *DB) VerifyTables(ctx context.Context) error {
	report, err := badgerguard.Verify(ctx, db.dir, badgerguard.VerifyOptions{Live: true})
	if err != nil {
		return err
	}
	if err := report.Err(); err != nil {
		return fmt.Errorf("damaged: %w", err)
	}
	return nil
}

// VerifyTables reads all tables of the store's DB while the store works.
func (s *RunStore) VerifyTables(ctx context.Context) error { return s.db.VerifyTables(ctx) }

// CommitNumber returns the number of the newest commit in the view.
func (m *ReadView) CommitNumber() uint64 { return m.at }

// rowsPerLook is how many rows are read between two looks at the context.
const rowsPerLook = 64

// Rows yields all rows as they are stored, with their verified checksums, by ascending keys, until
// yield returns an error or ctx ends. Key and value are valid within the call. A wrong checksum ends
// it with an error, and a lost block is not seen here: a caller that needs all rows calls
// VerifyTables, too.
func (m *ReadView) Rows(ctx context.Context, yield func(key, value []byte) error) error {
	read := 0
	return scanTxn(m.txn, nil, nil, false, func(key []byte, item *badger.Item) (bool, error) {
		if read++; read%rowsPerLook == 0 {
			if err := context.Cause(ctx); err != nil {
				return false, err
			}
		}
		err := item.Value(func(value []byte) error {
			if err := CheckRow(key, value); err != nil {
				return err
			}
			return yield(key, value)
		})
		return err == nil, err
	})
}

// allRows is Rows for a caller that must not miss a row. It reads all tables afterwards: a block that
// was damaged when the rows were read still is, unless a compaction has deleted its table since.
func (m *ReadView) allRows(ctx context.Context, yield func(key, value []byte) error) error {
	if err := m.Rows(ctx, yield); err != nil {
		return err
	}
	return m.VerifyTables(ctx)
}

// VerifyTables reads all tables of the view's DB. Rows that were read from a damaged table may be incomplete,
// without an error: see allRows.
func (m *ReadView) VerifyTables(ctx context.Context) error { return m.db.VerifyTables(ctx) }

// HasRun reports whether a run is known as of the view.
func (m *ReadView) HasRun(run messages.RunID) (bool, error) {
	sum, err := summaryTxn(m.txn, run)
	return sum != nil, err
}

// Restore makes a store in c.Dir, which must be empty, of rows as ReadView.Rows yields them, and
// opens it once to prove that it can be opened. The store is durable when Restore returns.
func Restore(c Config, rows func(yield func(key, value []byte) error) error) error {
	s, err := OpenStore(c)
	if err != nil {
		return err
	}
	if err := s.restore(rows); err != nil {
		_ = s.Close() // the store is incomplete
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	if s, err = OpenStore(c); err != nil {
		return err
	}
	return s.Close()
}

// restoreBytes is how much one commit of a restore has, in bytes.
const restoreBytes = 1 << 20

// restore commits rows in their order, restoreBytes at a time. A crash leaves a part of them, so
// the caller fills a folder that no server opens yet.
func (s *RunStore) restore(rows func(yield func(key, value []byte) error) error) error {
	var mutations []mutation
	size := int64(0)
	flush := func() error {
		err := s.commitRows(mutations)
		mutations, size = mutations[:0], 0
		return err
	}
	err := rows(func(key, value []byte) error {
		if err := CheckRow(key, value); err != nil {
			return err
		}
		m := mutation{Key: slices.Clone(key), Value: slices.Clone(value)}
		if m.Size() > s.limits.Bytes {
			return fmt.Errorf("%s: %d bytes: the backup is of a larger disk; rows here may have %d bytes", rowName(key), m.Size(), s.limits.Bytes)
		}
		if size += m.Size(); size > min(restoreBytes, s.limits.Bytes/2) && len(mutations) > 0 {
			if err := flush(); err != nil {
				return err
			}
			size = m.Size()
		}
		mutations = append(mutations, m)
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}
