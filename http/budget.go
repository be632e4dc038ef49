package http

import (
	"errors"
	"sync"

	"github.com/valyala/fasthttp"
)

// budget bounds what bodies take in memory over all connections, while they are
// received, decompressed, decoded and stored. A body beyond it is refused: with 429 when
// its client has enough under way already, else with 503.
type budget struct {
	limit int64
	own   int64 // of it, the bodies of one client

	mu      sync.Mutex
	used    int64
	clients map[client]int64 // those that have some of it
}

const (
	bodyMemory = 256 << 20 // of all bodies together
	freeBody   = 16 << 10  // of each body is not counted: the connections are bounded
	// largeBody is from where on a body may not take the last quarter: that is left for
	// small ones, so that a few large ones which come slowly do not keep everybody out.
	largeBody = 1 << 20
)

// newBudget gives each client a half, and more where a client may have more than half of
// the connections: then all come by way of one.
func newBudget(limit int64, conns, ofClient int) *budget {
	return &budget{limit: limit, own: max(limit/2, limit/int64(conns)*int64(ofClient)), clients: map[client]int64{}}
}

// Why there is no room for a body.
var (
	errNoRoom  = errors.New("no room for a body")
	errOwnRoom = errors.New("no room for a further body of this client")
)

// share is what one request has of the budget. It is for one goroutine.
type share struct {
	of   *budget
	who  client
	held int64
}

// set makes the share n bytes. The error is errNoRoom or errOwnRoom, and nothing has
// changed, when there is no room for them.
func (h *share) set(n int64) error {
	b := h.of
	limit := b.limit
	if n > largeBody {
		limit -= limit / 4
	}
	if n <= freeBody {
		n = 0
	}
	more := n - h.held
	if more == 0 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case more > 0 && b.clients[h.who]+more > b.own:
		return errOwnRoom
	case more > 0 && b.used+more > limit:
		return errNoRoom
	}
	b.used += more
	if b.clients[h.who] += more; b.clients[h.who] == 0 {
		delete(b.clients, h.who)
	}
	h.held = n
	return nil
}

// free gives the share back.
func (h *share) free() { _ = h.set(0) } // giving back is never refused

// inUse is how many bytes are taken.
func (b *budget) inUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// shareOf is the share of a request, which has nothing yet.
func (s *Server) shareOf(ctx *fasthttp.RequestCtx) share {
	h := share{of: s.bodies}
	if c := connOf(ctx); c != nil {
		h.who = c.client
	}
	return h
}

// noRoom refuses a body for which the budget has no room.
func (s *Server) noRoom(why error) *refusal {
	s.metrics.bodiesRefused.Inc()
	if errors.Is(why, errOwnRoom) {
		return &refusal{fasthttp.StatusTooManyRequests, "too many bytes of this client's requests are under way: send it again later"}
	}
	return &refusal{fasthttp.StatusServiceUnavailable, "too many bytes of requests are under way: send it again later"}
}
