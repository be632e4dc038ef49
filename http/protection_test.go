package http

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/http/access"
)

// loopback is an option of serve: the names of a loopback listener are checked.
func loopback(c *Config) {
	var err error
	if c.Access.Hosts, err = access.NewHosts(access.LoopbackHosts()...); err != nil {
		panic(err)
	}
}

// TestCrossSiteRequestsAreRefused: what a page of another origin can send is
// refused, on every route and with every method.
func TestCrossSiteRequestsAreRefused(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e, loopback)
	for _, headers := range [][]string{
		{"Origin: http://evil.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"},
		{"Origin: http://localhost:1", "Sec-Fetch-Site: same-site"},
		{"Origin: null"},
		{"Sec-Fetch-Site: cross-site"},
		{"Origin: http://evil.example", "Upgrade: websocket"},
	} {
		for _, rt := range s.routes() {
			target := strings.NewReplacer("{run}", "2", "{task}", "simple_0", "{state}", "PAUSED").Replace(rt.path)
			body := ""
			if rt.body != noBody {
				body = contractSpec
			}
			r := s.do(rt.method, target, body, append(headers, "Content-Type: "+rt.body.mediaType())...)
			refusedWith(t, r, 403, "cross-site request")
		}
	}
	if len(e.submitted) != 0 || len(e.patched) != 0 {
		t.Errorf("%d runs, changes %v", len(e.submitted), e.patched)
	}
	if r := s.do("DELETE", "/v1/dagrun/2", "", "Origin: http://"+s.addr, "Sec-Fetch-Site: same-origin"); r.status != 200 {
		t.Errorf("its own page: %d %s", r.status, r.body)
	}
	for header, want := range map[string]string{
		"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Cross-Origin-Resource-Policy": "same-origin", "Access-Control-Allow-Origin": "", "Vary": "",
	} {
		for _, target := range []string{"/v1/dagrun/0", "/v1/dagrun/99", "/nowhere", "/v1/dagrun/0/task/simple_0/log"} {
			if got := s.get(target).header.Get(header); got != want {
				t.Errorf("%s: %s is %q, want %q", target, header, got, want)
			}
		}
	}
}

// TestHostsOfALoopbackListener: names that a page could have rebound are refused,
// whatever the form of the request.
func TestHostsOfALoopbackListener(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e, loopback)
	spec := fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(contractSpec), contractSpec)
	for _, c := range []struct {
		request string
		status  int
	}{
		{"GET /v1/dagruns HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421},
		{"GET /ready HTTP/1.1\r\nHost: evil.example:2503\r\n\r\n", 421},
		{"DELETE /v1/dagrun/2 HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421},
		{"OPTIONS /v1/dagruns HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421},
		{"GET /nowhere HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421},
		{"POST /v1/dagrun HTTP/1.1\r\nHost: evil.example\r\n" + spec, 421},
		{"POST /v1/dagrun HTTP/1.0\r\nHost: evil.example\r\n" + spec, 421},
		{"GET http://evil.example/v1/dagruns HTTP/1.1\r\nHost: localhost\r\n\r\n", 421},
		{"GET http://localhost/v1/dagruns HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421},
		{"GET http://localhost@evil.example/v1/dagruns HTTP/1.1\r\nHost: localhost\r\n\r\n", 421},
		{"GET /v1/dagruns HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400},
		{"GET /v1/dagruns HTTP/1.1\r\nhost: evil.example\r\nHOST: localhost\r\n\r\n", 400},
		{"GET /v1/dagruns HTTP/1.1\r\n\r\n", 400},
		{"GET /v1/dagruns HTTP/1.1\r\nHost:\r\n\r\n", 400},
		{"GET /v1/dagruns HTTP/1.1\r\nHost: [::1%25lo]\r\n\r\n", 421},
		{"GET /v1/dagruns HTTP/1.1\r\nHost: localhost:99\r\n\r\n", 200},
		{"GET /v1/dagruns HTTP/1.1\r\nHost: LOCALHOST.\r\n\r\n", 200},
		{"GET /v1/dagruns HTTP/1.1\r\nHost: [::1]:2503\r\n\r\n", 200},
		{"GET http://127.0.0.1:2503/v1/dagruns HTTP/1.1\r\nHost: localhost\r\n\r\n", 200},
		{"GET http://localhost?all=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404},
		{"GET /v1/dagruns HTTP/1.0\r\n\r\n", 200},
	} {
		_, r := s.raw(c.request)
		got := s.answerTo(r)
		if got.status != c.status || c.status == 421 && !strings.Contains(got.body, "--allow-host") {
			t.Errorf("%q: %d %s", c.request, got.status, got.body)
		}
	}
	if len(e.submitted) != 0 {
		t.Errorf("%d submissions", len(e.submitted))
	}
}

// TestRefusedBodiesAreNotAwaited: the answer to a refused request does
// not wait for its body, nor does it ask for the body.
func TestRefusedBodiesAreNotAwaited(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e, loopback, func(c *Config) { c.MaxBody = 10 << 20 })
	for name, c := range map[string]struct {
		headers string
		status  int
	}{
		"cross-site":    {"Host: localhost\r\nContent-Type: application/json\r\nSec-Fetch-Site: cross-site\r\n", 403},
		"origin":        {"Host: localhost\r\nContent-Type: application/json\r\nOrigin: null\r\n", 403},
		"rebound":       {"Host: evil.example\r\nContent-Type: application/json\r\n", 421},
		"no type":       {"Host: localhost\r\n", 415},
		"type of forms": {"Host: localhost\r\nContent-Type: text/plain\r\n", 415},
	} {
		for _, body := range []string{"Content-Length: 900\r\n\r\n", "Content-Length: 9000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"} {
			for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
				t.Run(name+" "+strings.TrimSpace(expect+body), func(t *testing.T) {
					_, r := s.raw("POST /v1/dagrun HTTP/1.1\r\n" + c.headers + expect + body)
					resp, err := http.ReadResponse(r, nil)
					if err != nil || resp.StatusCode != c.status {
						t.Fatal(resp, err)
					}
					text, err := io.ReadAll(resp.Body)
					if err != nil || !strings.Contains(string(text), `"error":`) {
						t.Errorf("%q, %v", text, err)
					}
					if expect != "" && !resp.Close {
						t.Error("the connection stays, though the client may send the body")
					}
				})
			}
		}
	}
	_, r := s.raw("POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
	refusedWith(t, s.answerTo(r), 404, "no such path")
	_, r = s.raw("POST /v1/dagrun HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
	refusedWith(t, s.answerTo(r), 413, "too large")
	if n := s.inflight.Load(); n != 0 || len(e.submitted) != 0 {
		t.Errorf("%d in flight, %d submitted", n, len(e.submitted))
	}
}

// TestTypesOfBodies: a type that a page can send without asking first is refused,
// what programs send is taken.
func TestTypesOfBodies(t *testing.T) {
	s := serve(t, contractEngine(t))
	post := func(path, contentType string) reply {
		line := ""
		if contentType != "" {
			line = "Content-Type: " + contentType + "\r\n"
		}
		_, r := s.raw(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n%s", path, line, len(contractSpec), contractSpec))
		return s.answerTo(r)
	}
	for _, bad := range []string{"", "text/plain", "text/plain; charset=application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
		"application/json, text/plain", "application/jsonx", "text/json", "application/json; charset=latin1", "*/*", ";application/json"} {
		for _, path := range []string{"/v1/dagrun", "/v1/dagrun/validate"} {
			refusedWith(t, post(path, bad), 415, "send application/json (curl: -H 'Content-Type: application/json')")
		}
		refusedWith(t, post("/v1/dagruns", bad), 415, "send application/x-ndjson")
	}
	for _, good := range []string{"application/json", "Application/JSON", "application/json; charset=utf-8", "application/json;charset=\"UTF-8\"", "application/json; x=y"} {
		if r := post("/v1/dagrun", good); r.status != 200 {
			t.Errorf("%s: %d %s", good, r.status, r.body)
		}
	}
	_, r := s.raw("PATCH /v1/dagrun/2/state/PAUSED HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}")
	refusedWith(t, s.answerTo(r), 415, "text/plain")
	for _, sound := range []string{"\r\n", "Content-Length: 0\r\n\r\n", "Content-Type: text/plain\r\n\r\n", "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"} {
		_, r := s.raw("PATCH /v1/dagrun/2/state/PAUSED HTTP/1.1\r\nHost: localhost\r\n" + sound)
		if got := s.answerTo(r); got.status != 200 {
			t.Errorf("%q: %d %s", sound, got.status, got.body)
		}
	}
}

// TestCORS: pages of listed origins may use the API, others may not even ask.
func TestCORS(t *testing.T) {
	s := serve(t, contractEngine(t), func(c *Config) {
		var err error
		if c.Access.Origins, err = access.NewOrigins("https://app.example"); err != nil {
			t.Fatal(err)
		}
	})
	ask := func(origin string) reply {
		return s.do("OPTIONS", "/v1/dagrun", "", "Origin: "+origin, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: cors",
			"Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type")
	}
	r := ask("https://app.example")
	h := r.header
	if r.status != 204 || h.Get("Access-Control-Allow-Origin") != "https://app.example" || h.Get("Access-Control-Allow-Methods") != "OPTIONS, POST" ||
		!strings.Contains(h.Get("Access-Control-Allow-Headers"), "Content-Type") || h.Get("Access-Control-Allow-Credentials") != "" || !strings.HasPrefix(h.Get("Vary"), "Origin") {
		t.Errorf("%d %v", r.status, h)
	}
	r = s.do("POST", "/v1/dagrun", contractSpec, "Origin: https://app.example", "Sec-Fetch-Site: cross-site")
	if r.status != 200 || r.header.Get("Access-Control-Allow-Origin") != "https://app.example" || !strings.Contains(r.header.Get("Access-Control-Expose-Headers"), "Location") ||
		r.header.Get("Vary") != "Origin" || r.header.Get("Cross-Origin-Resource-Policy") != "" {
		t.Errorf("%d %v", r.status, r.header)
	}
	r = s.do("GET", "/v1/dagrun/99", "", "Origin: https://app.example")
	if r.status != 404 || r.header.Get("Access-Control-Allow-Origin") != "https://app.example" {
		t.Errorf("errors can be read, too: %d %v", r.status, r.header)
	}
	for _, origin := range []string{"https://evil.example", "null", "https://app.example.evil.example", "https://app.example:444", "http://app.example"} {
		r := ask(origin)
		refusedWith(t, r, 403, "cross-site")
		for name := range r.header {
			if strings.HasPrefix(name, "Access-Control") {
				t.Errorf("%s: %s", origin, name)
			}
		}
	}
	if r := s.get("/ready"); r.header.Get("Vary") != "Origin" {
		t.Error("a cache must not mix answers to pages with others")
	}
}

// TestExpectedBodies: a request whose body is awaited counts once.
func TestExpectedBodies(t *testing.T) {
	s := serve(t, contractEngine(t), loopback)
	c, r := s.raw(fmt.Sprintf("POST /v1/dagrun HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", len(contractSpec)))
	if line, err := r.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatal(line, err)
	}
	if _, err := io.WriteString(c, contractSpec); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if got := s.answerTo(bufio.NewReader(r)); got.status != 200 {
		t.Errorf("%+v", got)
	}
	if text := s.get("/metrics").body; !strings.Contains(text, `caravan_http_requests_total{class="2xx",route="/v1/dagrun"} 1`+"\n") {
		t.Error("the request is not counted once")
	}
}
