package http

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
	"github.com/klauspost/compress/zstd"
)

// longSpec is a sound spec of at least so many bytes.
func longSpec(size int) string {
	var b strings.Builder
	b.WriteString(`{"tag":"long","tasks":{`)
	for i := 0; b.Len() < size; i++ {
		fmt.Fprintf(&b, `"task-%07d":{"job":{"command":["/usr/bin/python3","simulate.py","--input","/data/part-%07d.parquet"],"cores":"1"}},`+"\n", i, i)
	}
	b.WriteString(`"last":{"job":{"command":["x"]}}}}`)
	return b.String()
}

// serveLong serves with a folder for long bodies, which must be empty in the end.
func serveLong(t *testing.T, e Engine, change ...func(*Config)) *service {
	t.Helper()
	dir := t.TempDir()
	s := serve(t, e, append(change, func(c *Config) { c.Spool = dir })...)
	t.Cleanup(func() {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left of long bodies: %v %v", left, err)
		}
		testenv.Eventually(t, "no long body is held", func() bool { return s.longBodies.len() == 0 && len(s.planningTurn) == 0 })
	})
	return s
}

// TestLongBodies arrive as they were sent, whichever way.
func TestLongBodies(t *testing.T) {
	e := &fakeEngine{}
	spared := 0
	s := serveLong(t, e, func(c *Config) {
		c.LowerGCPressure = func() func() { spared++; return func() { spared-- } }
	})
	doc := longSpec(longBodyBytes + 1)
	zw, err := zstd.NewWriter(nil, zstd.WithWindowSize(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer zw.Close()
	requests := [][]string{{}, {"Content-Encoding: gzip"}, {"Content-Encoding: zstd"}, {"Idempotency-Key: k", "Content-Encoding: gzip"}, {"Idempotency-Key: k"}}
	runs := len(requests) - 1 // the last one repeats its key
	if testing.Short() {
		requests = [][]string{{}, {"Idempotency-Key: k", "Content-Encoding: gzip"}}
		runs = len(requests)
	}
	for i, headers := range requests {
		body, run := doc, min(i, runs-1)
		for _, h := range headers {
			switch h {
			case "Content-Encoding: gzip":
				body = packed(t, doc)
			case "Content-Encoding: zstd":
				body = string(zw.EncodeAll([]byte(doc), nil))
			}
		}
		if r := s.do("POST", "/v1/dagrun", body, headers...); r.status != 200 || r.body != fmt.Sprintf(`{"runID":%d}`, run) {
			t.Fatalf("%v: %d %s", headers, r.status, r.body)
		}
		if got := e.submitted[run]; string(got.Body) != doc || got.Plan.Tag != "long" || got.At == 0 {
			t.Errorf("%v: %d bytes of %d came, tag %q", headers, len(got.Body), len(doc), got.Plan.Tag)
		}
	}
	if r := s.do("POST", "/v1/dagrun", doc+" ", "Idempotency-Key: k"); r.status != 422 {
		t.Errorf("another document under a key: %d %s", r.status, r.body)
	}
	if r := s.do("POST", "/v1/dagrun/validate", doc); r.status != 200 || r.body != `{"valid":true}` {
		t.Errorf("validate: %d %s", r.status, r.body)
	}
	if len(e.submitted) != runs || spared != 0 {
		t.Errorf("%d submitted, spared %d times too often", len(e.submitted), spared)
	}
	// An answered document cannot be opened again.
	if _, err := e.submitted[0].Long.Open(); !errors.Is(err, errBodyReleased) {
		t.Errorf("opened afterwards: %v", err)
	}
}

// TestLongBodiesThatAreRefused: a refused body is removed, and the next one is accepted.
func TestLongBodiesThatAreRefused(t *testing.T) {
	e := &fakeEngine{}
	limit := int64(longBodyBytes + 2<<20)
	s := serveLong(t, e, func(c *Config) { c.MaxBody = limit })
	sound := longSpec(longBodyBytes + 1)
	tooLong := longSpec(int(limit) + 1)
	cases := []struct {
		status  int
		body    string
		say     string
		headers []string
	}{
		{400, strings.Replace(sound, `"x"`, `"{{X}}"`, 1), `unknown parameter \"X\"`, nil},
		{400, sound[:len(sound)-1], "the document ends too early", nil},
		{400, strings.Replace(sound, `"last"`, `"last"x`, 1), "invalid JSON at line", nil},
		{413, tooLong, "at most 6291456 bytes", nil},
		{413, packed(t, tooLong), "at most 6291456 bytes when decompressed", []string{"Content-Encoding: gzip"}},
		{400, packed(t, sound)[:40_000], "the body is not valid gzip", []string{"Content-Encoding: gzip"}},
		{415, sound, "is not supported", []string{"Content-Encoding: br"}},
	}
	paths := []string{"/v1/dagrun", "/v1/dagrun/validate"}
	if testing.Short() {
		cases, paths = cases[3:], paths[:1]
	}
	for _, c := range cases {
		for _, path := range paths {
			if r := s.do("POST", path, c.body, c.headers...); r.status != c.status || !strings.Contains(r.body, c.say) {
				t.Errorf("%s of %d bytes %v: %d %.300s, want %d %s", path, len(c.body), c.headers, r.status, r.body, c.status, c.say)
			}
		}
	}
	// Too long without having said so, and broken off.
	const head = "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\n"
	_, r := s.raw(head + "Transfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(tooLong), tooLong))
	refusedWith(t, s.answerTo(r), 413, "at most 6291456 bytes")
	c, r := s.raw(head + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(sound)+1, sound))
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, s.answerTo(r), 400, "incomplete")
	_, r = s.raw(head + fmt.Sprintf("Content-Length: %d\r\n\r\n{", limit+1)) // one byte of it has arrived
	refusedWith(t, s.answerTo(r), 413, "at most 6291456 bytes")
	e.mu.Lock()
	e.fail = map[string]error{"AcceptsRuns": &messages.Error{Code: messages.Unavailable, Text: "disk is nearly full"}}
	e.mu.Unlock()
	if r := s.do("POST", "/v1/dagrun", sound); r.status != 503 || !strings.Contains(r.body, "disk is nearly full") {
		t.Errorf("on a full disk: %d %s", r.status, r.body)
	}
	e.mu.Lock()
	e.fail, e.healthy = nil, errors.New("the worker does not answer") // new runs are accepted then
	e.mu.Unlock()
	if r := s.do("POST", "/v1/dagrun", sound); r.status != 200 || len(e.submitted) != 1 {
		t.Errorf("a sound one: %d %s", r.status, r.body)
	}
}

// TestSlowLongBodies: slow bodies neither hold memory nor delay others; beyond a
// number of them they are refused.
func TestSlowLongBodies(t *testing.T) {
	s := serveLong(t, &fakeEngine{})
	body := strings.Repeat(" ", 3<<19)
	var conns []net.Conn
	begin := func(last byte) { // from the loopback address that ends so
		from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, last)}}
		c, err := from.Dial("tcp", s.addr)
		if err != nil {
			t.Skipf("no second loopback address: %v", err)
		}
		conns = append(conns, c)
		if _, err := fmt.Fprintf(c, "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", 4*longBodyBytes, body); err != nil {
			t.Fatal(err)
		}
	}
	for i := range maxLongBodies {
		begin(byte(2 + i/maxLongBodiesOfClient))
		testenv.Eventually(t, "it is being received", func() bool { return s.longBodies.len() == i+1 })
		if i == maxLongBodiesOfClient-1 { // all that this client may have
			begin(2)
			refusedWith(t, s.answerTo(bufio.NewReader(conns[len(conns)-1])), 429, "too many large bodies of this client at a time: at most 8")
		}
	}
	var m runtime.MemStats
	testenv.Eventually(t, "they hold no memory", func() bool {
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc < maxLongBodies<<19
	})
	if r := s.do("POST", "/v1/dagrun", `{"tasks":{"a":{"job":{"command":["x"]}}}}`); r.status != 200 {
		t.Errorf("a small one beside them: %d %s", r.status, r.body)
	}
	if r := s.do("POST", "/v1/dagrun", longSpec(longBodyBytes+1)); r.status != 503 || !strings.Contains(r.body, "too many large bodies") {
		t.Errorf("one more: %d %s", r.status, r.body)
	}
	for _, c := range conns {
		c.Close()
	}
}

// TestLongBodiesTakeTurns: one is planned and submitted while the next one waits.
func TestLongBodiesTakeTurns(t *testing.T) {
	inside, leave := make(chan struct{}), make(chan struct{})
	e := &fakeEngine{hook: func(method string) {
		if method == "Submit" {
			inside <- struct{}{}
			<-leave
		}
	}}
	s := serveLong(t, e)
	doc := longSpec(longBodyBytes + 1)
	answers := make(chan reply, 3)
	for range 3 {
		go func() { answers <- s.do("POST", "/v1/dagrun", doc) }()
	}
	for range 3 {
		<-inside
		select {
		case <-inside:
			t.Error("two at a time")
		default:
		}
		leave <- struct{}{}
		if r := <-answers; r.status != 200 {
			t.Errorf("%d %s", r.status, r.body)
		}
	}
}

func TestCreateUnnamed(t *testing.T) {
	dir := t.TempDir()
	f, err := createUnnamed(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v %v", left, err)
	}
	if _, err := f.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	back := make([]byte, 1)
	if n, err := f.ReadAt(back, 0); n != 1 || err != nil || !bytes.Equal(back, []byte("x")) {
		t.Errorf("%d %q %v", n, back, err)
	}
	if _, err := createUnnamed(dir + "/nowhere"); err == nil {
		t.Error("a file in no folder")
	}
}
