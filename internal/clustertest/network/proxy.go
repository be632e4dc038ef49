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
	"syscall"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// proxyForm is the form on the loopback device: one proxy for each port of a node.
//
// A connection has two goroutines for each direction: one reads, one writes when the delay is over.
// Its order of bytes is kept. Faults of single packets have no counterpart here.
//
// Its lock is held over resets, which do not block, and over no read or write.
type proxyForm struct {
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

func newProxyForm(seed uint64) *proxyForm {
	return &proxyForm{
		rng:       rand.New(rand.NewPCG(seed, 0)),
		faults:    map[link]Faults{},
		changed:   make(chan struct{}),
		ports:     map[placePort]*proxyPort{},
		processes: map[int]string{},
		own:       map[int]string{},
		conns:     map[*proxiedConn]bool{},
	}
}

func (p *proxyForm) enterPlace(string) error { return nil }

func (p *proxyForm) namespaceID(string) string { return "" }

func (p *proxyForm) setProcess(place string, pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.processes[pid] = place
}

// endpointOf makes the proxy of a port when it is first asked for. The address for the process stays free
// while the process does not run.
func (p *proxyForm) endpointOf(place string, port int) (listen, dial string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := placePort{place, port}
	if known := p.ports[key]; known != nil {
		return known.target, known.listener.Addr().String(), nil
	}
	target, err := testenv.FreeAddress()
	if err != nil {
		return "", "", err
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	made := &proxyPort{listener, target}
	p.ports[key] = made
	p.goroutines.Go(func() { p.acceptConns(place, made) })
	return made.target, listener.Addr().String(), nil
}

func (p *proxyForm) acceptConns(place string, port *proxyPort) {
	for {
		conn, err := port.listener.Accept()
		if err != nil {
			return
		}
		p.goroutines.Go(func() { p.serveConn(place, port, conn) })
	}
}

// serveConn passes the bytes of one connection on, in both directions.
func (p *proxyForm) serveConn(place string, port *proxyPort, conn net.Conn) {
	c := &proxiedConn{from: p.placeOf(conn.RemoteAddr().(*net.TCPAddr).Port), to: place, client: conn}
	// A packet of the handshake would be lost in either direction.
	there, back := p.faultsOf(link{c.from, c.to}), p.faultsOf(link{c.to, c.from})
	if !there.Cut && !back.Cut {
		c.server, _ = net.DialTimeout("tcp4", port.target, 5*time.Second)
	}
	if c.server == nil || !p.addConn(c) {
		c.resetBoth()
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.passBytes(c, link{c.from, c.to}, c.client, c.server) })
	both.Go(func() { p.passBytes(c, link{c.to, c.from}, c.server, c.client) })
	both.Wait()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	c.client.Close()
	c.server.Close()
}

// addConn makes a connection known to setFaults and close. It reports false after close.
func (p *proxyForm) addConn(c *proxiedConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.conns[c] = true
	}
	return !p.closed
}

// resetBoth closes both ends without the usual end of a stream, as a broken connection ends.
func (c *proxiedConn) resetBoth() {
	for _, end := range []net.Conn{c.client, c.server} {
		if tcp, ok := end.(*net.TCPConn); ok && tcp != nil {
			_ = tcp.SetLinger(0)
			tcp.Close()
		}
	}
}

// delayedBytes is bytes on their way through a proxy.
type delayedBytes struct {
	due  time.Time
	data []byte
}

// passBytes passes the bytes of one direction on, each when its delay is over. It holds bytes back while
// the link is cut.
func (p *proxyForm) passBytes(c *proxiedConn, l link, from, to net.Conn) {
	chunks := make(chan delayedBytes, 64)
	var writer sync.WaitGroup
	writer.Go(func() {
		for next := range chunks {
			p.waitForDelivery(l, next.due)
			if _, err := to.Write(next.data); err != nil {
				c.resetBoth()
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
			chunks <- delayedBytes{p.dueTime(l), data[:n]}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				c.resetBoth()
			}
			break
		}
	}
	close(chunks)
	writer.Wait()
}

// dueTime returns when bytes that have just been read may be written.
func (p *proxyForm) dueTime(l link) time.Time {
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
func (p *proxyForm) waitForDelivery(l link, due time.Time) {
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

func (p *proxyForm) faultsOf(l link) Faults {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.faults[l]
}

// setFaults resets the connections between two places when both directions are cut.
func (p *proxyForm) setFaults(from, to string, f Faults) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults[link{from, to}] = f
	p.wakeLocked()
	if !f.Cut || !p.faults[link{to, from}].Cut {
		return
	}
	for c := range p.conns {
		if c.from == from && c.to == to || c.from == to && c.to == from {
			c.resetBoth()
		}
	}
}

// wakeLocked makes all waiting writers look at the faults again.
func (p *proxyForm) wakeLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// dialPlace notes the local port before it connects, so that the proxy knows who it is. A proxy always
// accepts. So it looks first whether the process listens: a client then learns that its call was
// never sent, as it does without a proxy.
func (p *proxyForm) dialPlace(ctx context.Context, from, to string, port int) (net.Conn, error) {
	target, address, err := p.endpointOf(to, port)
	if err != nil {
		return nil, err
	}
	if !isListening(target) {
		return nil, &net.OpError{Op: "dial", Net: "tcp4", Err: syscall.ECONNREFUSED}
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
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return conn, err
		}
		// Another program has taken the port since, or a former connection from it to this address is not
		// forgotten yet.
	}
}

// placeOf finds the place of the process that connects from a local port; "" if it is not known.
func (p *proxyForm) placeOf(port int) string {
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
	name := ""
	err := eachSocket(port, func(state, inode string) {
		if state != socketListens && inode != "0" {
			name = "socket:[" + inode + "]"
		}
	})
	if err == nil && name == "" {
		err = fmt.Errorf("port %d has no socket", port)
	}
	return name, err
}

// isListening reports whether a process listens at an address of 127.0.0.1, without a connection that
// the process would see.
func isListening(address string) (listens bool) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return false
	}
	err = eachSocket(number, func(state, _ string) { listens = listens || state == socketListens })
	return err == nil && listens
}

// socketListens is TCP_LISTEN, as /proc/net/tcp spells it.
const socketListens = "0A"

// eachSocket yields the state and the inode of the sockets with a local port of 127.0.0.1, as
// /proc/net/tcp shows them (proc(5)). An inode of 0 belongs to a closed socket.
func eachSocket(port int, yield func(state, inode string)) error {
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return err
	}
	// The address is in the byte order of the machine: a big-endian one has 7F000001.
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) > 9 && (f[1] == fmt.Sprintf("0100007F:%04X", port) || f[1] == fmt.Sprintf("7F000001:%04X", port)) {
			yield(f[3], f[9])
		}
	}
	return nil
}

func (p *proxyForm) close() error {
	p.mu.Lock()
	p.closed = true
	p.wakeLocked()
	for _, port := range p.ports {
		port.listener.Close()
	}
	for c := range p.conns {
		c.resetBoth()
	}
	p.mu.Unlock()
	p.goroutines.Wait()
	return nil
}
