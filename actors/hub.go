package actors

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/caravan-dag/caravan/messages"
)

// hub passes the summaries of all runs on to who listens: it keeps the newest ones
// for all listeners together. While nobody listens a summary costs one load.
type hub struct {
	mu        sync.Mutex
	listeners int
	heard     atomic.Pointer[ring[*messages.Summary]] // nil when nobody listens
}

// heardItems is how many summaries are kept. A listener that is further behind
// misses the rest.
const heardItems = 1 << 16

func (h *hub) tell(s *messages.Summary) {
	if r := h.heard.Load(); r != nil {
		r.put(s)
	}
}

// listen returns what is heard, and where it is.
func (h *hub) listen() (r *ring[*messages.Summary], pos uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.listeners++; h.listeners == 1 {
		one := func(**messages.Summary) int { return 1 }
		h.heard.Store(&ring[*messages.Summary]{sizeOf: one, maxItems: heardItems, maxSize: heardItems})
	}
	r = h.heard.Load()
	return r, r.end()
}

func (h *hub) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.listeners--; h.listeners == 0 {
		h.heard.Store(nil)
	}
}

// listener tells one reader of the runs that q selects.
type listener struct {
	node *Node
	q    messages.ListQuery

	// Runs that changed from since on are told first, from the board and the store,
	// by ascending id; then where the feed begins.
	resuming bool
	since    int64              // ns, on the server's own clock
	page     messages.ListQuery // the next of them
	begun    int64              // ns, on the server's own clock; 0 = told

	heard *ring[*messages.Summary]
	pos   uint64
	left  bool
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
	l := &listener{node: n, q: q, resuming: since > 0, since: since - overlap, page: q, begun: n.env.steady()}
	l.page.Limit, l.page.ChangedFrom = 1024, max(l.since, 1)
	l.heard, l.pos = n.env.board.hub.listen()
	return l, nil
}

// atOnce is how many summaries are looked at, at a time.
const atOnce = 1024

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
		now := l.node.env.steady()
		t := l.heard.take(l.pos, atOnce)
		l.pos = t.next
		if len(t.items) > 0 {
			news := &messages.RunsNews{Summaries: l.newest(t.items), Missed: t.lost}
			if !t.more {
				news.At = now
			}
			if len(news.Summaries) > 0 || news.Missed > 0 {
				return news, nil
			}
			continue
		}
		select {
		case <-t.changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-l.node.stopped:
			return nil, errStopping
		}
	}
}

// newest leaves of the summaries those that are selected, of each run the newest.
func (l *listener) newest(list []*messages.Summary) []*messages.Summary {
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

// resume tells of some of the runs that have changed since the reader left off.
func (l *listener) resume() (*messages.RunsNews, error) {
	news, seen := &messages.RunsNews{}, 0
	err := l.node.Summaries(l.page, func(s *messages.Summary) bool {
		seen++
		l.page.After, l.page.HasAfter = s.ID, true
		if s.Damage == "" {
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
	if !l.left {
		l.left = true
		l.node.env.board.hub.leave()
	}
}
