package persistence

import (
	"bytes"
	"fmt"

	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// deleteRows is how many tombstones one step of a deletion writes, so that what
// else is committed does not wait for it.
const deleteRows = 2000

const deletingV1 = 1

// Delete removes finished runs, in small batches of tombstones, and returns when
// that is durable. A run whose rows do not fit one batch vanishes first (summary,
// indexes), leaving a mark by which the next open goes on after a crash. Runs that
// are unknown are passed over; an unfinished run is an error. Their idempotency keys
// stay until keysUntil, see ExpireKeys.
func (s *Badger) Delete(runs []messages.RunID, keysUntil int64) error {
	return s.deleteRuns(runs, keysUntil, s.deleteStep)
}

func (s *Badger) deleteRuns(runs []messages.RunID, keysUntil int64, step func([]op) error) error {
	// One that began before another must not take that one's mark of the highest id back.
	s.purging.Lock()
	defer s.purging.Unlock()
	next, err := s.NextRun()
	if err != nil {
		return err
	}
	high := metaRow("next", uint64(next))
	batch := []op{high}
	var vanishing []messages.RunID // with the batch
	do := func(rows []op) error {
		rows, kept := s.counted(rows)
		if err := step(rows); err != nil {
			return err
		}
		s.kept.count.Add(kept)
		for _, run := range vanishing {
			s.gone.add(run, run)
		}
		batch, vanishing = []op{high}, vanishing[:0]
		return nil
	}
	for _, run := range runs {
		index, rows, err := s.rowsOf(run, keysUntil)
		if err != nil {
			return err
		}
		if len(index) == 0 {
			continue
		}
		if len(rows) == deleteRows {
			vanishing = append(vanishing, run)
			mark := seal(runKey(typeDeleting, run), []byte{deletingV1})
			if err := do(append(batch, append(index, mark)...)); err != nil {
				return err
			}
			if err := s.deleteMarked(run, step); err != nil {
				return err
			}
			continue
		}
		if len(batch)+len(rows) > deleteRows {
			if err := do(batch); err != nil {
				return err
			}
		}
		vanishing = append(vanishing, run)
		batch = append(append(batch, index...), rows...)
	}
	if len(batch) == 1 {
		return nil
	}
	return do(batch)
}

// deleteStep sends rows through the committer and waits for them.
func (s *Badger) deleteStep(rows []op) error {
	for len(rows) > 0 {
		n := min(len(rows), s.maxRows/2)
		done := make(chan error, 1)
		if !s.queue.push(&item{ops: rows[:n], done: func(err error) { done <- err }}) {
			return ErrClosed
		}
		if err := <-done; err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// rowsOf are the deletions of a run: those that make it unknown, none when it is unknown,
// and up to deleteRows of its other rows.
func (s *Badger) rowsOf(run messages.RunID, keysUntil int64) (index, rows []op, err error) {
	err = s.view(func(txn *badger.Txn) error {
		if index, err = indexRows(txn, run, keysUntil); err != nil || len(index) == 0 {
			return err
		}
		rows = runRows(txn, run, deleteRows)
		return nil
	})
	return index, rows, err
}

// indexRows are the rows that make a run unknown, and those of its idempotency key; none
// when it is unknown.
func indexRows(txn *badger.Txn, run messages.RunID, keysUntil int64) (rows []op, err error) {
	sum, err := summaryTxn(txn, run)
	if err != nil || sum == nil {
		return nil, err
	}
	if !final(sum.State) {
		return nil, fmt.Errorf("run %d: not finished: cannot be deleted", run)
	}
	rows = append(rows, op{key: runKey(typeFinal, run), del: true})
	for _, key := range indexKeys(sum) {
		rows = append(rows, op{key: key, del: true})
	}
	v, err := getTxn(txn, append(runKey(typeDef, run), 0, 0))
	if err != nil || v == nil {
		return rows, err
	}
	c := decodeCreation(newDecoder(v, defV1))
	if !c.hasKey {
		return rows, nil
	}
	key, err := keyRows(txn, run, c.key, keysUntil)
	return append(rows, key...), err
}

// runRows are up to limit deletions of a run's other rows. One iterator looks for all:
// making one costs more than what most runs have. It shows what is deleted too, else it
// would pass over what other runs have left on its way out of an empty range.
func runRows(txn *badger.Txn, run messages.RunID, limit int) (rows []op) {
	it := txn.NewIterator(badger.IteratorOptions{AllVersions: true})
	defer it.Close()
	var last []byte // of each row the newest version comes first, and counts
	for _, typ := range runTypes {
		prefix := runKey(typ, run)
		for it.Seek(prefix); it.ValidForPrefix(prefix) && len(rows) < limit; it.Next() {
			item := it.Item()
			if bytes.Equal(item.Key(), last) {
				continue
			}
			last = item.KeyCopy(last)
			if !item.IsDeletedOrExpired() {
				rows = append(rows, op{key: item.KeyCopy(nil), del: true})
			}
		}
	}
	return rows
}

// deleteMarked deletes the rows of a run that has vanished, then the mark.
func (s *Badger) deleteMarked(run messages.RunID, step func([]op) error) error {
	for {
		var rows []op
		if err := s.view(func(txn *badger.Txn) error { rows = runRows(txn, run, deleteRows); return nil }); err != nil {
			return err
		}
		if len(rows) < deleteRows {
			return step(append(rows, op{key: runKey(typeDeleting, run), del: true}))
		}
		if err := step(rows); err != nil {
			return err
		}
	}
}

// recoverDeletions goes on with the deletions that a crash has interrupted.
func (s *Badger) recoverDeletions() error {
	var runs []messages.RunID
	err := s.scan([]byte{typeDeleting}, nil, false, func(key []byte, _ *badger.Item) (bool, error) {
		runs = append(runs, keyRun(key))
		return true, nil
	})
	for _, run := range runs {
		if err == nil {
			err = s.deleteMarked(run, s.commitMany)
		}
	}
	return err
}
