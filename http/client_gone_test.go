package http

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// callsOfTheEngine are requests by the method of the engine that they call.
func callsOfTheEngine() map[string]string {
	post := func(path, contentType, body string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: c\r\nContent-Type: " + contentType + "\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body
	}
	ask := func(method, path string) string { return method + " " + path + " HTTP/1.1\r\nHost: c\r\n\r\n" }
	return map[string]string{
		"Submit":    post("/v1/dagrun", jsonType, contractSpec),
		"SubmitAll": post("/v1/dagruns", linesType, strings.ReplaceAll(contractSpec, "\n", " ")+"\n"),
		"SetState":  ask("PATCH", "/v1/dagrun/0/state/PAUSED"),
		"Kill":      ask("DELETE", "/v1/dagrun/0"),
		"KillTask":  ask("DELETE", "/v1/dagrun/0/task/simple_0"),
		"SetPaused": ask("PATCH", "/v1/server/state/PAUSED"),
		"Summary":   ask("GET", "/v1/dagrun/0/state"),
		"Summaries": ask("GET", "/v1/dagruns"),
		"View":      ask("GET", "/v1/dagrun/0"),
		"Task":      ask("GET", "/v1/dagrun/0/task/simple_0"),
		"Follow":    ask("GET", "/v1/dagrun/0/events"),
		"Listen":    ask("GET", "/v1/events"),
		"OpenLog":   ask("GET", "/v1/dagrun/0/task/simple_0/log"),
		"Ready":     ask("GET", "/ready"),
	}
}

// waitForDeparture has a method of the engine wait until its context ends. It sends the cause.
func waitForDeparture(e *fakeEngine, method string) (waiting chan struct{}, ended chan error) {
	waiting, ended = make(chan struct{}, 1), make(chan error, 1)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.wait = func(ctx context.Context, called string) error {
		if called != method {
			return nil
		}
		done := ctx.Done()
		waiting <- struct{}{}
		<-done
		ended <- context.Cause(ctx)
		return context.Cause(ctx)
	}
	return waiting, ended
}

// withShortWatch has clients watched soon after their request has begun to wait.
func withShortWatch(c *Config) { c.watchAfter = 5 * time.Millisecond }

// TestCallEndsWhenTheClientLeaves: a call that waits in the engine ends soon after its client
// has gone. The connection and the request's place are free then, and the log has no error.
func TestCallEndsWhenTheClientLeaves(t *testing.T) {
	for method, request := range callsOfTheEngine() {
		t.Run(method, func(t *testing.T) {
			e := contractEngine(t)
			s := serve(t, e, withShortWatch)
			waiting, ended := waitForDeparture(e, method)
			c, _ := s.raw(request)
			<-waiting
			c.Close()
			if err := <-ended; err != errClientGone {
				t.Errorf("the call ended with %v", err)
			}
			testenv.Eventually(t, "its place is free", func() bool { return s.inflight.Load() == 0 && s.connections() == 0 })

			c, r := s.raw(request)
			<-waiting
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; err != errClientGone {
				t.Errorf("after it closed its sending side, the call ended with %v", err)
			}
			if got := s.answerTo(r); method != "SubmitAll" && method != "Ready" {
				refusedWith(t, got, 503, "the client has closed its side of the connection")
			}
			if log := s.logs.String(); strings.Contains(log, "ERROR") {
				t.Errorf("log: %s", log)
			}
		})
	}
}

// TestShortCallIsAnsweredInSpiteOfAHalfClose: closing the sending side counts as leaving only
// when the engine takes long.
func TestShortCallIsAnsweredInSpiteOfAHalfClose(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e, func(c *Config) { c.watchAfter = time.Hour })
	closed := make(chan struct{})
	e.wait = func(context.Context, string) error { <-closed; return nil }
	c, r := s.raw(callsOfTheEngine()["Submit"])
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	close(closed)
	if got := s.answerTo(r); got.status != 200 || got.body != `{"runID":0}` {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// TestRequestsAfterADeparture: requests that a client sent before it closed its sending side
// are answered, although the wait before them ended because of that.
func TestRequestsAfterADeparture(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	c, r := s.raw("GET /v1/dagrun/0/state?wait=60s HTTP/1.1\r\nHost: c\r\n\r\n" + callsOfTheEngine()["Submit"] + callsOfTheEngine()["Kill"])
	testenv.Eventually(t, "it waits", func() bool { return s.waits.len() == 1 })
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`{"state":"COMPLETED"}`, `{"runID":0}`, `{"runID":0}`} {
		if got := s.answerTo(r); got.status != 200 || got.body != want {
			t.Errorf("%d %s, want %s", got.status, got.body, want)
		}
	}
}

// TestCallEndsWithItsConnection: a call ends when the server closes its connection.
func TestCallEndsWithItsConnection(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	waiting, ended := waitForDeparture(e, "Submit")
	s.raw(callsOfTheEngine()["Submit"])
	<-waiting
	s.conns.close(true)
	if err := <-ended; err != errConnClosed {
		t.Errorf("the call ended with %v", err)
	}
}

// TestPrincipalOfARequest: the engine learns on whose behalf each request of a connection is.
func TestPrincipalOfARequest(t *testing.T) {
	e := contractEngine(t)
	withKeys, secret, _ := withTokenFile(t)
	s := serve(t, e, withKeys)
	var mu sync.Mutex
	var got messages.Principal
	var known bool
	e.wait = func(ctx context.Context, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		within, cancel := context.WithCancel(ctx) // it is found in derived contexts
		defer cancel()
		got, known = messages.PrincipalOf(within)
		return nil
	}
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	for _, step := range []struct {
		path, name string
		scopes     access.Scopes
	}{
		{"/v1/dagrun/0/state", "t-read", access.Read},
		{"/v1/dagrun/0/summary", "t-read-submit-control", access.All},
		{"/ready", "", 0},
		{"/v1/dagrun/0/state", "t-read", access.Read},
	} {
		request := "GET " + step.path + " HTTP/1.1\r\nHost: c\r\n"
		if step.name != "" {
			request += bearer(secret[step.scopes]) + "\r\n"
		}
		if _, err := io.WriteString(c, request+"\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		mu.Lock()
		if want := (messages.Principal{Token: step.name, Address: c.LocalAddr().String(), UID: -1}); resp.StatusCode != 200 || !known || got != want {
			t.Errorf("%s: %d, principal %+v, want %+v", step.path, resp.StatusCode, got, want)
		}
		mu.Unlock()
	}
}

// requestsThatWait are requests that wait, one of each kind, and what readies the engine for them.
func requestsThatWait(t *testing.T, e *fakeEngine) map[string]string {
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

func getRequest(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: c\r\n\r\n" }

// TestPlaceOfADepartedClientIsFree: the place of a client that leaves while its request waits is
// free at once, for every kind of wait. A client that closes only its sending side gets the present
// state as the answer to its long poll.
func TestPlaceOfADepartedClientIsFree(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e, func(c *Config) { c.heartbeat = time.Hour })
	for kind, path := range requestsThatWait(t, e) {
		t.Run(kind, func(t *testing.T) {
			c, _ := s.raw(getRequest(path))
			testenv.Eventually(t, "it waits", func() bool { return s.waits.len() == 1 })
			c.Close()
			testenv.Eventually(t, "its place is free", func() bool { return s.waits.len() == 0 && s.inflight.Load() == 0 && s.connections() == 0 })

			c, r := s.raw(getRequest(path))
			testenv.Eventually(t, "it waits", func() bool { return s.waits.len() == 1 })
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if kind == "long poll" {
				if got := s.answerTo(r); got.status != 200 || got.body != `{"state":"RUNNING"}` {
					t.Errorf("a client that reads on: %d %s", got.status, got.body)
				}
			}
			testenv.Eventually(t, "its place is free again", func() bool { return s.waits.len() == 0 })
		})
	}
}

// TestWaitsAreBounded in all and for each client. The refused one's connection closes.
func TestWaitsAreBounded(t *testing.T) {
	for status, limit := range map[int][2]int{429: {100, 4}, 503: {4, 4}} {
		e := contractEngine(t)
		paths := requestsThatWait(t, e)
		s := newService(t, e, func(c *Config) { c.MaxConns, c.MaxPerClient = limit[0], limit[1] })
		if status == 503 {
			s.cfg.MaxPerClient = 100 // else the client's own bound would apply first
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s.start(l)
		var held []net.Conn
		for range 3 {
			c, _ := s.raw(getRequest(paths["long poll"]))
			held = append(held, c)
		}
		testenv.Eventually(t, "all wait", func() bool { return s.waits.len() == 3 })
		for kind, path := range paths {
			_, r := s.raw(getRequest(path))
			got := s.answerTo(r)
			refusedWith(t, got, status, "wait")
			if !got.close {
				t.Errorf("%s: the connection stays", kind)
			}
			testenv.Eventually(t, "it is closed", func() bool { return s.connections() == 3 })
		}
		_, r := s.raw(getRequest("/ready"))
		if got := s.answerTo(r); got.status != 200 {
			t.Errorf("what does not wait: %d %s", got.status, got.body)
		}
		for _, c := range held {
			c.Close()
		}
		testenv.Eventually(t, "none waits", func() bool { return s.waits.len() == 0 })
	}
}

// TestDepartureBeforeThePlanningTurn: a long document whose client has left while others are
// planned is dropped.
func TestDepartureBeforeThePlanningTurn(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	s.planningTurn <- struct{}{} // another one has the turn
	doc := `{"tasks":{"a":{"job":{"command":["x"],"pad":"` + strings.Repeat("x", longBodyBytes) + `"}}}}`
	head := "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(doc)) + "\r\n\r\n"
	c, r := s.raw(head + doc)
	testenv.Eventually(t, "it waits for its turn", func() bool { return s.waits.len() == 1 })
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, s.answerTo(r), 503, "closed its side")
	c, _ = s.raw(head + doc)
	testenv.Eventually(t, "it waits for its turn", func() bool { return s.waits.len() == 1 })
	c.Close()
	testenv.Eventually(t, "its place is free", func() bool { return s.waits.len() == 0 && s.longBodies.len() == 0 })
	<-s.planningTurn
	if len(e.submitted) != 0 {
		t.Errorf("%d documents were taken", len(e.submitted))
	}
}

// TestRequestThatCannotBeWatchedDoesNotWait: a request whose client could leave unseen does not
// wait.
func TestRequestThatCannotBeWatchedDoesNotWait(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	paths := requestsThatWait(t, e)
	testenv.Eventually(t, "clients are watched", func() bool { return s.clientWatcher.Load() != nil })
	s.clientWatcher.Load().Close()
	for kind, path := range paths {
		_, r := s.raw(getRequest(path))
		got := s.answerTo(r)
		refusedWith(t, got, 503, "cannot wait")
		if !got.close {
			t.Errorf("%s: the connection stays", kind)
		}
	}
	testenv.Eventually(t, "no place is taken", func() bool { return s.waits.len() == 0 && s.inflight.Load() == 0 })
}

// TestClientWatcher: only the client that leaves is reported, once; the bytes that it has sent
// stay readable.
func TestClientWatcher(t *testing.T) {
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

// TestShutdownAnswersCallsThatDoNotReturn: when the time of a shutdown is up, requests that wait in the
// engine (for a disk that hangs, say) get an answer before their connections close.
func TestShutdownAnswersCallsThatDoNotReturn(t *testing.T) {
	for method, request := range callsOfTheEngine() {
		t.Run(method, func(t *testing.T) {
			e := contractEngine(t)
			e.feed = newFakeFeed()
			waiting, ended := waitForDeparture(e, method)
			s := serve(t, e)
			_, r := s.raw(request)
			<-waiting
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
			defer cancel()
			if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("shutdown: %v", err)
			}
			if cause := <-ended; cause != errShuttingDown {
				t.Errorf("ended by %v", cause)
			}
			got := s.answerTo(r)
			if method == "SubmitAll" { // the answer of its line
				if got.status != 200 || !strings.Contains(got.body, `"status":503`) {
					t.Errorf("%d %s", got.status, got.body)
				}
				return
			}
			refusedWith(t, got, 503, "the server is stopping")
		})
	}
}
