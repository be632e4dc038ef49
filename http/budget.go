package http

import (
	"sync/atomic"

	"github.com/valyala/fasthttp"
)

// budget bounds what bodies take in memory over all connections, while they are
// received, decompressed, decoded and stored. A body beyond it is refused with 503.
type budget struct {
	limit int64
	used  atomic.Int64
}

const (
	bodyMemory = 256 << 20 // of all bodies together
	freeBody   = 16 << 10  // of each body is not counted: the connections are bounded
	// largeBody is from where on a body may not take the last quarter: that is left for
	// small ones, so that a few large ones which come slowly do not keep everybody out.
	largeBody = 1 << 20
)

// share is what one request has of the budget. It is for one goroutine.
type share struct {
	of   *budget
	held int64
}

// set makes the share n bytes; it is false, and nothing has changed, when there is no
// room for them.
func (h *share) set(n int64) bool {
	limit := h.of.limit
	if n > largeBody {
		limit -= limit / 4
	}
	if n <= freeBody {
		n = 0
	}
	more := n - h.held
	if more == 0 {
		return true
	}
	if used := h.of.used.Add(more); more > 0 && used > limit {
		h.of.used.Add(-more)
		return false
	}
	h.held = n
	return true
}

// free gives the share back.
func (h *share) free() { h.set(0) }

// noRoom refuses a body for which the budget has no room.
func (s *Server) noRoom() *refusal {
	s.metrics.bodiesRefused.Inc()
	return &refusal{fasthttp.StatusServiceUnavailable, "too many bytes of requests are under way: send it again later"}
}
