package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// proxies is the form on the loopback device: one proxy for each port of a node.
type proxies struct {
	mu        sync.Mutex
	rng       *rand.Rand
	faults    map[link]Faults
	changed   chan struct{} // closed at each change of faults
	ports     map[placePort]*proxyPort
	processes map[int]string // places by process ID
	own       map[int]string // places of dials of this process by local port
	conns     map[*proxiedConn]bool
	closed    bool

	goroutines sync.WaitGroup
}

type placePort struct {
	place string
	port  int
}

// proxyPort is a listener for others, and the address where the process of the place listens.
type proxyPort struct {
	listener net.Listener
	target   string
}

// proxiedConn is a connection through a proxy, and its place at each end. The place of an unknown
// process is "", whose links are never disturbed.
type proxiedConn struct {
	from, to       string
	client, server net.Conn
}

func newProxies(seed uint64) *proxies {
	return &proxies{
		rng:       rand.New(rand.NewPCG(seed, 0)),
		faults:    map[link]Faults{},
		changed:   make(chan struct{}),
		ports:     map[placePort]*proxyPort{},
		processes: map[int]string{},
		own:       map[int]string{},
		conns:     map[*proxiedConn]bool{},
	}
}

func (p *proxies) enter(string) error { return nil }

func (p *proxies) namespaceID(string) string { return "" }

func (p *proxies) setProcess(place string, pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.processes[pid] = place
}

// endpoint makes the proxy of a port when it is first asked for. The kernel chooses both numbers.
// The number for the process is free at present; another program could take it before the process
// listens, which then says so.
func (p *proxies) endpoint(place string, port int) (listen, dial string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := placePort{place, port}
	if known := p.ports[key]; known != nil {
		return known.target, known.listener.Addr().String(), nil
	}
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	free.Close()
	if err != nil {
		return "", "", err
	}
	made := &proxyPort{listener, free.Addr().String()}
	p.ports[key] = made
	p.goroutines.Go(func() { p.accept(place, made) })
	return made.target, listener.Addr().String(), nil
}

func (p *proxies) accept(place string, port *proxyPort) {
	for {
		conn, err := port.listener.Accept()
		if err != nil {
			return
		}
		p.goroutines.Go(func() { p.serve(place, port, conn) })
	}
}

// serve passes the bytes of one connection on, in both directions.
func (p *proxies) serve(place string, port *proxyPort, conn net.Conn) {
	c := &proxiedConn{from: p.placeOf(conn.RemoteAddr().(*net.TCPAddr).Port), to: place, client: conn}
	// A packet of the handshake would be lost in either direction.
	there, back := p.faultsOf(link{c.from, c.to}), p.faultsOf(link{c.to, c.from})
	if !there.Cut && !back.Cut {
		c.server, _ = net.DialTimeout("tcp4", port.target, 5*time.Second)
	}
	if c.server == nil || !p.addConn(c) {
		c.reset()
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.pump(c, link{c.from, c.to}, c.client, c.server) })
	both.Go(func() { p.pump(c, link{c.to, c.from}, c.server, c.client) })
	both.Wait()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	c.client.Close()
	c.server.Close()
}

func (p *proxies) addConn(c *proxiedConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.conns[c] = true
	}
	return !p.closed
}

// reset closes both ends without the usual end of a stream, as a broken connection ends.
func (c *proxiedConn) reset() {
	for _, end := range []net.Conn{c.client, c.server} {
		if tcp, ok := end.(*net.TCPConn); ok && tcp != nil {
			_ = tcp.SetLinger(0)
			tcp.Close()
		}
	}
}

// chunk is bytes on their way through a proxy.
type chunk struct {
	due  time.Time
	data []byte
}

// pump passes the bytes of one direction on, each when its delay is over. It holds bytes back while
// the link is cut.
func (p *proxies) pump(c *proxiedConn, l link, from, to net.Conn) {
	chunks := make(chan chunk, 64)
	var writer sync.WaitGroup
	writer.Go(func() {
		for next := range chunks {
			p.waitForDelivery(l, next.due)
			if _, err := to.Write(next.data); err != nil {
				c.reset()
			}
		}
		if tcp, ok := to.(*net.TCPConn); ok {
			_ = tcp.CloseWrite() // fails if the connection is broken
		}
	})
	for {
		data := make([]byte, 32<<10)
		n, err := from.Read(data)
		if n > 0 {
			chunks <- chunk{p.dueTime(l), data[:n]}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				c.reset()
			}
			break
		}
	}
	close(chunks)
	writer.Wait()
}

func (p *proxies) dueTime(l link) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.faults[l]
	due := time.Now().Add(f.Delay)
	if f.Jitter > 0 {
		due = due.Add(time.Duration(p.rng.Int64N(int64(f.Jitter))))
	}
	return due
}

// waitForDelivery waits until due, and until the link is not cut. Closing the proxies ends it.
func (p *proxies) waitForDelivery(l link, due time.Time) {
	for {
		p.mu.Lock()
		cut, closed, changed := p.faults[l].Cut, p.closed, p.changed
		p.mu.Unlock()
		wait := time.Until(due)
		if closed || !cut && wait <= 0 {
			return
		}
		timer := time.NewTimer(max(wait, 0))
		fired := timer.C
		if cut {
			fired = nil
		}
		select {
		case <-fired:
		case <-changed:
		}
		timer.Stop()
	}
}

func (p *proxies) faultsOf(l link) Faults {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.faults[l]
}

// setFaults resets the connections between two places when both directions are cut.
func (p *proxies) setFaults(from, to string, f Faults) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults[link{from, to}] = f
	p.wakeLocked()
	if !f.Cut || !p.faults[link{to, from}].Cut {
		return
	}
	for c := range p.conns {
		if c.from == from && c.to == to || c.from == to && c.to == from {
			c.reset()
		}
	}
}

func (p *proxies) wakeLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// dial notes the local port before it connects, so that the proxy knows who it is.
func (p *proxies) dial(ctx context.Context, from, to string, port int) (net.Conn, error) {
	_, address, err := p.endpoint(to, port)
	if err != nil {
		return nil, err
	}
	for {
		local, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		addr := local.Addr().(*net.TCPAddr)
		p.mu.Lock()
		p.own[addr.Port] = from
		p.mu.Unlock()
		local.Close()
		d := net.Dialer{LocalAddr: addr}
		conn, err := d.DialContext(ctx, "tcp4", address)
		if err == nil || !strings.Contains(err.Error(), "address already in use") {
			return conn, err
		}
		// Another program has taken the port since.
	}
}

// placeOf finds the place of the process that connects from a local port; "" if it is not known.
func (p *proxies) placeOf(port int) string {
	p.mu.Lock()
	if place, ok := p.own[port]; ok {
		delete(p.own, port)
		p.mu.Unlock()
		return place
	}
	processes := make(map[int]string, len(p.processes))
	for pid, place := range p.processes {
		processes[pid] = place
	}
	p.mu.Unlock()
	socket, err := socketOf(port)
	if err != nil {
		return ""
	}
	for pid, place := range processes {
		descriptors, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, d := range descriptors {
			if name, err := os.Readlink(d); err == nil && name == socket {
				return place
			}
		}
	}
	return ""
}

// socketOf returns the name of the socket that is connected from a local port of 127.0.0.1, as links
// in /proc/PID/fd spell it.
func socketOf(port int) (string, error) {
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return "", err
	}
	local := fmt.Sprintf("0100007F:%04X", port) // in the byte order of the machine; see proc(5)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) > 9 && f[1] == local {
			if _, err := strconv.ParseUint(f[9], 10, 64); err == nil && f[9] != "0" {
				return "socket:[" + f[9] + "]", nil
			}
		}
	}
	return "", fmt.Errorf("port %d has no socket", port)
}

func (p *proxies) close() error {
	p.mu.Lock()
	p.closed = true
	p.wakeLocked()
	for _, port := range p.ports {
		port.listener.Close()
	}
	for c := range p.conns {
		c.reset()
	}
	p.mu.Unlock()
	p.goroutines.Wait()
	return nil
}
