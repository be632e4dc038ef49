package http

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/testenv"
)

func TestBudgetShare(t *testing.T) {
	b := &bodyBudget{limit: 8 << 20, perClient: 8 << 20, clients: map[clientKey]int64{}}
	large, small, tiny := budgetShare{budget: b}, budgetShare{budget: b}, budgetShare{budget: b}
	if large.resize(6<<20+1) != errBudgetSpent || b.inUse() != 0 {
		t.Error("a large body takes the last quarter")
	}
	if large.resize(6<<20) != nil || small.resize(largeBodyBytes) != nil || small.resize(largeBodyBytes) != nil {
		t.Error("there is room")
	}
	if _ = large.resize(6<<20 + 1); large.bytes != 6<<20 {
		t.Errorf("a share that could not grow is %d", large.bytes)
	}
	other := budgetShare{budget: b}
	if other.resize(largeBodyBytes) != nil || (&budgetShare{budget: b, client: clientKey{uid: 7}}).resize(uncountedBytes+1) != errBudgetSpent {
		t.Error("small bodies have the last quarter, and not more")
	}
	if tiny.resize(uncountedBytes) != nil {
		t.Error("a tiny body is not counted")
	}
	for _, h := range []*budgetShare{&large, &small, &tiny, &other} {
		h.release()
		h.release()
	}
	if n := b.inUse(); n != 0 || len(b.clients) != 0 {
		t.Errorf("%d bytes are left, of %v", n, b.clients)
	}
}

// TestBudgetOfOneClient: half for each, more where one may have most connections.
func TestBudgetOfOneClient(t *testing.T) {
	b := newBodyBudget(8<<20, 100, 50)
	one, more, other := budgetShare{budget: b, client: clientKey{uid: 1}}, budgetShare{budget: b, client: clientKey{uid: 1}}, budgetShare{budget: b, client: clientKey{uid: 2}}
	if one.resize(3<<20) != nil || more.resize(1<<20) != nil || more.resize(1<<20+1) != errClientBudgetSpent || one.resize(3<<20+1) != errClientBudgetSpent {
		t.Error("one client has half of it, and not more")
	}
	if other.resize(2<<20) != nil || other.resize(2<<20+1) != errBudgetSpent {
		t.Error("another one has what large bodies may have of the rest")
	}
	one.release()
	if more.resize(2<<20) != nil {
		t.Error("what was given back is there again")
	}
	for ofClient, own := range map[int]int64{1: 4 << 20, 50: 4 << 20, 75: 6 << 20, 100: 8 << 20} {
		if b := newBodyBudget(8<<20, 100, ofClient); b.perClient > own || b.perClient < own-100 {
			t.Errorf("with %d of 100 connections it has %d", ofClient, b.perClient)
		}
	}
	// A client without other bodies may send one line of the maximum length.
	size, most := int64(0), int64(0)
	l := &lineReader{source: zeros{}, limit: maxLineBytes, reserve: func(n int64) error { most = max(most, n); return nil }}
	for ; size <= maxLineBytes && l.readErr == nil; size = int64(len(l.unread)) {
		l.fill()
	}
	if own := newBodyBudget(totalBodyBytes, defaultMaxConns, 1).perClient; most > own || size <= maxLineBytes {
		t.Errorf("a line of %d bytes takes %d, one client has %d", size, most, own)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestBodiesBeyondTheBudgetAreRefused: bodies that arrive slowly stay within the memory for all
// bodies. Small ones are still served, and all memory is given back.
func TestBodiesBeyondTheBudgetAreRefused(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	s.bodies.limit, s.bodies.perClient = 24<<20, 24<<20
	part := strings.Repeat(" ", 3<<20)
	var lines []net.Conn
	refused := func() bool {
		return !strings.Contains(s.get("/metrics").body, "\ncaravan_http_bodies_refused_total 0\n")
	}
	for held := int64(0); !refused(); held = s.bodies.inUse() {
		c, r := s.raw("POST /v1/dagruns HTTP/1.1\r\nHost: c\r\nContent-Type: application/x-ndjson\r\nContent-Length: 99999999\r\n\r\n")
		if _, err := io.WriteString(c, part); err != nil {
			t.Fatal(err)
		}
		// Its memory has grown for the last time when there were between 1.5 and 3 MiB.
		testenv.Eventually(t, "it is held or refused", func() bool { return s.bodies.inUse() >= held+memoryPerByte*3<<19 || refused() })
		if lines = append(lines, c); refused() {
			refusedWith(t, s.answerTo(r), 503, "too many bytes")
		}
	}
	if n := s.bodies.inUse(); len(lines) < 3 || len(lines) > 5 || n > s.bodies.limit {
		t.Errorf("%d lines of 3 MiB took %d bytes", len(lines), n)
	}
	if got := s.do("POST", "/v1/dagrun", contractSpec); got.status != 200 {
		t.Errorf("a small body meanwhile: %d %s", got.status, got.body)
	}
	big := `{"tasks":{"a":{"job":{"command":["x"],"pad":"` + strings.Repeat("x", 3<<20) + `"}}}}`
	refusedWith(t, s.do("POST", "/v1/dagrun", big), 503, "too many bytes")
	for _, c := range lines {
		c.Close()
	}
	testenv.Eventually(t, "all is given back", func() bool { return s.bodies.inUse() == 0 })
	if got := s.do("POST", "/v1/dagrun", big); got.status != 200 {
		t.Errorf("with room again: %d %s", got.status, got.body)
	}
}

// TestBodiesOfOneClientBeyondItsBudgetAreRefused: what one client has under way leaves room for
// the others, and those are served; in a batch the line says so.
func TestBodiesOfOneClientBeyondItsBudgetAreRefused(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	s.bodies.limit, s.bodies.perClient = 64<<20, 16<<20
	big := `{"tasks":{"a":{"job":{"command":["x"],"pad":"` + strings.Repeat("x", 3<<20) + `"}}}}`
	held := budgetShare{budget: s.bodies, client: clientKey{addr: netip.AddrFrom4([4]byte{127, 0, 0, 1})}}
	if err := held.resize(15 << 20); err != nil {
		t.Fatal(err)
	}
	for _, header := range []string{"Content-Type: application/json", "Content-Type: " + linesType} {
		target := map[bool]string{true: batchPath, false: "/v1/dagrun"}[strings.Contains(header, linesType)]
		refusedWith(t, s.do("POST", target, big, header), 429, "requests of this client")
	}
	post := "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(big)) + "\r\n\r\n" + big
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	c, err := from.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, post); err != nil {
		t.Fatal(err)
	}
	if got := s.answerTo(bufio.NewReader(c)); got.status != 200 {
		t.Errorf("another client: %d %s", got.status, got.body)
	}
	held.release()
	if got := s.do("POST", "/v1/dagrun", big); got.status != 200 {
		t.Errorf("with room again: %d %s", got.status, got.body)
	}
	testenv.Eventually(t, "all is given back", func() bool { return s.bodies.inUse() == 0 })
}

// TestRefusedLinesAreBounded: reading stops in a request of invalid lines.
func TestRefusedLinesAreBounded(t *testing.T) {
	s := serve(t, contractEngine(t))
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	lines := 30 << 20
	if testing.Short() {
		lines = 2 << 20
	}
	_, _ = w.Write(bytes.Repeat([]byte{'\n'}, lines))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r := s.do("POST", "/v1/dagruns", b.String(), "Content-Type: "+linesType, "Content-Encoding: gzip")
	answers := strings.Split(strings.TrimSuffix(r.body, "\n"), "\n")
	if r.status != 200 || r.err != nil || len(answers) < maxRefusedLines || len(answers) > maxRefusedLines+maxLinesAtOnce {
		t.Errorf("status %d, %d answers, %v", r.status, len(answers), r.err)
	}
	if last := answers[len(answers)-1]; !strings.Contains(last, "are not read") || !strings.Contains(last, strconv.Itoa(len(answers)-1)+" lines were refused") {
		t.Errorf("the last answer: %s", last)
	}
}

// TestWarnings: an unknown member is reported by submission, batch and
// validation, and refused where the query is strict. Without one the answers are as ever.
func TestWarnings(t *testing.T) {
	const (
		slip    = `{"tasks":{"a":{"job":{"commandString":"true","timeout":3,"retries":2}}}}`
		sound   = `{"tasks":{"a":{"job":{"commandString":"true"}}}}`
		told    = `"warnings":[{"pointer":"/tasks/a/job/timeout","message":"unknown member \"timeout\" is kept and has no effect: did you mean timeoutSeconds?"},`
		refusal = `"errors":[{"pointer":"/tasks/a/job/timeout","message":"unknown member \"timeout\"`
	)
	long := strings.Replace(slip, `"timeout"`, `"pad":"`+strings.Repeat("x", longBodyBytes)+`","timeout"`, 1)
	e := contractEngine(t)
	s := serve(t, e)
	for _, c := range []struct {
		target, body, begins, has string
		status                    int
	}{
		{"/v1/dagrun", sound, `{"runID":0}`, "", 200},
		{"/v1/dagrun?strict=1", sound, `{"runID":1}`, "", 200},
		{"/v1/dagrun", slip, `{"runID":2,` + told, "maxRetries, outside the job", 200},
		{"/v1/dagrun?strict=0", slip, `{"runID":3,` + told, "", 200},
		{"/v1/dagrun?strict=1", slip, `{"valid":false,`, refusal, 400},
		{"/v1/dagrun?strict=x", slip, `{`, "must be 1 or 0", 400},
		{"/v1/dagrun/validate", sound, `{"valid":true}`, "", 200},
		{"/v1/dagrun/validate", slip, `{"valid":true,` + told, "", 200},
		{"/v1/dagrun/validate?strict", slip, `{"valid":false,`, refusal, 400},
		{"/v1/dagrun/validate", long, `{"valid":true,"warnings":[{"pointer":"/tasks/a/job/pad"`, "did you mean timeoutSeconds?", 200},
		{"/v1/dagrun/validate?strict", long, `{"valid":false,`, "did you mean timeoutSeconds?", 400},
	} {
		r := s.do("POST", c.target, c.body)
		if r.status != c.status || !strings.HasPrefix(r.body, c.begins) || !strings.Contains(r.body, c.has) || c.has == "" && !strings.Contains(c.begins, "warn") && r.body != c.begins {
			t.Errorf("%s: %d %.300s", c.target, r.status, r.body)
		}
	}
	lines := func(target string) []string {
		r := s.do("POST", target, sound+"\n"+slip+"\n"+sound+"\n", "Content-Type: "+linesType)
		return strings.Split(strings.TrimSpace(r.body), "\n")
	}
	if got := lines("/v1/dagruns"); len(got) != 3 || got[0] != `{"runID":4}` || !strings.HasPrefix(got[1], `{"runID":5,`+told) || got[2] != `{"runID":6}` {
		t.Errorf("lines: %q", got)
	}
	if got := lines("/v1/dagruns?strict=1"); len(got) != 3 || got[0] != `{"runID":7}` || !strings.Contains(got[1], refusal) || got[2] != `{"runID":8}` {
		t.Errorf("lines, strictly: %q", got)
	}
}
