package http

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/valyala/fasthttp"
)

// service is a server that serves an engine on a port of its own.
type service struct {
	*Server
	t    testing.TB
	addr string
	logs *logBuffer
	web  *http.Client
	done chan error
}

// logBuffer takes the server's log.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func serve(t testing.TB, e Engine, change ...func(*Config)) *service {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, e, change...)
}

func serveOn(t testing.TB, l net.Listener, e Engine, change ...func(*Config)) *service {
	t.Helper()
	s := newService(t, e, change...)
	s.start(l)
	return s
}

// newService makes a service that start starts.
func newService(t testing.TB, e Engine, change ...func(*Config)) *service {
	t.Helper()
	s := &service{t: t, logs: &logBuffer{}, done: make(chan error, 1)}
	cfg := Config{Engine: e, Logger: slog.New(slog.NewTextHandler(s.logs, nil)),
		ReadTimeout: time.Minute, // longer than any test waits
		// Clients of the tests may be as slow.
		lastAnswersTime: testenv.Patience, drainTime: testenv.Patience / 3}
	for _, f := range change {
		f(&cfg)
	}
	s.Server = New(cfg)
	return s
}

// start serves on l until the test ends.
func (s *service) start(l net.Listener) {
	t := s.t
	s.addr = l.Addr().String()
	go func() { s.done <- s.Serve(l) }()
	s.web = &http.Client{Transport: &http.Transport{DisableCompression: true}}
	t.Cleanup(func() {
		s.web.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-s.done; err != nil {
			t.Errorf("serve: %v", err)
		}
		if n := s.inflight.Load(); n != 0 {
			t.Errorf("%d requests in flight after shutdown", n)
		}
		testenv.Eventually(t, "all connections closed", func() bool { return s.connections() == 0 })
	})
}

func (s *service) connections() int {
	s.conns.mu.Lock()
	defer s.conns.mu.Unlock()
	return len(s.conns.open)
}

// idleConnections counts those that wait for a next request.
func (s *service) idleConnections() (n int) {
	s.conns.mu.Lock()
	defer s.conns.mu.Unlock()
	for c := range s.conns.open {
		if fasthttp.ConnState(c.state.Load()) == fasthttp.StateIdle {
			n++
		}
	}
	return n
}

// reply is an answer, read to its end.
type reply struct {
	status int
	header http.Header
	body   string
	err    error // of reading the body
	close  bool  // the server closes the connection
}

// do sends a request; header lines are "Name: value".
func (s *service) do(method, target, body string, header ...string) reply {
	s.t.Helper()
	resp, err := s.open(method, target, body, header...)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(b), err, resp.Close}
}

func (s *service) open(method, target, body string, header ...string) (*http.Response, error) {
	s.t.Helper()
	req, err := http.NewRequest(method, "http://"+s.addr, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.URL.Opaque = target // sent as it is
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Set(name, value)
	}
	return s.web.Do(req)
}

func (s *service) get(target string) reply {
	s.t.Helper()
	return s.do("GET", target, "")
}

// raw sends bytes over a connection of its own and returns it.
func (s *service) raw(text string) (net.Conn, *bufio.Reader) {
	s.t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(testenv.Patience)); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		s.t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

// answerTo reads one answer to a request that was sent raw.
func (s *service) answerTo(r *bufio.Reader) reply {
	s.t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(b), err, resp.Close}
}

// sameJSON compares two documents, member order included.
func sameJSON(t testing.TB, got, want string) {
	t.Helper()
	var g, w bytes.Buffer
	if err := json.Indent(&g, []byte(got), "", " "); err != nil {
		t.Fatalf("%v in %s", err, got)
	}
	if err := json.Indent(&w, []byte(want), "", " "); err != nil {
		t.Fatalf("%v in %s", err, want)
	}
	if compact(g.Bytes()) != compact(w.Bytes()) {
		t.Errorf("got\n%s\nwant\n%s", g.String(), w.String())
	}
}

func compact(b []byte) string {
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return err.Error()
	}
	return out.String()
}

// refusedWith checks a problem document.
func refusedWith(t testing.TB, r reply, status int, text string) {
	t.Helper()
	var doc struct {
		Type, Title, Detail, Error string
		Status                     int
	}
	if r.status != status {
		t.Errorf("status %d, want %d: %s", r.status, status, r.body)
	}
	if r.header.Get("X-Content-Type-Options") != "nosniff" || r.header.Get("X-Frame-Options") != "DENY" {
		t.Errorf("headers for browsers are missing: %v", r.header)
	}
	if err := json.Unmarshal([]byte(r.body), &doc); err != nil {
		t.Errorf("%v in %q", err, r.body)
		return
	}
	if doc.Status != status || doc.Type != "about:blank" || doc.Title == "" || doc.Detail != doc.Error {
		t.Errorf("problem document: %s", r.body)
	}
	if !strings.Contains(doc.Error, text) {
		t.Errorf("error %q, want it to say %q", doc.Error, text)
	}
	if ct := r.header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("content type %q", ct)
	}
	if retry := r.header.Get("Retry-After"); (retry != "") != (status == 503 || status == 429) {
		t.Errorf("Retry-After %q with status %d", retry, status)
	}
}

const contractSpec = `{
  "tag": "mediumtest",
  "parameters": { "JOBNO": [ "1", "2" ] },
  "tasks": {
    "simple": {
      "job": { "command": [ "/usr/bin/python3", "script.py", "{{JOBNO}}" ], "cores": "1", "memoryMB": "100" }
    }
  }
}`

// manySpec is a graph of one template of n tasks.
func manySpec(n int) string {
	var b strings.Builder
	b.WriteString(`{"tag":"many","parameters":{"N":[`)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"%d"`, i)
	}
	b.WriteString(`]},"tasks":{"t":{"job":{"command":["/bin/true","{{N}}"]}}}}`)
	return b.String()
}
