package raftlogtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
)

// Network connects nodes in memory. A link is one direction between two nodes. On a cut link writes
// wait, as on a network that loses every packet: they go on when the link is healed, or fail at their
// deadline or when the connection is closed. The zero value is not usable.
type Network struct {
	mu        sync.Mutex
	listeners map[raftlog.NodeID]*listener
	isCut     map[link]bool
	changed   chan struct{} // closed and replaced when a link changes
}

type link struct{ from, to raftlog.NodeID }

// NewNetwork returns a network without nodes.
func NewNetwork() *Network {
	return &Network{listeners: map[raftlog.NodeID]*listener{}, isCut: map[link]bool{}, changed: make(chan struct{})}
}

// Listen returns the listener of a node. Closing it takes the node off the network.
func (n *Network) Listen(node raftlog.NodeID) net.Listener {
	l := &listener{network: n, node: node, conns: make(chan net.Conn), closed: make(chan struct{})}
	n.mu.Lock()
	n.listeners[node] = l
	n.mu.Unlock()
	return l
}

// Resolve returns the address of a node, which is its ID.
func (n *Network) Resolve(node raftlog.NodeID) (string, error) { return string(node), nil }

// Dial returns the function by which a node connects to others.
func (n *Network) Dial(from raftlog.NodeID) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		to := raftlog.NodeID(address)
		for _, l := range []link{{from, to}, {to, from}} {
			if err := n.wait(l, ctx.Done(), time.Time{}); err != nil {
				return nil, ctx.Err()
			}
		}
		n.mu.Lock()
		l := n.listeners[to]
		n.mu.Unlock()
		if l == nil {
			return nil, fmt.Errorf("node %s does not listen", to)
		}
		near, far := net.Pipe()
		select {
		case l.conns <- &conn{Conn: far, network: n, link: link{to, from}, closed: make(chan struct{})}:
			return &conn{Conn: near, network: n, link: link{from, to}, closed: make(chan struct{})}, nil
		case <-l.closed:
			return nil, fmt.Errorf("node %s does not listen", to)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Cut cuts one link.
func (n *Network) Cut(from, to raftlog.NodeID) { n.set(link{from, to}, true) }

// Heal heals one link.
func (n *Network) Heal(from, to raftlog.NodeID) { n.set(link{from, to}, false) }

// Isolate cuts all links between a node and the others.
func (n *Network) Isolate(node raftlog.NodeID, others ...raftlog.NodeID) {
	for _, other := range others {
		if other != node {
			n.Cut(node, other)
			n.Cut(other, node)
		}
	}
}

// HealAll heals all links.
func (n *Network) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.isCut)
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *Network) set(l link, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.isCut[l] = cut
	close(n.changed)
	n.changed = make(chan struct{})
}

// wait waits until a link is whole.
func (n *Network) wait(l link, closed <-chan struct{}, deadline time.Time) error {
	for {
		n.mu.Lock()
		cut, changed := n.isCut[l], n.changed
		n.mu.Unlock()
		if !cut {
			return nil
		}
		var late <-chan time.Time
		if !deadline.IsZero() {
			timer := time.NewTimer(time.Until(deadline))
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-changed:
		case <-closed:
			return net.ErrClosed
		case <-late:
			return os.ErrDeadlineExceeded
		}
	}
}

type listener struct {
	network *Network
	node    raftlog.NodeID
	conns   chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

// Accept returns the next connection.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close takes the node off the network.
func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.network.mu.Lock()
		if l.network.listeners[l.node] == l {
			delete(l.network.listeners, l.node)
		}
		l.network.mu.Unlock()
	})
	return nil
}

// Addr returns the address of the node.
func (l *listener) Addr() net.Addr { return address(l.node) }

type address string

// Network returns "memory", by which a Mux accepts a listener without TLS.
func (address) Network() string { return "memory" }

// String returns the node.
func (a address) String() string { return string(a) }

// conn is one end of a connection. Its writes wait for its link.
type conn struct {
	net.Conn
	network *Network
	link    link
	once    sync.Once
	closed  chan struct{}

	mu       sync.Mutex
	deadline time.Time // of writes
}

// Write waits until the link is whole, then until the other end reads.
func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	deadline := c.deadline
	c.mu.Unlock()
	if err := c.network.wait(c.link, c.closed, deadline); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// SetDeadline sets both deadlines.
func (c *conn) SetDeadline(t time.Time) error {
	c.setWrite(t)
	return c.Conn.SetDeadline(t)
}

// SetWriteDeadline sets the deadline of writes that begin later.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.setWrite(t)
	return c.Conn.SetWriteDeadline(t)
}

func (c *conn) setWrite(t time.Time) {
	c.mu.Lock()
	c.deadline = t
	c.mu.Unlock()
}

// Close closes this end.
func (c *conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
