package query

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// finishedRuns loads finished runs for readers. It keeps the last large run for a
// while, so that paging through the run does not reload it. Concurrent readers of a run
// share one load. The zero value is ready.
//
// It is not an LRU with singleflight, because the cache must forget: a run that was restarted
// or deleted while it was loading must not be cached when that load ends, and the age of a
// cached run counts from its last read. CONTRIBUTING says what the libraries lack.
type finishedRuns struct {
	mu      sync.Mutex
	loading map[messages.RunID]*finishedRun
	last    *finishedRun // the last large run, or nil
	expiry  *time.Timer
}

// finishedRun is a loaded finished run. It is immutable once loaded is closed.
type finishedRun struct {
	run     *dag.Run
	summary messages.Summary
	seq     uint64 // of its last batch

	id     messages.RunID
	loaded chan struct{} // closed when the run is loaded, or err is set
	err    error
	stale  bool // under finishedRuns.mu: the run has changed since the load began
}

const (
	// minCachedTasks is the size from which a run is cached. A smaller run loads in less
	// than a millisecond.
	minCachedTasks = 10_000
	// cacheTTL is how long a run is cached after the last read.
	cacheTTL = 20 * time.Second
)

// get returns a finished run from the cache, or loads it. A wait for the load of another
// reader ends with ctx.
func (c *finishedRuns) get(ctx context.Context, id messages.RunID, load func(*finishedRun) error) (*finishedRun, error) {
	c.mu.Lock()
	if c.last != nil && c.last.id == id {
		defer c.mu.Unlock()
		c.expiry.Reset(cacheTTL)
		return c.last, nil
	}
	f := c.loading[id]
	if f != nil {
		c.mu.Unlock()
		select {
		case <-f.loaded:
			return f, f.err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	if c.loading == nil {
		c.loading = make(map[messages.RunID]*finishedRun)
	}
	f = &finishedRun{id: id, loaded: make(chan struct{}), err: errNotLoaded}
	c.loading[id] = f
	c.mu.Unlock()
	defer c.finishLoading(f)
	f.err = load(f)
	return f, f.err
}

// errNotLoaded is the error of the other readers when a load panics.
var errNotLoaded = errors.New("the run could not be loaded")

// finishLoading ends the load of a run.
func (c *finishedRuns) finishLoading(f *finishedRun) {
	c.mu.Lock()
	if !f.stale {
		delete(c.loading, f.id)
		if f.err == nil && f.summary.Tasks >= minCachedTasks {
			c.retain(f)
		}
	}
	c.mu.Unlock()
	close(f.loaded)
}

// retain caches a run. mu is held.
func (c *finishedRuns) retain(f *finishedRun) {
	c.last = f
	if c.expiry == nil {
		c.expiry = time.AfterFunc(cacheTTL, c.evict)
	} else {
		c.expiry.Reset(cacheTTL)
	}
}

// evict empties the cache.
func (c *finishedRuns) evict() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = nil
}

// invalidate drops a run whose actor has stopped, or that was deleted: later readers load
// its present state.
func (c *finishedRuns) invalidate(id messages.RunID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last != nil && c.last.id == id {
		c.last = nil
	}
	if f := c.loading[id]; f != nil {
		f.stale = true
		delete(c.loading, id)
	}
}
