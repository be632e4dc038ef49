package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// touching is a graph whose task makes a file: the proof that a command ran.
func touching(path string) string {
	return fmt.Sprintf(`{"tasks":{"a":{"job":{"command":["touch",%q]}}}}`, path)
}

// say sends a request byte by byte as it is written and returns the answer's status.
func say(t *testing.T, s *e2etest.Server, request string) int {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(e2etest.Patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte(request)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// TestWebPagesCannotUseTheServer sends what browsers send for pages of other origins,
// and what programs send.
func TestWebPagesCannotUseTheServer(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t, e2etest.Args("--allow-host", "caravan.example", "--allow-host", "two.example,three.example"))
	spec := touching(t.TempDir() + "/ran")
	post := func(headers ...string) string {
		return "POST /v1/dagrun HTTP/1.1\r\n" + strings.Join(headers, "\r\n") + fmt.Sprintf("\r\nContent-Length: %d\r\n\r\n%s", len(spec), spec)
	}
	const host, typed = "Host: localhost:2503", "Content-Type: application/json"
	for request, want := range map[string]int{
		post(host): 415,
		post(host, "Content-Type: text/plain;charset=UTF-8"):                                                       415,
		post(host, "Content-Type: application/x-www-form-urlencoded"):                                              415,
		post(host, "Origin: http://evil.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"):         403,
		post(host, typed, "Origin: http://localhost:8000", "Sec-Fetch-Site: same-site"):                            403,
		post(host, typed, "Origin: null"):                                                                          403,
		post("Host: evil.example", typed):                                                                          421,
		"GET /v1/dagruns?all=1 HTTP/1.1\r\nHost: evil.example\r\n\r\n":                                             421,
		"DELETE /v1/dagrun/0 HTTP/1.1\r\nHost: evil.example:2503\r\n\r\n":                                          421,
		"GET http://evil.example/v1/dagruns HTTP/1.1\r\nHost: localhost\r\n\r\n":                                   421,
		"OPTIONS /v1/dagrun HTTP/1.1\r\n" + host + "\r\nOrigin: http://evil.example\r\n\r\n":                       403,
		"GET /v1/dagruns HTTP/1.1\r\nHost: three.example\r\n\r\n":                                                  200,
		"GET /v1/dagruns HTTP/1.1\r\nHost: CARAVAN.example.:443\r\n\r\n":                                           200,
		"POST /v1/dagrun HTTP/1.1\r\n" + host + "\r\nOrigin: null\r\n" + typed + "\r\nContent-Length: 999\r\n\r\n": 403, // the body never comes
	} {
		if got := say(t, s, request); got != want {
			t.Errorf("%d, want %d: %q", got, want, request)
		}
	}
	if r := s.Want(200, "GET", "/v1/dagruns?all=1", ""); string(r.Body) != "[]" {
		t.Fatalf("a refused submission is there: %s", r.Body)
	}
	if got := say(t, s, post(host, typed, "Origin: http://localhost:2503", "Sec-Fetch-Site: same-origin")); got != 200 {
		t.Errorf("its own page: %d", got)
	}
	if got := say(t, s, post(host, "Content-Type: application/json; charset=utf-8", "User-Agent: Python-urllib/3.13")); got != 200 {
		t.Errorf("a program: %d", got)
	}
}
