package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// collector fits the pace of Go's garbage collector to the server. It belongs to the process,
// so there is one.
//
// A collection takes every request some milliseconds longer, and with a small heap there are
// many of them: so the heap may grow to a floor before the first one, and each one after it.
// While a long document is planned it is the other way round: the heap grows fast then, and
// what garbage takes at other times would be more than the document.
type collector struct {
	floor int64 // the size from which garbage is collected, in bytes; 0 = by percent alone
	usual int   // percent of what lives that garbage may take; negative: never collected

	mu    sync.Mutex
	live  int64 // what lived at the last collection, in bytes; 0 = not known
	users int   // of spare
	now   int   // percent
}

// spareGarbage is what garbage may take while somebody asks for it, in percent.
const spareGarbage = 25

// newCollector goes out from the percent that is set.
func newCollector(floor int64) *collector {
	c := &collector{floor: floor, usual: debug.SetGCPercent(100)}
	c.now = 100
	c.mu.Lock()
	c.set()
	c.mu.Unlock()
	if floor > 0 {
		c.follow()
	}
	return c
}

// follow has the collector look at what lives after each collection.
func (c *collector) follow() {
	type mark struct{ _ *byte }
	var collected func(*mark)
	collected = func(m *mark) {
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(sample)
		c.collected(int64(sample[0].Value.Uint64()))
		runtime.SetFinalizer(m, collected)
	}
	runtime.SetFinalizer(new(mark), collected)
}

// collected notes what lives.
func (c *collector) collected(live int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.live = live
	c.set()
}

// percent is what garbage may take now. c.mu is held.
func (c *collector) percent() int {
	switch {
	case c.users > 0 && (c.usual < 0 || c.usual > spareGarbage):
		return spareGarbage
	case c.live > 0 && c.usual >= 0:
		return max(c.usual, int(c.floor*100/c.live)-100)
	}
	return c.usual
}

// set tells the runtime, which stops everything for that: so small changes are passed over.
// c.mu is held.
func (c *collector) set() {
	if p := c.percent(); p != c.now && (p < c.now*9/10 || p > c.now*11/10 || p == c.usual) {
		c.now = p
		debug.SetGCPercent(p)
	}
}

// spare asks for less garbage, until end is called.
func (c *collector) spare() (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users++
	c.set()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.users--
		c.set()
	}
}
