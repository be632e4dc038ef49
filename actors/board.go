package actors

import (
	"iter"
	"sync"
	"sync/atomic"

	"github.com/caravan-dag/caravan/internal/idtable"
	"github.com/caravan-dag/caravan/messages"
)

// board shows the newest durable summary of every run that has an actor. The
// runs write it, each its own entry, after each commit; readers of states and
// lists look at it without asking the actors, who may be polled in tight loops.
type board struct {
	mu      sync.RWMutex
	entries idtable.Table[*notice]
	absent  map[messages.RunID]*absence
	hub     hub
}

// absence is a run that is not on the board and is waited for.
type absence struct {
	posted  chan struct{} // closed when the run is put on the board, or is deleted
	waiting int
}

// notice is the board's entry of one run.
type notice struct {
	summary atomic.Pointer[messages.Summary]
	watched atomic.Bool
	mu      sync.Mutex
	changed chan struct{} // closed by the next publish; nil when nobody watches
	feed    atomic.Pointer[feed]
	hub     *hub
}

func newBoard() *board {
	return &board{absent: make(map[messages.RunID]*absence)}
}

// post puts a run on the board, or renews what is there.
func (b *board) post(s *messages.Summary) *notice { return b.put(nil, s) }

// put is post; the entry of a run that is not on the board is fresh, or a new one when
// that is nil.
func (b *board) put(fresh *notice, s *messages.Summary) *notice {
	b.mu.Lock()
	n := b.entries.Get(uint64(s.ID))
	if n == nil {
		if n = fresh; n == nil {
			n = new(notice)
		}
		n.hub = &b.hub
		b.entries.Set(uint64(s.ID), n)
	}
	n.summary.Store(s) // before anybody sees the entry
	if a := b.absent[s.ID]; a != nil {
		close(a.posted)
		delete(b.absent, s.ID)
	}
	b.mu.Unlock()
	n.publish(s)
	return n
}

// remove takes a run off. Who watches it is woken, to look elsewhere.
func (b *board) remove(id messages.RunID) {
	b.mu.Lock()
	n := b.entries.Get(uint64(id))
	b.entries.Delete(uint64(id))
	b.mu.Unlock()
	if n != nil {
		n.wake()
	}
}

// deleted wakes whoever watches a run that is not on the board: it is gone.
func (b *board) deleted(id messages.RunID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a := b.absent[id]; a != nil {
		close(a.posted)
		delete(b.absent, id)
	}
}

// watch returns a channel that is closed when a run's summary changes, or when the
// run is put on the board, taken off it or deleted. Look at the summary after watch, not
// before: then no change is missed. Call leave when done.
func (b *board) watch(id messages.RunID) (changed <-chan struct{}, leave func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.entries.Get(uint64(id)); n != nil {
		return n.watch(), func() {}
	}
	a := b.absent[id]
	if a == nil {
		a = &absence{posted: make(chan struct{})}
		b.absent[id] = a
	}
	a.waiting++
	return a.posted, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if a.waiting--; a.waiting == 0 && b.absent[id] == a {
			delete(b.absent, id)
		}
	}
}

// notice returns a run's entry, or nil when it is not on the board.
func (b *board) notice(id messages.RunID) *notice {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.entries.Get(uint64(id))
}

// summary returns the newest summary of a run, or nil when it is not on the board.
func (b *board) summary(id messages.RunID) *messages.Summary {
	n := b.notice(id)
	if n == nil {
		return nil
	}
	return n.summary.Load()
}

// boardPage is how many runs are looked at under the lock.
const boardPage = 512

// from yields the summaries of the runs on the board from an id on, by ascending id. It
// holds nothing while it does: a run that comes or goes meanwhile may be there or not.
func (b *board) from(id messages.RunID) iter.Seq[*messages.Summary] {
	return func(yield func(*messages.Summary) bool) {
		page := make([]*messages.Summary, 0, boardPage)
		for {
			page = page[:0]
			b.mu.RLock()
			for _, n := range b.entries.From(uint64(id)) {
				if page = append(page, n.summary.Load()); len(page) == boardPage {
					break
				}
			}
			b.mu.RUnlock()
			for _, s := range page {
				if !yield(s) {
					return
				}
			}
			if len(page) < boardPage || page[boardPage-1].ID == 1<<64-1 {
				return
			}
			id = page[boardPage-1].ID + 1
		}
	}
}

func (b *board) len() int {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.entries.Len()
}

// publish puts a newer summary up and wakes who watches.
func (n *notice) publish(s *messages.Summary) {
	n.summary.Store(s)
	n.wake()
	n.hub.tell(s)
}

func (n *notice) wake() {
	if !n.watched.Load() {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.watched.Store(false)
	if n.changed != nil {
		close(n.changed)
		n.changed = nil
	}
}

// watch returns a channel that is closed at the next publish: see board.watch.
func (n *notice) watch() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.changed == nil {
		n.changed = make(chan struct{})
	}
	n.watched.Store(true)
	return n.changed
}
