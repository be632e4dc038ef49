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

	"github.com/caravan-dag/caravan/messages"
)

// conn is a client's connection. It renews its write deadline while it writes: an answer may take
// any time, but a client that stops reading is cut off.
//
// fasthttp reads, writes and closes it on one goroutine; at shutdown it also closes idle ones from
// another. Other goroutines close the socket to evict a connection or at shutdown (closeNow), register
// its watch, and read the atomic fields; fields that are not atomic belong to its own goroutine, or
// never change after accept.
type conn struct {
	net.Conn
	s             *Server
	client        clientKey
	state         atomic.Int32 // fasthttp.ConnState
	stateSince    atomic.Int64 // when state changed; ns since Server.startedAt
	use           atomic.Int32 // unused, occupied or evicted
	closed        atomic.Bool
	refusal       connRefusal // not notRefused: accepted beyond a limit
	drainOnClose  atomic.Bool // the client may still be sending: see Close
	writeTimeout  time.Duration
	deadlineSetAt time.Time // the write deadline; only the writer uses it
	chunks        chunkMeter

	entrance *Entrance
	// Whether the client is a node of the cluster, once that was checked: see checkNode.
	isNodeChecked bool
	nodeErr       error
	belowTLS      net.Conn // the connection under TLS; nil without TLS, and where a listener hides it
	uid           int      // user at the other end of a unix socket; -1 = unknown
	address       string   // of the client, for logs: HOST:PORT or "unix"

	request      atomic.Pointer[requestContext]
	waitingSince atomic.Int64 // tick at which the request began to wait in the engine, or notWaiting
	watched      atomic.Bool  // watch has something to stop
	watch        clientWatch
}

// Uses of a connection. A request occupies its connection until it is answered. An unused
// connection may be evicted: closed in favour of others. Both begin with a compare-and-swap from
// unused, so a request never runs on an evicted connection.
const (
	unused int32 = iota
	occupied
	evicted
)

// occupy is called when a request begins. It returns false when the connection was evicted. It is
// called twice for a request that waits for permission to send its body, so an occupied connection is
// fine.
func (c *conn) occupy() bool {
	return c.use.CompareAndSwap(unused, occupied) || c.use.Load() == occupied
}

// vacate is called when the request is answered: by trackState before the next request, or by Close.
func (c *conn) vacate() {
	c.waitingSince.Store(notWaiting)
	c.unwatchClient()
	c.use.CompareAndSwap(occupied, unused)
}

// evict takes the connection from its client. It returns false when a request occupies it.
func (c *conn) evict() bool { return c.use.CompareAndSwap(unused, evicted) }

// writePiece is the number of bytes written under one deadline: a slow client gets along with that, a
// dead one does not. With 30 s a client must take some 2 KiB a second.
const writePiece = 64 << 10

// Write is called by the connection's own goroutine only. A deadline that is less than a quarter of the
// timeout old is kept, so that small answers in quick succession do not each set a timer.
func (c *conn) Write(p []byte) (int, error) {
	n := 0
	for {
		now := time.Now()
		if limit := c.writeTimeout; now.Sub(c.deadlineSetAt) > limit/4 {
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

// Close closes the connection. After a request that was refused before it was read, it first reads on
// for Config.drainTime. Closing while the client is still sending would reset the connection, and the client
// might not receive the answer (RFC 9112, section 9.6). closeNow ends that early.
func (c *conn) Close() error {
	if !c.closed.CompareAndSwap(false, true) {
		return nil
	}
	defer c.s.conns.remove(c)
	c.vacate()
	c.request.Load().cancel(errConnClosed)
	if c.drainOnClose.Load() {
		if w, ok := c.Conn.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
			if c.Conn.SetReadDeadline(time.Now().Add(c.s.cfg.drainTime)) == nil {
				_, _ = io.Copy(io.Discard, c.Conn)
			}
		}
	}
	return c.Conn.Close()
}

// trackState records the state of a connection that fasthttp reports, on the connection's goroutine.
// StateIdle comes after each answer, before fasthttp looks for the next request.
func trackState(nc net.Conn, state fasthttp.ConnState) {
	if c, ok := nc.(*conn); ok {
		c.state.Store(int32(state))
		if state == fasthttp.StateIdle {
			c.chunks.active = false // the next request begins
			c.drainOnClose.Store(false)
			c.stateSince.Store(int64(time.Since(c.s.startedAt)))
			c.vacate()
		}
	}
}

// connOf returns the connection of a request; nil when the request did not come from Serve.
func connOf(ctx *fasthttp.RequestCtx) *conn {
	c, _ := ctx.Conn().(*conn)
	return c
}

// closeWithReset ends the connection with a reset: SO_LINGER with a time of 0 (socket(7)). A client that
// reads to the end of the connection can tell a broken answer by that. The socket closes here, before
// Close: a half close, and the closing message of TLS, would look like the end of a complete answer.
func (c *conn) closeWithReset() {
	_ = withSocket(c.Conn, func(fd int) error {
		return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	})
	c.closeNow()
}

// A chunked body takes more bytes than its content: a length and possibly an extension for each
// chunk, and a trailer. fasthttp skips extensions of any length within one Read of the body. So
// the bytes that arrive from the connection are counted as well.

const (
	// maxFraming is how many bytes a chunked body may have in addition to its content, and
	// framingPerByte how many more for each byte of content: a chunk of one byte takes five more.
	maxFraming     = maxDrainedBody + 64<<10 // fasthttp drains maxDrainedBody of a body that the handler did not read
	framingPerByte = 16
	// maxExtension is how many bytes may arrive within one Read of the body in addition to what is
	// read: fasthttp's buffer, and an extension.
	maxExtension = 2 * maxHeader
)

// errFraming: the framing of a chunked body is longer than allowed.
var errFraming = errors.New("the chunks of the body have extensions that are too long")

// chunkMeter counts the bytes of a chunked body. Only the connection's goroutine uses it.
type chunkMeter struct {
	active       bool
	exceeded     bool  // a limit was exceeded
	wireBytes    int64 // bytes that arrived from the connection
	contentBytes int64 // bytes that the reader of the body got
	wireLimit    int64 // wireBytes may not exceed it before the present Read of the body ends
	ended        bool  // the client sends nothing more
}

// start begins to count if the body is chunked.
func (m *chunkMeter) start(h *fasthttp.RequestHeader) {
	*m = chunkMeter{active: h.ContentLength() == -1, wireLimit: maxFraming}
}

// withinLimits tells whether more may be read from the connection. An exceeded limit stays exceeded.
func (m *chunkMeter) withinLimits() bool {
	if m.active && (m.wireBytes > m.wireLimit || m.wireBytes > maxFraming+(1+framingPerByte)*m.contentBytes) {
		m.exceeded = true
	}
	return !m.exceeded
}

// Read is called by the connection's own goroutine only, or by the one that passes on the body of a
// forwarded request in its place (forwardedBody).
func (c *conn) Read(p []byte) (int, error) {
	if !c.chunks.active {
		return c.Conn.Read(p)
	}
	if !c.chunks.withinLimits() {
		return 0, errFraming
	}
	n, err := c.Conn.Read(p)
	c.chunks.wireBytes += int64(n)
	switch {
	case err != io.EOF:
	case n > 0:
		err = nil // the next Read has it: the bytes may be all of the body
	default:
		c.chunks.ended = true
	}
	return n, err
}

// bodyStream returns the body of a request as a stream; nil when fasthttp has read it already.
func bodyStream(ctx *fasthttp.RequestCtx) io.Reader {
	stream := ctx.RequestBodyStream()
	if c := connOf(ctx); stream != nil && c != nil && c.chunks.active {
		return &chunkReader{stream, &c.chunks}
	}
	return stream
}

// chunkReader reads a chunked body. It raises the limit before each Read, by what this Read may take
// from the connection, and so finds an extension while fasthttp still skips it.
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
	m.wireLimit = m.wireBytes + maxFraming // fasthttp may drain the rest
	switch {
	case m.exceeded && err != nil && err != io.EOF:
		err = errFraming // fasthttp does not return it
	case m.ended && err == io.EOF:
		err = io.ErrUnexpectedEOF // fasthttp takes an end between two chunks for that of the body
	}
	return n, err
}

// chunkDeadline gives a body in chunks the time that an announced body of its length has: the timeout,
// and a second for each minBodyRate bytes. Its length is not known in advance, so the deadline moves as
// the bytes arrive. The zero value leaves the deadline as it is.
type chunkDeadline struct {
	conn     *conn
	began    time.Time // when the body began to be read
	timeout  time.Duration
	received int64 // bytes so far
	extended int64 // received, when the deadline was set; 0 = fasthttp has set it
}

// newChunkDeadline returns the deadline of a body whose reading begins; the zero value for an announced
// one, which requestLimits has given its time.
func newChunkDeadline(ctx *fasthttp.RequestCtx, announced int, timeout time.Duration) chunkDeadline {
	c := connOf(ctx)
	if c == nil || announced >= 0 {
		return chunkDeadline{}
	}
	return chunkDeadline{conn: c, began: time.Now(), timeout: timeout}
}

// extend adds bytes that have arrived. It moves the deadline once for each minBodyRate of them, so that
// short bodies and small chunks do not each set a timer.
func (d *chunkDeadline) extend(n int) {
	if d.received += int64(n); d.conn == nil || d.received-d.extended < minBodyRate {
		return
	}
	d.extended = d.received
	_ = d.conn.SetReadDeadline(d.began.Add(d.timeout + time.Duration(d.received/minBodyRate)*time.Second)) // an error means that the connection is closed: so says the next read
}

// clientKey identifies a client for limits: an IPv4 address, the /64 network of an IPv6 address,
// or the user at the other end of a unix socket. The zero value is shared by all clients that
// cannot be told apart.
type clientKey struct {
	addr netip.Addr
	uid  uint32 // of a unix socket, plus one
}

// clientKeyOf returns the key of the client at the other end. An IPv6 client may use any address of its
// /64 network, so the network counts. Behind a proxy all clients have the proxy's key.
func clientKeyOf(nc net.Conn) clientKey {
	switch a := nc.RemoteAddr().(type) {
	case *net.TCPAddr:
		return clientKeyOfAddress(a.AddrPort().Addr())
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

// clientKeyOfAddress returns the key of a client over TCP.
func clientKeyOfAddress(addr netip.Addr) clientKey {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		if network, err := addr.Prefix(64); err == nil {
			addr = network.Addr()
		}
	}
	return clientKey{addr: addr}
}

// clientKeyOfPrincipal returns the key that a client had where its request arrived.
func clientKeyOfPrincipal(who *messages.Principal) clientKey {
	if addr, err := netip.ParseAddrPort(who.Address); err == nil {
		return clientKeyOfAddress(addr.Addr())
	}
	return clientKey{uid: uint32(who.UID + 1)}
}

// errNoSocket: a connection is not a socket of the kernel.
var errNoSocket = errors.New("the connection has no socket")

// withSocket calls f with the descriptor of a connection's socket, below TLS and other layers. The
// socket stays open during the call. It returns f's error, or why f was not called: errNoSocket,
// or the socket is closed.
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
