package http

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/http/access"
)

// listener accepts connections for fasthttp, which ends its service at the first
// error of Accept that is not a timeout. So this listener keeps every error to itself
// that can pass: a shortage of descriptors or memory, a client that left before it was
// accepted. It returns an error only when the listener below it is closed or broken.
type listener struct {
	*Entrance
	s          *Server
	retryDelay time.Duration // before the next attempt; 0 after a success
	loggedAt   time.Time     // when an error was logged last
	unlogged   int           // errors since then
}

// Bounds of the pause between two attempts to accept, and of how often they are logged.
const (
	minAcceptDelay = 5 * time.Millisecond
	maxAcceptDelay = time.Second
	acceptLogEvery = 10 * time.Second
)

// Accept waits for the next connection that is to be served.
func (l *listener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			if !l.retry(err) {
				return nil, err
			}
			continue
		}
		l.retryDelay = 0
		if c := l.s.conns.accept(l.s, l.Entrance, nc); c != nil {
			return c, nil
		}
	}
}

// retry reports an error of Accept and waits a little; it is false when the listener
// is closed, or is not a listening socket any more.
func (l *listener) retry(err error) bool {
	if l.s.listenersClosed.Load() {
		return false
	}
	for _, final := range []error{net.ErrClosed, io.EOF, syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK, syscall.EOPNOTSUPP} {
		if errors.Is(err, final) {
			return false
		}
	}
	l.s.metrics.acceptErrors.Inc()
	l.unlogged++
	if now := time.Now(); l.loggedAt.IsZero() || now.Sub(l.loggedAt) >= acceptLogEvery {
		l.s.log.Warn("cannot accept a connection; retrying", "err", err, "errors", l.unlogged)
		l.loggedAt, l.unlogged = now, 0
	}
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		l.s.conns.evictSome(l.s)
	}
	l.retryDelay = min(max(2*l.retryDelay, minAcceptDelay), maxAcceptDelay)
	draining := l.s.serviceContext.Done()
	if l.s.draining.Load() {
		l.retryDelay, draining = minAcceptDelay, nil // the listener is about to close
	}
	timer := time.NewTimer(l.retryDelay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-draining:
	}
	return true
}

// connRefusal says why a connection is answered only that it is one too many.
type connRefusal int8

const (
	notRefused connRefusal = iota
	serverFull             // the server has too many connections
	clientFull             // this client has
)

// connSet holds the open connections, and which client has how many.
type connSet struct {
	mu      sync.Mutex
	open    map[*conn]struct{}
	clients map[clientKey]int
}

// evictBatch is how many connections one scan closes at most: the scan looks at all.
const evictBatch = 16

// evictableAfter is how long a connection may be without a whole request before it may be
// closed in favour of a new one. A connection between two requests may be closed at once.
const evictableAfter = time.Second

// accept makes a connection of the server's from one that was accepted. Beyond the
// limit of all connections, or of this client's, the oldest idle ones are closed for
// it. Where none is idle it is taken all the same, to be answered 503 or 429 (see
// Server.admit); where too many of those are there already, it is told so here and
// closed: the result is nil.
func (cs *connSet) accept(s *Server, e *Entrance, nc net.Conn) *conn {
	c := &conn{Conn: nc, s: s, client: clientKeyOf(nc)}
	e.accept(c)
	c.stateSince.Store(int64(time.Since(s.startedAt)))
	cs.mu.Lock()
	cfg := &s.cfg
	if len(cs.open) >= cfg.MaxConns {
		cs.evictOldest(s, len(cs.open)-cfg.MaxConns+1, nil)
	}
	if cs.clients[c.client] >= cfg.MaxPerClient {
		cs.evictOldest(s, cs.clients[c.client]-cfg.MaxPerClient+1, &c.client)
	}
	spare := extraConns(cfg.MaxConns)
	refused := false
	switch {
	case len(cs.open) >= cfg.MaxConns:
		c.refusal = serverFull
		refused = len(cs.open) >= cfg.MaxConns+spare
	case cs.clients[c.client] >= cfg.MaxPerClient:
		c.refusal = clientFull
		refused = cs.clients[c.client] >= cfg.MaxPerClient+max(1, spare/4)
	}
	if !refused {
		cs.open[c] = struct{}{}
		cs.clients[c.client]++
	}
	cs.mu.Unlock()
	if c.refusal != notRefused {
		s.metrics.crowded.Inc()
	}
	if refused {
		rejectConn(c.Conn, c.refusal)
		return nil
	}
	return c
}

// extraConns is how many connections above a limit are kept open to be told why they are
// not served.
func extraConns(limit int) int { return min(maxExtraConns, max(1, limit/4)) }

// evictSome closes the oldest idle connections: the process has no descriptor left.
func (cs *connSet) evictSome(s *Server) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.evictOldest(s, evictBatch, nil)
}

// evictOldest closes at least n of the connections that wait for a request, if there are so
// many, the oldest first; of one client unless that is nil. The caller holds mu.
func (cs *connSet) evictOldest(s *Server, n int, of *clientKey) {
	now := int64(time.Since(s.startedAt))
	var idle []*conn
	for c := range cs.open {
		if of != nil && c.client != *of || c.use.Load() != unused {
			continue
		}
		if fasthttp.ConnState(c.state.Load()) == fasthttp.StateIdle || now-c.stateSince.Load() > int64(evictableAfter) {
			idle = append(idle, c)
		}
	}
	if len(idle) == 0 {
		return
	}
	slices.SortFunc(idle, func(a, b *conn) int { return cmp.Compare(a.stateSince.Load(), b.stateSince.Load()) })
	// A few more than needed, but never most of them: the next connections find room
	// without another scan.
	n = max(n, min(evictBatch, len(idle)/8))
	for _, c := range idle {
		if n == 0 {
			return
		}
		if !c.evict() {
			continue // its request has just come
		}
		n--
		cs.removeLocked(c)
		c.closeNow() // wakes whoever reads from it
		s.metrics.evicted.Inc()
	}
}

// remove takes a connection out, if it is still there.
func (cs *connSet) remove(c *conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.removeLocked(c)
}

func (cs *connSet) removeLocked(c *conn) {
	if _, ok := cs.open[c]; !ok {
		return
	}
	delete(cs.open, c)
	if cs.clients[c.client]--; cs.clients[c.client] == 0 {
		delete(cs.clients, c.client)
	}
}

func (cs *connSet) len() int {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return len(cs.open)
}

// close closes the connections that wait for a request, or all of them.
func (cs *connSet) close(all bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c := range cs.open {
		if all || fasthttp.ConnState(c.state.Load()) != fasthttp.StateActive {
			c.closeNow()
		}
	}
}

// rejectConn answers a connection without reading from it, and closes it. It never
// waits: what is said fits the socket's buffer, or is not said.
func rejectConn(nc net.Conn, why connRefusal) {
	if _, encrypted := nc.(interface{ NetConn() net.Conn }); !encrypted && nc.SetWriteDeadline(time.Now().Add(time.Millisecond)) == nil {
		p := problem{status: fasthttp.StatusServiceUnavailable, detail: tooManyConns}
		if why == clientFull {
			p = problem{status: fasthttp.StatusTooManyRequests, detail: tooManyConnsOfClient}
		}
		body := appendProblem(nil, p)
		_, _ = fmt.Fprintf(nc, "HTTP/1.1 %d %s\r\nContent-Type: application/problem+json\r\n"+
			"X-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\nCross-Origin-Resource-Policy: same-origin\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: %s\r\n\r\n%s",
			p.status, fasthttp.StatusMessage(p.status), strconv.Itoa(len(body)), body)
	}
	_ = nc.Close()
}

const (
	tooManyConns         = "too many connections"
	tooManyConnsOfClient = "too many connections of this client"
)

// lazyFormat formats when it is logged, and not before.
type lazyFormat struct {
	format string
	args   []any
}

func (f lazyFormat) LogValue() slog.Value { return slog.StringValue(fmt.Sprintf(f.format, f.args...)) }

// Entrance is a listener and what is asked of those who come in by it. The zero
// value of every other member asks for nothing.
type Entrance struct {
	net.Listener
	// Hosts are the names that a request may ask for; nil = any.
	Hosts *access.Hosts
	// TLS is spoken when it is given.
	TLS *tls.Config
	// Local callers are known by their user, which must be this process's or root:
	// the listener is a unix socket. They need no token.
	Local bool
}

// accept makes a connection one of this entrance.
func (e *Entrance) accept(c *conn) {
	c.entrance, c.uid, c.address = e, -1, c.RemoteAddr().String()
	if e.Local {
		c.uid, c.address = int(c.client.uid)-1, "unix"
	}
	c.waitingSince.Store(notWaiting)
	c.request.Store(newRequestContext(c))
	if e.TLS != nil {
		c.belowTLS = c.Conn
		c.Conn = tls.Server(c.belowTLS, e.TLS)
	}
}

// closeNow closes a connection at once: the end of TLS is not announced, which might wait
// for a client that does not read.
func (c *conn) closeNow() {
	c.request.Load().cancel(errConnClosed)
	if c.belowTLS != nil {
		_ = c.belowTLS.Close()
		return
	}
	_ = c.Conn.Close()
}

// isForeignUser tells whether a connection by a unix socket is of a user who has no
// business there.
func (c *conn) isForeignUser() bool {
	return c.entrance.Local && c.uid != 0 && c.uid != os.Geteuid()
}

// clientCertificate is the client's certificate, which was verified; nil = none.
func (c *conn) clientCertificate() *x509.Certificate {
	t, ok := c.Conn.(*tls.Conn)
	if !ok || c.entrance.TLS == nil {
		return nil
	}
	if verified := t.ConnectionState().VerifiedChains; len(verified) > 0 && len(verified[0]) > 0 {
		return verified[0][0]
	}
	return nil
}
