package http

import (
	"bytes"
	"compress/gzip"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
)

func TestShare(t *testing.T) {
	b := budget{limit: 8 << 20}
	large, small, tiny := share{of: &b}, share{of: &b}, share{of: &b}
	if large.set(6<<20+1) || b.used.Load() != 0 {
		t.Error("a large body takes the last quarter")
	}
	if !large.set(6<<20) || !small.set(largeBody) || !small.set(largeBody) {
		t.Error("there is room")
	}
	if large.set(6<<20 + 1); large.held != 6<<20 {
		t.Errorf("a share that could not grow is %d", large.held)
	}
	other := share{of: &b}
	if !other.set(largeBody) || (&share{of: &b}).set(freeBody+1) {
		t.Error("small bodies have the last quarter, and not more")
	}
	if !tiny.set(freeBody) {
		t.Error("a tiny body is not counted")
	}
	for _, h := range []*share{&large, &small, &tiny, &other} {
		h.free()
		h.free()
	}
	if n := b.used.Load(); n != 0 {
		t.Errorf("%d bytes are left", n)
	}
}

// TestBytesUnderWay: bodies that come slowly take no more memory than there is for all;
// small ones are served all the while, and what was taken comes back.
func TestBytesUnderWay(t *testing.T) {
	e := seedEngine(t)
	s := serve(t, e)
	s.bodies.limit = 24 << 20
	part := strings.Repeat(" ", 3<<20)
	var lines []net.Conn
	refused := func() bool {
		return !strings.Contains(s.get("/metrics").body, "\ncaravan_http_bodies_refused_total 0\n")
	}
	for held := int64(0); !refused(); held = s.bodies.used.Load() {
		c, r := s.raw("POST /v1/dagruns HTTP/1.1\r\nHost: c\r\nContent-Type: application/x-ndjson\r\nContent-Length: 99999999\r\n\r\n")
		if _, err := io.WriteString(c, part); err != nil {
			t.Fatal(err)
		}
		// Its memory has grown for the last time when there were between 1.5 and 3 MiB.
		eventually(t, "it is held or refused", func() bool { return s.bodies.used.Load() >= held+planBytes*3<<19 || refused() })
		if lines = append(lines, c); refused() {
			refusedWith(t, s.answerTo(r), 503, "too many bytes")
		}
	}
	if n := s.bodies.used.Load(); len(lines) < 3 || len(lines) > 5 || n > s.bodies.limit {
		t.Errorf("%d lines of 3 MiB took %d bytes", len(lines), n)
	}
	if got := s.do("POST", "/v1/dagrun", seedSpec); got.status != 200 {
		t.Errorf("a small body meanwhile: %d %s", got.status, got.body)
	}
	big := `{"tasks":{"a":{"job":{"command":["x"],"pad":"` + strings.Repeat("x", 3<<20) + `"}}}}`
	refusedWith(t, s.do("POST", "/v1/dagrun", big), 503, "too many bytes")
	for _, c := range lines {
		c.Close()
	}
	eventually(t, "all is given back", func() bool { return s.bodies.used.Load() == 0 })
	if got := s.do("POST", "/v1/dagrun", big); got.status != 200 {
		t.Errorf("with room again: %d %s", got.status, got.body)
	}
}

// TestRefusedLinesAreBounded: a request with nothing but bad lines is not read to its end.
func TestRefusedLinesAreBounded(t *testing.T) {
	s := serve(t, seedEngine(t))
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(bytes.Repeat([]byte{'\n'}, 30<<20))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r := s.do("POST", "/v1/dagruns", b.String(), "Content-Type: "+linesType, "Content-Encoding: gzip")
	answers := strings.Split(strings.TrimSuffix(r.body, "\n"), "\n")
	if r.status != 200 || r.err != nil || len(answers) < maxBadLines || len(answers) > maxBadLines+maxLines {
		t.Errorf("status %d, %d answers, %v", r.status, len(answers), r.err)
	}
	if last := answers[len(answers)-1]; !strings.Contains(last, "is not read") || !strings.Contains(last, strconv.Itoa(len(answers)-1)+" lines were refused") {
		t.Errorf("the last answer: %s", last)
	}
}
