package actors

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/caravan-dag/caravan/messages"
)

// hub passes the summaries of all runs on to who listens. While nobody does, a
// summary costs one load.
type hub struct {
	mu        sync.Mutex
	listeners atomic.Pointer[[]*listener] // copied when it changes
}

func (h *hub) tell(s *messages.Summary) {
	list := h.listeners.Load()
	if list == nil {
		return
	}
	for _, l := range *list {
		l.put(s)
	}
}

func (h *hub) add(l *listener) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []*listener
	if old := h.listeners.Load(); old != nil {
		list = slices.Clone(*old)
	}
	list = append(list, l)
	h.listeners.Store(&list)
}

func (h *hub) remove(l *listener) {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(*h.listeners.Load()), func(other *listener) bool { return other == l })
	if len(list) == 0 {
		h.listeners.Store(nil)
		return
	}
	h.listeners.Store(&list)
}

// maxUntold bounds the runs that a listener has not told of; further ones it misses.
const maxUntold = 8192

// listener keeps the newest summary of each run that has changed, for one reader.
type listener struct {
	node *Node
	q    messages.ListQuery

	// Runs that changed from since on are told first, from the board and the store,
	// by ascending id; then where the feed begins.
	resuming bool
	since    int64              // ns since the epoch
	page     messages.ListQuery // the next of them
	begun    int64              // ns since the epoch; 0 = told

	mu      sync.Mutex
	untold  map[messages.RunID]*messages.Summary
	order   []messages.RunID // of untold
	missed  uint64
	changed chan struct{} // closed when there is something; nil when nobody waits
	closed  bool
}

// overlap is how long (ns) before the place where a reader left off it is told
// again: a change is known a little later than it happened.
const overlap = 5_000_000_000

// Listen begins to tell of the runs that q selects (by tag and labels), of each
// change from now on. Since is the At of the news that were told last, or 0: runs
// that have changed since come first.
func (n *Node) Listen(q messages.ListQuery, since int64) (messages.RunsFeed, error) {
	if n.closing.Load() {
		return nil, errStopping
	}
	q = messages.ListQuery{All: true, Tag: q.Tag, HasTag: q.HasTag, Labels: q.Labels}
	l := &listener{
		node: n, q: q, untold: make(map[messages.RunID]*messages.Summary),
		resuming: since > 0, since: since - overlap, page: q, begun: n.env.now(),
	}
	l.page.Limit = 1024
	n.env.board.hub.add(l)
	return l, nil
}

// put notes a run's newest summary.
func (l *listener) put(s *messages.Summary) {
	if !selects(l.q, s) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if old := l.untold[s.ID]; old != nil {
		if s.LastUpdate >= old.LastUpdate {
			l.untold[s.ID] = s
		}
		return
	}
	if len(l.order) == maxUntold {
		l.missed++
		return
	}
	l.untold[s.ID] = s
	l.order = append(l.order, s.ID)
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// atOnce is how many runs are told of at a time.
const atOnce = 256

// Next returns the runs that have changed. The first news are where the feed begins.
func (l *listener) Next(ctx context.Context) (*messages.RunsNews, error) {
	for l.resuming {
		news, err := l.resume()
		if err != nil || len(news.Summaries) > 0 {
			return news, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	if at := l.begun; at != 0 {
		l.begun = 0
		return &messages.RunsNews{At: at}, nil
	}
	for {
		now := l.node.env.now()
		l.mu.Lock()
		if len(l.order) > 0 || l.missed > 0 {
			news := l.take(now)
			l.mu.Unlock()
			return news, nil
		}
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-l.node.stopped:
			return nil, errStopping
		}
	}
}

// take takes some of what is untold, the oldest first.
func (l *listener) take(now int64) *messages.RunsNews {
	n := min(len(l.order), atOnce)
	news := &messages.RunsNews{Missed: l.missed}
	for _, id := range l.order[:n] {
		news.Summaries = append(news.Summaries, l.untold[id])
		delete(l.untold, id)
	}
	l.order, l.missed = l.order[n:], 0
	if len(l.order) == 0 {
		l.order, news.At = nil, now
	}
	return news
}

// resume tells of some of the runs that have changed since the reader left off.
func (l *listener) resume() (*messages.RunsNews, error) {
	news, seen := &messages.RunsNews{}, 0
	err := l.node.Summaries(l.page, func(s *messages.Summary) bool {
		seen++
		l.page.After, l.page.HasAfter = s.ID, true
		if s.LastUpdate >= l.since {
			news.Summaries = append(news.Summaries, s)
		}
		return len(news.Summaries) < atOnce
	})
	if seen == 0 {
		l.resuming = false
	}
	return news, err
}

// Close ends the listening.
func (l *listener) Close() {
	if !l.closed {
		l.closed = true
		l.node.env.board.hub.remove(l)
	}
}
