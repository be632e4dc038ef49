package persistence

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// runReader reads runs, as of the newest published commit: the read half of a RunStore, and all of
// an Offline. Reads run on any goroutine, and go round the committer: a read takes two short locks
// (readTimestamps), and waits at most until Badger has, in memory, what was announced.
//
// What a read decodes refers to nothing of Badger's. Damage is an error that names run and row and
// wraps ErrDamaged. An unknown run is ErrNotFound, after a second look at what is known in memory.
type runReader struct {
	db         *DB
	timestamps *readTimestamps // of the DB
	packer     *packer
	nextRun    atomic.Uint64 // one more than the highest run ID that was ever used; the committer raises it

	// These three are known in memory of the rows.
	deletedIDs deletedRunIDs
	finished   finishedIndex
	keptKeys   keptKeys

	// stagedApplies is odd while the rows of a staged batch are committed in several transactions, and
	// grows by two with each such batch. The committer changes it.
	stagedApplies atomic.Uint64

	// awaitAppended returns when all that was appended before is durable; nil where nothing is
	// appended.
	awaitAppended func() error

	failure
	readers sync.RWMutex // read-locked by reads, locked by Close
	closed  bool         // guarded by readers
}

func (s *runReader) init(db *DB) (err error) {
	s.db, s.timestamps, s.failure = db, db.timestamps, newFailure()
	s.packer, err = newPacker()
	return err
}

// view runs fn in a read transaction at the newest published commit. It fails once the store is
// closed or has failed: with ErrClosed, or with the reason of the failure.
//
// fn gets rows that are valid until it returns, and copies what it keeps. It must not begin another
// read: a Close that waits for the lock would let the second one wait for ever. fn may take long.
// Badger keeps the versions of its commit so long, and commits go on.
//
// A damaged row in fn's error is reported once, so that /healthz shows it whoever reads it first.
func (s *runReader) view(fn func(*badger.Txn) error) error {
	return s.viewAt(s.timestamps.acquire, fn)
}

// viewWithUnfinished is view, with the first n runs from a run on that may be unfinished.
func (s *runReader) viewWithUnfinished(from messages.RunID, n int, fn func(txn *badger.Txn, live []messages.RunID) error) error {
	var live []messages.RunID
	begin := func() (at uint64) {
		at, live = s.timestamps.acquireWithUnfinished(from, n)
		return at
	}
	return s.viewAt(begin, func(txn *badger.Txn) error { return fn(txn, live) })
}

// viewAt is view at the timestamp that begin acquires. It asks for the failure twice. Before begin,
// so that a read of a failed store does not wait; after it, because a failure ends the wait for
// announced commits, and the rows of these may be missing.
func (s *runReader) viewAt(begin func() uint64, fn func(*badger.Txn) error) error {
	err := s.readAt(begin, fn)
	if errors.Is(err, errCorrupt) {
		err = s.db.reportRowDamage(err)
	}
	return err
}

// viewWhole is view for a read that needs all rows of a batch. At a timestamp between two transactions
// of a staged batch (staged_batch.go) a journal record may lack its last parts, or its set. That is not
// damage. So a read that finds damage while a staged batch was being applied waits until the batch is
// durable, and then calls fn again, which must forget its former results. Other reads never wait.
func (s *runReader) viewWhole(fn func(*badger.Txn) error) error {
	for {
		before := s.stagedApplies.Load()
		err := s.readAt(s.timestamps.acquire, fn)
		switch {
		case !errors.Is(err, errCorrupt):
			return err
		case s.awaitAppended == nil || before%2 == 0 && before == s.stagedApplies.Load():
			return s.db.reportRowDamage(err)
		}
		if err := s.awaitAppended(); err != nil {
			return err
		}
	}
}

// readAt is viewAt without a report of damage.
func (s *runReader) readAt(begin func() uint64, fn func(*badger.Txn) error) error {
	s.readers.RLock()
	defer s.readers.RUnlock()
	if s.closed {
		return ErrClosed
	}
	if err := s.Err(); err != nil {
		return err
	}
	at := begin()
	defer s.timestamps.release(at)
	if err := s.Err(); err != nil { // a failed store does not wait for announced commits
		return err
	}
	txn := s.db.badger.NewTransactionAt(at, false)
	defer txn.Discard()
	return fn(txn)
}

// scanTxn calls fn for the rows whose keys begin with prefix, from the key from on, until fn
// returns false. Key and item are valid within fn only. Malformed keys are skipped, unless prefix
// is empty. Values are read when fn asks for them, so a scan of keys alone skips them. A nil
// from is the first key of the prefix; a reverse scan needs from, because it begins at the greatest
// key.
func scanTxn(txn *badger.Txn, prefix, from []byte, reverse bool, fn func(key []byte, item *badger.Item) (bool, error)) error {
	it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix, Reverse: reverse})
	defer it.Close()
	if from == nil {
		from = prefix
	}
	for it.Seek(from); it.ValidForPrefix(prefix); it.Next() {
		item := it.Item()
		if len(prefix) > 0 && !isWellFormedKey(item.Key()) {
			continue
		}
		if more, err := fn(item.Key(), item); err != nil || !more {
			return err
		}
	}
	return nil
}

// scanRows is scanTxn in a transaction of its own.
func (s *runReader) scanRows(prefix, from []byte, reverse bool, fn func(key []byte, item *badger.Item) (bool, error)) error {
	return s.view(func(txn *badger.Txn) error { return scanTxn(txn, prefix, from, reverse, fn) })
}

// getRow returns a copy of a row's value; nil when the row is missing.
func (s *runReader) getRow(key []byte) (v []byte, err error) {
	err = s.view(func(txn *badger.Txn) error {
		v, err = getRowTxn(txn, key)
		return err
	})
	return v, err
}

// getRowTxn returns a copy of a row's verified value; nil when the row is missing. The copy
// outlives the transaction.
func getRowTxn(txn *badger.Txn, key []byte) ([]byte, error) {
	item, err := txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	stored, err := item.ValueCopy(nil)
	if err != nil {
		return nil, err
	}
	return unsealRow(key, stored)
}

// scanJoined calls fn for each value under prefix, its parts joined, with the bytes of the key
// between prefix and part number. A missing part is an error, unless it is one of the last. The
// callers find that by a length in the value itself. For example, the prefix "j" and run 7, and
// keys of the parts
//
//	j 7 2 0    record 2, first part   \ fn(name of record 2, both values)
//	j 7 2 1    record 2, second part  /
//	j 7 3 0    record 3               fn(name of record 3, its value)
//
// name and value are valid until fn returns: they are used again for the next value.
func scanJoined(txn *badger.Txn, prefix, from []byte, fn func(name, value []byte) error) error {
	var name, value []byte
	next := 0 // part
	err := scanTxn(txn, prefix, from, false, func(key []byte, item *badger.Item) (bool, error) {
		if len(key) < len(prefix)+2 {
			return false, fmt.Errorf("%w: key of %d bytes", errCorrupt, len(key))
		}
		part := int(binary.BigEndian.Uint16(key[len(key)-2:]))
		if part == 0 {
			if next > 0 {
				if err := fn(name, value); err != nil {
					return false, err
				}
			}
			name = append(name[:0], key[len(prefix):len(key)-2]...)
			value, next = value[:0], 0
		}
		if part != next || !bytes.Equal(name, key[len(prefix):len(key)-2]) {
			return false, fmt.Errorf("%s: %w: the part before part %d is missing", rowName(key), errCorrupt, part)
		}
		next++
		return true, itemValue(item, func(v []byte) error {
			value = append(value, v...)
			return nil
		})
	})
	if err == nil && next > 0 {
		err = fn(name, value)
	}
	return err
}

// summaryTxn reads a run's summary; nil when the run is unknown.
func summaryTxn(txn *badger.Txn, run messages.RunID) (*messages.Summary, error) {
	sum, _, err := summaryRow(txn, run)
	return sum, err
}

// summaryRow is summaryTxn, with the number that the run's journal must reach. As of any commit a
// run has a row of one type or of the other, never both: the rows of a summary are committed
// together.
func summaryRow(txn *badger.Txn, run messages.RunID) (sum *messages.Summary, next uint64, err error) {
	for _, typ := range [...]byte{typeUnfinished, typeFinished} {
		v, err := getRowTxn(txn, runKey(typ, run))
		if err != nil {
			return nil, 0, err
		}
		if v != nil {
			return decodeSummary(run, v)
		}
	}
	return nil, 0, nil
}

func unknownRun(run messages.RunID) error { return fmt.Errorf("run %d: %w", run, ErrNotFound) }

// Summary returns the stored summary of a run. The index is asked before the read: a run that is
// deleted in between would else look like one whose row is lost (explainAbsence).
func (s *runReader) Summary(run messages.RunID) (sum *messages.Summary, err error) {
	registered := s.finished.contains(run)
	err = s.view(func(txn *badger.Txn) error {
		sum, err = summaryTxn(txn, run)
		return err
	})
	if err == nil && sum == nil {
		err = s.explainAbsence(run, registered)
	}
	return sum, err
}

// Load returns all of a run, at one read timestamp, and proves that it is whole: no journal record,
// part, chunk or set is missing. The proof has these witnesses: the numbers of parts, sets and
// records are without gaps, the header knows its chunks and the number of sets, a record knows the
// set that came with it, and the summary knows how far the journal reaches. It holds the run in
// memory, but for a long definition, of which it reads the first part.
//
// Load may run while a staged batch of the run is applied: a reader of a finished run does not know of
// a restart that began since. It then sees the batch up to some row, as viewWhole explains. A run that
// a staged batch creates is unknown until all its rows are there, because the rows of its summary are
// the last ones.
func (s *runReader) Load(run messages.RunID) (*Stored, error) {
	var st *Stored
	registered := s.finished.contains(run)
	err := s.viewWhole(func(txn *badger.Txn) (err error) {
		st = &Stored{NextSeq: 1}
		var next uint64
		if st.Summary, next, err = summaryRow(txn, run); err != nil {
			return err
		}
		if st.Summary == nil {
			return unknownRun(run)
		}
		first, err := s.definition(txn, run, st)
		if err != nil {
			return err
		}
		err = scanJoined(txn, runKey(typeSet, run), nil, func(name, v []byte) error {
			n := int(binary.BigEndian.Uint32(name))
			if want := len(st.Sets) + 1; n != want {
				return fmt.Errorf("run %d: generated set %d: %w: missing", run, want, errCorrupt)
			}
			set, err := s.packer.decodeSet(run, n, v)
			st.Sets = append(st.Sets, set)
			return err
		})
		if err != nil {
			return err
		}
		if err := loadSnapshotAndJournal(txn, run, first, st); err != nil {
			return err
		}
		if st.NextSeq < next {
			return fmt.Errorf("run %d: journal record %d: %w: missing", run, st.NextSeq, errCorrupt)
		}
		return nil
	})
	if errors.Is(err, ErrNotFound) {
		err = s.explainAbsence(run, registered)
	}
	if err != nil {
		return nil, err
	}
	return st, nil
}

// DefinitionIfPristine returns the definition of a run that has journaled only its submission,
// unless it is long. Anything else that was journaled is a row of its own, or a snapshot. Two seeks
// tell that, so a start with many queued runs reads little more than their definitions.
func (s *runReader) DefinitionIfPristine(run messages.RunID) (doc []byte, err error) {
	err = s.view(func(txn *badger.Txn) error {
		for _, typ := range [...]byte{typeJournal, typeHeader} {
			touched := false
			err := scanTxn(txn, runKey(typ, run), nil, false, func([]byte, *badger.Item) (bool, error) {
				touched = true
				return false, nil
			})
			if touched || err != nil {
				return err
			}
		}
		var st Stored
		_, err := s.definition(txn, run, &st)
		if err != nil {
			if sum, sumErr := summaryTxn(txn, run); sum == nil && sumErr == nil {
				return unknownRun(run)
			}
		}
		doc = st.Definition
		return err
	})
	if err == nil && doc == nil {
		_, err = s.Summary(run) // is the run unknown?
	}
	return doc, err
}

// loadSnapshotAndJournal reads the snapshot and the journal from its cut on. The journal begins
// with first, the records in the definition's row; nil when they have a row of their own.
//
// The header comes before the chunks: it says which chunks must exist, and how old they may be. It
// says the cut, too, so records below it that wait for their deletion are never read.
func loadSnapshotAndJournal(txn *badger.Txn, run messages.RunID, first []byte, st *Stored) error {
	var cut uint64
	var known snapshotContents
	var found chunkStamps
	err := scanJoined(txn, runKey(typeHeader, run), nil, func(_, v []byte) (err error) {
		cut, st.Header, known, err = decodeHeader(run, v)
		return err
	})
	if err != nil {
		return err
	}
	prefix := runKey(typeChunk, run)
	err = scanTxn(txn, prefix, nil, false, func(key []byte, item *badger.Item) (bool, error) {
		c := Chunk{Index: binary.BigEndian.Uint32(key[len(prefix):])}
		err := itemValue(item, func(v []byte) (err error) {
			var stamp uint64
			if stamp, c.Data, err = decodeChunk(v); err != nil {
				return fmt.Errorf("%s: %w", rowName(key), err)
			}
			found.set(c.Index, stamp)
			return nil
		})
		st.Chunks = append(st.Chunks, c)
		return true, err
	})
	if err != nil {
		return err
	}
	if err := known.chunks.verify(run, found); err != nil {
		return err
	}
	if known.sets > len(st.Sets) {
		return fmt.Errorf("run %d: generated set %d: %w: missing", run, known.sets, errCorrupt)
	}
	prefix = runKey(typeJournal, run)
	if first != nil && cut <= 1 {
		st.Records, st.NextSeq = append(st.Records, first), 2
	}
	st.NextSeq = max(st.NextSeq, cut)
	return scanJoined(txn, prefix, binary.BigEndian.AppendUint64(runKey(typeJournal, run), cut), func(name, v []byte) error {
		if seq := binary.BigEndian.Uint64(name); seq != st.NextSeq {
			return fmt.Errorf("run %d: journal record %d: %w: missing before record %d", run, st.NextSeq, errCorrupt, seq)
		}
		body, set, err := decodeRecords(v)
		if err != nil {
			return fmt.Errorf("run %d: journal record %d: %w", run, st.NextSeq, err)
		}
		if set > len(st.Sets) {
			return fmt.Errorf("run %d: generated set %d: %w: missing", run, set, errCorrupt)
		}
		st.Records = append(st.Records, body)
		st.NextSeq++
		return nil
	})
}

// JournalRecords returns the journal records of a run that follow the one numbered after.
func (s *runReader) JournalRecords(run messages.RunID, after uint64) (records [][]byte, first uint64, err error) {
	registered := s.finished.contains(run)
	err = s.viewWhole(func(txn *badger.Txn) (err error) {
		records, first, err = journalRecordsTxn(s, txn, run, after)
		return err
	})
	if errors.Is(err, ErrNotFound) {
		err = s.explainAbsence(run, registered)
	}
	if err != nil {
		return nil, 0, err
	}
	return records, first, nil
}

// journalRecordsTxn reads the snapshot's header for its cut, and then only journal rows. A caller
// that asks for a record which a snapshot has replaced gets a later first, and loads the run
// instead.
func journalRecordsTxn(s *runReader, txn *badger.Txn, run messages.RunID, after uint64) (records [][]byte, first uint64, err error) {
	sum, next, err := summaryRow(txn, run)
	if err != nil {
		return nil, 0, err
	}
	if sum == nil {
		return nil, 0, unknownRun(run)
	}
	first = after + 1
	err = scanJoined(txn, runKey(typeHeader, run), nil, func(_, v []byte) error {
		cut, _, _, err := decodeHeader(run, v)
		first = max(first, cut)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	if first == 1 { // the first record may lie with the definition
		early, err := s.definition(txn, run, new(Stored))
		if err != nil {
			return nil, 0, err
		}
		if early != nil {
			records = append(records, early)
		}
	}
	from := binary.BigEndian.AppendUint64(runKey(typeJournal, run), first)
	err = scanJoined(txn, runKey(typeJournal, run), from, func(name, v []byte) error {
		want := first + uint64(len(records))
		if seq := binary.BigEndian.Uint64(name); seq != want {
			return fmt.Errorf("run %d: journal record %d: %w: missing before record %d", run, want, errCorrupt, seq)
		}
		body, _, err := decodeRecords(v)
		if err != nil {
			return fmt.Errorf("run %d: journal record %d: %w", run, want, err)
		}
		records = append(records, body)
		return nil
	})
	if end := first + uint64(len(records)); err == nil && end < next && first < next {
		err = fmt.Errorf("run %d: journal record %d: %w: missing", run, end, errCorrupt)
	}
	return records, first, err
}

// LookUpKey looks up an idempotency key. The caller compares the hash of the body: a key that comes
// again with another body is the client's mistake. The error wraps ErrForeignKey when the run is of
// another partition and may exist; run and hash are set then, too.
func (s *runReader) LookUpKey(key string) (run messages.RunID, bodyHash [32]byte, ok bool, err error) {
	v, err := s.getRow(idempotencyKey(hashKey(key)))
	if err != nil || v == nil {
		return 0, bodyHash, false, err
	}
	run, bodyHash, until, err := decodeKeyRow(v)
	if err == nil && until == 0 && !s.finished.numbering.Owns(run) {
		err = fmt.Errorf("run %d: %w", run, ErrForeignKey)
	}
	return run, bodyHash, err == nil, err
}
