package http

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

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

// TestRequestOfAnEvictedConnection: a connection is evicted when its request has been read
// and has not begun. The request does not wait for a client whose leaving nothing would
// show, and changes nothing.
func TestRequestOfAnEvictedConnection(t *testing.T) {
	e := seedEngine(t)
	requests := map[string]string{}
	for kind, path := range waitsOf(t, e) {
		requests[kind] = asking(path)
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
		began := time.Now()
		eventually(t, kind+" is over", func() bool { return s.waits.len() == 0 && s.inflight.Load() == 0 })
		if took := time.Since(began); took > patience/2 { // a long poll ends by itself
			t.Errorf("%s: it waited for %v", kind, took)
		}
	}
	if len(e.submitted) != 0 {
		t.Error("a document was taken whose client cannot be told")
	}
}

// TestOccupiedOrEvicted: of a request and an eviction that come at once only one gets the
// connection.
func TestOccupiedOrEvicted(t *testing.T) {
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
