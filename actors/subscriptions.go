package actors

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// runSubscription reads a run's log for one reader. Older changes come from the journal,
// as far as it goes back.
type runSubscription struct {
	node  *Node
	id    messages.RunID
	entry *summaryEntry // nil: the run is finished
	log   *eventLog
	pos   uint64 // in the log
	seq   uint64 // of the last batch that was delivered

	// Delivered before the log:
	initial *messages.RunEvents // summary, and the number of dropped batches
	journal [][]byte            // batches after seq
	codes   exitCodes
}

// replayBytes bounds the part of the journal in one call of Next.
const replayBytes = 32 << 10

// Follow subscribes to a run. after is the Seq of the last RunEvents, or FromNow: then the
// subscription starts with the present summary. It returns nil when the run is finished
// and after is its last batch.
func (n *Node) Follow(ctx context.Context, id messages.RunID, after uint64) (messages.Subscription, error) {
	if ended, err := n.endedAt(id, after); ended || err != nil {
		return nil, err
	}
	for {
		f := &runSubscription{node: n, id: id}
		if f.entry = n.env.summaries.entry(id); f.entry != nil {
			f.log, f.pos = f.entry.subscribe()
		}
		// The log is read from before the view, so no change falls between them.
		v, err := n.View(ctx, id, 0, 0)
		if err == nil {
			err = f.prepare(v, after)
		}
		switch {
		case err != nil:
			f.Close()
			return nil, err
		case v.State.Final() && f.initial == nil:
			f.Close()
			return nil, nil
		case v.State.Final() || f.entry == n.env.summaries.entry(id):
			return f, nil
		}
		f.Close() // it was restarted, and has another log
	}
}

// endedAt tells whether a run is finished and after is its last batch: then it is not loaded.
// A reader whose connection broke just after the end comes back like that.
func (n *Node) endedAt(id messages.RunID, after uint64) (bool, error) {
	if after == messages.FromNow || n.env.summaries.entry(id) != nil {
		return false, nil
	}
	s, err := n.env.store.Summary(id)
	if err != nil {
		return false, lookup(id, err)
	}
	if !s.State.Final() {
		return false, nil
	}
	records, first, err := n.env.store.JournalRecords(id, max(after, 1)-1)
	if err != nil {
		return false, lookup(id, err)
	}
	return len(records) == 1 && first == after, nil
}

// prepare sets the events before the log.
func (f *runSubscription) prepare(v *messages.View, after uint64) error {
	f.seq = v.Seq
	if after == v.Seq {
		return nil
	}
	f.initial = &messages.RunEvents{Seq: v.Seq, Plan: v.Plan, Summary: &v.Summary}
	if after == messages.FromNow || after > v.Seq { // after the last batch: of another server
		return nil
	}
	records, first, err := f.node.env.store.JournalRecords(f.id, after)
	if err != nil {
		return lookup(f.id, err)
	}
	f.initial.Dropped = min(first, v.Seq+1) - after - 1
	f.seq = after + f.initial.Dropped
	if first <= v.Seq {
		f.journal = records[:v.Seq+1-first]
		f.codes = exitCodes{node: f.node, run: f.id}
	}
	return nil
}

// Next returns the next events.
func (f *runSubscription) Next(ctx context.Context) (*messages.RunEvents, error) {
	switch {
	case f.initial != nil:
		return f.replay(ctx)
	case f.log == nil:
		return nil, io.EOF
	}
	for {
		t := f.log.read(f.pos, readBytes)
		f.pos = t.next
		switch {
		case t.lost > 0:
			return f.resync(), nil
		case len(t.items) > 0:
			news, err := f.eventsFrom(t.items)
			if news == nil && err == nil {
				continue // all were delivered already
			}
			return news, err
		}
		select {
		case <-t.changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-f.node.stopped:
			return nil, errStopping
		}
	}
}

// replay returns a part of the journal; the last part has the summary.
func (f *runSubscription) replay(ctx context.Context) (*messages.RunEvents, error) {
	news := &messages.RunEvents{Plan: f.initial.Plan, Dropped: f.initial.Dropped}
	f.initial.Dropped = 0
	for size := 0; len(f.journal) > 0 && size < replayBytes; f.journal = f.journal[1:] {
		size += len(f.journal[0])
		if err := f.appendChanges(news, f.journal[0], func(t *dag.Transition) (int32, bool) { return f.codes.lookup(ctx, t) }); err != nil {
			return nil, err
		}
		f.seq++
	}
	news.Seq = f.seq
	if len(f.journal) == 0 {
		news.Seq, news.Summary = f.initial.Seq, f.initial.Summary
		f.seq, f.initial, f.codes = f.initial.Seq, nil, exitCodes{}
	}
	return news, nil
}

// resync returns the run's present state, for a subscription that has lost events.
func (f *runSubscription) resync() *messages.RunEvents {
	h, next := f.log.newest()
	news := &messages.RunEvents{Seq: h.seq, Dropped: h.seq - f.seq, Plan: h.plan, Summary: h.summary}
	f.seq, f.pos = h.seq, next
	return news
}

// eventsFrom returns the events in items of the log; nil when all were delivered already.
func (f *runSubscription) eventsFrom(items []commitEvent) (*messages.RunEvents, error) {
	last := &items[len(items)-1]
	news := &messages.RunEvents{Seq: last.seq, Plan: last.plan, Summary: last.summary}
	told := false
	for i := range items {
		h := &items[i]
		if h.seq < f.seq || h.seq == f.seq && h.records != nil {
			continue
		}
		told = true
		if h.records == nil {
			news.Dropped += h.seq - f.seq
		} else {
			news.Dropped += h.seq - f.seq - 1 // the batches of an actor that panicked
		}
		f.seq = h.seq
		for _, s := range h.starts {
			news.Changes = append(news.Changes, messages.Change{Transition: dag.Transition{
				At: s.at, Task: s.task, Attempt: s.attempt, State: dag.TaskRunning,
			}})
		}
		codes := make(map[attemptID]int32, len(h.ends))
		for _, e := range h.ends {
			codes[attemptID{e.task, e.attempt}] = e.rc
		}
		err := f.appendChanges(news, h.records, func(t *dag.Transition) (int32, bool) {
			rc, ok := codes[attemptID{t.Task, t.Attempt}]
			return rc, ok
		})
		if err != nil {
			return nil, err
		}
	}
	if !told {
		return nil, nil
	}
	return news, nil
}

// appendChanges appends the changes in a batch of records.
func (f *runSubscription) appendChanges(news *messages.RunEvents, records []byte, code func(*dag.Transition) (int32, bool)) error {
	if len(records) == 0 {
		return nil
	}
	err := dag.Transitions(records, news.Plan.Tasks, func(t dag.Transition) {
		c := messages.Change{Transition: t}
		switch {
		case t.OfRun, t.Granted:
		case t.State == dag.TaskCompleted:
			c.Ended = true
		default:
			c.RC, c.Ended = code(&c.Transition)
		}
		news.Changes = append(news.Changes, c)
	})
	if err != nil {
		return fmt.Errorf("run %d: journal: %w", f.id, err)
	}
	return nil
}

// Close ends the subscription.
func (f *runSubscription) Close() {
	if f.log != nil {
		f.entry.unsubscribe(f.log)
		f.log = nil
	}
}

// attemptID names an attempt of the run.
type attemptID struct{ task, attempt uint32 }

// exitCodes finds the exit codes of attempts in their records, of which it keeps
// those of the last 1,024 neighbours.
type exitCodes struct {
	node  *Node
	run   messages.RunID
	known map[attemptID]exitStatus
	chunk uint32
}

type exitStatus struct {
	rc   int32
	lost bool
}

// lookup returns the exit code of the attempt whose end caused the transition.
func (c *exitCodes) lookup(ctx context.Context, t *dag.Transition) (int32, bool) {
	if chunk := t.Task / dag.ChunkTasks; c.known == nil || chunk != c.chunk {
		c.chunk, c.known = chunk, make(map[attemptID]exitStatus)
		// Unreadable records are left out: the events are correct without exit codes.
		_ = c.node.Attempts(ctx, c.run, chunk*dag.ChunkTasks, dag.ChunkTasks, func(a *messages.AttemptRecord) bool {
			c.known[attemptID{a.Task, a.Attempt}] = exitStatus{a.RC, a.Result == messages.AttemptLost}
			return true
		})
	}
	e, ok := c.known[attemptID{t.Task, t.Attempt}]
	return e.rc, ok && (t.State != dag.TaskQueued || e.lost) // QUEUED again: its interval is over
}

// broadcaster keeps the newest summaries of all runs in one ring that all its subscribers
// share. Without subscribers, a summary costs one atomic load.
type broadcaster struct {
	mu          sync.Mutex
	subscribers int
	events      atomic.Pointer[ring[*messages.Summary]] // nil without subscribers
}

// maxBroadcastItems bounds the ring. A subscriber that is further behind than this
// loses summaries.
const maxBroadcastItems = 1 << 16

func (h *broadcaster) publish(s *messages.Summary) {
	if r := h.events.Load(); r != nil {
		r.push(s)
	}
}

// subscribe returns the ring, and its end position.
func (h *broadcaster) subscribe() (r *ring[*messages.Summary], pos uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.subscribers++; h.subscribers == 1 {
		one := func(**messages.Summary) int { return 1 }
		h.events.Store(&ring[*messages.Summary]{sizeOf: one, maxItems: maxBroadcastItems, maxSize: maxBroadcastItems})
	}
	r = h.events.Load()
	return r, r.end()
}

func (h *broadcaster) unsubscribe() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.subscribers--; h.subscribers == 0 {
		h.events.Store(nil)
	}
}

// listSubscription delivers changes of the runs that q selects to one reader.
type listSubscription struct {
	node *Node
	q    messages.ListQuery

	// Runs that changed from since on are delivered first, from the index and the store,
	// by ascending id; then the position at which the live changes start.
	resuming  bool
	since     int64              // ns, on the server's own clock
	page      messages.ListQuery // the next of them
	startedAt int64              // ns, on the server's own clock; 0 = delivered

	events *ring[*messages.Summary]
	pos    uint64
	closed bool
}

// resumeOverlap (ns) is subtracted from the position of a resume: a change becomes known
// a little later than it happened.
const resumeOverlap = 5_000_000_000

// Listen subscribes to changes of the runs that q selects (by tag and labels). since is
// the last ResumeAt, or 0. Runs that have changed since then are delivered first.
func (n *Node) Listen(_ context.Context, q messages.ListQuery, since int64) (messages.RunListSubscription, error) {
	if n.closing.Load() {
		return nil, errStopping
	}
	q = messages.ListQuery{All: true, Tag: q.Tag, HasTag: q.HasTag, Labels: q.Labels}
	l := &listSubscription{node: n, q: q, resuming: since > 0, since: since - resumeOverlap, page: q, startedAt: n.env.steady()}
	l.page.Limit, l.page.ChangedFrom = 1024, max(l.since, 1)
	l.events, l.pos = n.env.summaries.broadcaster.subscribe()
	return l, nil
}

// maxSummariesPerRead bounds the summaries of one read.
const maxSummariesPerRead = 1024

// Next returns the runs that have changed. The first live event is a position to resume
// from.
func (l *listSubscription) Next(ctx context.Context) (*messages.RunListEvents, error) {
	for l.resuming {
		news, err := l.resume(ctx)
		if err != nil || len(news.Summaries) > 0 {
			return news, err
		}
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
	}
	if at := l.startedAt; at != 0 {
		l.startedAt = 0
		return &messages.RunListEvents{ResumeAt: at}, nil
	}
	for {
		now := l.node.env.steady()
		t := l.events.read(l.pos, maxSummariesPerRead)
		l.pos = t.next
		if len(t.items) > 0 {
			news := &messages.RunListEvents{Summaries: l.newest(t.items), Dropped: t.lost}
			if !t.more {
				news.ResumeAt = now
			}
			if len(news.Summaries) > 0 || news.Dropped > 0 {
				return news, nil
			}
			continue
		}
		select {
		case <-t.changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-l.node.stopped:
			return nil, errStopping
		}
	}
}

// newest returns the newest summary of each selected run.
func (l *listSubscription) newest(list []*messages.Summary) []*messages.Summary {
	told := make(map[messages.RunID]struct{}, len(list))
	out := make([]*messages.Summary, 0, len(list))
	for _, s := range slices.Backward(list) {
		if _, twice := told[s.ID]; !twice && selects(l.q, s) {
			told[s.ID] = struct{}{}
			out = append(out, s)
		}
	}
	slices.Reverse(out)
	return out
}

// resume returns some of the runs that have changed since the reader left off.
func (l *listSubscription) resume(ctx context.Context) (*messages.RunListEvents, error) {
	news, seen := &messages.RunListEvents{}, 0
	err := l.node.Summaries(ctx, l.page, func(s *messages.Summary) bool {
		seen++
		l.page.After, l.page.HasAfter = s.ID, true
		if s.Damage == "" {
			news.Summaries = append(news.Summaries, s)
		}
		return len(news.Summaries) < maxSummariesPerRead
	})
	if seen == 0 {
		l.resuming = false
	}
	return news, err
}

// Close ends the subscription.
func (l *listSubscription) Close() {
	if !l.closed {
		l.closed = true
		l.node.env.summaries.broadcaster.unsubscribe()
	}
}
