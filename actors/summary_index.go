package actors

import (
	"iter"
	"sync"
	"sync/atomic"

	"github.com/caravan-dag/caravan/internal/idtable"
	"github.com/caravan-dag/caravan/messages"
)

// summaryIndex holds the newest durable summary of every unfinished run. Each run writes
// its own entry after each commit. Readers of states and lists read the index and not the
// actors, since they may poll in tight loops.
type summaryIndex struct {
	mu          sync.RWMutex
	entries     idtable.Table[*summaryEntry]
	pending     map[messages.RunID]*pendingWatch
	broadcaster broadcaster
}

// pendingWatch is a watch of a run that is not in the index.
type pendingWatch struct {
	inserted chan struct{} // closed when the run is inserted, or is deleted
	waiting  int
}

// summaryEntry is the entry of one run.
type summaryEntry struct {
	summary     atomic.Pointer[messages.Summary]
	watched     atomic.Bool
	mu          sync.Mutex
	changed     chan struct{} // closed by the next publish; nil without watchers
	log         atomic.Pointer[eventLog]
	broadcaster *broadcaster
}

func newSummaryIndex() *summaryIndex {
	return &summaryIndex{pending: make(map[messages.RunID]*pendingWatch)}
}

// insert adds a run, or updates its entry.
func (b *summaryIndex) insert(s *messages.Summary) *summaryEntry { return b.insertEntry(nil, s) }

// insertEntry is insert with an entry for a run that is not in the index yet: fresh, or a
// new one when fresh is nil.
func (b *summaryIndex) insertEntry(fresh *summaryEntry, s *messages.Summary) *summaryEntry {
	b.mu.Lock()
	n := b.entries.Get(uint64(s.ID))
	if n == nil {
		if n = fresh; n == nil {
			n = new(summaryEntry)
		}
		n.broadcaster = &b.broadcaster
		b.entries.Set(uint64(s.ID), n)
	}
	n.summary.Store(s) // before the entry is visible
	if a := b.pending[s.ID]; a != nil {
		close(a.inserted)
		delete(b.pending, s.ID)
	}
	b.mu.Unlock()
	n.publish(s)
	return n
}

// remove removes a run and wakes its watchers: they find it in the store.
func (b *summaryIndex) remove(id messages.RunID) {
	b.mu.Lock()
	n := b.entries.Get(uint64(id))
	b.entries.Delete(uint64(id))
	b.mu.Unlock()
	if n != nil {
		n.wakeWatchers()
	}
}

// wakeDeleted wakes the watchers of a deleted run that is not in the index.
func (b *summaryIndex) wakeDeleted(id messages.RunID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a := b.pending[id]; a != nil {
		close(a.inserted)
		delete(b.pending, id)
	}
}

// watch returns a channel that is closed when a run's summary changes, or when the
// run is inserted, removed or deleted. Read the summary after watch, not before, so that
// no change is missed. Call leave when done.
func (b *summaryIndex) watch(id messages.RunID) (changed <-chan struct{}, leave func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.entries.Get(uint64(id)); n != nil {
		return n.watch(), func() {}
	}
	a := b.pending[id]
	if a == nil {
		a = &pendingWatch{inserted: make(chan struct{})}
		b.pending[id] = a
	}
	a.waiting++
	return a.inserted, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if a.waiting--; a.waiting == 0 && b.pending[id] == a {
			delete(b.pending, id)
		}
	}
}

// entry returns a run's entry, or nil when it is not in the index.
func (b *summaryIndex) entry(id messages.RunID) *summaryEntry {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.entries.Get(uint64(id))
}

// summary returns the newest summary of a run, or nil when it is not in the index.
func (b *summaryIndex) summary(id messages.RunID) *messages.Summary {
	n := b.entry(id)
	if n == nil {
		return nil
	}
	return n.summary.Load()
}

// indexPage is how many entries are read under one lock.
const indexPage = 512

// summariesFrom yields the summaries from an id on, by ascending id. It yields without the
// lock: runs that are added or removed during the iteration may or may not be included.
func (b *summaryIndex) summariesFrom(id messages.RunID) iter.Seq[*messages.Summary] {
	return func(yield func(*messages.Summary) bool) {
		page := make([]*messages.Summary, 0, indexPage)
		for {
			page = page[:0]
			b.mu.RLock()
			for _, n := range b.entries.From(uint64(id)) {
				if page = append(page, n.summary.Load()); len(page) == indexPage {
					break
				}
			}
			b.mu.RUnlock()
			for _, s := range page {
				if !yield(s) {
					return
				}
			}
			if len(page) < indexPage || page[indexPage-1].ID == 1<<64-1 {
				return
			}
			id = page[indexPage-1].ID + 1
		}
	}
}

func (b *summaryIndex) len() int {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.entries.Len()
}

// publish stores a newer summary and wakes the watchers.
func (n *summaryEntry) publish(s *messages.Summary) {
	n.summary.Store(s)
	n.wakeWatchers()
	n.broadcaster.publish(s)
}

func (n *summaryEntry) wakeWatchers() {
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

// watch returns a channel that is closed at the next publish: see summaryIndex.watch.
func (n *summaryEntry) watch() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.changed == nil {
		n.changed = make(chan struct{})
	}
	n.watched.Store(true)
	return n.changed
}
