package http

import (
	"context"
	"net"
	"sync"
)

// Connections to other nodes, as the Transport of the forwarder makes them.

// dial connects to a node. The Transport has the ID of the node for the host, and adds a port.
func (f *forwarder) dial(ctx context.Context, _, address string) (net.Conn, error) {
	node, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, f.s.cfg.dialLimit)
	defer cancel()
	defer context.AfterFunc(f.ctx, cancel)()
	slots := f.dialSlots(node)
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	conn, err := f.cluster.Dial(ctx, node)
	if err != nil {
		return nil, err
	}
	return &nodeConn{Conn: conn}, nil
}

// dialSlots has a place for each connection to a node that is being made.
func (f *forwarder) dialSlots(node string) chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	slots := f.dials[node]
	if slots == nil {
		slots = make(chan struct{}, maxDials)
		f.dials[node] = slots
	}
	return slots
}

// nodeConn is a connection to another node. It tells when the Transport closes it, which follows the close
// by the other node. RoundTrip itself returns only after the present read of the body, which may wait for
// the client for long.
type nodeConn struct {
	net.Conn
	mu      sync.Mutex // held while onClose runs; onClose takes leaves alone
	onClose func()
}

// whenClosed has f called when the connection is closed, until the next call; nil = nothing is called. After
// that call f is not running.
func (c *nodeConn) whenClosed(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onClose = f
}

func (c *nodeConn) Close() error {
	c.mu.Lock()
	if c.onClose != nil {
		c.onClose()
		c.onClose = nil
	}
	c.mu.Unlock()
	return c.Conn.Close()
}
