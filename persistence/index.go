package persistence

import (
	"encoding/binary"
	"slices"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// Unfinished returns the summaries of the runs without a final state, by ascending id.
func (s *Badger) Unfinished() ([]*messages.Summary, error) {
	var runs []*messages.Summary
	err := s.scan([]byte{typeLive}, nil, false, summaryRow(func(sum *messages.Summary) (bool, error) {
		runs = append(runs, sum)
		return true, nil
	}))
	return runs, err
}

// NextRun is one more than the highest run id that was ever used.
func (s *Badger) NextRun() (next messages.RunID, err error) {
	err = s.view(func(*badger.Txn) error {
		next = messages.RunID(s.enc.next.Load())
		return nil
	})
	return next, err
}

// storedNext is NextRun by what is stored: the highest run that is there, or the mark
// that deletions leave. It passes over what was deleted, and so may take long.
func (s *Badger) storedNext() (next messages.RunID, err error) {
	mark, err := s.metaNumber("next")
	if err != nil {
		return 0, err
	}
	next = messages.RunID(mark)
	err = s.view(func(txn *badger.Txn) error {
		for _, typ := range [...]byte{typeLive, typeFinal} {
			last := markKey(typ, 1<<64-1)
			err := scanTxn(txn, []byte{typ}, append(last, 0xff), true, func(key []byte, _ *badger.Item) (bool, error) {
				next = max(next, keyRun(key)+1)
				return false, nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return next, err
}

// pageRows is how many summaries are looked at in one transaction.
const pageRows = 512

// Summaries yields the runs that q selects, ascending. It reads page by page, and
// never calls yield within a transaction.
func (s *Badger) Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error {
	var live liveRows
	next := messages.RunID(0)
	if q.HasAfter {
		if q.After == 1<<64-1 {
			return nil
		}
		next = q.After + 1
	}
	left := q.Limit
	for {
		page, last, more, err := s.summaryPage(&q, next, &live)
		if err != nil {
			return err
		}
		for _, sum := range page {
			if !yield(sum) {
				return nil
			}
			if left--; left == 0 {
				return nil
			}
		}
		if !more || last == 1<<64-1 {
			return nil
		}
		next = last + 1
	}
}

// summaryPage reads from run next on; last is the last run that it looked at.
func (s *Badger) summaryPage(q *messages.ListQuery, next messages.RunID, live *liveRows) (page []*messages.Summary, last messages.RunID, more bool, err error) {
	all := q.All || slices.ContainsFunc(q.States, final)
	rows := 0
	visit := func(sum *messages.Summary) (bool, error) {
		if rows == pageRows {
			more = true
			return false, nil
		}
		rows++
		last = sum.ID
		if selects(q, all, sum) {
			page = append(page, sum)
		}
		return q.Limit == 0 || len(page) < q.Limit, nil
	}
	err = s.view(func(txn *badger.Txn) error {
		switch {
		case all && q.HasTag && q.Tag != "":
			return merged(txn, tagPrefix(q.Tag), next, live.at(&s.enc), visit)
		case all:
			return merged(txn, []byte{typeFinal}, next, live.at(&s.enc), visit)
		default:
			return scanTxn(txn, []byte{typeLive}, runKey(typeLive, next), false, summaryRow(visit))
		}
	})
	return page, last, more, err
}

// liveRows is what one listing knows, from page to page, of the rows of unfinished runs.
// Each finished run has left a deleted one there, over which every page would pass anew
// on the way to the next that is not.
type liveRows struct {
	from    messages.RunID // there are none below
	revived uint64         // what encoder.revived was
}

// at is the state for a page, whose transaction has begun: a run that it sees restarted
// was counted before.
func (l *liveRows) at(e *encoder) *liveRows {
	if n := e.revived.Load(); n != l.revived {
		*l = liveRows{revived: n}
	}
	return l
}

type visitor func(*messages.Summary) (bool, error)

func summaryRow(visit visitor) func([]byte, *badger.Item) (bool, error) {
	return func(key []byte, item *badger.Item) (more bool, err error) {
		err = item.Value(func(v []byte) error {
			sum, err := decodeSummary(keyRun(key), v)
			if err == nil {
				more, err = visit(sum)
			}
			return err
		})
		return more, err
	}
}

// merged visits unfinished runs and finished ones, those with this prefix, in one
// ascending order: summaries, or the index of a tag.
func merged(txn *badger.Txn, finished []byte, next messages.RunID, live *liveRows, visit visitor) error {
	var its [2]*badger.Iterator
	from := [...]messages.RunID{max(next, live.from), next}
	for i, prefix := range [...][]byte{{typeLive}, finished} {
		its[i] = txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
		defer its[i].Close()
		its[i].Seek(binary.BigEndian.AppendUint64(slices.Clone(prefix), uint64(from[i])))
	}
	defer func() {
		if live.from = 1<<64 - 1; its[0].Valid() {
			live.from = lastRun(its[0])
		}
	}()
	row := summaryRow(visit)
	if finished[0] == typeTag {
		row = tagRow(txn, row)
	}
	for {
		it := its[0]
		if !it.Valid() || its[1].Valid() && lastRun(its[1]) < lastRun(it) {
			it = its[1]
		}
		if !it.Valid() {
			return nil
		}
		if more, err := row(it.Item().Key(), it.Item()); err != nil || !more {
			return err
		}
		it.Next()
	}
}

// lastRun is the run that the present row's key ends with.
func lastRun(it *badger.Iterator) messages.RunID {
	key := it.Item().Key()
	return messages.RunID(binary.BigEndian.Uint64(key[len(key)-8:]))
}

// tagRow has the summary visited that a row of the index of tags stands for. Other
// rows go to row.
func tagRow(txn *badger.Txn, row func([]byte, *badger.Item) (bool, error)) func([]byte, *badger.Item) (bool, error) {
	return func(key []byte, item *badger.Item) (bool, error) {
		if key[0] != typeTag {
			return row(key, item)
		}
		final := append([]byte{typeFinal}, key[len(key)-8:]...)
		item, err := txn.Get(final)
		if err != nil {
			return false, err
		}
		return row(final, item)
	}
}

func selects(q *messages.ListQuery, all bool, s *messages.Summary) bool {
	switch {
	case !all && final(s.State), q.HasTag && s.Tag != q.Tag:
		return false
	case len(q.States) > 0 && !slices.Contains(q.States, s.State):
		return false
	}
	return !slices.ContainsFunc(q.Labels, func(l dag.Label) bool { return !slices.Contains(s.Tags, l) })
}
