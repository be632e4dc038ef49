package persistence

import (
	"sync"

	"github.com/caravan-dag/caravan/internal/idtable"
	"github.com/caravan-dag/caravan/messages"
)

// readTimestamps numbers the store's commits and gives each read the newest one that is
// durable. Badger's own numbering would have a read wait for the commit that is
// under way, and so for the disk; here a read never sees a row that is not durable yet,
// and waits at most until Badger has, in memory, what was told to be durable before it
// began: what anybody was told is read by whoever asks next.
//
// It knows, too, which runs may have a summary among those of unfinished runs. Each run
// that finished has left a deleted row there, and a read without that knowledge passes
// over all of them.
type readTimestamps struct {
	mu         sync.Mutex
	changed    sync.Cond      // of durable and over
	published  uint64         // of the newest commit that is durable and in Badger
	announced  uint64         // of the newest commit that somebody may have been told of
	closed     bool           // no commit comes any more
	active     map[uint64]int // reads under way, by their moment
	unfinished idtable.Table[rowState]
}

// rowState is what is known of a run's row among those of unfinished runs: whether the
// newest batch leaves it there (bit 0), and how many deletions of it are not durable yet.
// While it is not zero, a read may see the row.
type rowState uint32

const (
	rowPresent  rowState = 1
	rowDeletion rowState = 2
)

func newReadTimestamps() *readTimestamps {
	m := &readTimestamps{active: make(map[uint64]int)}
	m.changed.L = &m.mu
	return m
}

// announce notes that whoever appended is about to be told that the commit of this number is
// durable.
func (m *readTimestamps) announce(at uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.announced = max(m.announced, at)
}

// stopWaiting ends all waiting, as the store has failed.
func (m *readTimestamps) stopWaiting() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.changed.Broadcast()
}

// acquireLocked returns the moment of a read that begins. m.mu is held.
func (m *readTimestamps) acquireLocked() uint64 {
	for least := m.announced; m.published < least && !m.closed; {
		m.changed.Wait()
	}
	m.active[m.published]++
	return m.published
}

// publish notes that the commit of this number, of these rows, is durable and in Badger. The result is
// the oldest moment that anybody still reads, or this one: what was replaced before it
// may go.
func (m *readTimestamps) publish(to uint64, ops []mutation) (oldest uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.published, m.announced = to, max(m.announced, to)
	m.changed.Broadcast()
	for i := range ops {
		if o := &ops[i]; o.Delete && o.Key[0] == typeUnfinished {
			if l := m.unfinished.Get(uint64(runOfKey(o.Key))); l >= rowDeletion {
				m.unfinished.Set(uint64(runOfKey(o.Key)), l-rowDeletion)
			}
		}
	}
	oldest = to
	for at := range m.active {
		oldest = min(oldest, at)
	}
	return oldest
}

// acquire gives a read its moment. Give it back by end.
func (m *readTimestamps) acquire() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.acquireLocked()
}

func (m *readTimestamps) release(at uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.active[at]--; m.active[at] == 0 {
		delete(m.active, at)
	}
}

// addUnfinished notes that the batch which is being encoded makes a run an unfinished one, and
// tells whether it was one.
func (m *readTimestamps) addUnfinished(run messages.RunID) (was bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.unfinished.Get(uint64(run))
	if l&rowPresent == 0 {
		m.unfinished.Set(uint64(run), l|rowPresent)
	}
	return l&rowPresent != 0
}

// removeUnfinished notes that the batch which is being encoded makes a run a finished one. When it
// was an unfinished one, the batch deletes its row.
func (m *readTimestamps) removeUnfinished(run messages.RunID) (was bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.unfinished.Get(uint64(run))
	if l&rowPresent == 0 {
		return false
	}
	m.unfinished.Set(uint64(run), l&^rowPresent+rowDeletion)
	return true
}

// isUnfinished tells whether the newest batch leaves a run an unfinished one.
func (m *readTimestamps) isUnfinished(run messages.RunID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unfinished.Get(uint64(run))&rowPresent != 0
}

// unfinishedFrom are the first n runs from one on that may have a row among those of
// unfinished runs, at the newest moment or one that is read.
func (m *readTimestamps) unfinishedFrom(from messages.RunID, n int) (runs []messages.RunID) {
	for id := range m.unfinished.From(uint64(from)) {
		if len(runs) == n {
			break
		}
		runs = append(runs, messages.RunID(id))
	}
	return runs
}

// acquireWithUnfinished is begin, for a read of summaries from a run on, and unfinished of that
// moment.
func (m *readTimestamps) acquireWithUnfinished(from messages.RunID, n int) (at uint64, runs []messages.RunID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at = m.acquireLocked()
	return at, m.unfinishedFrom(from, n)
}
