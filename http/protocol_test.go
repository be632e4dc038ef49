package http

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// TestMalformed sends what no client library would. Each is answered and its
// connection closed, so that the bytes after it are not taken for a request.
func TestMalformed(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	const smuggled = "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: 43\r\n\r\n" + `{"tasks":{"a":{"job":{"executor":"noop"}}}}`
	for _, c := range []struct {
		status int
		text   string
	}{
		{400, "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled},
		{400, "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\n" + smuggled},
		{400, "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" + smuggled},
		{400, "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n" + smuggled},
		{400, "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: -1\r\n\r\n" + smuggled},
		{400, "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: 1e1\r\n\r\n" + smuggled},
		{400, "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: +6\r\n\r\n" + smuggled},
		{400, "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nTransfer-Encoding: identity\r\n\r\n" + smuggled},
		{400, "GET /v1/dagruns HTTP/1.1\r\nHost: c\r\ntransfer-encoding: identity\r\n\r\n" + smuggled},
		{400, "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nTransfer-Encoding: gzip\r\n\r\n" + smuggled},
		{400, "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked, chunked\r\n\r\n" + smuggled},
		{400, "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + smuggled},
		{400, "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nTransfer-Encoding : chunked\r\n\r\n" + smuggled},
		{413, "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n" + smuggled},
		{413, "DELETE /v1/dagrun/0 HTTP/1.1\r\nHost: c\r\nContent-Length: 1048577\r\n\r\n" + smuggled},
		{431, "GET /ready HTTP/1.1\r\nHost: c\r\n" + strings.Repeat("X: y\r\n", 5000) + "\r\n"},
		{431, "GET /" + strings.Repeat("x", 100_000) + " HTTP/1.1\r\nHost: c\r\n\r\n"},
		{400, "GET\r\n\r\n"},
		{505, "GET /ready HTTP/9.9\r\nHost: c\r\n\r\n"},
		{400, "GET /ready HTTP/1.1\r\nno colon here\r\n\r\n"},
		{400, "GET /ready HTTP/1.1\r\nHost: c\r\nHost: d\r\n\r\n"},
		{400, "GET /a b HTTP/1.1\r\nHost: c\r\n\r\n"},
		{400, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"},
	} {
		t.Run(quoteInput(c.text[:min(len(c.text), 120)]), func(t *testing.T) {
			_, r := s.raw(c.text)
			got := s.answerTo(r)
			want := ""
			if strings.Contains(c.text, "Length: 6\r\nTransfer") || strings.Contains(c.text, "length: 6") {
				want = "both Content-Length and Transfer-Encoding"
			}
			refusedWith(t, got, c.status, want)
			if got := got.header.Get("Cross-Origin-Resource-Policy"); got != "same-origin" {
				t.Errorf("Cross-Origin-Resource-Policy: %q", got)
			}
			if !got.close {
				t.Errorf("the connection stays: %v", got.header)
			}
			if rest, _ := io.ReadAll(r); len(rest) != 0 {
				t.Errorf("then came %q", rest)
			}
		})
	}
	if len(e.submitted) != 0 {
		t.Errorf("%d requests were smuggled", len(e.submitted))
	}
}

func TestTargets(t *testing.T) {
	s := serve(t, contractEngine(t))
	for target, status := range map[string]int{
		"//ready":                             404,
		"/./ready":                            404,
		"/v1//dagruns":                        404,
		"/%72eady":                            404, // escapes are for parameters
		"/ready#x":                            400,
		"/v1/dagrun/0/task/simple_0#":         400,
		"http://elsewhere/ready":              200, // absolute form
		"/ready?":                             200,
		"/v1/dagrun/%30/state":                200,
		"/v1/dagrun/0/task/%73imple_0/state":  200,
		"/v1/dagrun/0/task/simple_0/../state": 404,
		"/v1/dagruns?state=RUNNING,QUEUED&":   200,
	} {
		_, r := s.raw("GET " + target + " HTTP/1.1\r\nHost: c\r\n\r\n")
		if got := s.answerTo(r); got.status != status {
			t.Errorf("%s: %d, want %d: %s", target, got.status, status, got.body)
		}
	}
}

// TestNamesAreUnescapedOnce: every name that a task may have can be asked for.
func TestNamesAreUnescapedOnce(t *testing.T) {
	e := &fakeEngine{}
	e.add(t, `{"tasks":{"..":{"job":{"command":["a"]}},"a/../b":{"job":{"command":["b"]}},"a%2Fb":{"job":{"command":["c"]}},`+
		`"a+b c?":{"job":{"command":["d"]}},"ü":{"job":{"command":["e"]}},"validate":{"job":{"command":["f"]}},"state":{"job":{"command":["g"]}}}}`, 1, 2)
	s := serve(t, e)
	for escaped, command := range map[string]string{
		"%2E%2E": "a", "..": "a", "a%2F..%2fb": "b", "a%252Fb": "c", "a+b%20c%3F": "d", "%C3%BC": "e", "validate": "f", "state": "g",
	} {
		_, r := s.raw("GET /v1/dagrun/0/task/" + escaped + " HTTP/1.1\r\nHost: c\r\n\r\n")
		if got := s.answerTo(r); !strings.Contains(got.body, `"command":["`+command+`"]`) {
			t.Errorf("%s: %d %s", escaped, got.status, got.body)
		}
		if got := s.do("DELETE", "/v1/dagrun/0/task/"+escaped, ""); got.status != 200 {
			t.Errorf("DELETE %s: %d %s", escaped, got.status, got.body)
		}
	}
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	s := serve(t, contractEngine(t))
	var b strings.Builder
	for i := range 50 {
		fmt.Fprintf(&b, "GET /v1/dagrun/%d/state HTTP/1.1\r\nHost: c\r\n\r\n", i%5)
	}
	_, r := s.raw(b.String())
	for i := range 50 {
		want := 200
		if i%5 == 4 {
			want = 404
		}
		if got := s.answerTo(r); got.status != want {
			t.Fatalf("answer %d: %d", i, got.status)
		}
	}
}

// TestPartialRequests: a client that stops in the middle of a request, or announces more than it
// sends, is answered when it closes its side, and its connection is released.
func TestPartialRequests(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	whole := fmt.Sprintf("POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(contractSpec)+1, contractSpec)
	for cut := 1; cut <= len(whole); cut += 40 {
		c, r := s.raw(whole[:cut])
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(r)
		if err != nil || len(answer) > 0 && !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
			t.Fatalf("after %d bytes: %q, %v", cut, answer, err)
		}
	}
	// All of the content without its last chunk, and a part that ends with a chunk. The same on both ways of a body.
	for path, kind := range map[string]string{"/v1/dagrun": "application/json", "/v1/dagruns": linesType} {
		for _, content := range []string{specOf("x"), specOf("x")[:20]} {
			c, r := s.raw("POST " + path + chunked + kind + "\r\n\r\n" + strings.TrimSuffix(inChunks(content, 10, ""), "0\r\n"))
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got := s.answerTo(r); got.status != 400 || !strings.Contains(got.body, "incomplete") {
				t.Errorf("%s, %d bytes in chunks: %d %s", path, len(content), got.status, got.body)
			}
		}
	}
	// A half-close after a complete request: answered.
	c, r := s.raw("GET /v1/dagrun/0 HTTP/1.1\r\nHost: c\r\n\r\n")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := s.answerTo(r); got.status != 200 || got.err != nil {
		t.Errorf("half-closed: %d %v", got.status, got.err)
	}
	if len(e.submitted) != 0 {
		t.Errorf("a part was taken for a submission")
	}
	testenv.Eventually(t, "the connections are gone", func() bool { return s.connections() == 0 })
}

// TestSlowRequests: header and body must arrive in time.
func TestSlowRequests(t *testing.T) {
	for _, text := range []string{
		"POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
		"GET /ready HTT",
	} {
		refusedInTime(t, text)
	}
	s := serve(t, contractEngine(t), func(c *Config) { c.ReadTimeout = 50 * time.Millisecond })
	large := s.requestLimits(&Entrance{}, headerOf(t, "POST / HTTP/1.1\r\nHost: c\r\nContent-Length: 33554432\r\n\r\n"))
	if want := 512*time.Second + 50*time.Millisecond; large.ReadTimeout != want {
		t.Errorf("a body of 32 MiB may take %v, want %v", large.ReadTimeout, want)
	}
}

// refusedInTime requires that the time of a request ends that does not arrive as a whole. A connection on
// which not even a first byte is read in time ends without an answer.
func refusedInTime(t *testing.T, text string, change ...func(*Config)) {
	t.Helper()
	testenv.WithGrowingTime(t, 50*time.Millisecond, func(limit time.Duration) error {
		s := serve(t, contractEngine(t), append(change, func(c *Config) { c.ReadTimeout = limit })...)
		_, r := s.raw(text)
		if _, err := r.Peek(1); err != nil {
			return err
		}
		refusedWith(t, s.answerTo(r), 408, "did not arrive in time")
		return nil
	})
}

// TestIdleConnectionEnds without a word.
func TestIdleConnectionEnds(t *testing.T) {
	testenv.WithGrowingTime(t, 50*time.Millisecond, func(limit time.Duration) error {
		s := serve(t, contractEngine(t), func(c *Config) { c.IdleTimeout = limit })
		_, r := s.raw("GET /ready HTTP/1.1\r\nHost: c\r\n\r\n")
		if _, err := r.Peek(1); err != nil {
			return err // it took longer to come
		}
		if got := s.answerTo(r); got.status != 200 {
			t.Errorf("status %d", got.status)
		}
		if rest, err := io.ReadAll(r); err != nil || len(rest) != 0 {
			t.Errorf("%q %v", rest, err)
		}
		return nil
	})
}

// TestIdleConnections: a thousand silent connections do not harm others.
func TestIdleConnections(t *testing.T) {
	s := serve(t, contractEngine(t))
	for range 300 {
		s.raw("")
	}
	testenv.Eventually(t, "all are accepted", func() bool { return s.connections() == 300 })
	if r := s.get("/ready"); r.status != 200 {
		t.Errorf("status %d", r.status)
	}
}

// TestAnnouncedLength: a client that only announces a large body costs little.
func TestAnnouncedLength(t *testing.T) {
	s := serve(t, contractEngine(t))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 50 {
		s.raw("POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: 67108864\r\n\r\n" + strings.Repeat(" ", 10_000))
	}
	testenv.Eventually(t, "all are being read", func() bool { return s.inflight.Load() == 50 })
	runtime.ReadMemStats(&after)
	if grown := (after.TotalAlloc - before.TotalAlloc) >> 20; grown > 100 {
		t.Errorf("%d MiB for 50 clients", grown)
	}
	s.conns.close(true)
}

// TestAnnouncedBodiesAreCounted: the buffer of a body counts before its bytes arrive, so that clients
// which only announce bodies stay within the memory for bodies.
func TestAnnouncedBodiesAreCounted(t *testing.T) {
	s := serve(t, contractEngine(t))
	// fasthttp waits for the first 8 KiB itself.
	announced := fmt.Sprintf("POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", maxOtherBody, strings.Repeat(" ", 10_000))
	for i, head := range []string{
		announced,
		"POST /v1/dagruns HTTP/1.1\r\nHost: c\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
	} {
		held := s.bodies.inUse()
		s.raw(head)
		want := []int64{maxOtherBody, lineBuffer}[i]
		testenv.Eventually(t, "its buffer is counted", func() bool { return s.bodies.inUse() >= held+want })
	}
	s.bodies.mu.Lock()
	s.bodies.limit = maxOtherBody
	s.bodies.mu.Unlock()
	_, r := s.raw(announced)
	refusedWith(t, s.answerTo(r), 503, "too many bytes")
	s.conns.close(true)
	testenv.Eventually(t, "all is given back", func() bool { return s.bodies.inUse() == 0 })
}

// TestSlowChunkedBody: a body in chunks has the time that an announced one of its length has, in memory
// and in a file. One that stops arriving is given up.
func TestSlowChunkedBody(t *testing.T) {
	for _, size := range []int{0, longBodyBytes} {
		testenv.WithGrowingTime(t, 150*time.Millisecond, func(timeout time.Duration) error {
			return sendSlowly(t, size+(4+3*int(timeout/time.Second))*minBodyRate, timeout)
		})
	}
	refusedInTime(t, chunkedHead+"1\r\n{\r\n")
}

const chunkedHead = "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"

// sendSlowly returns an error when not even the beginning of the body is read within timeout.
func sendSlowly(t *testing.T, size int, timeout time.Duration) error {
	e := &fakeEngine{}
	s := serveLong(t, e, func(c *Config) { c.ReadTimeout = timeout })
	c, r := s.raw("")
	if _, err := fmt.Fprintf(c, "%s%x\r\n%s\r\n", chunkedHead, size, strings.Repeat(" ", size)); err != nil {
		return err
	}
	<-time.After(3 * timeout) // longer than the timeout, shorter than size / minBodyRate
	if _, err := fmt.Fprintf(c, "%x\r\n%s\r\n0\r\n\r\n", len(contractSpec), contractSpec); err != nil {
		return err
	}
	if _, err := r.Peek(1); err != nil {
		return err
	}
	if got := s.answerTo(r); got.body != `{"runID":0}` {
		return fmt.Errorf("%d bytes: %d %s", size, got.status, got.body)
	}
	return nil
}

// TestChunkedBodies are read to their end, and to their limit.
func TestChunkedBodies(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e, func(c *Config) { c.MaxBody = 5000 })
	const head = chunkedHead
	_, r := s.raw(fmt.Sprintf("%s5\r\n     \r\n%x\r\n%s\r\n0\r\n\r\nGET /ready HTTP/1.1\r\nHost: c\r\n\r\n", head, len(contractSpec), contractSpec))
	if got := s.answerTo(r); got.body != `{"runID":0}` || string(e.submitted[0].Body) != "     "+contractSpec {
		t.Error(got)
	}
	if got := s.answerTo(r); got.status != 200 {
		t.Errorf("the request behind it: %d", got.status)
	}
	_, r = s.raw(head + strings.Repeat(fmt.Sprintf("3e8\r\n%s\r\n", strings.Repeat(" ", 1000)), 6) + "0\r\n\r\n")
	refusedWith(t, s.answerTo(r), 413, "at most 5000 bytes")
	c, r := s.raw(head + "3e8\r\nxx")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, s.answerTo(r), 400, "incomplete")
}

func TestExpectContinue(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	c, r := s.raw(fmt.Sprintf("POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", len(contractSpec)))
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 100 {
		t.Fatal(resp, err)
	}
	if _, err := io.WriteString(c, contractSpec); err != nil {
		t.Fatal(err)
	}
	if got := s.answerTo(r); got.body != `{"runID":0}` {
		t.Error(got)
	}
}

func TestHTTP10(t *testing.T) {
	s := serve(t, contractEngine(t))
	_, r := s.raw("GET /v1/dagrun/0/state HTTP/1.0\r\n\r\n")
	text, err := io.ReadAll(bufio.NewReader(r))
	if err != nil || !strings.HasSuffix(string(text), `{"state":"COMPLETED"}`) {
		t.Errorf("%q %v", text, err)
	}
}

// TestHTTP10Streams: a client of HTTP/1.0 gets every answer without chunks, a streamed one
// ends with the connection; it is the same answer as that of HTTP/1.1.
func TestHTTP10Streams(t *testing.T) {
	e := contractEngine(t)
	long := messagesRun(t, e)
	s := serve(t, e)
	lines := strings.Repeat(`{"tasks":{"a":{"job":{"command":["x"]}}}}`+"\n", 5000)
	for _, c := range []struct{ method, target, body, kind string }{
		{"GET", long, "", ""},
		{"GET", long + "/tasks?limit=3000", "", ""},
		{"GET", long + "/events?tasks=0", "", ""},
		{"GET", "/v1/dagruns?all=1", "", ""},
		{"GET", "/v1/dagrun/0", "", ""},
		{"GET", "/metrics", "", ""},
		{"POST", "/v1/dagruns", lines, linesType},
		{"GET", "/v1/dagrun/99", "", ""},
		{"HEAD", long, "", ""},
	} {
		ask := func(version string) (reply, string) {
			text := c.method + " " + c.target + " HTTP/" + version + "\r\nHost: c\r\n"
			if c.body != "" {
				text += "Content-Type: " + c.kind + "\r\nContent-Length: " + strconv.Itoa(len(c.body)) + "\r\n"
			}
			if version == "1.1" {
				text += "Connection: close\r\n"
			}
			_, r := s.raw(text + "\r\n" + c.body)
			all, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(all)), &http.Request{Method: c.method})
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			head, _, _ := strings.Cut(string(all), "\r\n\r\n")
			return reply{resp.StatusCode, resp.Header, string(b), err, resp.Close}, head
		}
		old, head := ask("1.0")
		now, _ := ask("1.1")
		if c.target != "/metrics" && c.method != "POST" && old.body != now.body || old.status != now.status || old.err != nil {
			t.Errorf("%s %s: %d bytes with status %d (%v), by HTTP/1.1 %d with %d", c.method, c.target, len(old.body), old.status, old.err, len(now.body), now.status)
		}
		if c.method == "POST" && strings.Count(old.body, `{"runID":`) != 5000 {
			t.Errorf("the answer to 5,000 lines: %.200q…", old.body)
		}
		if strings.Contains(strings.ToLower(head), "transfer-encoding") || !old.close {
			t.Errorf("%s %s: the connection stays or the answer is in chunks:\n%s", c.method, c.target, head)
		}
		if ct := old.header.Get("Content-Type"); ct != now.header.Get("Content-Type") || ct == "" || old.header.Get("Date") == "" {
			t.Errorf("%s %s: %v", c.method, c.target, old.header)
		}
	}
	_, r := s.raw("GET /ready HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /ready HTTP/1.0\r\n\r\n")
	if got := s.answerTo(r); got.status != 200 || got.header.Get("Connection") != "keep-alive" {
		t.Errorf("keep-alive: %d %v", got.status, got.header)
	}
	if got := s.answerTo(r); got.status != 200 || !got.close {
		t.Errorf("and then: %d %v", got.status, got.header)
	}
}

// messagesRun adds a run whose document is streamed, and returns its path.
func messagesRun(t *testing.T, e *fakeEngine) string {
	e.add(t, manySpec(3000), dag.RunCompleted, dag.TaskCompleted)
	return "/v1/dagrun/" + strconv.Itoa(len(e.runs)-1)
}

// TestHTTP10BreaksOff: a plain body that breaks off ends with a reset, not as if it
// were whole.
func TestHTTP10BreaksOff(t *testing.T) {
	e := contractEngine(t)
	long := messagesRun(t, e)
	e.fail = map[string]error{"Attempts": errors.New("storage failed")}
	s := serve(t, e)
	_, r := s.raw("GET " + long + " HTTP/1.0\r\n\r\n")
	all, err := io.ReadAll(r)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%d bytes, then %v", len(all), err)
	}
}

// TestHTTP10BreaksOffOverTLS without the closing message of TLS, which is the end of a complete answer.
func TestHTTP10BreaksOffOverTLS(t *testing.T) {
	withCertificate := httptest.NewTLSServer(nil)
	defer withCertificate.Close()
	e := contractEngine(t)
	long := messagesRun(t, e)
	e.fail = map[string]error{"Attempts": errors.New("storage failed")}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := serveOn(t, &Entrance{Listener: l, TLS: &tls.Config{Certificates: withCertificate.TLS.Certificates}}, e)
	plain, _ := s.raw("")
	c := tls.Client(plain, &tls.Config{InsecureSkipVerify: true})
	if _, err := io.WriteString(c, "GET "+long+" HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(c)
	if err == nil {
		t.Errorf("%d bytes, then the end of a complete answer", len(all))
	}
}

// TestHTTP10BatchBreaksOff: the same when the body of a batch does not arrive, while its client may still
// be sending (drainOnClose).
func TestHTTP10BatchBreaksOff(t *testing.T) {
	t.Run("time", func(t *testing.T) {
		testenv.WithGrowingTime(t, 200*time.Millisecond, func(limit time.Duration) error {
			return breakBatchOff(t, func(c *Config) { c.ReadTimeout = limit }, func(*service) {})
		})
	})
	t.Run("shutdown", func(t *testing.T) {
		endService := func(s *service) { s.endService() } // the first step of Shutdown
		if err := breakBatchOff(t, func(*Config) {}, endService); err != nil {
			t.Error(err)
		}
	})
}

// breakBatchOff returns an error when the batch ends before its first answer.
func breakBatchOff(t *testing.T, change func(*Config), end func(*service)) error {
	s := serve(t, contractEngine(t), change)
	lines := strings.Repeat(specOf("0")+"\n", 300)
	_, r := s.raw("POST /v1/dagruns HTTP/1.0\r\nHost: c\r\nContent-Type: " + linesType + "\r\nContent-Length: 5000000\r\n\r\n" + lines)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		if strings.HasPrefix(line, `{"runID":`) {
			break
		}
	}
	end(s)
	if all, err := io.ReadAll(r); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%d bytes more, then %v", len(all), err)
	}
	return nil
}

const chunked = " HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\nContent-Type: "

// inChunks sends text in chunks of so many bytes, each with an extension.
func inChunks(text string, size int, extension string) string {
	var b strings.Builder
	for len(text) > 0 {
		n := min(size, len(text))
		fmt.Fprintf(&b, "%x%s\r\n%s\r\n", n, extension, text[:n])
		text = text[n:]
	}
	return b.String() + "0\r\n"
}

// TestChunkedBodiesAreAccepted in any pieces, with extensions and trailers.
func TestChunkedBodiesAreAccepted(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	sum := 0
	for name, body := range map[string]string{
		"one":             inChunks(contractSpec, len(contractSpec), ""),
		"bytes":           inChunks(contractSpec, 1, ""),
		"extensions":      inChunks(contractSpec, 64, ";name=value;other=\"quoted\""),
		"bytes, extended": inChunks(contractSpec, 1, ";a=b"),
		"a long one":      inChunks(contractSpec, len(contractSpec), ";a="+strings.Repeat("x", 4<<10)),
	} {
		sum++
		_, r := s.raw("POST /v1/dagrun" + chunked + "application/json\r\n\r\n" + body + "X-Sum: x\r\n\r\n" + getRequest("/ready"))
		if got := s.answerTo(r); got.status != 200 || got.close {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		if got := s.answerTo(r); got.status != 200 {
			t.Errorf("%s: the next request: %d %s", name, got.status, got.body)
		}
	}
	large := `{"tasks":{"a":{"job":{"command":["x"],"pad":"` + strings.Repeat("x", 6<<20) + `"}}}}`
	small := 16
	if testing.Short() {
		small = 512
	}
	for _, size := range []int{small, 1 << 20, len(large)} {
		sum++
		_, r := s.raw("POST /v1/dagrun" + chunked + "application/json\r\n\r\n" + inChunks(large, size, ";x") + "\r\n")
		if got := s.answerTo(r); got.status != 200 {
			t.Errorf("6 MiB in chunks of %d: %d %s", size, got.status, got.body)
		}
	}
	if len(e.submitted) != sum {
		t.Errorf("%d runs, want %d", len(e.submitted), sum)
	}
}

// TestFramingIsBounded: reading stops at a body with more framing than content, in every reader:
// long extensions, many of them, and trailers. Nothing of it is taken.
func TestFramingIsBounded(t *testing.T) {
	endless := strings.Repeat("x", 1<<20)
	for name, c := range map[string]struct {
		begin, on string
		status    int
	}{
		"an extension": {"POST /v1/dagrun" + chunked + "application/json\r\n\r\n1;x=", endless, 400},
		"an extension behind content": {"POST /v1/dagrun" + chunked + "application/json\r\n\r\n" +
			fmt.Sprintf("%x\r\n%s\r\n1;x=", 256<<10, strings.Repeat(" ", 256<<10)), endless, 400},
		"extensions":                   {"POST /v1/dagrun" + chunked + "application/json\r\n\r\n", strings.Repeat("1;x="+strings.Repeat("y", 2000)+"\r\n \r\n", 500), 400},
		"an extension in lines":        {"POST /v1/dagruns" + chunked + linesType + "\r\n\r\n1;x=", endless, 400},
		"extensions in lines":          {"POST /v1/dagruns" + chunked + linesType + "\r\n\r\n", strings.Repeat("1;x="+strings.Repeat("y", 2000)+"\r\n \r\n", 500), 400},
		"an extension nobody reads":    {"POST /v1/dagrun" + chunked + "text/plain\r\n\r\n1;x=", endless, 415},
		"an extension of nothing":      {"DELETE /v1/dagrun/9" + chunked + "application/json\r\n\r\n1;x=", endless, 404},
		"a trailer":                    {"POST /v1/dagrun" + chunked + "application/json\r\n\r\n" + inChunks(contractSpec, 64, "") + "X: ", endless, 431},
		"trailers":                     {"POST /v1/dagrun" + chunked + "application/json\r\n\r\n" + inChunks(contractSpec, 64, ""), strings.Repeat("X: y\r\n", 200_000), 431},
		"a trailer that is no trailer": {"POST /v1/dagrun" + chunked + "application/json\r\n\r\n" + inChunks(contractSpec, 64, "") + "Authorization: Bearer x\r\n\r\n", "", 400},
	} {
		t.Run(name, func(t *testing.T) {
			e := contractEngine(t)
			s := serve(t, e, func(c *Config) { c.ReadTimeout = 10 * time.Second })
			nc, r := s.raw(c.begin)
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for n := 0; n < 64 && c.on != ""; n++ { // then it waits for its answer in vain
					if _, err := io.WriteString(nc, c.on); err != nil {
						return
					}
				}
			}()
			got := s.answerTo(r)
			text := ""
			if c.status == 400 && c.on != "" {
				text = "extensions that are too long"
			}
			refusedWith(t, got, c.status, text)
			if rest, _ := io.ReadAll(r); len(rest) != 0 {
				t.Errorf("then came %.100q", rest)
			}
			nc.Close()
			<-sent
			if len(e.submitted) != 0 {
				t.Errorf("%d runs", len(e.submitted))
			}
		})
	}
}
