package persistence

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/internal/idtable"
	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// register is the ids of the finished runs whose summaries are stored, in memory. When a
// block of a table rots while the store is open, its rows are missing for whoever reads:
// Badger's iterators take such a block for the end of the table. What is registered and
// cannot be found is damage, and no run that never was.
//
// A run is registered once a read can see its summary, and is taken out before the first
// read that cannot: see learn and forget. So a run that is registered both before and after
// a read must be found by that read, be it as an unfinished one that was restarted.
type register struct {
	mu    sync.Mutex
	words idtable.Table[uint64] // a bit per run, 64 runs per word
}

func (r *register) add(run messages.RunID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := uint64(run) / 64
	r.words.Set(at, r.words.Get(at)|1<<(run%64))
}

func (r *register) remove(run messages.RunID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := uint64(run) / 64
	r.words.Set(at, r.words.Get(at)&^(1<<(run%64)))
}

// forget is called with the rows of a commit before any read can see it.
func (r *register) forget(ops []op) {
	for i := range ops {
		if o := &ops[i]; o.del && ofFinal(o.key) {
			r.remove(keyRun(o.key))
		}
	}
}

// learn is called with the rows of a commit once each read that begins sees it.
func (r *register) learn(ops []op) {
	for i := range ops {
		if o := &ops[i]; !o.del && ofFinal(o.key) {
			r.add(keyRun(o.key))
		}
	}
}

func ofFinal(key []byte) bool { return key[0] == typeFinal && len(key) == 9 }

func (r *register) has(run messages.RunID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.words.Get(uint64(run)/64)&(1<<(run%64)) != 0
}

// between appends the runs from one to another, ascending.
func (r *register) between(dst []messages.RunID, from, to messages.RunID) []messages.RunID {
	r.mu.Lock()
	defer r.mu.Unlock()
	for at, word := range r.words.From(uint64(from) / 64) {
		if at > uint64(to)/64 {
			break
		}
		for ; word != 0; word &= word - 1 {
			run := messages.RunID(at*64 + uint64(bits.TrailingZeros64(word)))
			if run >= from && run <= to {
				dst = append(dst, run)
			}
		}
	}
	return dst
}

const (
	registerPage  = 4096                  // rows that are looked at in one transaction
	registerPause = 10 * time.Millisecond // between two of them: nobody waits for it
)

// fillRegister registers the runs that were finished when the store was opened: its tables
// were just proven whole.
func (s *Badger) fillRegister(ctx context.Context) error {
	next, more := messages.RunID(0), true
	for more {
		var err error
		if next, more, err = s.registerPage(next); err != nil {
			return err
		}
		pause := time.NewTimer(registerPause)
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
	err = s.scan([]byte{typeFinal}, runKey(typeFinal, from), false, func(key []byte, _ *badger.Item) (bool, error) {
		run := keyRun(key)
		if n++; n > registerPage {
			next, more = run, true
			return false, nil
		}
		s.register.add(run)
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
