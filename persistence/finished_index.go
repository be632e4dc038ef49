package persistence

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/idtable"
	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// finishedIndex holds, in memory, the IDs of the finished runs whose summaries are stored, their
// states, and bounds on when they last changed. It has two jobs.
//
// It is the witness of damage. When a block of a table rots while the store is open, its rows
// are missing for every reader: Badger's iterators take such a block for the end of the table.
// An indexed run without a row is reported as damaged, not as unknown.
//
// It is the index of finished runs by state and by time (list.go): a list of ERRORED runs
// reads no row of other runs, and retention reads no row of a run that is too young. It costs
// no row on disk, and 40 bytes for 64 neighbouring runs.
//
// A run is added once a read can see its summary, and removed before the first read that cannot:
// see expectCommit and publishExpected. So a run that is indexed both before and after a read must
// be found by that read, perhaps as an unfinished run that was restarted.
type finishedIndex struct {
	numbering messages.Numbering // set before start

	mu         sync.Mutex
	words      idtable.Table[finishedWord]  // by the run's number / 64
	blocks     idtable.Table[finishedBlock] // by the run's number / blockRuns: lets a search skip blocks
	registered int                          // number of indexed runs
	expected   []finishedRun                // of the commit that reads are beginning to see

	// Runs that finished before the store was opened are added in the background: those of
	// [unknownFrom, unknownTo) are still missing. Until start all are.
	started                bool
	unknownFrom, unknownTo messages.RunID
}

// finishedWord is what is known of the finished ones among 64 neighbouring runs.
type finishedWord struct {
	states [finalStates]uint64 // a bit per run; a run with a damaged summary has it in each state
	// Bounds on Summary.Changed (ns). Deletions and restarts leave them wider than needed.
	oldest, newest int64
}

func (w *finishedWord) anyState() uint64 { return w.states[0] | w.states[1] | w.states[2] }

// inStates returns the bits of the runs that may be in one of the states.
func (w *finishedWord) inStates(states stateSet) (bits uint64) {
	for i, b := range w.states {
		if states&(1<<i) != 0 {
			bits |= b
		}
	}
	return bits
}

// blockRuns is how many neighbouring runs share a finishedBlock.
const blockRuns = 4096

// finishedBlock sums up words.
type finishedBlock struct {
	runs           [finalStates]int32 // in each state
	oldest, newest int64              // as those of a word
}

// stateSet is a set of final states; bit 0 is COMPLETED.
type stateSet uint8

const (
	finalStates = 3
	anyFinal    = stateSet(1<<finalStates - 1)
)

func stateSetOf(s dag.RunState) stateSet { return 1 << (s - dag.RunCompleted) }

// finishedRun is what the index learns of a run.
type finishedRun struct {
	run     messages.RunID
	states  stateSet // more than one: the summary is damaged
	changed int64
	removed bool // the run is no longer a finished one
}

// finishedRunOf extracts from a summary what the index keeps. A summary that cannot be read is a
// run in every state: each list that might show the run reads its row, and reports the damage.
func finishedRunOf(run messages.RunID, value []byte) finishedRun {
	state, changed, err := summaryFacts(value)
	if err != nil || !isFinal(state) {
		return finishedRun{run: run, states: anyFinal}
	}
	return finishedRun{run: run, states: stateSetOf(state), changed: changed}
}

// start is called when the store is open. IDs from next on were never used.
func (r *finishedIndex) start(next messages.RunID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.started, r.unknownTo = true, next
}

// setLoadedTo says that all finished runs below a run are indexed.
func (r *finishedIndex) setLoadedTo(run messages.RunID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unknownFrom = min(run, r.unknownTo)
}

// coverage reports whether all finished runs from a run on, up to last, are indexed. If not, that
// answer also holds up to last. The loading goes from low IDs to high ones, and runs that finish
// after the open are indexed at once. So the IDs are three ranges: loaded, still unknown, and new.
func (r *finishedIndex) coverage(from messages.RunID) (known bool, last messages.RunID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	const end = messages.RunID(1<<64 - 1)
	switch {
	case !r.started:
		return false, end
	case r.unknownFrom == r.unknownTo || from >= r.unknownTo:
		return true, end
	case from < r.unknownFrom:
		return true, r.unknownFrom - 1
	}
	return false, r.unknownTo - 1
}

// count returns how many finished runs there are; known is false while some are not yet indexed. It
// includes those of the commit that reads begin to see. The caller has a read timestamp, so its
// number fits what a list would show.
func (r *finishedIndex) count() (n int, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n = r.registered
	for i := range r.expected {
		a := &r.expected[i]
		if !a.removed && !r.containsLocked(a.run) {
			n++
		}
	}
	return n, r.started && r.unknownFrom == r.unknownTo
}

// setLocked adds or removes a run. mu is held. A word or block without runs becomes zero, which the
// tables do not store, so deleted ranges cost no memory.
func (r *finishedIndex) setLocked(f finishedRun) {
	number := r.numbering.Number(f.run)
	at, bit := number/64, uint64(1)<<(number%64)
	was := r.words.Get(at)
	w, block := was, r.blocks.Get(number/blockRuns)
	if block == (finishedBlock{}) {
		block.oldest, block.newest = math.MaxInt64, math.MinInt64
	}
	if w == (finishedWord{}) {
		w.oldest, w.newest = math.MaxInt64, math.MinInt64
	}
	for i := range w.states {
		w.states[i] &^= bit
		if !f.removed && f.states&(1<<i) != 0 {
			w.states[i] |= bit
		}
		block.runs[i] += int32(bits.OnesCount64(w.states[i]) - bits.OnesCount64(was.states[i]))
	}
	switch {
	case f.removed:
	case f.states&(f.states-1) != 0:
		w.newest = math.MaxInt64 // the time is unknown: lists by time show the damage, retention does not read the run
	default:
		w.oldest, w.newest = min(w.oldest, f.changed), max(w.newest, f.changed)
	}
	block.oldest, block.newest = min(block.oldest, w.oldest), max(block.newest, w.newest)
	r.registered += bits.OnesCount64(w.anyState()) - bits.OnesCount64(was.anyState())
	if w.anyState() == 0 {
		w = finishedWord{}
	}
	if block.runs == [finalStates]int32{} {
		block = finishedBlock{}
	}
	r.words.Set(at, w)
	r.blocks.Set(number/blockRuns, block)
}

// addIfUnknown adds a run as it was at an earlier timestamp, unless a later state is known.
func (r *finishedIndex) addIfUnknown(f finishedRun) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.containsLocked(f.run) {
		r.setLocked(f)
	}
}

func (r *finishedIndex) remove(run messages.RunID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.setLocked(finishedRun{run: run, removed: true})
}

// expectCommit is called with the rows of a commit before any read can see them. From here on the
// runs that the commit finishes are candidates of lists; their rows need not be found yet.
func (r *finishedIndex) expectCommit(ops []mutation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expected = r.expected[:0]
	for i := range ops {
		switch m := &ops[i]; {
		case !ofFinal(m.Key):
		case m.Delete:
			r.setLocked(finishedRun{run: runOfKey(m.Key), removed: true})
			r.expected = append(r.expected, finishedRun{run: runOfKey(m.Key), removed: true})
		default:
			r.expected = append(r.expected, finishedRunOf(runOfKey(m.Key), m.Value[:max(0, len(m.Value)-checksumSize)]))
		}
	}
}

// publishExpected is called once every new read sees the rows that expectCommit was called with.
// From here on a run of them whose row is missing is damage.
func (r *finishedIndex) publishExpected() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.expected {
		r.setLocked(f)
	}
	r.expected = r.expected[:0]
}

func ofFinal(key []byte) bool { return key[0] == typeFinished && len(key) == 9 }

func (r *finishedIndex) contains(run messages.RunID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.containsLocked(run)
}

// containsLocked is contains; mu is held. A run of another partition may have the number of a run here.
func (r *finishedIndex) containsLocked(run messages.RunID) bool {
	number := r.numbering.Number(run)
	w := r.words.Get(number / 64)
	return w.anyState()&(1<<(number%64)) != 0 && r.numbering.Owns(run)
}

// appendBetween appends the indexed runs from one run to another, both included, ascending.
func (r *finishedIndex) appendBetween(dst []messages.RunID, from, to messages.RunID) []messages.RunID {
	r.mu.Lock()
	defer r.mu.Unlock()
	for at, w := range r.words.From(r.numbering.Number(from) / 64) {
		if at > r.numbering.Number(to)/64 {
			break
		}
		for word := w.anyState(); word != 0; word &= word - 1 {
			run := r.runAt(at, word)
			if run >= from && run <= to {
				dst = append(dst, run)
			}
		}
	}
	return dst
}

// runAt returns the run of the lowest bit of a word.
func (r *finishedIndex) runAt(at, word uint64) messages.RunID {
	return r.numbering.ID(at*64 + uint64(bits.TrailingZeros64(word)))
}

// finishedFilter selects finished runs by what the index knows of them. It may let a run pass that
// the summary rules out, never the reverse.
type finishedFilter struct {
	states                 stateSet
	changedFrom, changedTo int64 // as in messages.ListQuery
}

// lockedWords is how many words a search examines under one lock: a commit waits for that, some 40
// µs.
const lockedWords = 8192

// nextMatch returns the first run from a run on that the filter lets pass. It skips blocks and
// words whose states and times rule all of their runs out, and releases the lock between two steps.
func (r *finishedIndex) nextMatch(from messages.RunID, f finishedFilter) (run messages.RunID, ok bool) {
	for more := true; more; {
		run, ok, more = r.nextMatchStep(&from, f)
	}
	return run, ok
}

// nextMatchStep is nextMatch for some words. more says that the search goes on, at the advanced
// from.
func (r *finishedIndex) nextMatchStep(from *messages.RunID, f finishedFilter) (run messages.RunID, ok, more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.expected {
		a := &r.expected[i]
		if !a.removed && a.run >= *from && a.states&f.states != 0 && (!ok || a.run < run) {
			run, ok = a.run, true
		}
	}
	first := r.numbering.NumberFrom(*from)
	looked := 0
	for b, block := range r.blocks.From(first / blockRuns) {
		if ok && b > r.numbering.Number(run)/blockRuns {
			break
		}
		if looked++; looked > lockedWords {
			*from = r.numbering.ID(b * blockRuns)
			return 0, false, true
		}
		if !f.mayMatchBlock(block) {
			continue
		}
		for at, w := range r.words.From(max(first/64, b*blockRuns/64)) {
			if at/(blockRuns/64) != b || ok && at > r.numbering.Number(run)/64 {
				break
			}
			looked++
			if !f.mayMatchTime(w.oldest, w.newest) {
				continue
			}
			word := w.inStates(f.states)
			if at == first/64 {
				word &= ^uint64(0) << (first % 64)
			}
			if word == 0 {
				continue
			}
			if found := r.runAt(at, word); !ok || found < run {
				run, ok = found, true
			}
			return run, ok, false
		}
	}
	return run, ok, false
}

// mayMatchTime reports whether some of the runs that changed between these times may pass.
func (f *finishedFilter) mayMatchTime(oldest, newest int64) bool {
	return (f.changedFrom == 0 || newest >= f.changedFrom) && (f.changedTo == 0 || oldest <= f.changedTo)
}

func (f *finishedFilter) mayMatchBlock(b finishedBlock) bool {
	for i, n := range b.runs {
		if n > 0 && f.states&(1<<i) != 0 {
			return f.mayMatchTime(b.oldest, b.newest)
		}
	}
	return false
}

// wordOf returns what is known of the 64 neighbours of a run, and the place of that word.
func (r *finishedIndex) wordOf(run messages.RunID) (w finishedWord, at uint64) {
	at = r.numbering.Number(run) / 64
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.words.Get(at), at
}

// tighten narrows the bound of the word at a place whose runs were all read, unless it has changed
// since.
func (r *finishedIndex) tighten(at uint64, was finishedWord, oldest int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	number := at / (blockRuns / 64)
	if r.words.Get(at) != was {
		return
	}
	was.oldest = oldest
	r.words.Set(at, was)
	block := r.blocks.Get(number)
	block.oldest = math.MaxInt64
	for at, w := range r.words.From(number * (blockRuns / 64)) {
		if at/(blockRuns/64) != number {
			break
		}
		block.oldest = min(block.oldest, w.oldest)
	}
	r.blocks.Set(number, block)
}

const (
	finishedPageRows  = 4096                  // rows that one transaction examines
	finishedPagePause = 10 * time.Millisecond // between two of them, at most: the first lists do not compete with it
)

// loadFinishedIndex adds the runs that were finished when the store was opened: its tables were
// just verified, so what it finds is what was written. It pauses after each page for as long as the
// page took, up to finishedPagePause. It returns when ctx ends.
func (s *RunStore) loadFinishedIndex(ctx context.Context) error {
	next, more := messages.RunID(0), true
	for more {
		var err error
		begin := time.Now()
		if next, more, err = s.loadFinishedPage(next); err != nil {
			return err
		}
		if !more {
			next = 1<<64 - 1
		}
		s.finished.setLoadedTo(next)
		pause := time.NewTimer(min(finishedPagePause, time.Since(begin)))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return context.Cause(ctx)
		}
	}
	return nil
}

// loadFinishedPage adds the runs of one page, from a run on. next is where the following one
// begins. A run that changes while the page is read has a newer state in the index, which
// addIfUnknown keeps.
func (s *RunStore) loadFinishedPage(from messages.RunID) (next messages.RunID, more bool, err error) {
	s.deleteMu.Lock() // deleted runs are not seen, and runs are not deleted while this reads
	defer s.deleteMu.Unlock()
	n := 0
	err = s.scanRows([]byte{typeFinished}, runKey(typeFinished, from), false, func(key []byte, item *badger.Item) (bool, error) {
		run := runOfKey(key)
		if n++; n > finishedPageRows {
			next, more = run, true
			return false, nil
		}
		f := finishedRun{run: run, states: anyFinal}
		// A damaged summary is an error of its run, for those who read it.
		_ = itemValue(item, func(v []byte) error {
			f = finishedRunOf(run, v)
			return nil
		})
		s.finished.addIfUnknown(f)
		if s.timestamps.isUnfinished(run) { // it was restarted after this timestamp
			s.finished.remove(run)
		}
		return true, nil
	})
	return next, more, err
}

// missingSummary is the damage of an indexed run whose summary is missing.
func missingSummary(run messages.RunID) error {
	return fmt.Errorf("run %d: summary: %w: missing", run, errCorrupt)
}

// explainAbsence says why a read has found no summary of a run: the run is unknown, or its summary
// is missing. registered says whether the index had the run before the read.
func (s *runReader) explainAbsence(run messages.RunID, registered bool) error {
	if registered && s.finished.contains(run) {
		return s.db.reportRowDamage(missingSummary(run))
	}
	if !s.timestamps.isUnfinished(run) || s.awaitAppended == nil { // an offline store creates nothing
		return unknownRun(run)
	}
	// The run may be just being created: its batch is durable after the barrier.
	if err := s.awaitAppended(); err != nil {
		return err
	}
	var sum *messages.Summary
	err := s.view(func(txn *badger.Txn) (err error) {
		sum, err = summaryTxn(txn, run)
		return err
	})
	switch {
	case err != nil:
		return err
	case sum == nil && s.timestamps.isUnfinished(run):
		return s.db.reportRowDamage(missingSummary(run))
	}
	return unknownRun(run) // it was unknown at the timestamp of the read
}

// confirmSuspected reads the summary of a run that a list should have found. It is nil when the run
// was deleted, or was not finished at the timestamp of the list.
func (s *runReader) confirmSuspected(run messages.RunID) (*messages.Summary, error) {
	sum, err := s.Summary(run)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, nil
	case errors.Is(err, errCorrupt):
		return damagedSummary(run, err), nil
	}
	return sum, err
}

// damagedSummary stands for a summary that cannot be read.
func damagedSummary(run messages.RunID, err error) *messages.Summary {
	return &messages.Summary{ID: run, Damage: err.Error()}
}
