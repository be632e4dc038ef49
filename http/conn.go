package http

import (
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"
)

// conn is a client's connection. It renews its write deadline as it writes, so
// that an answer may take as long as it likes while a stalled client is cut off.
type conn struct {
	net.Conn
	s       *Server
	client  client
	state   atomic.Int32 // fasthttp.ConnState
	since   atomic.Int64 // when it became so; ns since the server's epoch
	use     atomic.Int32 // unused, occupied or evicted
	closed  atomic.Bool
	crowded crowd     // accepted beyond a limit: to be told so
	linger  bool      // the client may still be sending: see Close
	renewed time.Time // of the write deadline; only the writer uses it
	chunks  chunkMeter

	entrance *Entrance
	raw      net.Conn // under TLS; nil without it
	uid      int      // of the process at the other end of a unix socket, else -1
	address  string   // of the client, for logs: HOST:PORT or "unix"

	request      atomic.Pointer[requestContext]
	waitingSince atomic.Int64 // tick at which the request began to wait in the engine, or notWaiting
	watched      atomic.Bool  // watch has something to stop
	watch        clientWatch
}

// What a connection is used for. A request occupies its connection until it is answered.
// An unused connection may be evicted: closed in favour of others. Both begin with a
// compare-and-swap from unused, so that a request never runs on an evicted connection:
// nothing would tell it that its client is gone.
const (
	unused int32 = iota
	occupied
	evicted
)

// occupy is called when a request begins; it is false when the connection was evicted.
func (c *conn) occupy() bool {
	return c.use.CompareAndSwap(unused, occupied) || c.use.Load() == occupied
}

// vacate is called when the request is answered.
func (c *conn) vacate() {
	c.waitingSince.Store(notWaiting)
	c.unwatchClient()
	c.use.CompareAndSwap(occupied, unused)
}

// evict takes the connection from its client; it is false when a request occupies it.
func (c *conn) evict() bool { return c.use.CompareAndSwap(unused, evicted) }

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
	defer c.s.conns.remove(c)
	c.vacate()
	c.request.Load().cancel(errConnClosed)
	if c.linger && !c.s.draining.Load() {
		if w, ok := c.Conn.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
			if c.Conn.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
				_, _ = io.Copy(io.Discard, c.Conn)
			}
		}
	}
	return c.Conn.Close()
}

// trackState notes what fasthttp says of a connection.
func trackState(nc net.Conn, state fasthttp.ConnState) {
	if c, ok := nc.(*conn); ok {
		c.state.Store(int32(state))
		if state == fasthttp.StateIdle {
			c.chunks.on = false // what comes is the next request
			c.since.Store(int64(time.Since(c.s.epoch)))
			c.vacate()
		}
	}
}

// connOf is the connection of a request, nil when it did not come from Serve.
func connOf(ctx *fasthttp.RequestCtx) *conn {
	c, _ := ctx.Conn().(*conn)
	return c
}

// reset has the connection end with a reset when it is closed.
func (c *conn) reset() {
	_ = controlSocket(c.Conn, func(fd int) error {
		return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	})
}
