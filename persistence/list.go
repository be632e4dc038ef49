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

// UnfinishedSummaries returns the summaries of the runs without a final state, by ascending ID. The
// engine calls it at its start. A damaged summary is an error of the whole: the engine must not
// start without a run whose tasks may be running. The error says how to go on.
func (s *runReader) UnfinishedSummaries() ([]*messages.Summary, error) {
	var runs []*messages.Summary
	var damage error
	err := s.Summaries(messages.ListQuery{}, func(sum *messages.Summary) bool {
		if sum.Damage != "" {
			damage = &unfinishedDamage{s.db.dir, sum.Damage}
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

// unfinishedDamage is ErrDamaged for the summary of an unfinished run, and says what to do.
type unfinishedDamage struct{ dir, damage string }

func (e *unfinishedDamage) Error() string {
	return fmt.Sprintf("data folder %s: damaged: %s: what the run has under way is not known; %s; `caravan salvage` writes a new folder without it",
		e.dir, e.damage, errNextStep)
}

func (e *unfinishedDamage) Unwrap() error { return ErrDamaged }

// pageRows is how many summaries one transaction examines. A transaction keeps old versions alive,
// and yield may be slow (a client that reads slowly), so a long list is many transactions. Runs
// that change between two pages are shown as the page finds them; since IDs ascend, none is shown
// twice.
const pageRows = 512

// Summaries yields the runs that q selects, ascending. It reads page by page, and never calls yield
// within a transaction. A list of finished runs alone reads through the indexes (readFinishedPage);
// any other list reads row by row.
func (s *runReader) Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error {
	p := listPage{query: &q, includeFinished: q.All || slices.ContainsFunc(q.States, isFinal), states: finalStatesOnly(&q), last: q.Before - 1, more: true}
	if q.HasAfter {
		p.next, p.more = q.After+1, q.After < p.last
	}
	left := q.Limit
	for p.more {
		if err := s.readPage(&p); err != nil {
			return err
		}
		for _, sum := range p.runs {
			if sum.Damage == suspected {
				var err error
				if sum, err = s.confirmSuspected(sum.ID); err != nil {
					return err
				}
				if sum == nil || !matchesQuery(&q, p.includeFinished, sum) {
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
			if *q.Budget -= p.examined; *q.Budget <= 0 && p.more {
				return &messages.ListPaused{After: p.next - 1}
			}
		}
	}
	return nil
}

// suspected is the Damage of a run that a page has missed: the index of finished runs has it, and
// its row was not found. After the page it is decided whether that is damage.
const suspected = "suspected"

// listPage is what one transaction of a list reads.
type listPage struct {
	query           *messages.ListQuery // shared by all pages of the list
	includeFinished bool                // the list wants finished runs, too
	states          stateSet            // of finished runs; 0 unless the list wants these alone
	runs            []*messages.Summary
	next            messages.RunID // where the next page begins; not 0 when there may be one
	last            messages.RunID // where the list ends
	more            bool           // there may be a next page
	examined        int            // number of examined rows
}

// readPage reads the next page: it examines pageRows runs and keeps those that match. Which way it
// takes depends on how far the index of finished runs is loaded: after a start the list goes row by
// row up to the end of that range, and through the indexes from there on.
func (s *runReader) readPage(p *listPage) error {
	p.examined = 0
	last := p.last
	if p.states != 0 {
		known, same := s.finished.coverage(p.next)
		if last = min(last, same); known {
			return s.readFinishedPage(p, last)
		}
	}
	return s.scanPage(p, last)
}

// scanPage reads a page row by row, up to the run last. It merges two ascending sources: the
// unfinished runs that timestamps knows, and the rows of finished runs. When the former are cut off
// at pageRows, the page ends at the last of them. A run that follows may be unfinished without
// being in live.
func (s *runReader) scanPage(p *listPage, last messages.RunID) error {
	return s.viewWithUnfinished(p.next, pageRows, func(txn *badger.Txn, live []messages.RunID) error {
		kept, end := 0, last
		if len(live) == pageRows {
			end = min(end, live[pageRows-1]) // which of the later runs are unfinished is not known
		}
		if at, found := slices.BinarySearch(live, end); found {
			live = live[:at+1]
		} else {
			live = live[:at]
		}
		p.runs, p.more = p.runs[:0], end < 1<<64-1
		visit := func(sum *messages.Summary) bool {
			if p.examined == pageRows {
				p.next, p.more = sum.ID, true
				return false
			}
			p.examined++
			if matchesQuery(p.query, p.includeFinished, sum) {
				p.runs = append(p.runs, sum)
				if sum.Damage != suspected {
					kept++
				}
			}
			return p.query.Limit == 0 || kept < p.query.Limit
		}
		from := p.next
		p.next = end + 1
		return s.mergeRows(txn, p, from, end, live, visit)
	})
}

// mergeRows calls visit for the unfinished runs and, if the list wants them, the finished ones, in
// ascending order, until visit returns false. live are the runs that may be unfinished. A run whose
// row is damaged or missing is visited, too, with its damage.
func (s *runReader) mergeRows(txn *badger.Txn, p *listPage, from, end messages.RunID, live []messages.RunID, visit func(*messages.Summary) bool) error {
	unfinished := newSummaryLookup(txn, typeUnfinished)
	defer unfinished.it.Close()
	finished, passed := new(finishedIterator), func(messages.RunID) bool { return true }
	if p.includeFinished {
		finished = newFinishedIterator(txn, p.query, from, end, live, &s.deletedIDs)
		defer finished.close()
		if !finished.byIndex {
			passed = s.missingReporter(from, live, visit)
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
			if item = unfinished.find(run); item == nil {
				continue // the run is finished at this timestamp
			}
		case ok:
			item, err = finished.summaryRow()
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
		sum, err := s.decodeSummaryRow(run, item, err)
		if err != nil || !visit(sum) {
			return err
		}
		if ok {
			finished.next()
		}
	}
}

// missingReporter returns a function that is called with each run that a page finds, ascending. It
// calls visit for the runs since its last call that the index of finished runs has and that the
// page did not find. It returns false when visit does. live are the runs that may be unfinished.
func (s *runReader) missingReporter(from messages.RunID, live []messages.RunID, visit func(*messages.Summary) bool) func(to messages.RunID) bool {
	next := from
	var between []messages.RunID
	return func(to messages.RunID) bool {
		if next < to {
			between = s.finished.appendBetween(between[:0], next, to-1)
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

// decodeSummaryRow decodes a row, if err is nil. A damaged row is a damaged run, and no error of
// the list.
func (s *runReader) decodeSummaryRow(run messages.RunID, item *badger.Item, err error) (sum *messages.Summary, _ error) {
	if err == nil {
		err = itemValue(item, func(v []byte) (err error) {
			sum, _, err = decodeSummary(run, v)
			return err
		})
	}
	if errors.Is(err, badger.ErrKeyNotFound) { // the index of a tag has the run
		err = missingSummary(run)
	}
	if errors.Is(err, errCorrupt) {
		return damagedSummary(run, s.db.reportRowDamage(err)), nil
	}
	return sum, err
}

// matchesQuery reports whether a list shows a run. It compares everything again that an index has
// selected: prefixes of tags may be shared, and bounds of times are wide. all says that finished
// runs are wanted, too. A damaged run matches every query.
func matchesQuery(q *messages.ListQuery, all bool, s *messages.Summary) bool {
	switch {
	case s.Damage != "":
		return true // its state is unknown
	case !all && isFinal(s.State), q.HasTag && s.Tag != q.Tag:
		return false
	case len(q.States) > 0 && !slices.Contains(q.States, s.State):
		return false
	case q.ChangedFrom > 0 && s.Changed < q.ChangedFrom, q.ChangedTo > 0 && s.Changed > q.ChangedTo:
		return false
	}
	return !slices.ContainsFunc(q.Labels, func(l dag.Label) bool { return !slices.Contains(s.Tags, l) })
}

// A list of finished runs uses all indexes that apply to it together: finishedIndex, in memory, has
// the states and bounds of the times; each tag and each label has rows in the store. Each index is
// asked for its first run from a candidate on. The furthest answer is the next candidate, and when
// all agree on a run, its summary is read. So the most selective index sets the pace, whichever it
// is.
//
// finishedIndex also says which rows must exist: a run without one is damaged. Index rows lack such
// a witness: while any damage of the store is known, lists do without them.

// finalStatesOnly returns the states that a list wants, if all of them are final; else 0.
func finalStatesOnly(q *messages.ListQuery) (states stateSet) {
	for _, state := range q.States {
		if !isFinal(state) {
			return 0
		}
		states |= stateSetOf(state)
	}
	return states
}

// indexPrefixes returns the prefixes of the index rows that all matching runs have. A query for the
// empty tag has none: runs without a tag have no row of it.
func indexPrefixes(q *messages.ListQuery) (prefixes [][]byte) {
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

// readFinishedPage reads a page through the indexes, up to the run last. The index of finished runs
// must be complete up to there.
//
// Each round takes the next candidate of the index in memory and asks the rows of all tags and
// labels for their first run from there on. A later answer is the next candidate; else the summary
// is read. So the cost follows the rarest property: a tag that few of a million runs have costs few
// steps. A step counts as examined even if it reads no summary, so that a page ends in bounded
// time.
func (s *runReader) readFinishedPage(p *listPage, last messages.RunID) error {
	filter := finishedFilter{states: p.states, changedFrom: p.query.ChangedFrom, changedTo: p.query.ChangedTo}
	return s.view(func(txn *badger.Txn) error {
		rows := candidateReader{txn: txn, numbering: s.finished.numbering}
		defer rows.close()
		if s.Damaged() == nil {
			for _, prefix := range indexPrefixes(p.query) {
				rows.indexes = append(rows.indexes, newIndexCursor(txn, prefix))
			}
		}
		var times boundsTightener
		if filter.changedTo > 0 {
			times.index = &s.finished
		}
		kept := 0
		p.runs = p.runs[:0]
		for ; ; p.examined++ {
			run, ok := s.finished.nextMatch(p.next, filter)
			if !ok || run > last {
				times.finishWord()
				p.next, p.more = last+1, last < 1<<64-1
				return nil
			}
			p.next = run
			if p.examined == pageRows {
				p.more = true
				return nil
			}
			at, any := rows.nextInAllIndexes(run)
			switch {
			case !any:
				p.more = false
				return nil
			case at > run:
				p.next = at
				continue
			}
			item, err := rows.summaryRow(run)
			sum := &messages.Summary{ID: run, Damage: suspected}
			if item != nil || err != nil {
				if sum, err = s.decodeSummaryRow(run, item, err); err != nil {
					return err
				}
			}
			times.observe(sum)
			if matchesQuery(p.query, true, sum) {
				p.runs = append(p.runs, sum)
				if sum.Damage != suspected {
					kept++
				}
			}
			if p.next, p.more = run+1, run < 1<<64-1; !p.more || p.query.Limit > 0 && kept == p.query.Limit {
				return nil
			}
		}
	})
}

// boundsTightener narrows the index's bounds on the times of runs that a list reads anyway. Without
// it each sweep of the retention would read those runs again.
type boundsTightener struct {
	index  *finishedIndex // nil: it does nothing
	word   uint64         // its place in the index
	before finishedWord
	seen   int
	oldest int64
}

// observe is called for each run that the list reads, ascending.
func (t *boundsTightener) observe(s *messages.Summary) {
	if t.index == nil {
		return
	}
	if t.seen == 0 || t.index.numbering.Number(s.ID)/64 != t.word {
		t.finishWord()
		before, word := t.index.wordOf(s.ID)
		*t = boundsTightener{index: t.index, word: word, before: before, oldest: math.MaxInt64}
	}
	t.seen++
	if s.Damage == "" {
		t.oldest = min(t.oldest, s.Changed)
	}
}

// finishWord is called after the last run of a word.
func (t *boundsTightener) finishWord() {
	if t.seen > 0 && t.seen == bits.OnesCount64(t.before.anyState()) {
		t.index.tighten(t.word, t.before, t.oldest)
	}
	t.seen = 0
}

// FinishedCount returns how many finished runs there are. known is false while a store that was
// just opened has not counted them.
func (s *runReader) FinishedCount() (n int, known bool) {
	err := s.view(func(*badger.Txn) error { // the index has what the read sees
		n, known = s.finished.count()
		return nil
	})
	return n, known && err == nil
}
