package actors

import (
	"sync"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// eventLog keeps the newest durable changes of a run with subscribers. A run without
// subscribers has a nil log. The run appends and never waits; each subscription reads at
// its own pace.
type eventLog struct {
	ring[commitEvent]
	readers int // under the lock of the summaryEntry
}

func newEventLog() *eventLog {
	return &eventLog{ring: ring[commitEvent]{sizeOf: (*commitEvent).size, maxItems: maxLogItems, maxSize: maxLogBytes}}
}

// commitEvent holds the changes of one commit of a run. Its parts are immutable.
type commitEvent struct {
	seq     uint64         // of the newest durable batch
	records []byte         // of that batch; nil when an earlier event had it
	ends    []attemptEnd   // attempts that ended
	starts  []attemptStart // tasks that started: before the records
	plan    *dag.Plan
	summary *messages.Summary
}

type attemptEnd struct {
	task, attempt uint32
	rc            int32
}

type attemptStart struct {
	task, attempt uint32
	at            int64 // ns since the epoch
}

// Bounds of a log, and of one read by a subscription. A subscription that is
// further behind the log than this loses events.
const (
	maxLogItems = 4096
	maxLogBytes = 1 << 20
	readBytes   = 64 << 10
)

func (h *commitEvent) size() int {
	return 64 + len(h.records) + 12*len(h.ends) + 16*len(h.starts)
}

// subscribe returns the run's log, and its end position.
func (n *summaryEntry) subscribe() (f *eventLog, pos uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f = n.log.Load()
	if f == nil {
		f = newEventLog()
		n.log.Store(f)
	}
	f.readers++
	return f, f.end()
}

// unsubscribe is the counterpart of subscribe.
func (n *summaryEntry) unsubscribe(f *eventLog) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if f.readers--; f.readers == 0 {
		n.log.Store(nil)
	}
}

// publishEvents appends the changes of the last commit to the run's log, if it has one.
func (r *run) publishEvents(summary *messages.Summary) {
	f := r.entry.log.Load()
	if f == nil {
		r.startedAttempts, r.written = nil, nil
		return
	}
	h := commitEvent{seq: r.seq - 1, starts: r.startedAttempts, plan: r.dag.Plan(), summary: summary}
	if b := r.written; b != nil {
		h.records = b.Records
		for i := range b.Attempts {
			a := &b.Attempts[i]
			h.ends = append(h.ends, attemptEnd{a.Task, a.Attempt, a.RC})
		}
	}
	r.startedAttempts, r.written = nil, nil
	f.push(h)
}

// ring keeps the newest of what was put into it, for any number of readers, each of
// which has a position of its own. The writer never waits for readers.
type ring[T any] struct {
	mu       sync.Mutex
	items    []T
	first    uint64 // number of items[0], counted from the beginning
	size     int    // of items, by sizeOf
	changed  chan struct{}
	sizeOf   func(*T) int
	maxItems int
	maxSize  int
}

// push appends an item and drops the oldest ones beyond the bounds. The newest item stays, whatever its size.
func (r *ring[T]) push(item T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.items = append(r.items, item)
	r.size += r.sizeOf(&item)
	drop := 0
	for drop < len(r.items)-1 && (r.size > r.maxSize || len(r.items)-drop > r.maxItems) {
		r.size -= r.sizeOf(&r.items[drop])
		clear(r.items[drop : drop+1])
		drop++
	}
	r.items = r.items[drop:]
	r.first += uint64(drop)
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// end is the position after the newest item.
func (r *ring[T]) end() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.first + uint64(len(r.items))
}

// readResult is the result of read.
type readResult[T any] struct {
	items []T
	next  uint64 // position to go on from
	lost  uint64 // items before these that are gone
	more  bool   // there are more
	// changed is closed by the next push; nil unless items is empty.
	changed <-chan struct{}
}

// read returns a copy of items from pos on, up to most in size, one at least.
func (r *ring[T]) read(pos uint64, most int) readResult[T] {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := readResult[T]{lost: max(pos, r.first) - pos}
	rest := r.items[max(pos, r.first)-r.first:]
	n, size := 0, 0
	for n < len(rest) && size < most {
		size += r.sizeOf(&rest[n])
		n++
	}
	t.items, t.next, t.more = append(t.items, rest[:n]...), pos+t.lost+uint64(n), n < len(rest)
	if n == 0 {
		if r.changed == nil {
			r.changed = make(chan struct{})
		}
		t.changed = r.changed
	}
	return t
}

// newest returns the newest item and the position after it. The ring must hold an item.
func (r *ring[T]) newest() (T, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.items[len(r.items)-1], r.first + uint64(len(r.items))
}
