package http

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
)

// listener accepts connections for fasthttp, which ends its service at the first
// error of Accept that is not a timeout. So this listener keeps every error to itself
// that can pass: a shortage of descriptors or memory, a client that left before it was
// accepted. It returns an error only when the listener below it is closed or broken.
type listener struct {
	*Entrance
	s     *Server
	pause time.Duration // before the next attempt; 0 after a success
	told  time.Time     // when an error was logged last
	muted int           // errors since then
}

// Bounds of the pause between two attempts to accept, and of how often they are logged.
const (
	minAcceptPause = 5 * time.Millisecond
	maxAcceptPause = time.Second
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
		l.pause = 0
		if c := l.s.conns.admit(l.s, l.Entrance, nc); c != nil {
			return c, nil
		}
	}
}

// retry reports an error of Accept and waits a little; it is false when the listener
// is closed, or is not a listening socket any more.
func (l *listener) retry(err error) bool {
	if l.s.stopped.Load() {
		return false
	}
	for _, final := range []error{net.ErrClosed, io.EOF, syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK, syscall.EOPNOTSUPP} {
		if errors.Is(err, final) {
			return false
		}
	}
	l.s.metrics.acceptErrors.Inc()
	l.muted++
	if now := time.Now(); l.told.IsZero() || now.Sub(l.told) >= acceptLogEvery {
		l.s.log.Warn("cannot accept a connection; retrying", "err", err, "errors", l.muted)
		l.told, l.muted = now, 0
	}
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		l.s.conns.makeRoom(l.s)
	}
	l.pause = min(max(2*l.pause, minAcceptPause), maxAcceptPause)
	draining := l.s.serving.Done()
	if l.s.draining.Load() {
		l.pause, draining = minAcceptPause, nil // the listener is about to close
	}
	timer := time.NewTimer(l.pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-draining:
	}
	return true
}

// crowd says why a connection is answered only that it is one too many.
type crowd int8

const (
	notCrowded    crowd = iota
	crowdedServer       // the server has too many connections
	crowdedClient       // this client has
)

// connSet holds the open connections, and which client has how many.
type connSet struct {
	mu      sync.Mutex
	open    map[*conn]struct{}
	clients map[client]int
}

// evictAtOnce is how many connections one scan closes at most: the scan looks at all.
const evictAtOnce = 16

// evictAfter is how long a connection may be without a whole request before it may be
// closed in favour of a new one. A connection between two requests may be closed at once.
const evictAfter = time.Second

// admit makes a connection of the server's from one that was accepted. Beyond the
// limit of all connections, or of this client's, the oldest idle ones are closed for
// it. Where none is idle it is taken all the same, to be answered 503 or 429 (see
// Server.admit); where too many of those are there already, it is told so here and
// closed: the result is nil.
func (cs *connSet) admit(s *Server, e *Entrance, nc net.Conn) *conn {
	c := &conn{Conn: nc, s: s, client: clientOf(nc)}
	e.accept(c)
	c.since.Store(int64(time.Since(s.epoch)))
	cs.mu.Lock()
	cfg := &s.cfg
	if len(cs.open) >= cfg.MaxConns {
		cs.evict(s, len(cs.open)-cfg.MaxConns+1, nil)
	}
	if cs.clients[c.client] >= cfg.MaxPerClient {
		cs.evict(s, cs.clients[c.client]-cfg.MaxPerClient+1, &c.client)
	}
	spare := slack(cfg.MaxConns)
	refused := false
	switch {
	case len(cs.open) >= cfg.MaxConns:
		c.crowded = crowdedServer
		refused = len(cs.open) >= cfg.MaxConns+spare
	case cs.clients[c.client] >= cfg.MaxPerClient:
		c.crowded = crowdedClient
		refused = cs.clients[c.client] >= cfg.MaxPerClient+max(1, spare/4)
	}
	if !refused {
		cs.open[c] = struct{}{}
		cs.clients[c.client]++
	}
	cs.mu.Unlock()
	if c.crowded != notCrowded {
		s.metrics.crowded.Inc()
	}
	if refused {
		turnAway(c.Conn, c.crowded)
		return nil
	}
	return c
}

// slack is how many connections above a limit are kept open to be told why they are
// not served.
func slack(limit int) int { return min(slackConns, max(1, limit/4)) }

// makeRoom closes the oldest idle connections: the process has no descriptor left.
func (cs *connSet) makeRoom(s *Server) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.evict(s, evictAtOnce, nil)
}

// evict closes at least n of the connections that wait for a request, if there are so
// many, the oldest first; of one client unless that is nil. The caller holds mu.
func (cs *connSet) evict(s *Server, n int, of *client) {
	now := int64(time.Since(s.epoch))
	var idle []*conn
	for c := range cs.open {
		if of != nil && c.client != *of || c.use.Load() != unused {
			continue
		}
		if fasthttp.ConnState(c.state.Load()) == fasthttp.StateIdle || now-c.since.Load() > int64(evictAfter) {
			idle = append(idle, c)
		}
	}
	if len(idle) == 0 {
		return
	}
	slices.SortFunc(idle, func(a, b *conn) int { return cmp.Compare(a.since.Load(), b.since.Load()) })
	// A few more than needed, but never most of them: the next connections find room
	// without another scan.
	n = max(n, min(evictAtOnce, len(idle)/8))
	for _, c := range idle {
		if n == 0 {
			return
		}
		if !c.evict() {
			continue // its request has just come
		}
		n--
		cs.forget(c)
		c.cut() // wakes whoever reads from it
		s.metrics.evicted.Inc()
	}
}

// remove takes a connection out, if it is still there.
func (cs *connSet) remove(c *conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.forget(c)
}

func (cs *connSet) forget(c *conn) {
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
			c.cut()
		}
	}
}

// turnAway answers a connection without reading from it, and closes it. It never
// waits: what is said fits the socket's buffer, or is not said.
func turnAway(nc net.Conn, why crowd) {
	if _, encrypted := nc.(interface{ NetConn() net.Conn }); !encrypted && nc.SetWriteDeadline(time.Now().Add(time.Millisecond)) == nil {
		p := problem{status: fasthttp.StatusServiceUnavailable, text: tooManyConns}
		if why == crowdedClient {
			p = problem{status: fasthttp.StatusTooManyRequests, text: tooManyOfClient}
		}
		body := appendProblem(nil, p)
		_, _ = fmt.Fprintf(nc, "HTTP/1.1 %d %s\r\nContent-Type: application/problem+json\r\n"+
			"X-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\nCross-Origin-Resource-Policy: same-origin\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: %s\r\n\r\n%s",
			p.status, fasthttp.StatusMessage(p.status), strconv.Itoa(len(body)), body)
	}
	_ = nc.Close()
}

const (
	tooManyConns    = "too many connections"
	tooManyOfClient = "too many connections of this client"
)

// sprintf formats when it is logged, and not before.
type sprintf struct {
	format string
	args   []any
}

func (f sprintf) LogValue() slog.Value { return slog.StringValue(fmt.Sprintf(f.format, f.args...)) }
