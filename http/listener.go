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

// A connection passes these stations:
//
//	listener.Accept → connSet.accept    counted by client; evicts idle ones, or marks this one refused
//	fasthttp        → trackState        new, active with the first byte of a request, idle after its answer
//	admission       → conn.occupy       a request occupies it; only an unused one can be evicted
//	conn.Close      → connSet.remove    its own goroutine has ended
//
// The limits are soft on purpose: some connections above them are kept, so that their clients get 503
// or 429 and the time to try again, which a refused connection cannot tell.

// listener accepts connections for fasthttp, which stops serving at the first error of Accept that
// is not a timeout. So this listener retries after errors that can pass: a shortage of descriptors
// or memory, or a client that left before it was accepted. It returns an error only when the
// underlying listener is closed or broken.
type listener struct {
	*Entrance
	s          *Server
	retryDelay time.Duration // before the next attempt; 0 after a success
	loggedAt   time.Time     // when an error was last logged
	unlogged   int           // errors since then
}

// Bounds of the delay between two attempts to accept, and the interval of log lines about them.
const (
	minAcceptDelay = 5 * time.Millisecond
	maxAcceptDelay = time.Second
	acceptLogEvery = 10 * time.Second
)

// Accept returns the next connection to serve. It waits for one, and between errors; Shutdown ends both.
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

// retry reports an error of Accept and waits a little. It returns false when the listener is closed, or
// is no longer a listening socket. All other errors of accept(2) can pass: ECONNABORTED is the
// client's, EMFILE, ENFILE, ENOBUFS and ENOMEM are shortages, and others come from the network.
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
		l.s.log.Warn("http: cannot accept a connection; retrying", "err", err, "errors", l.unlogged)
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

// connRefusal is why every request of a connection is refused.
type connRefusal int8

const (
	notRefused connRefusal = iota
	serverFull             // the server has too many connections
	clientFull             // this client has
)

// connSet holds the open connections and counts them by client. A connection counts until its own
// goroutine has closed it, or until it is evicted.
type connSet struct {
	mu      sync.Mutex // never held while a client is waited for
	open    map[*conn]struct{}
	clients map[clientKey]int // number of its connections in open; at least 1
	nodes   int               // connections of other nodes in open, which are not in clients
}

// evictBatch is how many connections one scan closes at most. A scan visits all connections.
const evictBatch = 16

// evictableAfter is how long a connection may lack a complete request before it may be closed in
// favour of a new one. A connection between two requests may be closed immediately.
const evictableAfter = time.Second

// accept adds an accepted connection. Beyond the limit of all connections, or of this client's, it
// closes the oldest idle ones first. When all are busy, the connection is kept, and its requests
// are answered 503 or 429 (see the admission middleware). When extraConns of those are open
// already, accept answers and closes it at once, and returns nil.
//
// A client at its own limit only evicts its own connections, so it cannot push out those of others.
// Connections of other nodes do not count: each of these nodes has applied its limits to the clients whose
// requests come over them.
// accept runs in the one goroutine that accepts for this listener, so it must not wait for a client:
// a TLS handshake takes place in the connection's own goroutine.
func (cs *connSet) accept(s *Server, e *Entrance, nc net.Conn) *conn {
	c := &conn{Conn: nc, s: s, client: clientKeyOf(nc)}
	e.accept(c)
	c.stateSince.Store(int64(time.Since(s.startedAt)))
	cs.mu.Lock()
	cfg := &s.cfg
	if e.CheckNode != nil {
		cs.open[c] = struct{}{}
		cs.nodes++
		cs.mu.Unlock()
		return c
	}
	if n := len(cs.open) - cs.nodes; n >= cfg.MaxConns {
		cs.evictOldest(s, n-cfg.MaxConns+1, nil)
	}
	if cs.clients[c.client] >= cfg.MaxPerClient {
		cs.evictOldest(s, cs.clients[c.client]-cfg.MaxPerClient+1, &c.client)
	}
	spare := extraConns(cfg.MaxConns)
	refused := false
	switch n := len(cs.open) - cs.nodes; {
	case n >= cfg.MaxConns:
		c.refusal = serverFull
		refused = n >= cfg.MaxConns+spare
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
		s.metrics.connsRefused.Inc()
	}
	if refused {
		rejectConn(c.Conn, c.refusal)
		return nil
	}
	return c
}

// extraConns is how many connections above a limit are kept open to answer why they are refused: 256,
// or a quarter of a small limit. One client may have a quarter of these.
func extraConns(limit int) int { return min(maxExtraConns, max(1, limit/4)) }

// evictSome closes the oldest idle connections when the process is out of descriptors: the next accept
// needs one, and so do the files of the engine.
func (cs *connSet) evictSome(s *Server) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.evictOldest(s, evictBatch, nil)
}

// evictOldest closes at least n idle connections, the oldest first, or all of them if there are
// fewer. With a client it only closes that client's connections. The caller holds mu.
func (cs *connSet) evictOldest(s *Server, n int, of *clientKey) {
	now := int64(time.Since(s.startedAt))
	var idle []*conn
	for c := range cs.open {
		if c.entrance.CheckNode != nil || of != nil && c.client != *of || c.use.Load() != unused {
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
	// Close a few more than needed, but never most of them: the next connections find space
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
		c.closeNow() // wakes the goroutine that reads from it
		s.metrics.evicted.Inc()
	}
}

// remove takes a connection out of the set. An evicted one is out of it already.
func (cs *connSet) remove(c *conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.removeLocked(c)
}

// removeLocked is remove for a caller that holds mu.
func (cs *connSet) removeLocked(c *conn) {
	if _, ok := cs.open[c]; !ok {
		return
	}
	delete(cs.open, c)
	if c.entrance.CheckNode != nil {
		cs.nodes--
		return
	}
	if cs.clients[c.client]--; cs.clients[c.client] == 0 {
		delete(cs.clients, c.client)
	}
}

func (cs *connSet) len() int {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return len(cs.open)
}

// endCalls ends the calls of the engine for all connections, at the end of a shutdown. It also ends the
// reading of a body, by a deadline that has passed. The cancellation comes first: bodyReadError looks for
// it after each read.
func (cs *connSet) endCalls() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c := range cs.open {
		c.request.Load().cancel(errShuttingDown)
		if c.isUnanswered() {
			_ = c.SetReadDeadline(time.Unix(1, 0)) // an error means that the connection is closed
		}
	}
}

// anyUnanswered tells whether a request lacks its answer.
func (cs *connSet) anyUnanswered() bool {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c := range cs.open {
		if c.isUnanswered() {
			return true
		}
	}
	return false
}

// isUnanswered tells whether a request is occupying the connection before its answer is written, and is
// not a stream.
func (c *conn) isUnanswered() bool {
	return c.use.Load() == occupied && c.waitingSince.Load() != isStreaming
}

// close closes the connections that are between requests, or all of them. Their own goroutines remove
// them from the set.
func (cs *connSet) close(all bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c := range cs.open {
		if all || fasthttp.ConnState(c.state.Load()) != fasthttp.StateActive {
			c.closeNow()
		}
	}
}

// rejectConn answers a connection without reading from it, and closes it. It never waits: an answer
// that does not fit the socket's buffer is lost. It runs on the goroutine that accepts. A client of TLS
// only sees the connection close, because a handshake would have to wait for it.
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

// lazyFormat formats a log message only when it is logged.
type lazyFormat struct {
	format string
	args   []any
}

func (f lazyFormat) LogValue() slog.Value { return slog.StringValue(fmt.Sprintf(f.format, f.args...)) }

// Entrance is a listener with its requirements for clients. The zero value of every other member
// admits everyone.
type Entrance struct {
	net.Listener
	// Hosts are the host names that a request may have; nil = any.
	Hosts *access.Hosts
	// TLS is the TLS configuration; nil = plain HTTP.
	TLS *tls.Config
	// Local says that the listener is a unix socket. Its clients need no token: they are
	// identified by their user, which must be the user of this process or root.
	Local bool
	// CheckNode says that the clients are the other nodes of the cluster, which forward requests. It
	// returns an error for a connection that is not one of a node. It is called once for each, by its own
	// goroutine, and may wait for a handshake. The server must have a Cluster.
	CheckNode func(net.Conn) error
}

// accept sets the parts of a connection that depend on the entrance.
func (e *Entrance) accept(c *conn) {
	c.entrance, c.uid, c.address = e, -1, c.RemoteAddr().String()
	if e.Local {
		c.uid, c.address = int(c.client.uid)-1, "unix"
	}
	c.writeTimeout = c.s.cfg.WriteTimeout
	if e.CheckNode != nil {
		c.writeTimeout *= 4 // the node's client may be slow: the node sees to that
	}
	c.waitingSince.Store(notWaiting)
	c.request.Store(newRequestContext(c))
	switch encrypted, ok := c.Conn.(interface{ NetConn() net.Conn }); {
	case e.TLS != nil:
		c.belowTLS = c.Conn
		c.Conn = tls.Server(c.belowTLS, e.TLS)
	case ok: // the listener has made the handshake, as that for other nodes does
		c.belowTLS = encrypted.NetConn()
	}
}

// closeNow closes a connection without the closing message of TLS, which might wait for a client
// that does not read. Calls of the engine for its request end.
func (c *conn) closeNow() {
	c.request.Load().cancel(errConnClosed)
	if c.belowTLS != nil {
		_ = c.belowTLS.Close()
		return
	}
	_ = c.Conn.Close()
}

// isForeignUser tells whether the client of a unix socket is a user who may not use it.
func (c *conn) isForeignUser() bool {
	return c.entrance.Local && c.uid != 0 && c.uid != os.Geteuid()
}

// clientCertificate returns the verified certificate of the client, or nil.
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
