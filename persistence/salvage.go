package persistence

import (
	"bytes"

	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// CopyRun writes all rows of a run into another store, as they are.
func (o *Offline) CopyRun(run messages.RunID, to *Badger) error {
	sum, err := o.Summary(run)
	if err != nil {
		return err
	}
	var rows []op
	err = o.view(func(txn *badger.Txn) error {
		take := func(prefix []byte) error {
			return scanTxn(txn, prefix, nil, false, func(key []byte, item *badger.Item) (bool, error) {
				v, err := item.ValueCopy(nil)
				rows = append(rows, op{key: bytes.Clone(key), val: v})
				return true, err
			})
		}
		for _, typ := range runTypes {
			if err := take(runKey(typ, run)); err != nil {
				return err
			}
		}
		v, err := getTxn(txn, append(runKey(typeDef, run), 0, 0))
		if err != nil {
			return err
		}
		if c := decodeCreation(newDecoder(v, defV1)); c.hasKey {
			if err := take(idempotencyKey(c.key)); err != nil {
				return err
			}
		}
		if final(sum.State) {
			for _, key := range indexKeys(sum) { // a damaged one is made again
				rows = append(rows, seal(key, nil))
			}
		}
		for _, typ := range [...]byte{typeLive, typeFinal} { // the commit marker comes last
			if err := take(runKey(typ, run)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for len(rows) > 0 {
		n, size := 0, int64(0)
		for n < len(rows) && (n == 0 || to.fits(n+1, size+rows[n].size())) {
			size += rows[n].size()
			n++
		}
		done := make(chan error, 1)
		if !to.queue.push(&item{ops: rows[:n], done: func(err error) { done <- err }}) {
			return ErrClosed
		}
		if err := <-done; err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// SetNextRun makes ids below next used. The store is to be opened again.
func (s *Badger) SetNextRun(next messages.RunID) error {
	return s.deleteStep([]op{metaRow("next", uint64(next))})
}

// CopyKeys writes the idempotency keys of deleted runs into another store, and the mark of
// the server's own clock, by which they expire. Keys whose rows are damaged are left out.
func (o *Offline) CopyKeys(to *Badger) (kept int, err error) {
	if mark, ok, err := o.Mark(); err == nil && ok {
		if err := to.SetMark(mark); err != nil {
			return 0, err
		}
	}
	var rows []op
	flush := func() error {
		rows, change := to.counted(rows)
		if err := to.deleteStep(rows); err != nil {
			return err
		}
		to.kept.count.Add(change)
		return nil
	}
	err = o.view(func(txn *badger.Txn) error {
		return scanTxn(txn, []byte{typeExpiry}, nil, false, func(key []byte, item *badger.Item) (bool, error) {
			until, hash, err := parseExpiryKey(key)
			if err != nil || itemValue(item, func([]byte) error { return nil }) != nil {
				return true, nil
			}
			v, err := getTxn(txn, idempotencyKey(hash))
			if err != nil || v == nil {
				return true, nil
			}
			run, bodyHash, of, err := decodeKeyRow(v)
			if err != nil || of != until { // another run has the key by now
				return true, nil
			}
			rows = append(rows, seal(idempotencyKey(hash), appendKeyRow(nil, run, bodyHash, until)), seal(expiryKey(until, hash), nil))
			kept++
			if len(rows) < deleteRows {
				return true, nil
			}
			err = flush()
			rows = rows[:0]
			return err == nil, err
		})
	})
	if err == nil && len(rows) > 0 {
		err = flush()
	}
	return kept, err
}
