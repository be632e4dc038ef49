package http

import (
	"context"
	"sync"

	"github.com/valyala/fasthttp"
)

// A request that waits holds a connection and little else, but it may do so for a
// minute or for ever: a long poll, a stream of events, a log that is followed, a long
// document whose turn has not come. So such requests are bounded, in all and for each
// client, below the bounds of connections, which leaves some for everybody else; and
// the place of a client that leaves is free at once.

// waitSet counts the requests that wait.
type waitSet struct {
	mu      sync.Mutex
	all     int
	clients map[client]int
}

const (
	tooManyWaits    = "too many requests wait"
	tooManyOfWaiter = "too many requests of this client wait"
	cannotWait      = "the request cannot wait: nothing would show that its client leaves"
)

// waitLimit is how many of so many connections may wait.
func waitLimit(conns int) int { return max(1, conns-conns/4) }

// beginWait takes a place for a request that is about to wait. The context ends when the
// client leaves (closing only its sending side counts as leaving), when its token or
// session goes, or when the server begins to shut down. Call end when the wait is over; more than once does no harm.
func (s *Server) beginWait(ctx *fasthttp.RequestCtx) (until context.Context, end func(), err error) {
	c := connOf(ctx)
	var who client
	if c != nil {
		who = c.client
	}
	w := &s.waits
	w.mu.Lock()
	switch {
	case w.all >= waitLimit(s.cfg.MaxConns):
		err = &refusal{fasthttp.StatusServiceUnavailable, tooManyWaits}
	case w.clients[who] >= waitLimit(s.cfg.MaxPerClient):
		err = &refusal{fasthttp.StatusTooManyRequests, tooManyOfWaiter}
	default:
		w.all++
		w.clients[who]++
	}
	w.mu.Unlock()
	if err != nil {
		ctx.SetConnectionClose() // its place is needed
		s.metrics.waitsRefused.Inc()
		return nil, nil, err
	}
	until, cancel := context.WithCancelCause(contextOf(ctx))
	if c != nil {
		if err = c.watchClient(); err != nil {
			s.log.Debug("http: a request cannot wait", "err", err)
			cancel(err)
			w.leave(who)
			ctx.SetConnectionClose()
			s.metrics.waitsRefused.Inc()
			return nil, nil, &refusal{fasthttp.StatusServiceUnavailable, cannotWait}
		}
	}
	stop := context.AfterFunc(s.serving, func() { cancel(errStopping) })
	allowed := s.permits.add(s.permitOf(ctx), func() { cancel(errRevoked) })
	var once sync.Once
	return until, func() {
		once.Do(func() {
			allowed()
			stop()
			cancel(nil)
			if c != nil {
				c.waitingSince.Store(notWaiting)
				c.unwatchClient()
			}
			w.leave(who)
		})
	}, nil
}

// leave frees a place.
func (w *waitSet) leave(who client) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all--
	if w.clients[who]--; w.clients[who] == 0 {
		delete(w.clients, who)
	}
}

func (w *waitSet) len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all
}
