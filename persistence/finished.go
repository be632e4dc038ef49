package persistence

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// A list of finished runs goes by the indexes that can tell something of it, together: the
// register, in memory, has the states and bounds of the times; each tag and each label has
// rows in the store. Each index is asked for its first run from a candidate on. The furthest
// answer is the next candidate, and a run on which all agree is one whose summary is read. So
// the most selective index sets the pace, whichever it is.
//
// The register says, too, which rows must be found: a run without one is damaged. Index rows
// have no such witness: while any damage of the store is known, lists do without them.

// finalOnly returns the states that a list wants, when they are all final ones; else 0.
func finalOnly(q *messages.ListQuery) (states stateSet) {
	for _, state := range q.States {
		if !final(state) {
			return 0
		}
		states |= stateSetOf(state)
	}
	return states
}

// indexesOf returns the prefixes of the index rows that all selected runs have.
func indexesOf(q *messages.ListQuery) (prefixes [][]byte) {
	if q.HasTag && q.Tag != "" {
		prefixes = append(prefixes, tagPrefix(q.Tag))
	}
	for _, l := range q.Labels {
		prefixes = append(prefixes, labelPrefix(l))
	}
	return prefixes
}

// indexKeys returns the keys of the index rows of a finished run.
func indexKeys(s *messages.Summary) (keys [][]byte) {
	if s.Tag != "" {
		keys = append(keys, tagKey(s.Tag, s.ID))
	}
	for _, l := range s.Tags {
		keys = append(keys, labelKey(l, s.ID))
	}
	return keys
}

// readFinished reads a page, up to the run last, by the indexes. All finished runs up to
// there are registered.
func (s *Badger) readFinished(p *page, last messages.RunID) error {
	filter := finishedFilter{states: p.states, changedFrom: p.q.ChangedFrom, changedTo: p.q.ChangedTo}
	return s.view(func(txn *badger.Txn) error {
		rows := finishedRows{txn: txn}
		defer rows.close()
		if s.Damaged() == nil {
			for _, prefix := range indexesOf(p.q) {
				rows.indexes = append(rows.indexes, newIndexCursor(txn, prefix))
			}
		}
		var times wordTimes
		if filter.changedTo > 0 {
			times.register = &s.register
		}
		kept := 0
		p.rows = p.rows[:0]
		for ; ; p.looked++ {
			run, ok := s.register.next(p.next, filter)
			if !ok || run > last {
				times.leave()
				p.next, p.more = last+1, last < 1<<64-1
				return nil
			}
			p.next = run
			if p.looked == pageRows {
				p.more = true
				return nil
			}
			at, any := rows.agree(run)
			switch {
			case !any:
				p.more = false
				return nil
			case at > run:
				p.next = at
				continue
			}
			item, err := rows.row(run)
			sum := &messages.Summary{ID: run, Damage: suspected}
			if item != nil || err != nil {
				if sum, err = s.summaryOf(run, item, err); err != nil {
					return err
				}
			}
			times.see(sum)
			if selects(p.q, true, sum) {
				p.rows = append(p.rows, sum)
				if sum.Damage != suspected {
					kept++
				}
			}
			if p.next, p.more = run+1, run < 1<<64-1; !p.more || p.q.Limit > 0 && kept == p.q.Limit {
				return nil
			}
		}
	})
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

// wordTimes narrows the register's bounds of the times of runs that are read anyway: else a
// sweep of the retention would read them again and again.
type wordTimes struct {
	register *register // nil: it does nothing
	word     uint64    // run id / 64
	was      finishedWord
	seen     int
	oldest   int64
}

func (t *wordTimes) see(s *messages.Summary) {
	if t.register == nil {
		return
	}
	if word := uint64(s.ID) / 64; t.seen == 0 || word != t.word {
		t.leave()
		*t = wordTimes{register: t.register, word: word, was: t.register.word(s.ID), oldest: math.MaxInt64}
	}
	t.seen++
	if s.Damage == "" {
		t.oldest = min(t.oldest, s.Changed)
	}
}

// leave is called when no more runs of the word come.
func (t *wordTimes) leave() {
	if t.seen > 0 && t.seen == bits.OnesCount64(t.was.all()) {
		t.register.tighten(messages.RunID(t.word*64), t.was, t.oldest)
	}
	t.seen = 0
}

// Finished is how many finished runs there are. known is false while a store that was opened a
// moment ago has not counted them.
func (s *Badger) Finished() (n int, known bool) {
	err := s.view(func(*badger.Txn) error { // the register knows what the read sees
		n, known = s.register.len()
		return nil
	})
	return n, known && err == nil
}
