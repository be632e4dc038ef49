package persistence

import (
	"sync"

	"github.com/caravan-dag/caravan/internal/idtable"
	"github.com/caravan-dag/caravan/messages"
)

// moments numbers the store's commits and gives each read the newest one that is
// durable. Badger's own numbering would have a read wait for the commit that is
// under way, and so for the disk; here a read never sees a row that is not durable yet,
// and waits at most until Badger has, in memory, what was told to be durable before it
// began: what anybody was told is read by whoever asks next.
//
// It knows, too, which runs may have a summary among those of unfinished runs. Each run
// that finished has left a deleted row there, and a read without that knowledge passes
// over all of them.
type moments struct {
	mu      sync.Mutex
	moved   sync.Cond      // of durable and over
	durable uint64         // of the newest commit that is durable and in Badger
	telling uint64         // of the newest commit that somebody may have been told of
	over    bool           // no commit comes any more
	reads   map[uint64]int // reads under way, by their moment
	live    idtable.Table[liveness]
}

// liveness is what is known of a run's row among those of unfinished runs: whether the
// newest batch leaves it there (bit 0), and how many deletions of it are not durable yet.
// While it is not zero, a read may see the row.
type liveness uint32

const (
	rowThere    liveness = 1
	rowDeletion liveness = 2
)

func newMoments() *moments {
	m := &moments{reads: make(map[uint64]int)}
	m.moved.L = &m.mu
	return m
}

// told notes that whoever appended is about to be told that the commit of this number is
// durable.
func (m *moments) told(at uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.telling = max(m.telling, at)
}

// abandon ends all waiting, as the store has failed.
func (m *moments) abandon() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over = true
	m.moved.Broadcast()
}

// enterRead returns the moment of a read that begins. m.mu is held.
func (m *moments) enterRead() uint64 {
	for least := m.telling; m.durable < least && !m.over; {
		m.moved.Wait()
	}
	m.reads[m.durable]++
	return m.durable
}

// advance notes that the commit of this number, of these rows, is durable and in Badger. The result is
// the oldest moment that anybody still reads, or this one: what was replaced before it
// may go.
func (m *moments) advance(to uint64, ops []op) (oldest uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.durable, m.telling = to, max(m.telling, to)
	m.moved.Broadcast()
	for i := range ops {
		if o := &ops[i]; o.del && o.key[0] == typeLive {
			if l := m.live.Get(uint64(keyRun(o.key))); l >= rowDeletion {
				m.live.Set(uint64(keyRun(o.key)), l-rowDeletion)
			}
		}
	}
	oldest = to
	for at := range m.reads {
		oldest = min(oldest, at)
	}
	return oldest
}

// begin gives a read its moment. Give it back by end.
func (m *moments) begin() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.enterRead()
}

func (m *moments) end(at uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reads[at]--; m.reads[at] == 0 {
		delete(m.reads, at)
	}
}

// enter notes that the batch which is being encoded makes a run an unfinished one, and
// tells whether it was one.
func (m *moments) enter(run messages.RunID) (was bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.live.Get(uint64(run))
	if l&rowThere == 0 {
		m.live.Set(uint64(run), l|rowThere)
	}
	return l&rowThere != 0
}

// leave notes that the batch which is being encoded makes a run a finished one. When it
// was an unfinished one, the batch deletes its row.
func (m *moments) leave(run messages.RunID) (was bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.live.Get(uint64(run))
	if l&rowThere == 0 {
		return false
	}
	m.live.Set(uint64(run), l&^rowThere+rowDeletion)
	return true
}

// isLive tells whether the newest batch leaves a run an unfinished one.
func (m *moments) isLive(run messages.RunID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.live.Get(uint64(run))&rowThere != 0
}

// unfinished are the first n runs from one on that may have a row among those of
// unfinished runs, at the newest moment or one that is read.
func (m *moments) unfinished(from messages.RunID, n int) (runs []messages.RunID) {
	for id := range m.live.From(uint64(from)) {
		if len(runs) == n {
			break
		}
		runs = append(runs, messages.RunID(id))
	}
	return runs
}

// beginRuns is begin, for a read of summaries from a run on, and unfinished of that
// moment.
func (m *moments) beginRuns(from messages.RunID, n int) (at uint64, runs []messages.RunID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at = m.enterRead()
	return at, m.unfinished(from, n)
}
