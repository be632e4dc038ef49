package http

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/messages"
)

// A request that waits holds a connection and little else, but it may do so for a minute or
// without end: a long poll, a stream of events, a log that is followed, a long document that waits
// for its turn. Such requests are bounded, in total and for each client. The bounds are lower than
// those of connections, so that other requests are still served. The place of a client that leaves
// is free at once.
//
// Two mechanisms notice that a client has left:
//
//	before the answer   the clientWatcher, while a request has a place for waits, or has been in one
//	                    call of the engine for longer than Config.watchAfter
//	in a stream         a failed write; one that waits (events, a followed log) has a place and is
//	                    watched as well
//
// Reading from the connection would show it, too, but fasthttp owns the reader, and the bytes read
// could be the next request.

// waitSet counts the requests that wait.
type waitSet struct {
	mu      sync.Mutex
	all     int
	clients map[clientKey]int // of all; clients without a wait are left out
}

const (
	tooManyWaits         = "too many requests wait"
	tooManyWaitsOfClient = "too many requests of this client wait"
	cannotWait           = "the request cannot wait: the server could not detect that its client leaves"
)

// maxWaits returns how many requests may wait on the given number of connections: three quarters. The
// last quarter is left for requests that are answered at once, so that waiting clients can neither
// hide the state of the server nor prevent a kill. The same holds within the connections of each
// client.
func maxWaits(conns int) int { return max(1, conns-conns/4) }

// beginWait takes a place for a request that is about to wait. The context ends when the client leaves
// (closing only its sending side counts as leaving), when its token or session is no longer valid, or
// when the server begins to shut down. Call end when the wait is over, once or more often.
// context.Cause(until) tells which: errClientGone, errConnClosed, errRevoked or errShuttingDown.
//
// It refuses with 503 or 429 when too many requests wait, and with 503 when the kernel cannot watch the
// client: a place that is not freed when its client leaves could be held for ever. The connection
// closes then, and is free for a request that can be answered.
func (s *Server) beginWait(ctx *fasthttp.RequestCtx) (until context.Context, end func(), err error) {
	c, who := connOf(ctx), clientOf(ctx)
	w := &s.waits
	w.mu.Lock()
	switch {
	case w.all >= maxWaits(s.cfg.MaxConns):
		err = &refusal{fasthttp.StatusServiceUnavailable, tooManyWaits}
	case w.clients[who] >= maxWaits(s.cfg.MaxPerClient):
		err = &refusal{fasthttp.StatusTooManyRequests, tooManyWaitsOfClient}
	default:
		w.all++
		w.clients[who]++
	}
	w.mu.Unlock()
	if err != nil {
		ctx.SetConnectionClose() // another client needs the connection
		s.metrics.waitsRefused.Inc()
		return nil, nil, err
	}
	until, cancel := context.WithCancelCause(contextOf(ctx))
	if c != nil {
		if err = c.watchClient(); err != nil {
			s.log.Debug("http: a request cannot wait", "err", err)
			cancel(err)
			w.remove(who)
			ctx.SetConnectionClose()
			s.metrics.waitsRefused.Inc()
			return nil, nil, &refusal{fasthttp.StatusServiceUnavailable, cannotWait}
		}
	}
	stop := context.AfterFunc(s.serviceContext, func() { cancel(errShuttingDown) })
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
			w.remove(who)
		})
	}, nil
}

// remove frees a place.
func (w *waitSet) remove(who clientKey) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all--
	if w.clients[who]--; w.clients[who] == 0 {
		delete(w.clients, who)
	}
}

// len returns how many requests wait.
func (w *waitSet) len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all
}

// requestContext is the context of the engine's calls for the requests of one connection,
// which come one at a time. It ends when the connection is closed. It also ends when the
// client leaves while a request waits: in a place for waits (beginWait), or within one call of
// the engine for longer than Config.watchAfter. It costs a request no allocation.
//
// The end of a context is for good, so a connection that goes on after its client's half close gets a
// new one (beginRequest). Shutdown ends it only when its time is up (endCalls).
type requestContext struct {
	context.Context
	conn      *conn
	cancel    context.CancelCauseFunc
	principal messages.Principal // of the current request; only the connection's goroutine sets it
	// identified tells whether principal is more than the connection's own: its address and user.
	identified bool
	scopes     access.Scopes // of an identified caller
	forwarded  forwardedFrom // how the current request came, at the entrance for nodes
	// partition is that of the current request in a cluster, plus one; 0 = it is not known. See PartitionOf.
	partition uint64
}

// forwardedFrom is how a request came that another node has forwarded.
type forwardedFrom struct {
	node      string // the entry node; "" = the request is a client's own
	hops      int    // how often it was forwarded
	partition uint64
	client    clientKey // of the client, for limits
}

// Causes of the end of a requestContext.
var (
	errClientGone = errors.New("the client has closed its side of the connection")
	errConnClosed = errors.New("the connection is closed")
)

// isUnfinished tells whether a call ended before the engine's answer, and without a failure: its client
// is gone, or the time of a shutdown is up.
func isUnfinished(err error) bool {
	return errors.Is(err, errClientGone) || errors.Is(err, errConnClosed) || errors.Is(err, errShuttingDown)
}

// newRequestContext returns a context that ends when cancel is called.
func newRequestContext(c *conn) *requestContext {
	r := &requestContext{conn: c, principal: c.anonymous()}
	r.Context, r.cancel = context.WithCancelCause(context.Background())
	return r
}

// Value returns the principal for messages.PrincipalKey, and the partition of the request.
func (r *requestContext) Value(key any) any {
	switch key.(type) {
	case messages.PrincipalKey:
		return &r.principal
	case partitionKey:
		if r.partition > 0 {
			return r.partition - 1
		}
		return nil
	}
	return r.Context.Value(key)
}

// Done is called when the engine is about to wait. It records the time, so that the client of a long
// wait is watched. It relies on a habit of the engine: a call asks for Done each time before it waits,
// and not in advance. The record costs an atomic load and store.
func (r *requestContext) Done() <-chan struct{} {
	if c := r.conn; c != nil && c.waitingSince.Load() != isStreaming {
		c.waitingSince.Store(c.s.ticks.Load())
	}
	return r.Context.Done()
}

// contextOf returns the context of the engine's calls for a request. Neither the context nor its
// values may be kept after the request is answered.
func contextOf(ctx *fasthttp.RequestCtx) context.Context {
	if c := connOf(ctx); c != nil {
		return c.request.Load()
	}
	return context.Background()
}

// setCaller sets the principal of the request's calls of the engine, and the caller's scopes.
func setCaller(ctx *fasthttp.RequestCtx, who *access.Caller) {
	if c := connOf(ctx); c != nil {
		r := c.request.Load()
		r.principal, r.scopes, r.identified = who.Principal, who.Scopes, true
	}
}

// clientOf returns the client of a request, for limits. That of a forwarded request is the client of the
// entry node: all requests of that node have one connection or a few.
func clientOf(ctx *fasthttp.RequestCtx) clientKey {
	c := connOf(ctx)
	if c == nil {
		return clientKey{}
	}
	if r := c.request.Load(); r.forwarded.node != "" {
		return r.forwarded.client
	}
	return c.client
}

// beginRequest prepares the connection's context for the next request. A client that closed only
// its sending side may have sent further requests before.
func (c *conn) beginRequest() {
	c.waitingSince.Store(notWaiting)
	r := c.request.Load()
	if r.Err() != nil && context.Cause(r) == errClientGone {
		r = newRequestContext(c)
		c.request.Store(r)
	}
	if r.identified {
		r.principal, r.identified = c.anonymous(), false
	}
	r.partition = 0
}

// anonymous is the principal of a request whose caller is known by its connection alone.
func (c *conn) anonymous() messages.Principal {
	return messages.Principal{Address: c.address, UID: c.uid}
}

// Values of conn.waitingSince that are not ticks.
const (
	notWaiting  = -1 // the request does not wait in the engine
	isStreaming = -2 // the answer has begun: a failed write shows that the client has left
)

// clientWatch is the registration of a connection with the server's clientWatcher. The connection's own
// goroutine and watchLongCalls may register it at the same time, so it has a lock.
type clientWatch struct {
	mu   sync.Mutex
	stop func() // nil: not registered
}

// watchClient has the connection's context end when the client leaves. Closing only its sending side
// counts as leaving. The watch lasts until unwatchClient. A second call before that has no effect.
// Without a clientWatcher (the system refused one) it returns nil, and the client is not watched.
func (c *conn) watchClient() error {
	peers := c.s.clientWatcher.Load()
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

// clientWatcher detects that clients close their side while their requests wait. The server does
// not write then, so a failed write cannot show it. One goroutine watches all of them through its
// own epoll instance. A connection is registered only while its request waits.
//
// An event carries a token instead of the number of its socket. The kernel gives the number of a
// closed socket to the next one, so an event that was read before the close would end the request of
// another client. A token is never assigned twice.
//
// EPOLLRDHUP (epoll_ctl(2)) reports that the peer closed its sending side, and EPOLLHUP and EPOLLERR
// come unasked. EPOLLONESHOT reports one of them once: a level-triggered event that stays would spin.
type clientWatcher struct {
	file    *os.File
	rawFile syscall.RawConn
	done    chan struct{} // closed when the goroutine has returned

	mu        sync.Mutex
	lastToken uint64            // the last token that was assigned
	callbacks map[uint64]func() // by token
}

// newClientWatcher starts a watcher. The caller closes it.
func newClientWatcher() (*clientWatcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that the Go runtime polls it
		_ = unix.Close(fd)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	w := &clientWatcher{file: os.NewFile(uintptr(fd), "epoll"), done: make(chan struct{}), callbacks: make(map[uint64]func())}
	if w.rawFile, err = w.file.SyscallConn(); err != nil {
		_ = w.file.Close()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	go w.deliverEvents()
	return w, nil
}

// watch calls left, once, when the client at the other end of nc closes the connection or its side
// of it. stop ends the watch; a call of left may still be running then. A connection without a
// socket is not watched. An error means that the socket cannot be watched: it is closed, or the
// kernel cannot register more.
func (w *clientWatcher) watch(nc net.Conn, left func()) (stop func(), err error) {
	w.mu.Lock()
	w.lastToken++
	token := w.lastToken
	w.callbacks[token] = left
	w.mu.Unlock()
	forget := func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.callbacks, token)
	}
	err = withSocket(nc, func(fd int) error {
		event := unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(token), Pad: int32(token >> 32)}
		return w.changeEpoll(unix.EPOLL_CTL_ADD, fd, &event)
	})
	switch {
	case errors.Is(err, errNoSocket):
		return forget, nil
	case err != nil:
		forget()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return func() {
		// The socket is still open, or the kernel has removed it already: its number cannot belong
		// to another socket here.
		_ = withSocket(nc, func(fd int) error { return w.changeEpoll(unix.EPOLL_CTL_DEL, fd, nil) })
		forget()
	}, nil
}

// changeEpoll registers or removes a socket.
func (w *clientWatcher) changeEpoll(op, socket int, event *unix.EpollEvent) error {
	var err error
	return cmp.Or(w.rawFile.Control(func(epoll uintptr) { err = unix.EpollCtl(int(epoll), op, socket, event) }), err)
}

// deliverEvents calls the callbacks of clients that have left, until Close. It waits in the Go
// runtime's poller for its own epoll instance to become readable, so it does not hold a thread while it
// waits.
func (w *clientWatcher) deliverEvents() {
	defer close(w.done)
	events := make([]unix.EpollEvent, 128)
	for {
		n := 0
		err := w.rawFile.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events, 0)
			return n > 0
		})
		if err != nil {
			return // closed
		}
		for _, e := range events[:max(n, 0)] {
			token := uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32
			w.mu.Lock()
			left := w.callbacks[token]
			delete(w.callbacks, token)
			w.mu.Unlock()
			if left != nil {
				left()
			}
		}
	}
}

// Close ends the watch. It returns when the last callback has returned.
func (w *clientWatcher) Close() {
	_ = w.file.Close()
	<-w.done
}

// watchClients starts the server's clientWatcher.
func (s *Server) watchClients() {
	w, err := newClientWatcher()
	if err != nil {
		s.log.Warn("http: clients that leave while their requests wait are noticed late", "err", err)
		return
	}
	s.clientWatcher.Store(w)
	go s.watchLongCalls(w.done)
}

// watchLongCalls watches the clients of requests that wait in the engine for longer than
// Config.watchAfter, until stop is closed. Shorter waits are not watched: that would cost each
// submission two system calls. A call is watched after one to two intervals. A scan visits all
// connections; without a request in flight it is left out.
func (s *Server) watchLongCalls(stop <-chan struct{}) {
	ticker := time.NewTicker(s.cfg.watchAfter)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-stop:
			return
		}
		now := s.ticks.Add(1)
		if s.inflight.Load() == 0 {
			continue
		}
		for _, c := range s.conns.waitingSince(now - 1) {
			if err := c.watchClient(); err != nil {
				s.log.Debug("http: a client that leaves will be noticed late", "err", err)
			}
		}
	}
}

// waitingSince returns the connections whose requests have waited in the engine since before the
// given tick.
func (cs *connSet) waitingSince(tick int64) (waiting []*conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c := range cs.open {
		if since := c.waitingSince.Load(); since >= 0 && since < tick && !c.watched.Load() {
			waiting = append(waiting, c)
		}
	}
	return waiting
}
