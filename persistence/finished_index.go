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

// register holds, in memory, the ids of the finished runs whose summaries are stored, their
// states, and bounds of when they last changed. It has two jobs.
//
// It is the witness of damage. When a block of a table rots while the store is open, its rows
// are missing for every reader: Badger's iterators take such a block for the end of the table.
// A registered run without a row is reported as damaged, not as unknown.
//
// It is the index of finished runs by state and by time (list.go): a list of ERRORED runs
// reads no row of other runs, and retention reads no row of a run that is too young. It costs
// no row on disk, and 40 bytes for 64 neighbouring runs.
//
// A run is registered once a read can see its summary, and is taken out before the first
// read that cannot: see expect and learn. So a run that is registered both before and after
// a read must be found by that read, be it as an unfinished one that was restarted.
type register struct {
	mu       sync.Mutex
	words    idtable.Table[finishedWord]  // by run id / 64
	blocks   idtable.Table[finishedBlock] // by run id / blockRuns: those that can be skipped
	count    int                          // registered runs
	arriving []finishedRun                // of the commit that reads begin to see at this moment

	// Runs that finished before the store was opened are registered in the background:
	// those of [unknownFrom, unknownTo) are not yet. Nothing is known before begin.
	begun                  bool
	unknownFrom, unknownTo messages.RunID
}

// finishedWord is what is known of the finished ones among 64 neighbouring runs.
type finishedWord struct {
	states [finalStates]uint64 // a bit per run; of a run with a damaged summary in each of them
	// Bounds of Summary.Changed (ns). Deletions and restarts leave them wider than needed.
	oldest, newest int64
}

func (w *finishedWord) all() uint64 { return w.states[0] | w.states[1] | w.states[2] }

// in returns the bits of the runs that may be in one of the states.
func (w *finishedWord) in(states stateSet) (bits uint64) {
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

// stateSet is a set of final states: bit 0 is that of COMPLETED.
type stateSet uint8

const (
	finalStates = 3
	anyFinal    = stateSet(1<<finalStates - 1)
)

func stateSetOf(s dag.RunState) stateSet { return 1 << (s - dag.RunCompleted) }

// finishedRun is what the register learns of a run.
type finishedRun struct {
	run     messages.RunID
	states  stateSet // more than one: the summary is damaged
	changed int64
	gone    bool // it is no longer a finished run
}

// finishedRunOf reads what the register keeps out of a summary.
func finishedRunOf(run messages.RunID, value []byte) finishedRun {
	state, changed, err := summaryFacts(value)
	if err != nil || !final(state) {
		return finishedRun{run: run, states: anyFinal}
	}
	return finishedRun{run: run, states: stateSetOf(state), changed: changed}
}

// begin is called when the store is open and ids from next on were never used.
func (r *register) begin(next messages.RunID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun, r.unknownTo = true, next
}

// filledTo notes that all finished runs below a run are registered.
func (r *register) filledTo(run messages.RunID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unknownFrom = min(run, r.unknownTo)
}

// known tells whether all finished runs from one on, up to last, are registered. When they
// are not, the same holds up to last.
func (r *register) known(from messages.RunID) (known bool, last messages.RunID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	const end = messages.RunID(1<<64 - 1)
	switch {
	case !r.begun:
		return false, end
	case r.unknownFrom == r.unknownTo || from >= r.unknownTo:
		return true, end
	case from < r.unknownFrom:
		return true, r.unknownFrom - 1
	}
	return false, r.unknownTo - 1
}

// len is how many finished runs there are; known is false while some are not registered yet.
func (r *register) len() (n int, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n = r.count
	for i := range r.arriving {
		a := &r.arriving[i]
		if w := r.words.Get(uint64(a.run) / 64); !a.gone && w.all()&(1<<(a.run%64)) == 0 {
			n++
		}
	}
	return n, r.begun && r.unknownFrom == r.unknownTo
}

// set registers a run, or takes it out. mu is held.
func (r *register) set(f finishedRun) {
	at, bit := uint64(f.run)/64, uint64(1)<<(f.run%64)
	was := r.words.Get(at)
	w, block := was, r.blocks.Get(uint64(f.run)/blockRuns)
	if block == (finishedBlock{}) {
		block.oldest, block.newest = math.MaxInt64, math.MinInt64
	}
	if w == (finishedWord{}) {
		w.oldest, w.newest = math.MaxInt64, math.MinInt64
	}
	for i := range w.states {
		w.states[i] &^= bit
		if !f.gone && f.states&(1<<i) != 0 {
			w.states[i] |= bit
		}
		block.runs[i] += int32(bits.OnesCount64(w.states[i]) - bits.OnesCount64(was.states[i]))
	}
	switch {
	case f.gone:
	case f.states&(f.states-1) != 0:
		w.newest = math.MaxInt64 // the time is unknown: lists by time show the damage, retention does not look
	default:
		w.oldest, w.newest = min(w.oldest, f.changed), max(w.newest, f.changed)
	}
	block.oldest, block.newest = min(block.oldest, w.oldest), max(block.newest, w.newest)
	r.count += bits.OnesCount64(w.all()) - bits.OnesCount64(was.all())
	if w.all() == 0 {
		w = finishedWord{}
	}
	if block.runs == [finalStates]int32{} {
		block = finishedBlock{}
	}
	r.words.Set(at, w)
	r.blocks.Set(uint64(f.run)/blockRuns, block)
}

// fill registers a run as it was at an earlier moment, unless a later one is known.
func (r *register) fill(f finishedRun) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.words.Get(uint64(f.run) / 64); w.all()&(1<<(f.run%64)) == 0 {
		r.set(f)
	}
}

func (r *register) remove(run messages.RunID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set(finishedRun{run: run, gone: true})
}

// expect is called with the rows of a commit before any read can see it. Those that it
// finishes are candidates of lists from here on; their rows need not be found yet.
func (r *register) expect(ops []op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.arriving = r.arriving[:0]
	for i := range ops {
		switch o := &ops[i]; {
		case !ofFinal(o.key):
		case o.del:
			r.set(finishedRun{run: keyRun(o.key), gone: true})
			r.arriving = append(r.arriving, finishedRun{run: keyRun(o.key), gone: true})
		default:
			r.arriving = append(r.arriving, finishedRunOf(keyRun(o.key), o.val[:max(0, len(o.val)-sumSize)]))
		}
	}
}

// learn is called once each read that begins sees the rows that expect was told.
func (r *register) learn() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.arriving {
		r.set(f)
	}
	r.arriving = r.arriving[:0]
}

func ofFinal(key []byte) bool { return key[0] == typeFinal && len(key) == 9 }

func (r *register) has(run messages.RunID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.words.Get(uint64(run) / 64)
	return w.all()&(1<<(run%64)) != 0
}

// between appends the runs from one to another, ascending.
func (r *register) between(dst []messages.RunID, from, to messages.RunID) []messages.RunID {
	r.mu.Lock()
	defer r.mu.Unlock()
	for at, w := range r.words.From(uint64(from) / 64) {
		if at > uint64(to)/64 {
			break
		}
		for word := w.all(); word != 0; word &= word - 1 {
			run := messages.RunID(at*64 + uint64(bits.TrailingZeros64(word)))
			if run >= from && run <= to {
				dst = append(dst, run)
			}
		}
	}
	return dst
}

// finishedFilter selects finished runs by what the register knows of them. It may let a run
// pass that the summary rules out, never the reverse.
type finishedFilter struct {
	states                 stateSet
	changedFrom, changedTo int64 // as in messages.ListQuery
}

// lockedWords is how many words are looked at under the lock at a time: a commit waits for
// that, some 40 µs.
const lockedWords = 8192

// next is the first run from one on that the filter lets pass.
func (r *register) next(from messages.RunID, f finishedFilter) (run messages.RunID, ok bool) {
	for more := true; more; {
		run, ok, more = r.nextOf(&from, f)
	}
	return run, ok
}

// nextOf is next for some words. more is set when it must go on, from where it has moved from.
func (r *register) nextOf(from *messages.RunID, f finishedFilter) (run messages.RunID, ok, more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.arriving {
		a := &r.arriving[i]
		if !a.gone && a.run >= *from && a.states&f.states != 0 && (!ok || a.run < run) {
			run, ok = a.run, true
		}
	}
	looked := 0
	for b, block := range r.blocks.From(uint64(*from) / blockRuns) {
		if ok && b > uint64(run)/blockRuns {
			break
		}
		if looked++; looked > lockedWords {
			*from = messages.RunID(b * blockRuns)
			return 0, false, true
		}
		if !f.mayHave(block) {
			continue
		}
		for at, w := range r.words.From(max(uint64(*from)/64, b*blockRuns/64)) {
			if at/(blockRuns/64) != b || ok && at > uint64(run)/64 {
				break
			}
			looked++
			if !f.inTime(w.oldest, w.newest) {
				continue
			}
			word := w.in(f.states)
			if at == uint64(*from)/64 {
				word &= ^uint64(0) << (*from % 64)
			}
			if word == 0 {
				continue
			}
			if first := messages.RunID(at*64 + uint64(bits.TrailingZeros64(word))); !ok || first < run {
				run, ok = first, true
			}
			return run, ok, false
		}
	}
	return run, ok, false
}

// inTime tells whether of runs that changed between these times some may pass.
func (f *finishedFilter) inTime(oldest, newest int64) bool {
	return (f.changedFrom == 0 || newest >= f.changedFrom) && (f.changedTo == 0 || oldest <= f.changedTo)
}

func (f *finishedFilter) mayHave(b finishedBlock) bool {
	for i, n := range b.runs {
		if n > 0 && f.states&(1<<i) != 0 {
			return f.inTime(b.oldest, b.newest)
		}
	}
	return false
}

// word returns what is known of the 64 neighbours of a run.
func (r *register) word(run messages.RunID) finishedWord {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.words.Get(uint64(run) / 64)
}

// tighten narrows the bound of a word whose runs were all read, unless it has changed since.
func (r *register) tighten(run messages.RunID, was finishedWord, oldest int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, number := uint64(run)/64, uint64(run)/blockRuns
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
	registerPage  = 4096                  // rows that are looked at in one transaction
	registerPause = 10 * time.Millisecond // between two of them, at most: the first lists do not compete with it
)

// fillRegister registers the runs that were finished when the store was opened: its tables
// were just proven whole.
func (s *Badger) fillRegister(ctx context.Context) error {
	next, more := messages.RunID(0), true
	for more {
		var err error
		begin := time.Now()
		if next, more, err = s.registerPage(next); err != nil {
			return err
		}
		if !more {
			next = 1<<64 - 1
		}
		s.register.filledTo(next)
		pause := time.NewTimer(min(registerPause, time.Since(begin)))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return context.Cause(ctx)
		}
	}
	return nil
}

func (s *Badger) registerPage(from messages.RunID) (next messages.RunID, more bool, err error) {
	s.purging.Lock() // what was deleted is not seen, and nothing is deleted meanwhile
	defer s.purging.Unlock()
	n := 0
	err = s.scan([]byte{typeFinal}, runKey(typeFinal, from), false, func(key []byte, item *badger.Item) (bool, error) {
		run := keyRun(key)
		if n++; n > registerPage {
			next, more = run, true
			return false, nil
		}
		f := finishedRun{run: run, states: anyFinal}
		// A damaged summary is an error of its run, for those who read it.
		_ = itemValue(item, func(v []byte) error {
			f = finishedRunOf(run, v)
			return nil
		})
		s.register.fill(f)
		if s.moments.isLive(run) { // it was restarted after this moment
			s.register.remove(run)
		}
		return true, nil
	})
	return next, more, err
}

// missing is damage: a run is registered, and its summary is not there.
func missing(run messages.RunID) error {
	return fmt.Errorf("run %d: summary: %w: missing", run, errCorrupt)
}

// absent tells why a read has found no summary of a run: it is unknown, or its summary is
// missing. registered is what the register said of it before the read.
func (s *Badger) absent(run messages.RunID, registered bool) error {
	if registered && s.register.has(run) {
		return s.damagedRow(missing(run))
	}
	if !s.moments.isLive(run) || s.queue.wake == nil { // a store that is only read creates nothing
		return unknown(run)
	}
	// It may be just being created: that is durable behind the barrier.
	if err := s.barrier(); err != nil {
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
	case sum == nil && s.moments.isLive(run):
		return s.damagedRow(missing(run))
	}
	return unknown(run) // it was, at the moment of that read
}

// found reads the summary of a run that a list should have come across. It is nil when the
// run is no more, or was not finished at that moment.
func (s *Badger) found(run messages.RunID) (*messages.Summary, error) {
	sum, err := s.Summary(run)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, nil
	case errors.Is(err, errCorrupt):
		return damagedSummary(run, err), nil
	}
	return sum, err
}

// damagedSummary stands for one that cannot be read.
func damagedSummary(run messages.RunID, err error) *messages.Summary {
	return &messages.Summary{ID: run, Damage: err.Error()}
}
