package actors

import (
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// feed keeps what has become durable in a run that somebody follows. A run that
// nobody follows has none. The run puts into it and never waits; followers read
// from it, each at its own pace.
type feed struct {
	ring[happening]
	readers int // under the notice's lock
}

func newFeed() *feed {
	return &feed{ring: ring[happening]{sizeOf: (*happening).size, maxItems: feedItems, maxSize: feedBytes}}
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

// What a feed keeps at most, and what a follower takes of it at a time. One that is
// further behind misses the rest.
const (
	feedItems = 4096
	feedBytes = 1 << 20
	takeBytes = 64 << 10
)

func (h *happening) size() int {
	return 64 + len(h.records) + 12*len(h.ends) + 16*len(h.starts)
}

// follow returns the run's feed, and where it is.
func (n *notice) follow() (f *feed, pos uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f = n.feed.Load()
	if f == nil {
		f = newFeed()
		n.feed.Store(f)
	}
	f.readers++
	return f, f.end()
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
