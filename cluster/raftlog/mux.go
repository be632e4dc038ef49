package raftlog

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Protocol is the ALPN protocol of the connections between nodes. A node that speaks another version
// is refused in the handshake.
const Protocol = "caravan-raft/1"

// NodeRole is the DNS name that the certificate of a node must carry, so that the certificate of a
// worker or a user of the same authority opens no door here. `.internal` is reserved for private use.
const NodeRole = "node.caravan.internal"

// NodeID names a node. It is unique in the cluster and for ever: a node that lost its folder is a new
// node with a new ID, because the former one may have voted.
type NodeID string

const (
	// handshakeLimit bounds the time from the accept to the group number, and on the other side that to
	// connect and that of the handshake, where the Mux does them itself.
	handshakeLimit = 5 * time.Second
	// maxHandshakes bounds the connections that have not yet said which group they are for.
	maxHandshakes = 64
)

// Answers to the group number.
const (
	groupAccepted = 1
	groupUnknown  = 2
)

// MuxConfig configures a Mux.
type MuxConfig struct {
	// Listener accepts the connections of other nodes. The Mux closes it.
	Listener net.Listener

	// TLS holds the node's Certificates, and RootCAs and ClientCAs with the cluster's authority. The
	// Mux sets everything else. It may be nil in a test whose listener is in memory (its address has
	// the network "memory"); a listener on a network is refused then.
	TLS *tls.Config

	// Authenticated says that Listener and Dial return connections to members of the cluster only, whose
	// certificates were verified. TLS is nil then.
	Authenticated bool

	// Resolve returns the host and port of a node. Members of a group are known by their IDs alone, so
	// that a node may change its address.
	Resolve func(NodeID) (string, error)

	// Dial connects to an address. Nil: by TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	Logger *slog.Logger // nil: slog.Default
}

// Mux shares one listener among the groups of a node. A connection is TLS 1.3 in both directions of
// trust; its first two bytes are the number of the group (big-endian), which the other side answers
// with one byte. Then it is the library's NetworkTransport's.
type Mux struct {
	config         MuxConfig
	server, client *tls.Config // nil in memory
	handshakes     chan struct{}
	dialer         dialer

	mu     sync.Mutex
	groups map[uint16]*groupStream
	closed bool

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	wait sync.WaitGroup // the accept loop and the handshakes
}

// NewMux starts to accept. The caller closes the groups first, then the Mux.
func NewMux(config MuxConfig) (*Mux, error) {
	m := &Mux{config: config, groups: map[uint16]*groupStream{}, handshakes: make(chan struct{}, maxHandshakes)}
	if m.config.Logger == nil {
		m.config.Logger = slog.Default()
	}
	if m.config.Dial == nil {
		m.config.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{Timeout: handshakeLimit}).DialContext(ctx, "tcp", address)
		}
	}
	switch {
	case config.TLS != nil:
		m.server, m.client = nodeTLS(config.TLS)
	case !config.Authenticated && config.Listener.Addr().Network() != "memory":
		return nil, fmt.Errorf("listener %s without TLS: only a listener in memory may do without", config.Listener.Addr())
	}
	m.ctx, m.stop = context.WithCancel(context.Background())
	m.dialer = dialer{connect: m.connect, ctx: m.ctx, nodes: map[NodeID]*nodeDials{}}
	m.wait.Go(m.acceptAll)
	return m, nil
}

// nodeTLS returns the configurations of both sides. Each side checks that the other has the role: the
// client by its ServerName, the server by the same check on the client's certificate. Tickets are off:
// a connection lives as long as both processes, and a full handshake each time keeps it simple.
func nodeTLS(base *tls.Config) (server, client *tls.Config) {
	server = base.Clone()
	server.MinVersion = tls.VersionTLS13
	server.NextProtos = []string{Protocol}
	server.SessionTicketsDisabled = true
	client = server.Clone()
	client.ServerName = NodeRole
	server.ClientAuth = tls.RequireAndVerifyClientCert
	server.VerifyConnection = func(state tls.ConnectionState) error {
		return hasRole(state.PeerCertificates[0])
	}
	return server, client
}

func hasRole(certificate *x509.Certificate) error {
	if err := certificate.VerifyHostname(NodeRole); err != nil {
		return fmt.Errorf("certificate of %q: it lacks the role of a node: %w", certificate.Subject, err)
	}
	return nil
}

// Close stops accepting and closes all connections.
func (m *Mux) Close() error {
	m.mu.Lock()
	m.closed = true
	var groups []*groupStream
	for _, g := range m.groups {
		groups = append(groups, g)
	}
	m.mu.Unlock()
	m.stop()
	err := m.config.Listener.Close()
	for _, g := range groups {
		g.Close()
	}
	m.dialer.close()
	m.wait.Wait()
	return err
}

// acceptAll takes connections until Close. An error such as "too many open files" passes, and a listener
// that is given up for it would leave the node deaf for good.
func (m *Mux) acceptAll() {
	const firstPause, longestPause = 5 * time.Millisecond, time.Second
	pause := firstPause
	for {
		conn, err := m.config.Listener.Accept()
		if m.ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil {
			m.config.Logger.Warn("cannot accept a connection of another node", "err", err)
			select {
			case <-m.ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, longestPause)
			continue
		}
		pause = firstPause
		select {
		case m.handshakes <- struct{}{}:
			m.wait.Go(func() { m.receiveConn(conn) })
		default:
			conn.Close() // strangers take all places; the members try again
		}
	}
}

// receiveConn carries out the handshake and passes the connection to its group.
func (m *Mux) receiveConn(raw net.Conn) {
	defer func() { <-m.handshakes }()
	stopped := context.AfterFunc(m.ctx, func() { raw.Close() })
	conn, group, err := m.serverHandshake(raw)
	if !stopped() || err != nil {
		if err != nil {
			m.config.Logger.Info("connection refused", "remote", raw.RemoteAddr().String(), "err", err)
		}
		raw.Close()
		return
	}
	group.deliverConn(conn)
}

func (m *Mux) serverHandshake(raw net.Conn) (net.Conn, *groupStream, error) {
	raw.SetDeadline(time.Now().Add(handshakeLimit))
	conn := raw
	if m.server != nil {
		secure := tls.Server(raw, m.server)
		if err := secure.HandshakeContext(m.ctx); err != nil {
			return nil, nil, err
		}
		// A client without ALPN passes the handshake.
		if protocol := secure.ConnectionState().NegotiatedProtocol; protocol != Protocol {
			return nil, nil, fmt.Errorf("unknown protocol %q", protocol)
		}
		conn = secure
	}
	var number [2]byte
	if _, err := io.ReadFull(conn, number[:]); err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	group := m.groups[binary.BigEndian.Uint16(number[:])]
	m.mu.Unlock()
	answer := [1]byte{groupAccepted}
	if group == nil {
		answer[0] = groupUnknown
	}
	if _, err := conn.Write(answer[:]); err != nil {
		return nil, nil, err
	}
	if group == nil {
		return nil, nil, fmt.Errorf("group %d is not here", binary.BigEndian.Uint16(number[:]))
	}
	return conn, group, conn.SetDeadline(time.Time{})
}

// connect connects to another node, up to the group number.
func (m *Mux) connect(ctx context.Context, node NodeID) (net.Conn, error) {
	address, err := m.config.Resolve(node)
	if err != nil {
		return nil, err
	}
	raw, err := m.config.Dial(ctx, address)
	if err != nil || m.client == nil {
		return raw, err
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	secure := tls.Client(raw, m.client)
	if err := secure.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("node %s at %s: %w", node, address, err)
	}
	return secure, nil
}

// dial connects a group to the same group on another node.
func (m *Mux) dial(g *groupStream, node NodeID, limit time.Duration) (net.Conn, error) {
	end := time.Now().Add(limit)
	for {
		conn, isSpare, err := m.dialer.request(g, node, time.Until(end))
		if err != nil {
			return nil, err
		}
		tracked, err := g.trackConn(conn)
		if err != nil {
			return nil, err
		}
		if err = chooseGroup(tracked, g.group, max(time.Until(end), limit/4)); err == nil {
			return tracked, nil
		}
		tracked.Close()
		if !isSpare {
			return nil, fmt.Errorf("node %s: %w", node, err)
		}
	}
}

// chooseGroup tells the other side which group a connection is for. It has some time of its own when the
// connection comes at the end of a request's, which would waste the connection.
func chooseGroup(conn net.Conn, group uint16, limit time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := conn.Write(binary.BigEndian.AppendUint16(nil, group)); err != nil {
		return err
	}
	// In TLS 1.3 the client is done before the server has seen its certificate. A refusal shows here.
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	if answer[0] != groupAccepted {
		return fmt.Errorf("group %d is not there", group)
	}
	return conn.SetDeadline(time.Time{})
}

// openStream registers a group. Connections from other nodes wait until opensAt: see groupStream.
func (m *Mux) openStream(group uint16, self NodeID, opensAt time.Time) (*groupStream, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return nil, net.ErrClosed
	case m.groups[group] != nil:
		return nil, fmt.Errorf("group %d is open already", group)
	}
	g := &groupStream{mux: m, group: group, self: self, opensAt: opensAt,
		accepted: make(chan net.Conn), closed: make(chan struct{}), conns: map[*groupConn]struct{}{}}
	m.groups[group] = g
	return g, nil
}

// groupStream is the connections of one group: the StreamLayer of its NetworkTransport.
//
// After a restart a replica is deaf for a while. It has forgotten which leader it has confirmed, and
// would vote for another at once, while that leader answers reads by the lease that the confirmation
// gave it (lease.go). Deaf for longer than a lease, it cannot.
type groupStream struct {
	mux      *Mux
	group    uint16
	self     NodeID
	opensAt  time.Time
	accepted chan net.Conn

	mu     sync.Mutex
	conns  map[*groupConn]struct{} // both directions
	closed chan struct{}           // closed under mu
}

var _ raft.StreamLayer = (*groupStream)(nil)

// deliverConn passes an accepted connection to Accept, or closes it when the group is closed.
func (g *groupStream) deliverConn(conn net.Conn) {
	tracked, err := g.trackConn(conn)
	if err != nil {
		return
	}
	select {
	case g.accepted <- tracked:
	case <-g.closed:
		tracked.Close()
	}
}

// Accept returns the next connection of another node.
func (g *groupStream) Accept() (net.Conn, error) {
	if wait := time.Until(g.opensAt); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-g.closed:
			return nil, net.ErrClosed
		}
	}
	select {
	case conn := <-g.accepted:
		return conn, nil
	case <-g.closed:
		return nil, net.ErrClosed
	}
}

// Dial connects to another member, whose address is its ID.
func (g *groupStream) Dial(address raft.ServerAddress, limit time.Duration) (net.Conn, error) {
	select {
	case <-g.closed:
		return nil, net.ErrClosed
	default:
	}
	return g.mux.dial(g, NodeID(address), limit)
}

// dropVotes ends the waits of this group for a connection to a node. A candidate calls it before it asks
// for a vote: what waits is of a former election, or of a leadership that is over.
func (g *groupStream) dropVotes(node NodeID) { g.mux.dialer.dropRequests(g, node, errNewerVote) }

// Close closes all connections and refuses new ones. The library closes the connections in its pool
// only, and so would go on sending heartbeats on one that is in use.
func (g *groupStream) Close() error {
	g.mux.mu.Lock()
	if g.mux.groups[g.group] == g {
		delete(g.mux.groups, g.group)
	}
	g.mux.mu.Unlock()
	g.mu.Lock()
	var conns []*groupConn
	select {
	case <-g.closed:
	default:
		close(g.closed)
		for conn := range g.conns {
			conns = append(conns, conn)
		}
	}
	g.mu.Unlock()
	for _, conn := range conns {
		conn.Close()
	}
	return nil
}

// Addr returns the ID of this node as an address.
func (g *groupStream) Addr() net.Addr { return nodeAddress(g.self) }

func (g *groupStream) trackConn(conn net.Conn) (net.Conn, error) {
	tracked := &groupConn{Conn: conn, group: g}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.closed:
		closeConn(conn)
		return nil, net.ErrClosed
	default:
		g.conns[tracked] = struct{}{}
		return tracked, nil
	}
}

// groupConn leaves the set of its group when it is closed.
type groupConn struct {
	net.Conn
	group *groupStream
}

// Close closes the connection.
func (c *groupConn) Close() error {
	c.group.mu.Lock()
	delete(c.group.conns, c)
	c.group.mu.Unlock()
	return closeConn(c.Conn)
}

// closeConn closes a connection below TLS. Close of tls.Conn would send an alert and wait up to 5 s for
// a peer that does not read.
func closeConn(conn net.Conn) error {
	if secure, ok := conn.(*tls.Conn); ok {
		return secure.NetConn().Close()
	}
	return conn.Close()
}

// nodeAddress is a node ID as a net.Addr.
type nodeAddress string

// Network returns the name of the address space.
func (nodeAddress) Network() string { return "node" }

// String returns the ID.
func (a nodeAddress) String() string { return string(a) }
