package http

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// failingListener fails before it accepts, with each of its errors in turn.
type failingListener struct {
	net.Listener
	mu   sync.Mutex
	errs []error
}

func (f *failingListener) Accept() (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.errs) == 0 {
		return f.Listener.Accept()
	}
	err := f.errs[0]
	f.errs = f.errs[1:]
	return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", err)}
}

// TestAcceptRetriesAfterPassingErrors: an error of accept that can pass does not end the service.
func TestAcceptRetriesAfterPassingErrors(t *testing.T) {
	passing := []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EPROTO, syscall.EINTR,
		errors.New("something else")}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := serveOn(t, &failingListener{Listener: l, errs: passing}, contractEngine(t))
	if r := s.get("/ready"); r.status != 200 {
		t.Errorf("status %d", r.status)
	}
	if n := strings.Count(s.logs.String(), "cannot accept a connection"); n != 1 {
		t.Errorf("%d log lines for %d errors in a row, want 1:\n%s", n, len(passing), s.logs)
	}
	if r := s.get("/metrics"); !strings.Contains(r.body, "caravan_http_accept_errors_total 8\n") {
		t.Errorf("the metric does not count %d errors", len(passing))
	}
}

// TestServeEndsWithABrokenListener: one that cannot accept any more ends the service.
func TestServeEndsWithABrokenListener(t *testing.T) {
	s := New(Config{Engine: contractEngine(t), Logger: slog.New(slog.DiscardHandler)})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := s.Serve(&failingListener{Listener: l, errs: []error{syscall.EINVAL}}); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("serve: %v", err)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// busy opens a connection whose request is not answered until the test ends.
func (s *service) busy() *bufio.Reader {
	_, r := s.raw("GET /v1/dagrun/0/state?wait=60s HTTP/1.1\r\nHost: c\r\n\r\n")
	return r
}

// TestConnectionsBeyondTheLimitAreRefused: beyond MaxConns the oldest connection that waits for a
// request makes room; if all are busy the new one is refused.
func TestConnectionsBeyondTheLimitAreRefused(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e, func(c *Config) { c.MaxConns, c.MaxPerClient = 3, 3 })
	const ask = "GET /ready HTTP/1.1\r\nHost: c\r\n\r\n"
	var idle []*bufio.Reader
	for range 3 {
		_, r := s.raw(ask)
		if got := s.answerTo(r); got.status != 200 {
			t.Fatal(got)
		}
		idle = append(idle, r)
		testenv.Eventually(t, "it waits for the next request", func() bool { return s.idleConnections() == len(idle) })
	}
	_, r := s.raw(ask)
	if got := s.answerTo(r); got.status != 200 {
		t.Errorf("with idle connections: %d %s", got.status, got.body)
	}
	if rest, err := io.ReadAll(idle[0]); err != nil || len(rest) != 0 {
		t.Errorf("the oldest idle connection: %q %v", rest, err)
	}
	s.conns.close(true)
	testenv.Eventually(t, "no connection", func() bool { return s.connections() == 0 })
	for range 3 {
		s.busy()
	}
	testenv.Eventually(t, "all are waiting", func() bool { e.mu.Lock(); defer e.mu.Unlock(); return e.waiting == 3 })
	refused, r := s.raw(ask)
	got := s.answerTo(r)
	refusedWith(t, got, 503, "too many connections")
	if !got.close || got.header.Get("Retry-After") == "" {
		t.Errorf("close %v, %v", got.close, got.header)
	}
	refused.Close()
	testenv.Eventually(t, "its place is free", func() bool { return s.connections() == 3 })
	s.raw("") // takes the place of a refused one
	testenv.Eventually(t, "all places are taken", func() bool { return s.connections() == 4 })
	s.conns.mu.Lock()
	for c := range s.conns.open {
		c.stateSince.Store(int64(time.Since(s.startedAt) + time.Hour)) // it stays new, and is not evicted
	}
	s.conns.mu.Unlock()
	_, r = s.raw("")
	refusedWith(t, s.answerTo(r), 503, "too many connections")
	s.conns.close(true)
}

// TestConnectionsOfOneClientBeyondItsLimitAreRefused: a client that has too many connections does
// not take the others' places.
func TestConnectionsOfOneClientBeyondItsLimitAreRefused(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e, func(c *Config) { c.MaxConns, c.MaxPerClient = 100, 2 })
	for range 2 {
		s.busy()
	}
	testenv.Eventually(t, "all are waiting", func() bool { e.mu.Lock(); defer e.mu.Unlock(); return e.waiting == 2 })
	_, r := s.raw("GET /ready HTTP/1.1\r\nHost: c\r\n\r\n")
	got := s.answerTo(r)
	refusedWith(t, got, 429, "too many connections of this client")
	if !got.close || got.header.Get("Retry-After") == "" {
		t.Errorf("close %v, %v", got.close, got.header)
	}
	other := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	c, err := other.Dial("tcp", s.addr)
	if err != nil {
		t.Skipf("no second loopback address: %v", err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /ready HTTP/1.1\r\nHost: c\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if got := s.answerTo(bufio.NewReader(c)); got.status != 200 {
		t.Errorf("another client: %d %s", got.status, got.body)
	}
	s.conns.close(true)
}

func TestClientKeyOf(t *testing.T) {
	at := func(ip string) clientKey {
		return clientKeyOf(addressed{addr: &net.TCPAddr{IP: net.ParseIP(ip), Port: 7}})
	}
	if at("10.0.0.1") == at("10.0.0.2") || at("2001:db8:0:1::1") == at("2001:db8:0:2::1") {
		t.Error("two clients are one")
	}
	if at("10.0.0.1") != at("::ffff:10.0.0.1") || at("2001:db8:0:1::1") != at("2001:db8:0:1::2") {
		t.Error("one client is two")
	}
	l, err := net.Listen("unix", t.TempDir()+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := net.Dial("unix", l.Addr().String()); err == nil {
			defer c.Close()
			_, _ = io.ReadAll(c)
		}
	}()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := clientKeyOf(c); got.uid != uint32(os.Getuid())+1 {
		t.Errorf("a Unix socket's client has uid %d", int(got.uid)-1)
	}
}

// addressed is a connection with an address only.
type addressed struct {
	net.Conn
	addr net.Addr
}

func (a addressed) RemoteAddr() net.Addr { return a.addr }

// readHook accepts connections that call a function after each read that brings something.
type readHook struct {
	net.Listener
	read func()
}

type hookedConn struct {
	*net.TCPConn
	read func()
}

func (l *readHook) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &hookedConn{c.(*net.TCPConn), l.read}, nil
}

func (c *hookedConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if n > 0 {
		c.read()
	}
	return n, err
}

// TestEvictedConnectionRunsNoRequest: a connection is evicted when its request has been read and
// has not begun. The request does not wait for a client whose departure could not be detected, and
// does not change anything.
func TestEvictedConnectionRunsNoRequest(t *testing.T) {
	e := contractEngine(t)
	requests := map[string]string{}
	for kind, path := range requestsThatWait(t, e) {
		requests[kind] = getRequest(path)
	}
	const doc = `{"tasks":{"a":{"job":{"executor":"noop"}}}}`
	requests["a submission"] = fmt.Sprintf("POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(doc), doc)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newService(t, e, func(c *Config) { c.heartbeat = time.Hour })
	s.start(&readHook{l, func() {
		s.conns.mu.Lock()
		for c := range s.conns.open {
			c.stateSince.Store(-int64(time.Hour)) // it is no new connection
		}
		s.conns.mu.Unlock()
		s.conns.evictSome(s.Server)
	}})
	for kind, text := range requests {
		_, r := s.raw(text)
		if answer, _ := io.ReadAll(r); len(answer) != 0 {
			t.Errorf("%s: the connection was not evicted: %q", kind, answer)
		}
		// A long poll that is not interrupted would outlast this wait.
		testenv.Eventually(t, kind+" is over", func() bool { return s.waits.len() == 0 && s.inflight.Load() == 0 })
	}
	if len(e.submitted) != 0 {
		t.Error("a document was taken whose client cannot be told")
	}
}

// TestConnectionIsOccupiedOrEvicted: when a request and an eviction coincide, only one gets
// the connection.
func TestConnectionIsOccupiedOrEvicted(t *testing.T) {
	var c conn
	for range 2 { // the headers of a request, and its body
		if !c.occupy() {
			t.Error("a request does not get its connection")
		}
	}
	if c.evict() {
		t.Error("a request does not keep its connection")
	}
	c.vacate()
	if !c.evict() {
		t.Error("an idle connection is not evicted")
	}
	if c.evict() || c.occupy() {
		t.Error("an evicted connection is used")
	}
	c.vacate() // it is closed
	if c.occupy() {
		t.Error("an evicted connection is used after it was closed")
	}
}

// TestConnectionsOfNodesCloseWithoutAMessage: the closing message of TLS waits for a node that does not read,
// and close holds the lock of all connections.
func TestConnectionsOfNodesCloseWithoutAMessage(t *testing.T) {
	rig := newClusterRig(t, 1)
	n := rig.node("n1")
	before := n.idleConnections()
	forNodes := &Entrance{Listener: tls.NewListener(rig.listen(), rig.authority.nodeTLS("n1")), CheckNode: checkTestNode}
	served := make(chan error, 1)
	go func() { served <- n.Serve(forNodes) }()
	defer func() {
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience)
		defer cancel()
		if err := n.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	}()
	raw, err := net.Dial("tcp", forNodes.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	counted := &countedConn{Conn: raw}
	node := tls.Client(counted, rig.authority.nodeTLS("n2"))
	_ = node.SetDeadline(time.Now().Add(testenv.Patience))
	const caller = `{"node":"n2","scopes":"read","address":"192.0.2.1:1","uid":-1}`
	if _, err := fmt.Fprintf(node, "GET /v1/dagrun/0/state HTTP/1.1\r\nHost: c\r\n%s: 0\r\n%s: %s\r\n%s: 1\r\n\r\n", partitionHeader, callerHeader, caller, hopsHeader); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(node), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp.Status, err)
	}
	testenv.Eventually(t, "the connection waits for its next request", func() bool { return n.idleConnections() == before+1 })
	received := counted.received.Load()
	n.conns.close(true)
	if _, err := io.Copy(io.Discard, node); counted.received.Load() != received {
		t.Errorf("a message of %d bytes came at the close: %v", counted.received.Load()-received, err)
	}
}

// countedConn counts the bytes that it has received.
type countedConn struct {
	net.Conn
	received atomic.Int64
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.received.Add(int64(n))
	return n, err
}
