package persistence

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/dgraph-io/badger/v4"
)

// deleteRows is how many tombstones one step of a deletion writes, so that other batches do not
// wait long for it.
const deleteRows = 2000

// stepOverhead is the most that one step has beyond its limit of rows: the indexes of a run with
// specjson.MaxLabels labels, its summary and idempotency key, the mark, and meta rows.
const stepOverhead = 100

// deletionStep returns how many rows one step of a deletion deletes at most, besides stepOverhead.
// commitRows must not divide a step: a crash between two of its commits would leave rows of a run
// that has lost its summary and has no mark, and these would stay for ever. The limit counts on
// disks of less than 64 MiB only (TestDeletionStepIsOneCommit).
func (s *RunStore) deletionStep() int { return min(deleteRows, s.rowsPerCommit()-stepOverhead) }

// rowsPerCommit returns up to how many rows commitRows commits at once: half a transaction's, so
// that they share one with batches.
func (s *RunStore) rowsPerCommit() int { return s.limits.Rows / 2 }

const deletingV1 = 1

// Delete removes finished runs, in small batches of tombstones, and returns when that is durable. A
// run whose rows do not fit one batch loses its summary and indexes first, and leaves a mark, so
// that the next open can continue after a crash. Unknown runs are skipped; an unfinished run is an
// error. Idempotency keys stay until keysUntil, see ExpireKeys.
func (s *RunStore) Delete(runs []messages.RunID, keysUntil int64) error {
	return s.deleteRuns(runs, keysUntil, s.commitRows)
}

// deleteRuns deletes runs in steps, each of which is one commit: step writes the rows and returns
// when they are durable. Small runs share a step. Each step carries the row of the highest
// run ID, because the rows that tell it may be among the deleted ones. Tests end a deletion in the
// middle by their step.
//
// A run counts as deleted (deletedIDs) only when its step is durable: lists skip it from then on.
func (s *RunStore) deleteRuns(runs []messages.RunID, keysUntil int64, step func([]mutation) error) error {
	// Else a deletion that began earlier could lower the stored highest ID of a later one.
	s.deleteMu.Lock()
	defer s.deleteMu.Unlock()
	next, err := s.NextRun()
	if err != nil {
		return err
	}
	high, most := metaRow("next", uint64(next)), s.deletionStep()
	batch := []mutation{high}
	var vanishing []messages.RunID // runs that the batch makes unknown
	do := func(rows []mutation) error {
		rows, kept := s.withKeyCount(rows)
		if err := step(rows); err != nil {
			return err
		}
		s.keptKeys.count.Add(kept)
		for _, run := range vanishing {
			s.deletedIDs.Add(uint64(run), uint64(run))
		}
		batch, vanishing = []mutation{high}, vanishing[:0]
		return nil
	}
	for _, run := range runs {
		index, rows, err := s.deletionsOf(run, keysUntil, most)
		if err != nil {
			return err
		}
		if len(index) == 0 {
			continue
		}
		if len(rows) == most {
			vanishing = append(vanishing, run)
			mark := sealRow(runKey(typeDeleting, run), []byte{deletingV1})
			if err := do(append(batch, append(index, mark)...)); err != nil {
				return err
			}
			if err := s.deleteMarked(run, step); err != nil {
				return err
			}
			continue
		}
		if len(batch)+len(index)+len(rows) > most && len(batch) > 1 {
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

// commitRows commits rows through the committer, and waits for them. More rows than half a
// transaction's are several commits, in order. Keys and values must stay unchanged until a later
// commit is durable (pendingBatch).
func (s *RunStore) commitRows(rows []mutation) error {
	for len(rows) > 0 {
		n := min(len(rows), s.rowsPerCommit())
		done := make(chan error, 1)
		if !s.queue.push(&pendingBatch{mutations: rows[:n], done: func(err error) { done <- err }}) {
			return ErrClosed
		}
		if err := <-done; err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// deletionsOf returns the deletions of a run: index makes the run unknown, and is empty when it is
// unknown; rows are up to most of its other rows.
func (s *runReader) deletionsOf(run messages.RunID, keysUntil int64, most int) (index, rows []mutation, err error) {
	err = s.view(func(txn *badger.Txn) error {
		if index, err = summaryDeletions(txn, run, keysUntil); err != nil || len(index) == 0 {
			return err
		}
		rows = rowDeletions(txn, run, most)
		return nil
	})
	return index, rows, err
}

// summaryDeletions returns the rows that make a run unknown, and those of its idempotency key. The
// result is empty for an unknown run. An unfinished run is an error: its actor would write on.
func summaryDeletions(txn *badger.Txn, run messages.RunID, keysUntil int64) (rows []mutation, err error) {
	sum, err := summaryTxn(txn, run)
	if err != nil || sum == nil {
		return nil, err
	}
	if !isFinal(sum.State) {
		return nil, fmt.Errorf("run %d: not finished: cannot be deleted", run)
	}
	rows = append(rows, mutation{Key: runKey(typeFinished, run), Delete: true})
	for _, key := range indexKeys(sum) {
		rows = append(rows, mutation{Key: key, Delete: true})
	}
	v, err := getRowTxn(txn, append(runKey(typeDef, run), 0, 0))
	if err != nil || v == nil {
		return rows, err
	}
	c := decodeCreation(newDecoder(v, defV1))
	if !c.hasKey {
		return rows, nil
	}
	key, err := keyMutations(txn, run, c.key, keysUntil)
	return append(rows, key...), err
}

// rowDeletions returns up to limit deletions of a run's other rows. One iterator serves all types:
// making an iterator costs more than reading the rows of most runs. It shows tombstones, too, or it
// would step over those of other runs on its way out of an empty range.
func rowDeletions(txn *badger.Txn, run messages.RunID, limit int) (rows []mutation) {
	it := txn.NewIterator(badger.IteratorOptions{AllVersions: true})
	defer it.Close()
	var last []byte // the newest version of a row comes first, and counts
	for _, typ := range runTypes {
		prefix := runKey(typ, run)
		for it.Seek(prefix); it.ValidForPrefix(prefix) && len(rows) < limit; it.Next() {
			item := it.Item()
			if bytes.Equal(item.Key(), last) {
				continue
			}
			last = item.KeyCopy(last)
			if !item.IsDeletedOrExpired() {
				rows = append(rows, mutation{Key: item.KeyCopy(nil), Delete: true})
			}
		}
	}
	return rows
}

// deleteMarked deletes the rows of a run that was made unknown, then the mark. Each round reads
// what is still there, at a later commit than its last step, so it needs no position and ends
// whatever a crash has left. The mark goes with the last rows: without it they would stay for ever.
func (s *RunStore) deleteMarked(run messages.RunID, step func([]mutation) error) error {
	most := s.deletionStep()
	for {
		var rows []mutation
		if err := s.view(func(txn *badger.Txn) error { rows = rowDeletions(txn, run, most); return nil }); err != nil {
			return err
		}
		if len(rows) < most {
			return step(append(rows, mutation{Key: runKey(typeDeleting, run), Delete: true}))
		}
		if err := step(rows); err != nil {
			return err
		}
	}
}

// recoverDeletions continues the deletions that a crash has interrupted, and removes the parts of
// long documents whose run was never created. It runs before the committer does, so it commits by
// itself.
func (s *RunStore) recoverDeletions() error {
	var runs []messages.RunID
	err := s.scanRows([]byte{typeDeleting}, nil, false, func(key []byte, _ *badger.Item) (bool, error) {
		runs = append(runs, runOfKey(key))
		return true, nil
	})
	for _, run := range runs {
		if err == nil {
			err = s.deleteMarked(run, s.commitSplit)
		}
	}
	return err
}

// journalTruncator knows the journal records that a snapshot has made superfluous and that still
// exist. A few of them are deleted with each group, once the snapshot's header is durable. Records
// that a crash leaves are found at the run's next snapshot; readers never read below the cut. It
// belongs to the committer's goroutine.
type journalTruncator struct {
	due            []truncation
	truncatedBelow map[messages.RunID]uint64 // records below this Seq are deleted
}

type truncation struct {
	run   messages.RunID
	below uint64 // records below this Seq are to be deleted
}

// maxTruncatedRows is the number of records that are deleted with one group.
const maxTruncatedRows = 1000

func (c *journalTruncator) isEmpty() bool { return len(c.due) == 0 }

// noteBatch notes the records that a durable batch has made superfluous.
func (c *journalTruncator) noteBatch(b *Batch) {
	if b.Snapshot != nil && b.Snapshot.Header != nil && b.Snapshot.Cut > c.truncatedBelow[b.Run] {
		c.due = append(c.due, truncation{b.Run, b.Snapshot.Cut})
	}
	if b.Summary != nil && isFinal(b.Summary.State) {
		delete(c.truncatedBelow, b.Run) // only a hint: it bounds the search
	}
}

// addTruncations adds deletions to a group, as far as it has room. They ride on a commit that comes
// anyway; an idle committer makes one for them. A search begins where the last deletion of the run
// ended, so it steps over none of the tombstones that it has left.
//
// The room has both limits of a commit, rows and bytes. The commit log refuses a longer record, and
// that fails the store (TestTruncationsFitTheGroup).
func (s *RunStore) addTruncations(g *writeGroup) {
	c := &s.truncator
	if s.Err() != nil {
		c.due = nil
		return
	}
	room := min(maxTruncatedRows, s.limits.Rows-len(g.mutations), int((s.limits.Bytes-g.size)/badgerguard.RowSize(journalKeySize, 0)))
	for len(c.due) > 0 && room > 0 {
		at := c.due[0]
		from := runKey(typeJournal, at.run)
		from = binary.BigEndian.AppendUint64(from, c.truncatedBelow[at.run])
		end := binary.BigEndian.AppendUint64(runKey(typeJournal, at.run), at.below)
		finished := true
		err := s.scanRows(runKey(typeJournal, at.run), from, false, func(key []byte, _ *badger.Item) (bool, error) {
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
			g.deleteRow(g.arenaFrom(start))
			c.truncatedBelow[at.run] = binary.BigEndian.Uint64(key[9:])
			return true, nil
		})
		if err != nil {
			s.fail(err)
			return
		}
		if !finished {
			return
		}
		c.truncatedBelow[at.run] = at.below
		c.due = c.due[1:]
	}
}

// An idempotency key outlives its run. The deletion of the run keeps the key's row, with the time
// until which it stays, and adds a row to an index by that time. ExpireKeys reads the index from
// its beginning, so it never reads a key that stays.

// keptKeys is what the store knows of the keys whose runs were deleted.
type keptKeys struct {
	count       atomic.Int64 // equals the meta row "keys"
	oldestUntil int64        // no expiry row is below this time; guarded by deleteMu
}

// expiryKey is the index row of a key that stays until a time (ns) of the caller's clock.
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

// keyMutations returns what the deletion of a run changes of its idempotency key. The result is
// empty for a run without a key, and when the key belongs to another run by now. until (ns) is when
// the key expires; 0 deletes it with the run.
func keyMutations(txn *badger.Txn, run messages.RunID, hash [32]byte, until int64) ([]mutation, error) {
	v, err := getRowTxn(txn, idempotencyKey(hash))
	if err != nil || v == nil {
		return nil, err
	}
	of, bodyHash, _, err := decodeKeyRow(v)
	switch {
	case err != nil || of != run:
		return nil, err
	case until <= 0:
		return []mutation{{Key: idempotencyKey(hash), Delete: true}}, nil
	}
	return []mutation{
		sealRow(idempotencyKey(hash), appendKeyRow(nil, run, bodyHash, until)),
		sealRow(expiryKey(until, hash), nil),
	}, nil
}

// keptKeyChange returns how many keys the rows keep, less those that they remove.
func keptKeyChange(rows []mutation) (n int64) {
	for i := range rows {
		switch {
		case rows[i].Key[0] != typeExpiry:
		case rows[i].Delete:
			n--
		default:
			n++
		}
	}
	return n
}

// withKeyCount appends the row that says how many keys are kept once the rows are durable, so that
// a start need not count them. The caller holds deleteMu and adds change to the count when the
// commit is durable.
func (s *RunStore) withKeyCount(rows []mutation) (_ []mutation, change int64) {
	if change = keptKeyChange(rows); change != 0 {
		rows = append(rows, metaRow("keys", uint64(max(s.keptKeys.count.Load()+change, 0))))
	}
	return rows, change
}

// KeptKeyCount returns how many keys of deleted runs are kept.
func (s *runReader) KeptKeyCount() int { return int(s.keptKeys.count.Load()) }

// ExpireKeys removes up to limit keys of deleted runs, the oldest first: keys that stay until now
// or less, and keys beyond the newest most. It returns how many it removed.
func (s *RunStore) ExpireKeys(now int64, most, limit int) (int, error) {
	s.deleteMu.Lock()
	defer s.deleteMu.Unlock()
	surplus := s.KeptKeyCount() - most
	limit = min(limit, deleteRows/2)
	var rows []mutation
	from, removed := s.keptKeys.oldestUntil, 0
	err := s.view(func(txn *badger.Txn) error {
		return scanTxn(txn, []byte{typeExpiry}, expiryKey(s.keptKeys.oldestUntil, [32]byte{}), false, func(key []byte, _ *badger.Item) (bool, error) {
			until, hash, err := parseExpiryKey(key)
			if err != nil || removed == limit || until > now && removed >= surplus {
				return false, err
			}
			from = until
			removed++
			rows = append(rows, mutation{Key: expiryKey(until, hash), Delete: true})
			v, err := getRowTxn(txn, idempotencyKey(hash))
			if err != nil || v == nil {
				return err == nil, err
			}
			// A run that was deleted later may own the key, or a run that exists.
			_, _, of, err := decodeKeyRow(v)
			if err == nil && of == until {
				rows = append(rows, mutation{Key: idempotencyKey(hash), Delete: true})
			}
			return err == nil, err
		})
	})
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	rows, change := s.withKeyCount(rows)
	if err := s.commitRows(rows); err != nil {
		return 0, err
	}
	s.keptKeys.count.Add(change)
	s.keptKeys.oldestUntil = from
	return removed, nil
}

// loadKeptKeys reads how many keys are kept. It runs once, before any Delete.
func (s *runReader) loadKeptKeys() error {
	n, err := s.metaNumber("keys")
	s.keptKeys.count.Store(int64(n))
	return err
}
