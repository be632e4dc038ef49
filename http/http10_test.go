package http

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/dag"
)

// TestHTTP10Streams: a client of HTTP/1.0 gets every answer without chunks, a streamed one
// ends with the connection; it is the same answer as that of HTTP/1.1.
func TestHTTP10Streams(t *testing.T) {
	e := seedEngine(t)
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
	e := seedEngine(t)
	long := messagesRun(t, e)
	e.fail = map[string]error{"Attempts": errors.New("storage failed")}
	s := serve(t, e)
	_, r := s.raw("GET " + long + " HTTP/1.0\r\n\r\n")
	all, err := io.ReadAll(r)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%d bytes, then %v", len(all), err)
	}
}
