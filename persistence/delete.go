package persistence

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync/atomic"

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

// cuts are the journal records that a snapshot has made superfluous and that are
// still there. They are deleted a few with each group, after the snapshot's header
// became durable. Those that a crash leaves are found at the run's next cut;
// readers never look below the cut. It belongs to the committer's goroutine.
type cuts struct {
	due []cut
	low map[messages.RunID]uint64 // records below this Seq are deleted
}

type cut struct {
	run messages.RunID
	seq uint64 // records below it go
}

// cutRows is the number of records that are deleted with one group.
const cutRows = 1000

func (c *cuts) empty() bool { return len(c.due) == 0 }

// note takes down what a durable batch has made superfluous.
func (c *cuts) note(b *Batch) {
	if b.Snapshot != nil && b.Snapshot.Header != nil && b.Snapshot.Cut > c.low[b.Run] {
		c.due = append(c.due, cut{b.Run, b.Snapshot.Cut})
	}
	if b.Summary != nil && final(b.Summary.State) {
		delete(c.low, b.Run) // a hint only: it bounds the search
	}
}

// addCuts adds deletions to a group that has room for them.
func (s *Badger) addCuts(g *group) {
	c := &s.cuts
	if s.Err() != nil {
		c.due = nil
		return
	}
	room := min(cutRows, s.maxRows-len(g.ops))
	for len(c.due) > 0 && room > 0 {
		at := c.due[0]
		from := runKey(typeJournal, at.run)
		from = binary.BigEndian.AppendUint64(from, c.low[at.run])
		end := binary.BigEndian.AppendUint64(runKey(typeJournal, at.run), at.seq)
		finished := true
		err := s.scan(runKey(typeJournal, at.run), from, false, func(key []byte, _ *badger.Item) (bool, error) {
			if string(key) >= string(end) {
				return false, nil
			}
			if room == 0 {
				finished = false
				return false, nil
			}
			room--
			start := len(g.arena)
			g.arena = append(g.arena, key...)
			g.del(g.hold(start))
			c.low[at.run] = binary.BigEndian.Uint64(key[9:])
			return true, nil
		})
		if err != nil {
			s.fail(err)
			return
		}
		if !finished {
			return
		}
		c.low[at.run] = at.seq
		c.due = c.due[1:]
	}
}

// An idempotency key outlives its run. The deletion of the run keeps the key's row, with
// the time until which it stays, and adds a row to an index by that time. Sweeps go along
// the index from its beginning: they look at no key that stays.

// keptKeys is what the store knows of the keys whose runs were deleted.
type keptKeys struct {
	count atomic.Int64 // as the meta row "keys" has it
	from  int64        // no expiry row below this time is left; under purging
}

// expiryKey is the index row of a key that stays until a time (ns) of its caller's clock.
func expiryKey(until int64, hash [32]byte) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{typeExpiry}, uint64(until)), hash[:]...)
}

func parseExpiryKey(key []byte) (until int64, hash [32]byte, err error) {
	if len(key) != 1+8+len(hash) {
		return 0, hash, fmt.Errorf("%w: expiry key of %d bytes", errCorrupt, len(key))
	}
	copy(hash[:], key[9:])
	return int64(binary.BigEndian.Uint64(key[1:])), hash, nil
}

// keyRows are the rows that a run's deletion changes of its idempotency key: none when
// it has none, or when the key belongs to another run by now.
func keyRows(txn *badger.Txn, run messages.RunID, hash [32]byte, until int64) ([]op, error) {
	v, err := getTxn(txn, idempotencyKey(hash))
	if err != nil || v == nil {
		return nil, err
	}
	of, bodyHash, _, err := decodeKeyRow(v)
	switch {
	case err != nil || of != run:
		return nil, err
	case until <= 0:
		return []op{{key: idempotencyKey(hash), del: true}}, nil
	}
	return []op{
		seal(idempotencyKey(hash), appendKeyRow(nil, run, bodyHash, until)),
		seal(expiryKey(until, hash), nil),
	}, nil
}

// countKeys is how many keys rows keep, less those that they remove.
func countKeys(rows []op) (n int64) {
	for i := range rows {
		switch {
		case rows[i].key[0] != typeExpiry:
		case rows[i].del:
			n--
		default:
			n++
		}
	}
	return n
}

// counted appends the row that says how many keys are kept when rows are durable.
func (s *Badger) counted(rows []op) (_ []op, change int64) {
	if change = countKeys(rows); change != 0 {
		rows = append(rows, metaRow("keys", uint64(max(s.kept.count.Load()+change, 0))))
	}
	return rows, change
}

// KeptKeyCount is how many keys of deleted runs are kept.
func (s *Badger) KeptKeyCount() int { return int(s.kept.count.Load()) }

// ExpireKeys removes up to limit keys of deleted runs, the oldest first: those that stay
// until now or less, and those beyond the newest most. It returns how many.
func (s *Badger) ExpireKeys(now int64, most, limit int) (int, error) {
	s.purging.Lock()
	defer s.purging.Unlock()
	surplus := s.KeptKeyCount() - most
	limit = min(limit, deleteRows/2)
	var rows []op
	from, removed := s.kept.from, 0
	err := s.view(func(txn *badger.Txn) error {
		return scanTxn(txn, []byte{typeExpiry}, expiryKey(s.kept.from, [32]byte{}), false, func(key []byte, _ *badger.Item) (bool, error) {
			until, hash, err := parseExpiryKey(key)
			if err != nil || removed == limit || until > now && removed >= surplus {
				return false, err
			}
			from = until
			removed++
			rows = append(rows, op{key: expiryKey(until, hash), del: true})
			v, err := getTxn(txn, idempotencyKey(hash))
			if err != nil || v == nil {
				return err == nil, err
			}
			// A run that was deleted later may have the key, or one that exists.
			_, _, of, err := decodeKeyRow(v)
			if err == nil && of == until {
				rows = append(rows, op{key: idempotencyKey(hash), del: true})
			}
			return err == nil, err
		})
	})
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	rows, change := s.counted(rows)
	if err := s.deleteStep(rows); err != nil {
		return 0, err
	}
	s.kept.count.Add(change)
	s.kept.from = from
	return removed, nil
}

// loadKeptKeys reads how many keys are kept.
func (s *Badger) loadKeptKeys() error {
	n, err := s.metaNumber("keys")
	s.kept.count.Store(int64(n))
	return err
}
