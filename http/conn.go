package http

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"
)

// conn is a client's connection. It renews its write deadline as it writes, so
// that an answer may take as long as it likes while a stalled client is cut off.
type conn struct {
	net.Conn
	s             *Server
	client        clientKey
	state         atomic.Int32 // fasthttp.ConnState
	stateSince    atomic.Int64 // when it became so; ns since the server's epoch
	use           atomic.Int32 // unused, occupied or evicted
	closed        atomic.Bool
	refusal       connRefusal // accepted beyond a limit: to be told so
	drainOnClose  bool        // the client may still be sending: see Close
	deadlineSetAt time.Time   // of the write deadline; only the writer uses it
	chunks        chunkMeter

	entrance *Entrance
	belowTLS net.Conn // under TLS; nil without it
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
		if limit := c.s.cfg.WriteTimeout; now.Sub(c.deadlineSetAt) > limit/4 {
			if err := c.SetWriteDeadline(now.Add(limit)); err != nil {
				return n, err
			}
			c.deadlineSetAt = now
		}
		m, err := c.Conn.Write(p[:min(len(p), writePiece)])
		n += m
		p = p[m:]
		if err != nil || len(p) == 0 {
			return n, err
		}
	}
}

// drainTime is how long a connection is read on before it is closed; see Close.
const drainTime = time.Second

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
	if c.drainOnClose && !c.s.draining.Load() {
		if w, ok := c.Conn.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
			if c.Conn.SetReadDeadline(time.Now().Add(drainTime)) == nil {
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
			c.chunks.active = false // what comes is the next request
			c.stateSince.Store(int64(time.Since(c.s.startedAt)))
			c.vacate()
		}
	}
}

// connOf is the connection of a request, nil when it did not come from Serve.
func connOf(ctx *fasthttp.RequestCtx) *conn {
	c, _ := ctx.Conn().(*conn)
	return c
}

// resetOnClose has the connection end with a reset when it is closed.
func (c *conn) resetOnClose() {
	_ = withSocket(c.Conn, func(fd int) error {
		return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	})
}

// A body in chunks costs more than its content: a length and an extension for each chunk,
// and a trailer. fasthttp passes over extensions however long they are, within one Read of
// the body. So the bytes that come from the connection are counted, too.

const (
	// maxFraming is how many bytes beside its content a chunked body may have, and
	// framingRate how many more for each byte of content: chunks of one byte cost five.
	maxFraming     = maxDrainedBody + 64<<10 // fasthttp drains longUnread of a body that nobody wants
	framingPerByte = 16
	// maxExtension is how many bytes may come within one Read of the body, beside what is
	// read: fasthttp's buffer, and an extension.
	maxExtension = 2 * maxHeader
)

// errFraming: a chunked body is more framing than content.
var errFraming = errors.New("the chunks of the body have extensions that are too long")

// chunkMeter counts what a chunked body takes. It is for the connection's goroutine.
type chunkMeter struct {
	active       bool
	exceeded     bool  // a limit was passed
	wireBytes    int64 // bytes that came from the connection
	contentBytes int64 // of them, bytes that the body's reader was given
	wireLimit    int64 // of wire, until the present Read of the body has ended
}

// start begins to count, where the body is in chunks.
func (m *chunkMeter) start(h *fasthttp.RequestHeader) {
	*m = chunkMeter{active: h.ContentLength() == -1, wireLimit: maxFraming}
}

// withinLimits tells whether more may be read from the connection.
func (m *chunkMeter) withinLimits() bool {
	if m.active && (m.wireBytes > m.wireLimit || m.wireBytes > maxFraming+(1+framingPerByte)*m.contentBytes) {
		m.exceeded = true
	}
	return !m.exceeded
}

// Read is for the connection's own goroutine.
func (c *conn) Read(p []byte) (int, error) {
	if !c.chunks.active {
		return c.Conn.Read(p)
	}
	if !c.chunks.withinLimits() {
		return 0, errFraming
	}
	n, err := c.Conn.Read(p)
	c.chunks.wireBytes += int64(n)
	return n, err
}

// bodyStream is the body of a request as it comes; nil when fasthttp has read it already.
func bodyStream(ctx *fasthttp.RequestCtx) io.Reader {
	stream := ctx.RequestBodyStream()
	if c := connOf(ctx); stream != nil && c != nil && c.chunks.active {
		return &chunkReader{stream, &c.chunks}
	}
	return stream
}

// chunkReader reads a body in chunks.
type chunkReader struct {
	stream io.Reader
	meter  *chunkMeter
}

func (r *chunkReader) Read(p []byte) (int, error) {
	m := r.meter
	p = p[:min(len(p), pieceBytes)]
	m.wireLimit = m.wireBytes + int64(len(p)) + maxExtension
	n, err := r.stream.Read(p)
	m.contentBytes += int64(n)
	m.wireLimit = m.wireBytes + maxFraming // for what fasthttp drains
	if m.exceeded && err != nil && err != io.EOF {
		err = errFraming // fasthttp does not say why
	}
	return n, err
}

// clientKey is who a connection is counted for: an IPv4 address, the /64 network of an
// IPv6 address, or the user at the other end of a Unix socket. The zero value is
// everybody who cannot be told apart.
type clientKey struct {
	addr netip.Addr
	uid  uint32 // plus one; of a Unix socket
}

// clientKeyOf tells who is at the other end.
func clientKeyOf(nc net.Conn) clientKey {
	switch a := nc.RemoteAddr().(type) {
	case *net.TCPAddr:
		addr := a.AddrPort().Addr().Unmap().WithZone("")
		if addr.Is6() {
			if network, err := addr.Prefix(64); err == nil {
				addr = network.Addr()
			}
		}
		return clientKey{addr: addr}
	case *net.UnixAddr:
		var c clientKey
		_ = withSocket(nc, func(fd int) error {
			cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
			if err == nil {
				c.uid = cred.Uid + 1
			}
			return err
		})
		return c
	}
	return clientKey{}
}

// errNoSocket: a connection is not one of the kernel's.
var errNoSocket = errors.New("the connection has no socket")

// withSocket calls f with the descriptor of a connection's socket, below TLS and
// other layers; the socket stays open meanwhile. It returns f's error, or why f was not
// called: errNoSocket, or the socket is closed.
func withSocket(nc net.Conn, f func(fd int) error) error {
	for {
		below, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		nc = below.NetConn()
	}
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return errNoSocket
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}
