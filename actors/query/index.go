package query

import (
	"iter"
	"sync"
	"sync/atomic"

	"github.com/caravan-dag/caravan/actors/watch"
	"github.com/caravan-dag/caravan/internal/idtable"
	"github.com/caravan-dag/caravan/messages"
)

// Index holds the newest durable summary of every unfinished run. Each run writes its own entry after
// each commit, on its own goroutine. Readers of states and lists read the index and not the actors,
// since they may poll in tight loops. It is memory only: a start fills it from the store.
//
// Its methods may be called from any goroutine. mu guards entries and pending, and is held for a
// lookup, a change or a page, never while a run is loaded. Locks: mu, then Entry.mu.
type Index struct {
	mu          sync.RWMutex
	entries     idtable.Table[*Entry]
	pending     map[messages.RunID]*pendingWatch // watches of runs without an entry
	broadcaster watch.Broadcaster
}

// pendingWatch is a watch of a run that is not in the index.
type pendingWatch struct {
	inserted chan struct{} // closed when the run is inserted, or is deleted
	waiting  int           // readers that have not left; the last one removes it
}

// Entry is the entry of one run. The zero value is that of a run that is not in the index yet. It
// outlives its place in the index: whoever holds it reads the last summary.
type Entry struct {
	summary     atomic.Pointer[messages.Summary]
	watched     atomic.Bool // there may be watchers; set under mu, so that Publish needs no lock without them
	mu          sync.Mutex
	changed     chan struct{} // closed by the next Publish; nil without watchers
	log         watch.RunLog
	broadcaster *watch.Broadcaster
}

// NewIndex returns an empty index of the runs of one partition.
func NewIndex(numbering messages.Numbering) *Index {
	return &Index{
		entries: idtable.Spaced[*Entry](numbering.Stride(), numbering.Partition),
		pending: make(map[messages.RunID]*pendingWatch),
	}
}

// Insert adds a run, or updates its entry, and returns the entry.
func (x *Index) Insert(s *messages.Summary) *Entry { return x.InsertEntry(nil, s) }

// InsertEntry is Insert with an entry for a run that is not in the index yet: fresh, or a
// new one when fresh is nil.
func (x *Index) InsertEntry(fresh *Entry, s *messages.Summary) *Entry {
	x.mu.Lock()
	e := x.entries.Get(uint64(s.ID))
	if e == nil {
		if e = fresh; e == nil {
			e = new(Entry)
		}
		e.broadcaster = &x.broadcaster
		x.entries.Set(uint64(s.ID), e)
	}
	e.summary.Store(s) // before the entry is visible
	if a := x.pending[s.ID]; a != nil {
		close(a.inserted)
		delete(x.pending, s.ID)
	}
	x.mu.Unlock()
	e.Publish(s)
	return e
}

// Remove removes a run and wakes its watchers: they find it in the store, which must have its final
// state by now. A run that is not in the index is ignored.
func (x *Index) Remove(id messages.RunID) {
	x.mu.Lock()
	e := x.entries.Get(uint64(id))
	x.entries.Delete(uint64(id))
	x.mu.Unlock()
	if e != nil {
		e.wakeWatchers()
	}
}

// WakeDeleted wakes the watchers of a deleted run that is not in the index.
func (x *Index) WakeDeleted(id messages.RunID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if a := x.pending[id]; a != nil {
		close(a.inserted)
		delete(x.pending, id)
	}
}

// Watch returns a channel that is closed when a run's summary changes, or when the
// run is inserted, removed or deleted. Read the summary after Watch, not before, so that
// no change is missed. Call leave when done.
func (x *Index) Watch(id messages.RunID) (changed <-chan struct{}, leave func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.entries.Get(uint64(id)); e != nil {
		return e.watch(), func() {}
	}
	a := x.pending[id]
	if a == nil {
		a = &pendingWatch{inserted: make(chan struct{})}
		x.pending[id] = a
	}
	a.waiting++
	return a.inserted, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if a.waiting--; a.waiting == 0 && x.pending[id] == a {
			delete(x.pending, id)
		}
	}
}

// Entry returns a run's entry, or nil when it is not in the index.
func (x *Index) Entry(id messages.RunID) *Entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.entries.Get(uint64(id))
}

// Summary returns the newest summary of a run, or nil when it is not in the index.
func (x *Index) Summary(id messages.RunID) *messages.Summary {
	e := x.Entry(id)
	if e == nil {
		return nil
	}
	return e.summary.Load()
}

// indexPage is how many entries are read under one lock.
const indexPage = 512

// SummariesFrom yields the summaries from an id on, by ascending id. It yields without the
// lock: runs that are added or removed during the iteration may or may not be included.
func (x *Index) SummariesFrom(id messages.RunID) iter.Seq[*messages.Summary] {
	return func(yield func(*messages.Summary) bool) {
		page := make([]*messages.Summary, 0, indexPage)
		for {
			page = page[:0]
			x.mu.RLock()
			for _, e := range x.entries.From(uint64(id)) {
				if page = append(page, e.summary.Load()); len(page) == indexPage {
					break
				}
			}
			x.mu.RUnlock()
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

// Broadcaster returns the broadcaster of every summary that is published.
func (x *Index) Broadcaster() *watch.Broadcaster { return &x.broadcaster }

// Len returns how many runs are in the index.
func (x *Index) Len() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.entries.Len()
}

// Summary returns the newest durable summary.
func (e *Entry) Summary() *messages.Summary { return e.summary.Load() }

// Log returns the log of the run's events, for its followers.
func (e *Entry) Log() *watch.RunLog { return &e.log }

// Publish stores a newer summary and wakes the watchers. Only the run's own goroutine calls it, or the
// one that inserts the run, so summaries are published in order. The summary must be durable, and is
// immutable from here on. Without watchers and subscribers it costs one store and two atomic loads.
func (e *Entry) Publish(s *messages.Summary) {
	e.summary.Store(s)
	e.wakeWatchers()
	e.broadcaster.Publish(s)
}

// wakeWatchers closes the channel of all watchers. A watcher that comes after the load of watched reads
// the summary after it began to watch (Index.Watch), and so finds the one that was stored before.
func (e *Entry) wakeWatchers() {
	if !e.watched.Load() {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.watched.Store(false)
	if e.changed != nil {
		close(e.changed)
		e.changed = nil
	}
}

// watch returns a channel that is closed at the next Publish: see Index.Watch.
func (e *Entry) watch() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.changed == nil {
		e.changed = make(chan struct{})
	}
	e.watched.Store(true)
	return e.changed
}
