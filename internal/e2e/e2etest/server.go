package e2etest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// Patience is the deadline for everything that should happen at once but waits
// for real processes on a busy machine, and for the elections of clusters.
const Patience = 2 * time.Minute

// Server is a server process that belongs to a test.
type Server struct {
	*testenv.Server
	t      testing.TB
	client *http.Client
}

// Start starts a server with a data folder of the test's own, two cores and 4,000 MB
// for its tasks. It is stopped at the test's end; then its log must hold neither a
// panic nor a data race.
func Start(t testing.TB, options ...func(*testenv.Config)) *Server {
	t.Helper()
	s, err := TryStart(t, options...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TryStart is Start where starting may fail.
func TryStart(t testing.TB, options ...func(*testenv.Config)) (*Server, error) {
	t.Helper()
	cfg := testenv.Config{Binary: Binary(), Data: t.TempDir()}
	cfg.Args = []string{"--cores", "2", "--memory-mb", "4000"}
	for _, o := range options {
		o(&cfg)
	}
	p, err := testenv.Start(cfg)
	if err != nil {
		return nil, err
	}
	return adopt(t, p), nil
}

// Program is an option of Start: a program to start instead of the binary under test.
func Program(path string) func(*testenv.Config) {
	return func(c *testenv.Config) { c.Binary = path }
}

// Args is an option of Start: further arguments of `caravan serve`.
func Args(args ...string) func(*testenv.Config) {
	return func(c *testenv.Config) { c.Args = append(c.Args, args...) }
}

// Env is an option of Start: further variables of the server's environment.
func Env(env ...string) func(*testenv.Config) {
	return func(c *testenv.Config) { c.Env = append(c.Env, env...) }
}

// Data is an option of Start: the data folder.
func Data(dir string) func(*testenv.Config) {
	return func(c *testenv.Config) { c.Data = dir }
}

// Dir is an option of Start: the server's working folder.
func Dir(dir string) func(*testenv.Config) {
	return func(c *testenv.Config) { c.Dir = dir }
}

func adopt(t testing.TB, p *testenv.Server) *Server {
	s := &Server{Server: p, t: t, client: newHTTPClient()}
	t.Cleanup(s.close)
	return s
}

// newHTTPClient returns a client that keeps its connections, with a long timeout.
func newHTTPClient() *http.Client {
	return &http.Client{Timeout: 2 * Patience, Transport: &http.Transport{
		DialContext: (&net.Dialer{Timeout: Patience}).DialContext, MaxIdleConnsPerHost: 128,
	}}
}

func (s *Server) close() {
	s.client.CloseIdleConnections()
	select {
	case <-s.Ended():
	default:
		if _, _, err := s.Stop(Patience); err != nil {
			s.t.Error(err)
		}
	}
	if err := testenv.EndWorkers(s.Config().Data, Patience); err != nil {
		s.t.Error(err)
	}
	s.CheckLog()
	if log := s.Log(); s.t.Failed() && eventful(log) {
		s.t.Logf("the end of the server's log:\n%s", log[max(0, len(log)-6000):])
	}
}

// eventful reports whether a log has more than the lines of a start, which would repeat for a server
// that is killed twenty times.
func eventful(log string) bool {
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "msg=listening") && !strings.Contains(line, "msg=ready") {
			return true
		}
	}
	return false
}

// CheckLog fails the test when the server panicked or raced.
func (s *Server) CheckLog() {
	s.t.Helper()
	log := s.Log()
	for _, bad := range []string{"panic", "DATA RACE", "goroutine 1 [", "fatal error"} {
		if i := strings.Index(log, bad); i >= 0 {
			s.t.Errorf("the server's log says %q:\n%s", bad, log[i:min(len(log), i+4000)])
			return
		}
	}
}

// Crash kills the server with SIGKILL and starts it again over the same folder.
func (s *Server) Crash() *Server {
	s.t.Helper()
	s.Kill()
	return s.Restart()
}

// Restart starts an ended server again over the same folder.
func (s *Server) Restart() *Server {
	s.t.Helper()
	s.client.CloseIdleConnections()
	p, err := s.Again()
	if err != nil {
		s.t.Fatal(err)
	}
	return adopt(s.t, p)
}

// Response is an answer, read to its end.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
}

// Try sends a request and returns its answer, or the error. header holds pairs of names and values.
func (s *Server) Try(method, path, body string, header ...string) (Response, error) {
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, s.URL+path, r)
	if err != nil {
		return Response{}, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return Response{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return Response{}, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return Response{Status: resp.StatusCode, Header: resp.Header, Body: data}, nil
}

// Do is Try, and ends the test without an answer.
func (s *Server) Do(method, path, body string, header ...string) Response {
	s.t.Helper()
	r, err := s.Try(method, path, body, header...)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

// Want is Do with the expected status.
func (s *Server) Want(status int, method, path, body string, header ...string) Response {
	s.t.Helper()
	r := s.Do(method, path, body, header...)
	if r.Status != status {
		s.t.Fatalf("%s %s: %d, want %d: %s", method, path, r.Status, status, bytes.TrimSpace(r.Body))
	}
	return r
}

// Decode reads the answer's JSON into out.
func (r Response) Decode(t testing.TB, out any) {
	t.Helper()
	if err := json.Unmarshal(r.Body, out); err != nil {
		t.Fatalf("%v in %s", err, r.Body)
	}
}
