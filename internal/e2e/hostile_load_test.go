package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// TestHostileLoad does to one server, at once, what used to take gigabytes: compressed
// documents that are one huge text, lines without an end, compressed empty lines whose
// answers are not read, thousands of watchers, and clients that leave. Clients at
// another address are served all the while, and the server stays below 1 GB.
func TestHostileLoad(t *testing.T) {
	s := e2etest.Start(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("sleep 300")}))
	s.AwaitTask(run, "a", "RUNNING")
	address := strings.TrimPrefix(s.URL, "http://")
	least := scaled(100)
	bomb := packed(t, "zstd", `{"tag":"`, 'x', scaled(255)<<20, `","tasks":{"a":{"job":{"executor":"noop"}}}}`)
	newlines := packed(t, "gzip", "", '\n', scaled(30)<<20, "")
	t.Logf("bombs of %d and %d bytes", len(bomb), len(newlines))
	// On a slow machine it lasts for longer: until the honest clients have their answers.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var hostile sync.WaitGroup
	dial := func() net.Conn {
		c, err := net.DialTimeout("tcp", address, e2etest.Patience)
		if err != nil {
			return nil
		}
		context.AfterFunc(ctx, func() { c.Close() })
		return c
	}
	post := func(path, kind, coding string, body []byte, read bool) {
		c := dial()
		if c == nil {
			return
		}
		defer c.Close()
		_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n", path, kind, coding, len(body))
		_, _ = c.Write(body)
		if read {
			_, _ = io.CopyN(io.Discard, c, 100)
		} else {
			<-ctx.Done()
		}
	}
	for range 8 {
		hostile.Go(func() {
			for ctx.Err() == nil {
				post("/v1/dagrun", "application/json", "zstd", bomb, true)
			}
		})
		hostile.Go(func() { post("/v1/dagruns", "application/x-ndjson", "gzip", newlines, false) })
	}
	line := bytes.Repeat([]byte("x"), 60<<20)
	for range 24 {
		hostile.Go(func() {
			c := dial()
			if c == nil {
				return
			}
			_, _ = fmt.Fprintf(c, "POST /v1/dagruns HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n", 200<<20)
			_, _ = c.Write(line)
			<-ctx.Done()
			c.Close()
		})
	}
	for range 7 {
		hostile.Go(func() {
			for i := range 1000 {
				c := dial()
				if c == nil {
					return
				}
				path := [...]string{"/v1/events", fmt.Sprintf("/v1/dagrun/%d/events", run)}[i%2]
				_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path)
			}
		})
	}
	for range 4 {
		hostile.Go(func() {
			for ctx.Err() == nil {
				if c := dial(); c != nil {
					_, _ = fmt.Fprintf(c, "GET /v1/dagrun/%d/state?wait=60s HTTP/1.1\r\nHost: localhost\r\n\r\n", run)
					c.Close()
				}
			}
		})
	}
	began := time.Now()
	took := honest(t, s, least, time.Duration(max(3, scaled(12)))*time.Second)
	cancel()
	hostile.Wait()
	if len(took) < least {
		t.Fatalf("honest clients got %d answers in %v, want %d", len(took), time.Since(began), least)
	}
	slices.Sort(took)
	peak := peakMemory(t, s.PID())
	t.Logf("%d requests of honest clients, p50 %v, p99 %v; the server took %d MB at the peak",
		len(took), took[len(took)/2], took[len(took)*99/100], peak>>20)
	if peak >= 1<<30 && !e2etest.Race { // the race detector takes several times as much itself
		t.Errorf("the server took %d MB at the peak, want less than 1 GB", peak>>20)
	}
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Noop("")}))
}

// honest submits and looks at runs from another address, for some time and until it has
// got some answers, but not for ever. It returns how long each request took.
func honest(t *testing.T, s *e2etest.Server, answers int, atLeast time.Duration) (took []time.Duration) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	transport := &http.Transport{DialContext: dialer.DialContext}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: e2etest.Patience}
	doc := e2etest.Body(t, e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Noop("")}))
	for begin := time.Now(); time.Since(begin) < atLeast || len(took) < answers && time.Since(begin) < 2*e2etest.Patience; {
		for _, path := range []string{"POST /v1/dagrun", "GET /v1/dagrun/0/state", "GET /v1/dagruns?limit=10", "GET /ready"} {
			method, path, _ := strings.Cut(path, " ")
			req, err := http.NewRequest(method, s.URL+path, strings.NewReader(doc))
			if err != nil {
				t.Fatal(err)
			}
			if method == "GET" {
				req.Body = http.NoBody
				req.ContentLength = 0
			}
			req.Header.Set("Content-Type", "application/json")
			began := time.Now()
			resp, err := client.Do(req)
			if err != nil {
				t.Errorf("%s %s: %v", method, path, err)
				return took
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Errorf("%s %s: %d %s", method, path, resp.StatusCode, body)
			}
			took = append(took, time.Since(began))
		}
	}
	return took
}

// packed is text, n times a byte, and more text, compressed.
func packed(t *testing.T, coding, before string, fill byte, n int, after string) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser = gzip.NewWriter(&b)
	if coding == "zstd" {
		var err error
		if w, err = zstd.NewWriter(&b, zstd.WithWindowSize(1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = io.WriteString(w, before)
	part := bytes.Repeat([]byte{fill}, 1<<20)
	for ; n > 0; n -= len(part) {
		_, _ = w.Write(part[:min(n, len(part))])
	}
	_, _ = io.WriteString(w, after)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// peakMemory is the most memory that a process has had, in bytes.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		t.Skip("this kernel does not tell the peak of a process's memory")
	}
	kb, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}
