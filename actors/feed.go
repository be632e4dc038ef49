package actors

import (
	"sync"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// feed keeps what has become durable in a run that somebody follows. A run that
// nobody follows has none. The run puts into it and never waits; followers read
// from it, each at its own pace.
type feed struct {
	mu      sync.Mutex
	items   []happening
	first   uint64 // number of items[0], counted from the feed's beginning
	size    int    // bytes that items hold, roughly
	changed chan struct{}
	readers int // of the notice, under its lock
}

// happening is what one commit of a run has brought. Its parts are immutable.
type happening struct {
	seq     uint64  // of the newest durable batch
	records []byte  // of that batch; nil when it was told before
	ends    []end   // attempts that ended
	starts  []start // tasks that started: before the records
	plan    *dag.Plan
	summary *messages.Summary
}

type end struct {
	task, attempt uint32
	rc            int32
}

type start struct {
	task, attempt uint32
	at            int64 // ns since the epoch
}

// What a feed keeps at most. A follower that is further behind misses the rest.
const (
	feedItems = 4096
	feedBytes = 1 << 20
)

func (h *happening) size() int {
	return 64 + len(h.records) + 12*len(h.ends) + 16*len(h.starts)
}

// put appends to the feed, letting go of the oldest.
func (f *feed) put(h happening) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.items = append(f.items, h)
	f.size += h.size()
	drop := 0
	for f.size > feedBytes && drop < len(f.items)-1 || len(f.items)-drop > feedItems {
		f.size -= f.items[drop].size()
		f.items[drop] = happening{}
		drop++
	}
	f.items = f.items[drop:]
	f.first += uint64(drop)
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// takeBytes is how much a follower takes at a time.
const takeBytes = 64 << 10

// take returns items from number pos on and the number to go on with. When that one
// is gone already it returns only the newest item, and true. When there is nothing,
// changed is closed once there is.
func (f *feed) take(pos uint64) (items []happening, next uint64, late bool, changed <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	end := f.first + uint64(len(f.items))
	switch {
	case pos < f.first:
		return []happening{f.items[len(f.items)-1]}, end, true, nil
	case pos == end:
		if f.changed == nil {
			f.changed = make(chan struct{})
		}
		return nil, pos, false, f.changed
	}
	rest := f.items[pos-f.first:]
	n, size := 0, 0
	for n < len(rest) && size < takeBytes {
		size += rest[n].size()
		n++
	}
	return append([]happening(nil), rest[:n]...), pos + uint64(n), false, nil
}

// follow returns the run's feed, and where it is.
func (n *notice) follow() (f *feed, pos uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f = n.feed.Load()
	if f == nil {
		f = new(feed)
		n.feed.Store(f)
	}
	f.readers++
	f.mu.Lock()
	defer f.mu.Unlock()
	return f, f.first + uint64(len(f.items))
}

// unfollow ends what follow began.
func (n *notice) unfollow(f *feed) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if f.readers--; f.readers == 0 {
		n.feed.Store(nil)
	}
}

// tell puts what has just become durable into the run's feed, if it has one.
func (r *run) tell(summary *messages.Summary) {
	f := r.notice.feed.Load()
	if f == nil {
		r.starts, r.written = nil, nil
		return
	}
	h := happening{seq: r.seq - 1, starts: r.starts, plan: r.dag.Plan(), summary: summary}
	if b := r.written; b != nil {
		h.records = b.Records
		for i := range b.Attempts {
			a := &b.Attempts[i]
			h.ends = append(h.ends, end{a.Task, a.Attempt, a.RC})
		}
	}
	r.starts, r.written = nil, nil
	f.put(h)
}
