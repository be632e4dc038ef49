package raftlog

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	// dialLimit bounds a dial: the connection and the handshake. It is longer than a request waits, so that
	// on a slow machine the work is kept for the next request.
	dialLimit = 20 * time.Second
	// maxDials bounds the dials to a node that are under way. Each needs processor time of both nodes, so
	// that many at once on a machine under load would all end by their limits, and the next election would
	// begin more of them.
	maxDials = 2
	// maxLateDials is the bound when all dials to the node are older than lateDial: a packet may be lost.
	maxLateDials = 3
	lateDial     = time.Second
	// spareLimit is how long a connection waits for a request. It is shorter than the other side waits for
	// the group number.
	spareLimit = 2 * time.Second
)

// errNewerVote ends the wait of a vote when the candidate asks again.
var errNewerVote = errors.New("the candidate has asked again")

// dialer makes the connections to other nodes for all groups of a Mux. A connection belongs to no group
// until the group number is sent, so each dial serves the request that has waited longest, whoever began
// it. A request that ends leaves its dial to the others; the last connection stays as a spare for a moment.
//
// So each handshake that ends gives one more group a connection, however long it takes. The groups of a
// node would otherwise begin a handshake for each vote, and repeat all of them with the next election.
//
// The bound is on the side that dials, because members keep it. Turns on the side that accepts would let
// a silent stranger keep them from the members. MuxConfig.Listener sees to strangers.
//
// Its lock is a leaf: connections are closed under it, below TLS.
type dialer struct {
	connect func(ctx context.Context, node NodeID) (net.Conn, error)
	ctx     context.Context // ends all dials

	mu     sync.Mutex
	nodes  map[NodeID]*nodeDials // those with requests, dials or a spare
	closed bool
	wait   sync.WaitGroup // the dials; grows under mu while closed is false
}

// nodeDials is the dials to one node.
type nodeDials struct {
	node     NodeID
	requests []*connRequest // those that wait, the oldest first
	underway int
	newest   time.Time // when the newest dial began
	spare    net.Conn  // nil without one; then there are no requests
	expiry   *time.Timer
}

// connRequest is a request for a connection.
type connRequest struct {
	group  *groupStream
	came   time.Time
	answer chan connAnswer // holds one
}

type connAnswer struct {
	conn net.Conn
	err  error
}

// request returns a connection to a node that belongs to no group yet. isSpare means that it has waited,
// and that the other side may have closed it.
func (d *dialer) request(g *groupStream, node NodeID, limit time.Duration) (conn net.Conn, isSpare bool, err error) {
	r := &connRequest{group: g, came: time.Now(), answer: make(chan connAnswer, 1)}
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil, false, net.ErrClosed
	}
	n := d.nodes[node]
	if n == nil {
		n = &nodeDials{node: node}
		d.nodes[node] = n
	}
	if n.spare != nil {
		conn = d.takeSpare(n)
		d.mu.Unlock()
		return conn, true, nil
	}
	n.requests = append(n.requests, r)
	d.beginDials(n)
	d.mu.Unlock()

	timer := time.NewTimer(limit)
	defer timer.Stop()
	ticker := time.NewTicker(lateDial)
	defer ticker.Stop()
	for {
		select {
		case a := <-r.answer:
			return a.conn, false, a.err
		case <-ticker.C:
			d.mu.Lock()
			d.beginDials(n)
			d.mu.Unlock()
			continue
		case <-timer.C:
			err = os.ErrDeadlineExceeded
		case <-g.closed:
			err = net.ErrClosed
		}
		d.withdraw(n, r, err)
		a := <-r.answer // err, or what came first
		return a.conn, false, a.err
	}
}

// withdraw answers a request that waits.
func (d *dialer) withdraw(n *nodeDials, r *connRequest, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if at := slices.Index(n.requests, r); at >= 0 {
		n.requests = slices.Delete(n.requests, at, at+1)
		r.answer <- connAnswer{err: err}
		d.forgetIdle(n)
	}
}

// dropRequests answers the requests of a group for a node that wait.
func (d *dialer) dropRequests(g *groupStream, node NodeID, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.nodes[node]
	if n == nil {
		return
	}
	n.requests = slices.DeleteFunc(n.requests, func(r *connRequest) bool {
		if r.group != g {
			return false
		}
		r.answer <- connAnswer{err: err}
		return true
	})
	d.forgetIdle(n)
}

// beginDials begins the dials that are due. The caller holds mu.
func (d *dialer) beginDials(n *nodeDials) {
	for !d.closed && n.isDialDue(time.Now()) {
		n.underway++
		n.newest = time.Now()
		began := n.newest
		d.wait.Go(func() { d.dial(n, began) })
	}
}

// isDialDue reports whether another dial shall begin.
func (n *nodeDials) isDialDue(now time.Time) bool {
	if now.Sub(n.newest) >= lateDial {
		return len(n.requests) > 0 && n.underway < maxLateDials
	}
	return n.underway < min(maxDials, len(n.requests))
}

// dial makes a connection. If that fails, and no other dial to the node is under way, it fails the
// requests that are older than the dial. For later ones a new dial begins: the node may have come back.
func (d *dialer) dial(n *nodeDials, began time.Time) {
	ctx, cancel := context.WithTimeout(d.ctx, dialLimit)
	defer cancel()
	conn, err := d.connect(ctx, n.node)
	d.mu.Lock()
	defer d.mu.Unlock()
	n.underway--
	switch {
	case err == nil:
		d.provide(n, conn)
		d.beginDials(n)
	case n.underway == 0:
		n.failRequests(err, began)
		d.beginDials(n)
	default: // the requests wait for the other dials
	}
	d.forgetIdle(n)
}

// provide gives a connection to the oldest request, or keeps it. The caller holds mu.
func (d *dialer) provide(n *nodeDials, conn net.Conn) {
	switch {
	case len(n.requests) > 0:
		n.requests[0].answer <- connAnswer{conn: conn}
		n.requests = slices.Delete(n.requests, 0, 1)
	case d.closed || n.spare != nil:
		closeConn(conn)
	default:
		n.spare = conn
		n.expiry = time.AfterFunc(spareLimit, func() { d.expireSpare(n, conn) })
	}
}

// failRequests answers the requests that came no later than a moment.
func (n *nodeDials) failRequests(err error, until time.Time) {
	n.requests = slices.DeleteFunc(n.requests, func(r *connRequest) bool {
		if r.came.After(until) {
			return false
		}
		r.answer <- connAnswer{err: err}
		return true
	})
}

// takeSpare returns the spare of a node that has one. The caller holds mu.
func (d *dialer) takeSpare(n *nodeDials) net.Conn {
	conn := n.spare
	n.expiry.Stop()
	n.spare, n.expiry = nil, nil
	d.forgetIdle(n)
	return conn
}

// expireSpare closes a spare unless it has been taken.
func (d *dialer) expireSpare(n *nodeDials, conn net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n.spare == conn {
		closeConn(d.takeSpare(n))
	}
}

// forgetIdle removes a node that is at rest. The caller holds mu.
func (d *dialer) forgetIdle(n *nodeDials) {
	if len(n.requests) == 0 && n.underway == 0 && n.spare == nil && d.nodes[n.node] == n {
		delete(d.nodes, n.node)
	}
}

// close answers all requests, closes the spares, and waits for the dials. ctx has ended.
func (d *dialer) close() {
	d.mu.Lock()
	d.closed = true
	for _, n := range d.nodes {
		n.failRequests(net.ErrClosed, time.Now())
		if n.spare != nil {
			closeConn(d.takeSpare(n))
		}
	}
	d.mu.Unlock()
	d.wait.Wait()
}
