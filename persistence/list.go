package persistence

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// UnfinishedSummaries returns the summaries of the runs without a final state, by ascending id.
func (s *Badger) UnfinishedSummaries() ([]*messages.Summary, error) {
	var runs []*messages.Summary
	var damage error
	err := s.Summaries(messages.ListQuery{}, func(sum *messages.Summary) bool {
		if sum.Damage != "" {
			damage = &unfinishedDamage{s.dir, sum.Damage}
			return false
		}
		runs = append(runs, sum)
		return true
	})
	if err = cmp.Or(err, damage); err != nil {
		return nil, err
	}
	return runs, nil
}

// unfinishedDamage is ErrDamaged of the summary of an unfinished run, with what to do.
type unfinishedDamage struct{ dir, damage string }

func (e *unfinishedDamage) Error() string {
	return fmt.Sprintf("data folder %s: damaged: %s: what the run has under way is not known; %s; `caravan salvage` writes a new folder without it",
		e.dir, e.damage, errNextStep)
}

func (e *unfinishedDamage) Unwrap() error { return ErrDamaged }

// pageRows is how many summaries are looked at in one transaction.
const pageRows = 512

// Summaries yields the runs that q selects, ascending. It reads page by page, and
// never calls yield within a transaction. A list of finished runs alone goes by the indexes
// (readFinished), any other list from row to row.
func (s *Badger) Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error {
	p := page{q: &q, all: q.All || slices.ContainsFunc(q.States, final), states: finalOnly(&q), last: q.Before - 1, more: true}
	if q.HasAfter {
		p.next, p.more = q.After+1, q.After < p.last
	}
	left := q.Limit
	for p.more {
		if err := s.read(&p); err != nil {
			return err
		}
		for _, sum := range p.rows {
			if sum.Damage == suspected {
				var err error
				if sum, err = s.found(sum.ID); err != nil {
					return err
				}
				if sum == nil || !selects(&q, p.all, sum) {
					continue
				}
			}
			if !yield(sum) {
				return nil
			}
			if left--; left == 0 {
				return nil
			}
		}
		if p.more = p.more && p.next <= p.last; q.Budget != nil {
			if *q.Budget -= p.looked; *q.Budget <= 0 && p.more {
				return &messages.ListPaused{After: p.next - 1}
			}
		}
	}
	return nil
}

// suspected is the Damage of a run that a page has passed over: it is registered, and no row
// of it was found. Whether that is damage is found out behind the page.
const suspected = "suspected"

// page is what one transaction of a list reads.
type page struct {
	q      *messages.ListQuery
	all    bool     // finished runs too
	states stateSet // of finished runs, when the list is of these alone
	rows   []*messages.Summary
	next   messages.RunID // where the next page begins; it is not 0 when there may be one
	last   messages.RunID // where the list ends
	more   bool           // there may be a next page
	looked int            // rows that were looked at
}

// read reads the next page: pageRows runs, of which those that are selected are kept.
func (s *Badger) read(p *page) error {
	p.looked = 0
	last := p.last
	if p.states != 0 {
		known, same := s.register.known(p.next)
		if last = min(last, same); known {
			return s.readFinished(p, last)
		}
	}
	return s.readRows(p, last)
}

// readRows reads a page, up to the run last, from row to row.
func (s *Badger) readRows(p *page, last messages.RunID) error {
	return s.viewRuns(p.next, pageRows, func(txn *badger.Txn, live []messages.RunID) error {
		kept, end := 0, last
		if len(live) == pageRows {
			end = min(end, live[pageRows-1]) // of those behind it nothing is known
		}
		if at, found := slices.BinarySearch(live, end); found {
			live = live[:at+1]
		} else {
			live = live[:at]
		}
		p.rows, p.more = p.rows[:0], end < 1<<64-1
		visit := func(sum *messages.Summary) bool {
			if p.looked == pageRows {
				p.next, p.more = sum.ID, true
				return false
			}
			p.looked++
			if selects(p.q, p.all, sum) {
				p.rows = append(p.rows, sum)
				if sum.Damage != suspected {
					kept++
				}
			}
			return p.q.Limit == 0 || kept < p.q.Limit
		}
		from := p.next
		p.next = end + 1
		return s.merged(txn, p, from, end, live, visit)
	})
}

// merged calls visit for the unfinished runs and, when the list asks for them, the
// finished ones, in ascending order, from one run to another, until it returns false. live
// are those that may be unfinished. Of a row that is damaged, and of one that should be
// there, visit is given the run all the same.
func (s *Badger) merged(txn *badger.Txn, p *page, from, end messages.RunID, live []messages.RunID, visit func(*messages.Summary) bool) error {
	unfinished := newSummaryRows(txn, typeLive)
	defer unfinished.close()
	finished, passed := new(finalRows), func(messages.RunID) bool { return true }
	if p.all {
		finished = newFinalRows(txn, p.q, from, end, live, &s.gone)
		defer finished.close()
		if finished.prefix[0] == typeFinal {
			passed = s.passing(from, live, visit)
		}
	}
	for {
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
			if end < 1<<64-1 {
				passed(end + 1)
			} else {
				passed(end)
			}
			return nil
		}
		if !passed(run) {
			return nil
		}
		sum, err := s.summaryOf(run, item, err)
		if err != nil || !visit(sum) {
			return err
		}
		if ok {
			finished.next()
		}
	}
}

// passing returns a function that is told each run that a page comes across, ascending: it
// calls visit for those before it, from the last one on, which are registered and were not
// come across. It is false when visit was. live are those that may be unfinished.
func (s *Badger) passing(from messages.RunID, live []messages.RunID, visit func(*messages.Summary) bool) func(to messages.RunID) bool {
	next := from
	var between []messages.RunID
	return func(to messages.RunID) bool {
		if next < to {
			between = s.register.between(between[:0], next, to-1)
			for _, run := range between {
				if _, unfinished := slices.BinarySearch(live, run); !unfinished && !visit(&messages.Summary{ID: run, Damage: suspected}) {
					return false
				}
			}
		}
		next = to + 1
		return true
	}
}

// summaryOf decodes a row, if err is nil. One that is damaged is not the error of a list.
func (s *Badger) summaryOf(run messages.RunID, item *badger.Item, err error) (sum *messages.Summary, _ error) {
	if err == nil {
		err = itemValue(item, func(v []byte) (err error) {
			sum, _, err = decodeSummary(run, v)
			return err
		})
	}
	if errors.Is(err, badger.ErrKeyNotFound) { // the index of a tag has it
		err = missing(run)
	}
	if errors.Is(err, errCorrupt) {
		return damagedSummary(run, s.damagedRow(err)), nil
	}
	return sum, err
}

func selects(q *messages.ListQuery, all bool, s *messages.Summary) bool {
	switch {
	case s.Damage != "":
		return true // nobody knows
	case !all && final(s.State), q.HasTag && s.Tag != q.Tag:
		return false
	case len(q.States) > 0 && !slices.Contains(q.States, s.State):
		return false
	case q.ChangedFrom > 0 && s.Changed < q.ChangedFrom, q.ChangedTo > 0 && s.Changed > q.ChangedTo:
		return false
	}
	return !slices.ContainsFunc(q.Labels, func(l dag.Label) bool { return !slices.Contains(s.Tags, l) })
}

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

// FinishedCount is how many finished runs there are. known is false while a store that was opened a
// moment ago has not counted them.
func (s *Badger) FinishedCount() (n int, known bool) {
	err := s.view(func(*badger.Txn) error { // the register knows what the read sees
		n, known = s.register.len()
		return nil
	})
	return n, known && err == nil
}
