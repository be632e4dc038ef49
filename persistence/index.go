package persistence

import (
	"slices"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// Unfinished returns the summaries of the runs without a final state, by ascending id.
func (s *Badger) Unfinished() ([]*messages.Summary, error) {
	var runs []*messages.Summary
	err := s.Summaries(messages.ListQuery{}, func(sum *messages.Summary) bool {
		runs = append(runs, sum)
		return true
	})
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

// loadIndex takes from what is stored which runs are unfinished, which ids are used, and
// that none is below the first one. It passes over the deleted rows that Badger has not
// compacted away, once.
func (s *Badger) loadIndex() error {
	next, err := s.metaNumber("next") // the mark that deletions leave
	if err != nil {
		return err
	}
	if err := s.loadKeptKeys(); err != nil {
		return err
	}
	first := uint64(1<<64 - 1)
	see := func(key []byte) {
		run := uint64(keyRun(key))
		first, next = min(first, run), max(next, run+1)
	}
	err = s.scan([]byte{typeLive}, nil, false, func(key []byte, _ *badger.Item) (bool, error) {
		see(key)
		s.moments.enter(keyRun(key))
		return true, nil
	})
	if err != nil {
		return err
	}
	for _, from := range [...]struct {
		key     []byte
		reverse bool
	}{{nil, false}, {append(markKey(typeFinal, 1<<64-1), 0xff), true}} {
		err = s.scan([]byte{typeFinal}, from.key, from.reverse, func(key []byte, _ *badger.Item) (bool, error) {
			see(key)
			return false, nil
		})
		if err != nil {
			return err
		}
	}
	s.enc.next.Store(next)
	if first = min(first, next); first > 0 {
		s.gone.add(0, messages.RunID(first)-1)
	}
	return nil
}

// pageRows is how many summaries are looked at in one transaction.
const pageRows = 512

// Summaries yields the runs that q selects, ascending. It reads page by page, and
// never calls yield within a transaction.
func (s *Badger) Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error {
	p := page{q: &q, all: q.All || slices.ContainsFunc(q.States, final), more: true}
	if q.HasAfter {
		p.next, p.more = q.After+1, q.After < 1<<64-1
	}
	left := q.Limit
	for p.more {
		if err := s.read(&p); err != nil {
			return err
		}
		for _, sum := range p.rows {
			if !yield(sum) {
				return nil
			}
			if left--; left == 0 {
				return nil
			}
		}
	}
	return nil
}

// page is what one transaction of a list reads.
type page struct {
	q    *messages.ListQuery
	all  bool // finished runs too
	rows []*messages.Summary
	next messages.RunID // where the next page begins
	more bool           // there may be one
}

// read reads the next page: pageRows runs, of which those that are selected are kept.
func (s *Badger) read(p *page) error {
	return s.viewRuns(p.next, pageRows, func(txn *badger.Txn, live []messages.RunID) error {
		looked, limited := 0, len(live) == pageRows
		end := messages.RunID(1<<64 - 1)
		if limited {
			end = live[pageRows-1] // of those behind it nothing is known
		}
		p.rows, p.more = p.rows[:0], limited && end < 1<<64-1
		visit := func(sum *messages.Summary) (bool, error) {
			if looked == pageRows {
				p.next, p.more = sum.ID, true
				return false, nil
			}
			looked++
			if selects(p.q, p.all, sum) {
				p.rows = append(p.rows, sum)
			}
			return p.q.Limit == 0 || len(p.rows) < p.q.Limit, nil
		}
		from := p.next
		p.next = end + 1
		return s.merged(txn, p, from, end, live, visit)
	})
}

// merged calls visit for the unfinished runs and, when the list asks for them, the
// finished ones, in ascending order, from one run to another. live are those that may be
// unfinished.
func (s *Badger) merged(txn *badger.Txn, p *page, from, end messages.RunID, live []messages.RunID, visit func(*messages.Summary) (bool, error)) error {
	unfinished := newLiveRows(txn)
	defer unfinished.close()
	finished := new(finalRows)
	if p.all {
		finished = newFinalRows(txn, p.q, from, end, live, &s.gone)
		defer finished.close()
	}
	for more := true; more; {
		run, ok := finished.run()
		ok = ok && run <= end
		var item *badger.Item
		var err error
		switch {
		case len(live) > 0 && (!ok || live[0] <= run):
			run, live, ok = live[0], live[1:], false
			if item = unfinished.row(run); item == nil {
				continue // it is a finished one at this moment
			}
		case ok:
			item, err = finished.row()
		default:
			return nil
		}
		if err == nil {
			err = itemValue(item, func(v []byte) error {
				sum, _, err := decodeSummary(run, v)
				if err == nil {
					more, err = visit(sum)
				}
				return err
			})
		}
		if err != nil {
			return err
		}
		if ok {
			finished.next()
		}
	}
	return nil
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
