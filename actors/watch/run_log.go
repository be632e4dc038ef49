package watch

import (
	"sync"
	"sync/atomic"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// Commit holds the changes of one commit of a run. Its parts are immutable.
type Commit struct {
	Seq     uint64         // of the newest durable batch
	Records []byte         // of that batch; nil when an earlier Commit had it
	Ends    []AttemptEnd   // attempts that ended
	Starts  []AttemptStart // attempts that started: before the records
	Plan    *dag.Plan
	Summary *messages.Summary
}

// AttemptEnd is the end of an attempt of a run.
type AttemptEnd struct {
	Task, Attempt uint32
	RC            int32
}

// AttemptStart is the start of an attempt of a run.
type AttemptStart struct {
	Task, Attempt uint32
	At            int64 // ns since the epoch
}

// Bounds of a log, and of one read by a subscription. A subscription that is
// further behind the log than this loses events.
const (
	maxLogItems = 4096
	maxLogBytes = 1 << 20
	readBytes   = 64 << 10
)

// size is about what a commit takes in memory, in bytes.
func (c *Commit) size() int {
	return 64 + len(c.Records) + 12*len(c.Ends) + 16*len(c.Starts)
}

// RunLog keeps the newest durable changes of a run while it has followers. The run appends,
// and each subscription reads at its own pace. The zero value is ready.
type RunLog struct {
	mu        sync.Mutex
	followers int
	commits   atomic.Pointer[ring[Commit]] // nil without followers
}

// Followed tells whether the run has followers, by one atomic load. Without, the run need not
// collect its changes.
func (l *RunLog) Followed() bool { return l.commits.Load() != nil }

// Publish appends a commit, if the run has followers.
func (l *RunLog) Publish(c Commit) {
	if commits := l.commits.Load(); commits != nil {
		commits.push(c)
	}
}

// subscribe returns the ring of commits, and its end position.
func (l *RunLog) subscribe() (commits *ring[Commit], position uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	commits = l.commits.Load()
	if commits == nil {
		commits = &ring[Commit]{sizeOf: (*Commit).size, maxItems: maxLogItems, maxSize: maxLogBytes}
		l.commits.Store(commits)
	}
	l.followers++
	return commits, commits.endPosition()
}

// unsubscribe is the counterpart of subscribe.
func (l *RunLog) unsubscribe() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.followers--; l.followers == 0 {
		l.commits.Store(nil)
	}
}

// Broadcaster keeps the newest summaries of all runs in one ring that all its subscribers
// share. Without subscribers, a summary costs one atomic load. The zero value is ready.
type Broadcaster struct {
	mu          sync.Mutex
	subscribers int
	summaries   atomic.Pointer[ring[*messages.Summary]] // nil without subscribers
}

// maxBroadcastItems bounds the ring. A subscriber that is further behind than this
// loses summaries.
const maxBroadcastItems = 1 << 16

// Publish appends a summary, if there are subscribers.
func (b *Broadcaster) Publish(s *messages.Summary) {
	if summaries := b.summaries.Load(); summaries != nil {
		summaries.push(s)
	}
}

// subscribe returns the ring of summaries, and its end position.
func (b *Broadcaster) subscribe() (summaries *ring[*messages.Summary], position uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subscribers++; b.subscribers == 1 {
		one := func(**messages.Summary) int { return 1 }
		b.summaries.Store(&ring[*messages.Summary]{sizeOf: one, maxItems: maxBroadcastItems, maxSize: maxBroadcastItems})
	}
	summaries = b.summaries.Load()
	return summaries, summaries.endPosition()
}

// unsubscribe is the counterpart of subscribe.
func (b *Broadcaster) unsubscribe() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subscribers--; b.subscribers == 0 {
		b.summaries.Store(nil)
	}
}
