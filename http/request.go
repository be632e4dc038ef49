package http

import (
	"context"
	"errors"
	"sync"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/messages"
)

// requestContext is the context of the engine's calls for the requests of one connection,
// which come one at a time. It ends when the connection is closed. It also ends when the
// client leaves while a request waits: in a place for waits (beginWait), or within one call of
// the engine for longer than Config.watchAfter. It costs a request no allocation.
type requestContext struct {
	context.Context
	conn      *conn
	cancel    context.CancelCauseFunc
	principal messages.Principal // of the present request
}

// Causes of the end of a requestContext.
var (
	errClientGone = errors.New("the client has closed its side of the connection")
	errConnClosed = errors.New("the connection is closed")
)

// isDeparture tells whether the engine ended a call because its client is gone.
func isDeparture(err error) bool {
	return errors.Is(err, errClientGone) || errors.Is(err, errConnClosed)
}

func newRequestContext(c *conn) *requestContext {
	r := &requestContext{conn: c}
	r.Context, r.cancel = context.WithCancelCause(context.Background())
	return r
}

// Value returns the principal for messages.PrincipalKey.
func (r *requestContext) Value(key any) any {
	if _, ok := key.(messages.PrincipalKey); ok {
		return &r.principal
	}
	return r.Context.Value(key)
}

// Done is called when the engine is about to wait. It notes when that was, so that the client
// of a long wait is watched.
func (r *requestContext) Done() <-chan struct{} {
	if c := r.conn; c != nil && c.waitingSince.Load() != isStreaming {
		c.waitingSince.Store(c.s.ticks.Load())
	}
	return r.Context.Done()
}

// contextOf returns the context of the engine's calls for a request. Neither the context nor
// what it holds may be kept when the request is answered.
func contextOf(ctx *fasthttp.RequestCtx) context.Context {
	if c := connOf(ctx); c != nil {
		return c.request.Load()
	}
	return context.Background()
}

// setPrincipal notes on whose behalf the request's calls of the engine are made.
func setPrincipal(ctx *fasthttp.RequestCtx, p *messages.Principal) {
	if c := connOf(ctx); c != nil {
		c.request.Load().principal = *p
	}
}

// beginRequest readies the connection's context for the next request. A client that closed
// only its sending side may have sent further requests before.
func (c *conn) beginRequest() {
	c.waitingSince.Store(notWaiting)
	r := c.request.Load()
	if r.Err() != nil && context.Cause(r) == errClientGone {
		r = newRequestContext(c)
		c.request.Store(r)
	}
	r.principal = messages.Principal{Address: c.address, UID: c.uid}
}

// Values of conn.waitingSince that are not a time.
const (
	notWaiting  = -1 // the request does not wait in the engine
	isStreaming = -2 // the answer has begun: a failed write shows that the client has left
)

// clientWatch says whether the server's peerWatch has the connection.
type clientWatch struct {
	mu   sync.Mutex
	stop func() // nil: it has not
}

// watchClient has the connection's context end when the client leaves. Closing only its
// sending side counts as leaving. The watch lasts until unwatchClient.
func (c *conn) watchClient() error {
	peers := c.s.peers.Load()
	if peers == nil {
		return nil
	}
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	if c.watch.stop != nil {
		return nil
	}
	r := c.request.Load()
	stop, err := peers.watch(c.Conn, func() { r.cancel(errClientGone) })
	if err == nil {
		c.watch.stop = stop
		c.watched.Store(true)
	}
	return err
}

// unwatchClient ends the watch, if there is one.
func (c *conn) unwatchClient() {
	if !c.watched.Load() {
		return
	}
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	if c.watch.stop != nil {
		c.watch.stop()
		c.watch.stop = nil
	}
	c.watched.Store(false)
}
