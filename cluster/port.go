package cluster

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/clustertls"
)

// ID names a cluster. It follows from the IDs of the nodes that formed it, so it is never used again.
type ID [16]byte

// String returns the ID as hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

const (
	// greetingLimit bounds the wait for a connection, and then each step of the greeting: the time to the
	// next byte.
	greetingLimit = 5 * time.Second
	// longestGreeting bounds the time from the accept to the end of the greeting. It is longer than
	// greetingLimit, so that a machine under load does not lose the work for a handshake that goes on. A
	// stranger gains nothing: maxGreetings bounds the places, not the time.
	longestGreeting = 4 * greetingLimit
	// maxGreetings bounds the connections that have not yet said what they are for. When there are more,
	// the oldest one is closed: a node greets within milliseconds, and a stranger who opens connections and
	// says nothing must not keep the nodes out.
	maxGreetings = 64
	// greetingTurn is how long a greeting is left alone. While the oldest one is younger, later ones are
	// closed instead, and nodes try again: a machine under load could else never end one.
	greetingTurn = 100 * time.Millisecond
	// backlog bounds the connections of a protocol that wait for Accept. More are closed.
	backlog = 64
	// refusalLogPause is between two lines of the log on refused connections: any stranger can cause them.
	refusalLogPause = time.Second
)

// Answers to a greeting.
const (
	greetingAccepted = 1 + iota
	greetingOtherNode
	greetingNoListener
)

// port is the one listener of a node, which all protocols between nodes share. A connection is TLS 1.3
// in both directions of trust: both certificates are of nodes, and that of the server states the name
// that the client looks for (package clustertls). The protocols of workers without a node need the certificate of
// a worker instead (workers.go). ALPN chooses the protocol, so that a node of another
// version is refused in the handshake. Then the client greets:
//
//	length u8, protocol   as ALPN says; a listener in memory has no ALPN
//	cluster [16]
//	length u8, node       the node that the client wants to reach
//
// and the server answers one byte. The greeting keeps two nodes apart that have had the same address: a
// node that lost its folder, and the new node in its place. Without it the replicated log would count
// the answers of the new one for those of the old one. The introductions of a formation name no cluster
// and no node, because neither is known then; the requests of a replacement, and of a node that may have been removed,
// name no node. Nor does a worker that joins, and the first time it names no cluster.
//
// Its lock is a leaf.
type port struct {
	listener    net.Listener
	connect     func(ctx context.Context, address string) (net.Conn, error)
	credentials *clustertls.Credentials // nil in memory
	server      *tls.Config             // nil in memory
	logger      *slog.Logger

	mu        sync.Mutex
	greetings []*greeting    // those under way, the oldest first; at most maxGreetings
	cluster   ID             // zero until the node is part of one
	self      raftlog.NodeID // "" until then
	listeners map[string]*protocolListener
	// loggedRefusal is when a refused connection was logged, and unloggedRefusals are those since.
	loggedRefusal    time.Time
	unloggedRefusals int

	ctx  context.Context // ends with close
	stop context.CancelFunc
	wait sync.WaitGroup // the accept loop and the greetings
}

// openPort starts to accept. The connections of a protocol are closed until it has a listener.
func openPort(c *Config) (*port, error) {
	p := &port{listener: c.Listener, connect: c.Dial, credentials: c.Credentials, logger: c.Logger,
		listeners: map[string]*protocolListener{}}
	if p.connect == nil {
		p.connect = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	switch {
	case c.Credentials != nil:
		p.server = c.Credentials.Server(map[string]clustertls.Role{
			raftlog.Protocol: clustertls.Node, formationProtocol: clustertls.Node, HTTPProtocol: clustertls.Node, WorkerProtocol: clustertls.Node, admissionProtocol: clustertls.Node,
			announcementProtocol: clustertls.Node, inquiryProtocol: clustertls.Node, copyProtocol: clustertls.Node, membershipProtocol: clustertls.Node,
			JoinProtocol: clustertls.Worker, KeepProtocol: clustertls.Worker, deletedProtocol: clustertls.Worker})
	case c.Listener.Addr().Network() != "memory":
		return nil, fmt.Errorf("listener %s without TLS: only a listener in memory may do without", c.Listener.Addr())
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.wait.Go(p.acceptAll)
	return p, nil
}

// setIdentity makes the node part of a cluster: from now on greetings are compared with it.
func (p *port) setIdentity(cluster ID, self raftlog.NodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cluster, p.self = cluster, self
}

// close stops accepting and closes all listeners of protocols. Connections that were handed out are
// their owners'.
func (p *port) close() error {
	p.stop()
	err := p.listener.Close()
	p.wait.Wait()
	p.mu.Lock()
	var all []*protocolListener
	for _, l := range p.listeners {
		all = append(all, l)
	}
	p.mu.Unlock()
	for _, l := range all {
		l.Close()
	}
	return err
}

// acceptAll takes connections until close. An error such as "too many open files" passes, and a listener
// that is given up for it would leave the node deaf for good.
func (p *port) acceptAll() {
	const firstPause, longestPause = 5 * time.Millisecond, time.Second
	pause := firstPause
	for {
		conn, err := p.listener.Accept()
		if p.ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil {
			p.logger.Warn("cannot accept a connection of another node", "err", err)
			select {
			case <-p.ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, longestPause)
			continue
		}
		pause = firstPause
		if g := p.beginGreeting(conn); g != nil {
			p.wait.Go(func() {
				defer p.endGreeting(g)
				p.receiveConn(conn)
			})
		}
	}
}

// greeting is a connection that has not yet said what it is for.
type greeting struct {
	conn  net.Conn
	began time.Time
}

// beginGreeting makes room for a connection, or closes it and returns nil.
func (p *port) beginGreeting(conn net.Conn) *greeting {
	g := &greeting{conn, time.Now()}
	surplus := conn
	p.mu.Lock()
	switch {
	case len(p.greetings) < maxGreetings:
		p.greetings, surplus = append(p.greetings, g), nil
	case g.began.Sub(p.greetings[0].began) >= greetingTurn:
		surplus = p.greetings[0].conn
		p.greetings = append(slices.Delete(p.greetings, 0, 1), g)
	}
	p.mu.Unlock()
	if surplus != nil {
		surplus.Close()
	}
	if surplus == conn {
		return nil
	}
	return g
}

func (p *port) endGreeting(g *greeting) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at := slices.Index(p.greetings, g); at >= 0 {
		p.greetings = slices.Delete(p.greetings, at, at+1)
	}
}

// receiveConn takes a greeting and hands the connection to the listener of its protocol.
func (p *port) receiveConn(raw net.Conn) {
	stopped := context.AfterFunc(p.ctx, func() { raw.Close() })
	conn, listener, err := p.answerGreeting(raw)
	if !stopped() || err != nil {
		if err != nil {
			p.logRefusal(raw, err)
		}
		raw.Close()
		return
	}
	listener.deliverConn(conn)
}

// logRefusal logs a refused connection, or counts it for the next line.
func (p *port) logRefusal(conn net.Conn, err error) {
	now := time.Now()
	p.mu.Lock()
	isDue, unlogged := now.Sub(p.loggedRefusal) >= refusalLogPause, p.unloggedRefusals
	if isDue {
		p.loggedRefusal, p.unloggedRefusals = now, 0
	} else {
		p.unloggedRefusals++
	}
	p.mu.Unlock()
	if isDue {
		p.logger.Info("connection refused", "remote", conn.RemoteAddr().String(), "err", err, "unlogged", unlogged)
	}
}

// greetingConn is a connection whose deadline each read and each write puts off, until the greeting ends.
type greetingConn struct {
	net.Conn
	end time.Time // of the greeting at the latest; zero when it has ended
}

func beginDeadline(raw net.Conn, end time.Time) (*greetingConn, error) {
	c := &greetingConn{Conn: raw, end: end}
	return c, c.putOffDeadline()
}

func (c *greetingConn) putOffDeadline() error {
	deadline := time.Now().Add(greetingLimit)
	if deadline.After(c.end) {
		deadline = c.end
	}
	return c.SetDeadline(deadline)
}

func (c *greetingConn) endDeadline() error {
	c.end = time.Time{}
	return c.SetDeadline(time.Time{})
}

// Read puts the deadline off.
func (c *greetingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && err == nil && !c.end.IsZero() {
		err = c.putOffDeadline()
	}
	return n, err
}

// Write puts the deadline off.
func (c *greetingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err == nil && !c.end.IsZero() {
		err = c.putOffDeadline()
	}
	return n, err
}

// NetConn returns the connection below, as that of a tls.Conn does.
func (c *greetingConn) NetConn() net.Conn { return c.Conn }

func (p *port) answerGreeting(accepted net.Conn) (net.Conn, *protocolListener, error) {
	raw, err := beginDeadline(accepted, time.Now().Add(longestGreeting))
	if err != nil {
		return nil, nil, err
	}
	conn, negotiated := net.Conn(raw), ""
	if p.server != nil {
		secure := tls.Server(raw, p.server)
		if err := secure.HandshakeContext(p.ctx); err != nil {
			return nil, nil, err
		}
		conn, negotiated = secure, secure.ConnectionState().NegotiatedProtocol
	}
	protocol, cluster, node, err := readGreeting(conn)
	if err != nil {
		return nil, nil, err
	}
	if p.server != nil && protocol != negotiated {
		return nil, nil, fmt.Errorf("protocol %q in a connection of %q", protocol, negotiated)
	}
	p.mu.Lock()
	listener := p.listeners[protocol]
	isHere := protocol == formationProtocol || cluster == p.cluster && (node == p.self || node == "" && (protocol == admissionProtocol || protocol == membershipProtocol)) ||
		protocol == JoinProtocol && p.self != "" && node == "" && (cluster == p.cluster || cluster == ID{})
	p.mu.Unlock()
	answer := byte(greetingAccepted)
	switch {
	case !isHere:
		answer, err = greetingOtherNode, fmt.Errorf("it looks for node %q of cluster %v", node, cluster)
	case listener == nil:
		answer, err = greetingNoListener, fmt.Errorf("protocol %q has no listener", protocol)
	}
	if _, werr := conn.Write([]byte{answer}); err == nil {
		err = werr
	}
	if err != nil {
		return nil, nil, err
	}
	if p.server == nil {
		conn = accepted
	}
	return conn, listener, raw.endDeadline()
}

func appendGreeting(b []byte, protocol string, cluster ID, node raftlog.NodeID) []byte {
	b = append(append(b, byte(len(protocol))), protocol...)
	b = append(b, cluster[:]...)
	return append(append(b, byte(len(node))), node...)
}

func readGreeting(r io.Reader) (protocol string, cluster ID, node raftlog.NodeID, err error) {
	text := func() (s string) {
		var length [1]byte
		if err == nil {
			_, err = io.ReadFull(r, length[:])
		}
		b := make([]byte, length[0])
		if err == nil {
			_, err = io.ReadFull(r, b)
		}
		return string(b)
	}
	protocol = text()
	if err == nil {
		_, err = io.ReadFull(r, cluster[:])
	}
	return protocol, cluster, raftlog.NodeID(text()), err
}

var errOtherNode = errors.New("another node, or one of another cluster, answers there")

// dialNode connects to the node of a name for a protocol. The zero cluster and ID are for introductions.
func (p *port) dialNode(ctx context.Context, peer NodeAddress, protocol string, cluster ID, node raftlog.NodeID) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, longestGreeting)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	connecting, connected := context.WithTimeout(ctx, greetingLimit)
	raw, err := p.connect(connecting, peer.Address)
	connected()
	if err != nil {
		return nil, err
	}
	stopped := context.AfterFunc(ctx, func() { raw.Close() })
	conn, err := p.sendGreeting(ctx, raw, peer.Name, protocol, appendGreeting(nil, protocol, cluster, node))
	if !stopped() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("%s: %w", peer.Address, err)
	}
	return conn, nil
}

func (p *port) sendGreeting(ctx context.Context, dialed net.Conn, name, protocol string, greeting []byte) (net.Conn, error) {
	end, _ := ctx.Deadline()
	raw, err := beginDeadline(dialed, end)
	if err != nil {
		return nil, err
	}
	conn := net.Conn(raw)
	if p.credentials != nil {
		config := p.credentials.ClientOfRole(clustertls.Node, protocol)
		if name != "" {
			config = p.credentials.Client(clustertls.Identity{Role: clustertls.Node, Name: name}, protocol)
		}
		secure := tls.Client(raw, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		conn = secure
	}
	if _, err := conn.Write(greeting); err != nil {
		return nil, err
	}
	// In TLS 1.3 the client is done before the server has seen its certificate. A refusal shows here.
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return nil, err
	}
	switch answer[0] {
	case greetingAccepted:
		if p.credentials == nil {
			conn = dialed
		}
		return conn, raw.endDeadline()
	case greetingNoListener:
		return nil, fmt.Errorf("the node does not listen for %s yet", protocol)
	}
	return nil, errOtherNode
}

// openListener returns the listener of a protocol.
func (p *port) openListener(protocol string) (net.Listener, error) {
	l := &protocolListener{port: p, protocol: protocol, conns: make(chan net.Conn, backlog), closed: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.ctx.Err() != nil:
		return nil, net.ErrClosed
	case p.listeners[protocol] != nil:
		return nil, fmt.Errorf("protocol %s has a listener already", protocol)
	}
	p.listeners[protocol] = l
	return l, nil
}

// protocolListener is the connections of one protocol.
type protocolListener struct {
	port     *port
	protocol string
	conns    chan net.Conn

	mu     sync.Mutex    // guards deliveries against Close; a leaf
	closed chan struct{} // closed under mu
}

// deliverConn passes a connection to Accept, or closes it when too many wait or the listener is closed.
func (l *protocolListener) deliverConn(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closed:
		conn.Close()
		return
	default:
	}
	select {
	case l.conns <- conn:
	default:
		conn.Close()
	}
}

// Accept returns the next connection.
func (l *protocolListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close closes the connections that Accept has not returned, and refuses later ones.
func (l *protocolListener) Close() error {
	l.port.mu.Lock()
	if l.port.listeners[l.protocol] == l {
		delete(l.port.listeners, l.protocol)
	}
	l.port.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closed:
		return nil
	default:
	}
	close(l.closed)
	for {
		select {
		case conn := <-l.conns:
			conn.Close()
		default:
			return nil
		}
	}
}

// Addr returns the address of the port.
func (l *protocolListener) Addr() net.Addr { return l.port.listener.Addr() }
