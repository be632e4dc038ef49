package http

import (
	"bufio"
	"math"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
)

func headerOf(t *testing.T, text string) *fasthttp.RequestHeader {
	h := new(fasthttp.RequestHeader)
	if err := h.Read(bufio.NewReader(strings.NewReader(text))); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestCursors(t *testing.T) {
	for _, at := range []uint64{0, 1, 127, 128, math.MaxUint32, math.MaxUint64} {
		if got, err := parseCursor(runCursor, formatCursor(runCursor, at)); got != at || err != nil {
			t.Errorf("%d: %d %v", at, got, err)
		}
	}
	for _, text := range []string{"", "=", "cg", "dAA", "cgCA", "cgAA", "cgA=", "cv___________8C"} {
		if at, err := parseCursor(runCursor, text); err == nil {
			t.Errorf("%q is taken for %d", text, at)
		}
	}
}

func TestListQuery(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	r := s.get("/v1/dagruns?all=true&tag=a%26b+c&state=RUNNING,PAUSED&state=KILLED&tags.x=1&tags.y%3D=%32&cursor=" + formatCursor(runCursor, 1))
	if r.status != 200 {
		t.Fatal(r.body)
	}
	q := e.query
	if !q.All || q.Tag != "a&b c" || !q.HasTag || len(q.States) != 3 || q.States[2] != dag.RunKilled ||
		!q.HasAfter || q.After != 1 || len(q.Labels) != 2 || q.Labels[1] != (dag.Label{Name: "y=", Value: "2"}) {
		t.Errorf("%+v", q)
	}
	s.get("/v1/dagruns?all=0&tag=")
	if q := e.query; q.All || !q.HasTag || q.Tag != "" {
		t.Errorf("%+v", q)
	}
}

func FuzzUnescape(f *testing.F) {
	for _, s := range []string{"", "a%2Fb", "%", "%2", "%zz", "a+b", "%25", "%2e%2E", "\xff%ff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := unescape(raw)
		want, wantErr := url.PathUnescape(raw)
		if (err != nil) != (wantErr != nil) || err == nil && got != want {
			t.Errorf("%q: %q %v, net/url says %q %v", raw, got, err, want, wantErr)
		}
	})
}

func FuzzQuery(f *testing.F) {
	for _, s := range []string{"", "a=b&c", "a=%26&&=x", "a=b=c", "%zz=1", "+=+", "tags.a=b;c=d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if strings.Contains(raw, ";") { // net/url refuses it, here it is a character
			return
		}
		got := url.Values{}
		err := eachQueryMember(raw, func(name, value string) error { got.Add(name, value); return nil })
		want, wantErr := url.ParseQuery(raw)
		if (err != nil) != (wantErr != nil) || err == nil && got.Encode() != want.Encode() {
			t.Errorf("%q: %q %v, net/url says %q %v", raw, got, err, want, wantErr)
		}
	})
}

// FuzzPath walks arbitrary paths and queries through the whole handler.
func FuzzPath(f *testing.F) {
	for _, s := range []string{
		"/ready", "/v1/dagrun/0", "/v1/dagrun/0/task/simple_0/log?attempt=1", "/v1/dagrun/0/tasks?limit=1&state=QUEUED",
		"/v1/dagruns?all=1&limit=1", "/v1/dagrun/%30/task/..%2f", "//", "/v1/dagrun/validate", "*", "/v1/dagruns?cursor=cgA",
	} {
		f.Add("GET", s)
		f.Add("DELETE", s)
	}
	e := contractEngine(f)
	s := New(Config{Engine: e})
	f.Fuzz(func(t *testing.T, method, target string) {
		var ctx fasthttp.RequestCtx
		ctx.Request.Header.SetMethod(method)
		ctx.Request.SetRequestURI(target)
		ctx.Request.URI()
		s.dispatch(&ctx)
		switch code := ctx.Response.StatusCode(); code {
		case 200, 204, 400, 404, 405, 415, 409, 416:
		default:
			t.Errorf("%s %q: %d %s", method, target, code, ctx.Response.Body())
		}
		ctx.Response.Reset()
		if n := s.inflight.Load(); n != 0 {
			t.Fatalf("%d in flight", n)
		}
	})
}

func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-", "bytes=-5", "bytes=2-3", "bytes=5-1", "bytes=0-1,3-4", "lines=1-2", "bytes=--", "bytes=-0"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		from, to, ok := parseRange(header, size)
		if ok && (from < 0 || to < 0 || to > size) {
			t.Errorf("%q of %d: [%d, %d)", header, size, from, to)
		}
	})
}

func FuzzText(f *testing.F) {
	for _, s := range []string{"", "a\"b\\", "\x00\x1f\x7f", "ü\xff\xc3", "\u2028<>&", "\xed\xa0\x80", "\xf0\x9f\x90"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want := strings.ToValidUTF8(strings.Map(func(r rune) rune { return r }, s), "\uFFFD")
		if !utf8.ValidString(s) {
			want = string([]rune(s))
		}
		for _, enc := range [][]byte{appendString(nil, s), appendString(nil, []byte(s))} {
			if got := unjson(t, enc); got != want {
				t.Errorf("%q became %q", s, got)
			}
		}
	})
}
