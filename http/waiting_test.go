package http

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// waitsOf are requests that wait, one of each kind, and what readies the engine for them.
func waitsOf(t *testing.T, e *fakeEngine) map[string]string {
	r := e.add(t, `{"tasks":{"a":{"job":{"command":["x"]}}}}`, dag.RunRunning, dag.TaskRunning)
	r.logs[logKey("a", 1, messages.Stdout)] = &fakeLog{live: true}
	run := "/v1/dagrun/" + strconv.Itoa(len(e.runs)-1)
	e.feed = newFakeFeed()
	return map[string]string{
		"long poll":       run + "/state?wait=60s",
		"events of a run": run + "/events",
		"events":          "/v1/events",
		"followed log":    run + "/task/a/log?follow",
	}
}

func asking(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: c\r\n\r\n" }

// TestClientLeaves: the place of a client that leaves while its request waits is free
// at once, whatever it waits for. One that closes only its sending side gets the present
// state as the answer to its long poll.
func TestClientLeaves(t *testing.T) {
	e := seedEngine(t)
	s := serve(t, e, func(c *Config) { c.heartbeat = time.Hour })
	for kind, path := range waitsOf(t, e) {
		t.Run(kind, func(t *testing.T) {
			c, _ := s.raw(asking(path))
			eventually(t, "it waits", func() bool { return s.waits.len() == 1 })
			c.Close()
			eventually(t, "its place is free", func() bool { return s.waits.len() == 0 && s.inflight.Load() == 0 && s.connections() == 0 })

			c, r := s.raw(asking(path))
			eventually(t, "it waits", func() bool { return s.waits.len() == 1 })
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if kind == "long poll" {
				if got := s.answerTo(r); got.status != 200 || got.body != `{"state":"RUNNING"}` {
					t.Errorf("a client that reads on: %d %s", got.status, got.body)
				}
			}
			eventually(t, "its place is free again", func() bool { return s.waits.len() == 0 })
		})
	}
}

// TestWaitersAreBounded in all and for each client. The refused one's connection closes.
func TestWaitersAreBounded(t *testing.T) {
	for status, limit := range map[int][2]int{429: {100, 4}, 503: {4, 4}} {
		e := seedEngine(t)
		paths := waitsOf(t, e)
		s := newService(t, e, func(c *Config) { c.MaxConns, c.MaxPerClient = limit[0], limit[1] })
		if status == 503 {
			s.cfg.MaxPerClient = 100 // else the client's own bound would come first
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s.start(l)
		var held []net.Conn
		for range 3 {
			c, _ := s.raw(asking(paths["long poll"]))
			held = append(held, c)
		}
		eventually(t, "all wait", func() bool { return s.waits.len() == 3 })
		for kind, path := range paths {
			_, r := s.raw(asking(path))
			got := s.answerTo(r)
			refusedWith(t, got, status, "wait")
			if !got.close {
				t.Errorf("%s: the connection stays", kind)
			}
			eventually(t, "it is closed", func() bool { return s.connections() == 3 })
		}
		_, r := s.raw(asking("/ready"))
		if got := s.answerTo(r); got.status != 200 {
			t.Errorf("what does not wait: %d %s", got.status, got.body)
		}
		for _, c := range held {
			c.Close()
		}
		eventually(t, "none waits", func() bool { return s.waits.len() == 0 })
	}
}

// TestLeavingBeforeItsTurn: a long document whose client has left while others are
// planned is dropped.
func TestLeavingBeforeItsTurn(t *testing.T) {
	e := seedEngine(t)
	s := serve(t, e)
	s.planningTurn <- struct{}{} // another one has the turn
	doc := `{"tasks":{"a":{"job":{"command":["x"],"pad":"` + strings.Repeat("x", longBodyBytes) + `"}}}}`
	head := "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(doc)) + "\r\n\r\n"
	c, r := s.raw(head + doc)
	eventually(t, "it waits for its turn", func() bool { return s.waits.len() == 1 })
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, s.answerTo(r), 503, "closed its side")
	c, _ = s.raw(head + doc)
	eventually(t, "it waits for its turn", func() bool { return s.waits.len() == 1 })
	c.Close()
	eventually(t, "its place is free", func() bool { return s.waits.len() == 0 && s.longBodies.len() == 0 })
	<-s.planningTurn
	if len(e.submitted) != 0 {
		t.Errorf("%d documents were taken", len(e.submitted))
	}
}

// TestWaitWithoutAWatch: a request whose client could leave unseen does not wait.
func TestWaitWithoutAWatch(t *testing.T) {
	e := seedEngine(t)
	s := serve(t, e)
	paths := waitsOf(t, e)
	eventually(t, "clients are watched", func() bool { return s.clientWatcher.Load() != nil })
	s.clientWatcher.Load().Close()
	for kind, path := range paths {
		_, r := s.raw(asking(path))
		got := s.answerTo(r)
		refusedWith(t, got, 503, "cannot wait")
		if !got.close {
			t.Errorf("%s: the connection stays", kind)
		}
	}
	eventually(t, "no place is taken", func() bool { return s.waits.len() == 0 && s.inflight.Load() == 0 })
}

// TestPeerWatch: only the one that leaves is told of, once; what it has sent stays.
func TestPeerWatch(t *testing.T) {
	w, err := newClientWatcher()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const n = 300 // more than one look brings
	left := make(chan int, 2*n)
	watch := func(c net.Conn, left func()) (stop func()) {
		t.Helper()
		stop, err := w.watch(c, left)
		if err != nil {
			t.Fatal(err)
		}
		return stop
	}
	var clients, servers []net.Conn
	var stops []func()
	for i := range n {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		clients, servers = append(clients, c), append(servers, server)
		stops = append(stops, watch(server, func() { left <- i }))
	}
	if _, err := io.WriteString(clients[7], "x"); err != nil {
		t.Fatal(err)
	}
	clients[3].Close()
	if got := <-left; got != 3 {
		t.Errorf("%d is told to have left, it was 3", got)
	}
	if b, err := bufio.NewReader(servers[7]).Peek(1); err != nil || b[0] != 'x' {
		t.Errorf("what was sent: %q %v", b, err)
	}
	seen := map[int]bool{3: true}
	for _, c := range clients {
		c.Close()
	}
	for len(seen) < n {
		i := <-left
		if seen[i] {
			t.Fatalf("%d left twice", i)
		}
		seen[i] = true
	}
	for _, stop := range stops {
		stop()
	}
	stop := watch(servers[0], func() { left <- 0 }) // it has left already
	<-left
	stop()
	a, z := net.Pipe()
	defer a.Close()
	defer z.Close()
	watch(a, func() { t.Error("a pipe has no socket") })()
	servers[2].Close()
	if _, err := w.watch(servers[2], func() { t.Error("told of a closed socket") }); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed socket is watched: %v", err)
	}
	w.Close()
	if _, err := w.watch(servers[1], func() { t.Error("told after Close") }); err == nil {
		t.Error("watched after Close")
	}
	if len(left) > 0 || len(w.callbacks) > 0 {
		t.Errorf("%d more were told, %d are kept", len(left), len(w.callbacks))
	}
}
