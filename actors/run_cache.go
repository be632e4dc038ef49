package actors

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// finishedRunCache loads finished runs for readers. It keeps the last large run for a
// while, so that paging through the run does not reload it. Concurrent readers of a run
// share one load. The zero value is ready.
type finishedRunCache struct {
	mu      sync.Mutex
	loading map[messages.RunID]*cachedRun
	last    *cachedRun // the last large run, or nil
	expiry  *time.Timer
}

// cachedRun is a loaded finished run. It is immutable once loaded is closed.
type cachedRun struct {
	run     *dag.Run
	summary messages.Summary
	seq     uint64 // of its last batch

	id     messages.RunID
	loaded chan struct{} // closed when the run is loaded, or err is set
	err    error
	stale  bool // under finishedRunCache.mu: the run has changed since the load began
}

const (
	// minCachedTasks is the size from which a run is cached. A smaller run loads in less
	// than a millisecond.
	minCachedTasks = 10_000
	// cacheTTL is how long a run is cached after the last read.
	cacheTTL = 20 * time.Second
)

// get returns a finished run from the cache, or loads it.
func (k *finishedRunCache) get(ctx context.Context, id messages.RunID, load func(*cachedRun) error) (*cachedRun, error) {
	k.mu.Lock()
	if k.last != nil && k.last.id == id {
		defer k.mu.Unlock()
		k.expiry.Reset(cacheTTL)
		return k.last, nil
	}
	l := k.loading[id]
	if l != nil {
		k.mu.Unlock()
		select {
		case <-l.loaded:
			return l, l.err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	if k.loading == nil {
		k.loading = make(map[messages.RunID]*cachedRun)
	}
	l = &cachedRun{id: id, loaded: make(chan struct{}), err: errNotLoaded}
	k.loading[id] = l
	k.mu.Unlock()
	defer k.finishLoading(l)
	l.err = load(l)
	return l, l.err
}

// errNotLoaded is the error of the other readers when a load panics.
var errNotLoaded = errors.New("the run could not be loaded")

// finishLoading ends the load of a run.
func (k *finishedRunCache) finishLoading(l *cachedRun) {
	k.mu.Lock()
	if !l.stale {
		delete(k.loading, l.id)
		if l.err == nil && l.summary.Tasks >= minCachedTasks {
			k.retain(l)
		}
	}
	k.mu.Unlock()
	close(l.loaded)
}

// retain caches a run. mu is held.
func (k *finishedRunCache) retain(l *cachedRun) {
	k.last = l
	if k.expiry == nil {
		k.expiry = time.AfterFunc(cacheTTL, k.evict)
	} else {
		k.expiry.Reset(cacheTTL)
	}
}

// evict empties the cache.
func (k *finishedRunCache) evict() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.last = nil
}

// invalidate drops a run whose actor has stopped, or that was deleted: later readers load
// its present state.
func (k *finishedRunCache) invalidate(id messages.RunID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last != nil && k.last.id == id {
		k.last = nil
	}
	if l := k.loading[id]; l != nil {
		l.stale = true
		delete(k.loading, id)
	}
}
