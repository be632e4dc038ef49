package http

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

// conn is a client's connection. It renews its write deadline as it writes, so
// that an answer may take as long as it likes while a stalled client is cut off.
type conn struct {
	net.Conn
	s       *Server
	state   atomic.Int32 // fasthttp.ConnState
	closed  atomic.Bool
	crowded bool      // accepted beyond MaxConns: to be told 503
	linger  bool      // the client may still be sending: see Close
	renewed time.Time // of the write deadline; only the writer uses it
}

// writePiece is written under one deadline: a slow client gets on, a dead one does not.
const writePiece = 64 << 10

// Write is for the connection's own goroutine.
func (c *conn) Write(p []byte) (int, error) {
	n := 0
	for {
		now := time.Now()
		if limit := c.s.cfg.WriteTimeout; now.Sub(c.renewed) > limit/4 {
			if err := c.SetWriteDeadline(now.Add(limit)); err != nil {
				return n, err
			}
			c.renewed = now
		}
		m, err := c.Conn.Write(p[:min(len(p), writePiece)])
		n += m
		p = p[m:]
		if err != nil || len(p) == 0 {
			return n, err
		}
	}
}

// lingerTime is how long a connection is read on before it is closed; see Close.
const lingerTime = time.Second

// Close closes. After a request that was refused before it was read, it first
// reads on for a while, however much comes: closing before the client has sent it all
// would reset the connection, and the client might never see why.
func (c *conn) Close() error {
	if !c.closed.CompareAndSwap(false, true) {
		return nil
	}
	c.s.conns.remove(c)
	if c.linger && !c.s.draining.Load() {
		if w, ok := c.Conn.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
			if c.Conn.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
				_, _ = io.Copy(io.Discard, c.Conn)
			}
		}
	}
	return c.Conn.Close()
}

// listener wraps what it accepts.
type listener struct {
	net.Listener
	s *Server
}

func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, s: l.s}
	c.crowded = l.s.conns.add(c) > l.s.cfg.MaxConns
	return c, nil
}

// trackState notes what fasthttp says of a connection.
func trackState(nc net.Conn, state fasthttp.ConnState) {
	if c, ok := nc.(*conn); ok {
		c.state.Store(int32(state))
	}
}

// connOf is the connection of a request, nil when it did not come from Serve.
func connOf(ctx *fasthttp.RequestCtx) *conn {
	c, _ := ctx.Conn().(*conn)
	return c
}

// connSet holds the open connections.
type connSet struct {
	mu   sync.Mutex
	open map[*conn]struct{}
}

func (cs *connSet) add(c *conn) int {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.open[c] = struct{}{}
	return len(cs.open)
}

func (cs *connSet) remove(c *conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	delete(cs.open, c)
}

// close closes the connections that wait for a request, or all of them.
func (cs *connSet) close(all bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c := range cs.open {
		if all || fasthttp.ConnState(c.state.Load()) != fasthttp.StateActive {
			_ = c.Conn.Close()
		}
	}
}

// sprintf formats when it is logged, and not before.
type sprintf struct {
	format string
	args   []any
}

func (f sprintf) LogValue() slog.Value { return slog.StringValue(fmt.Sprintf(f.format, f.args...)) }
