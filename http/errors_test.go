package http

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

const jsonContentType = "Content-Type: application/json"

// TestRefusals: what is wrong with a request gets its status and a sentence that
// names the thing.
func TestRefusals(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e, func(c *Config) { c.MaxBody = 2000; c.Limits = dag.Limits{MaxTasks: 3} })
	long := strings.Repeat("k", 256)
	for _, c := range []struct {
		status             int
		method, path, body string
		text               string
		header             string
	}{
		{404, "GET", "/", "", `no such path: "/"`, ""},
		{404, "GET", "/v1/dagrun/", "", "no such path", ""},
		{404, "GET", "/ready/", "", `no such path: "/ready/"`, ""},
		{404, "GET", "/READY", "", "no such path", ""},
		{404, "GET", "/v1/../ready", "", "no such path", ""},
		{404, "GET", "/v1/dagrun/0/../1", "", "no such path", ""},
		{404, "GET", "/v1/dagrun/0/task/../state", "", `unknown task ".."`, ""},
		{404, "GET", "/v1/dagrun/9", "", "unknown run 9", ""},
		{404, "GET", "/v1/dagrun/9/state", "", "unknown run 9", ""},
		{404, "GET", "/v1/dagrun/9/summary", "", "unknown run 9", ""},
		{404, "GET", "/v1/dagrun/9/tasks", "", "unknown run 9", ""},
		{404, "GET", "/v1/dagrun/nine", "", `unknown run "nine"`, ""},
		{404, "GET", "/v1/dagrun/-1/state", "", `unknown run "-1"`, ""},
		{404, "GET", "/v1/dagrun/00", "", `unknown run "00"`, ""},
		{404, "GET", "/v1/dagrun//state", "", `unknown run ""`, ""},
		{404, "DELETE", "/v1/dagrun/18446744073709551616", "", "unknown run", ""},
		{404, "DELETE", "/v1/dagrun/9", "", "unknown run 9", ""},
		{404, "PATCH", "/v1/dagrun/9/state/QUEUED", "", "unknown run 9", ""},
		{404, "GET", "/v1/dagrun/0/task/simple", "", `run 0: unknown task "simple"`, ""},
		{404, "GET", "/v1/dagrun/0/task/simple_00", "", `run 0: unknown task "simple_00"`, ""},
		{404, "GET", "/v1/dagrun/0/task/a%2F..%2Fb/state", "", `run 0: unknown task "a/../b"`, ""},
		{404, "GET", "/v1/dagrun/0/task/%ff%00", "", `unknown task`, ""},
		{404, "DELETE", "/v1/dagrun/0/task/x", "", `run 0: unknown task "x"`, ""},
		{404, "GET", "/v1/dagrun/0/task/simple_0/log?attempt=7", "", "no attempt 7", ""},
		{404, "GET", "/v1/dagrun/0/task/x/log", "", `unknown task "x"`, ""},
		{400, "GET", "/v1/dagrun/%zz", "", `invalid escape in "%zz"`, ""},
		{400, "GET", "/v1/dagrun/0/task/a%2", "", `invalid escape in "a%2"`, ""},
		{400, "GET", "/v1/dagrun/0/task/%", "", `invalid escape in "%"`, ""},
		{400, "PATCH", "/v1/dagrun/0/state/SLEEPING", "", `unknown state "SLEEPING"`, ""},
		{400, "PATCH", "/v1/dagrun/0/state/queued", "", `unknown state "queued": a run is QUEUED, RUNNING, PAUSED, COMPLETED, ERRORED or KILLED`, ""},
		{400, "PATCH", "/v1/dagrun/0/state/RETRY", "", `unknown state "RETRY"`, ""},
		{400, "PATCH", "/v1/dagrun/0/state/%4", "", "invalid escape", ""},
		{400, "GET", "/v1/dagruns?all=maybe", "", `all: "maybe"`, ""},
		{400, "GET", "/v1/dagruns?state=DONE", "", `unknown state "DONE"`, ""},
		{400, "GET", "/v1/dagruns?limit=0", "", `limit: "0"`, ""},
		{400, "GET", "/v1/dagruns?order=newest", "", `order: "newest" must be asc or desc`, ""},
		{400, "GET", "/v1/dagruns?limit=10001", "", `limit: "10001"`, ""},
		{400, "GET", "/v1/dagruns?limit=9999999999999999999", "", "limit", ""},
		{400, "GET", "/v1/dagruns?cursor=x", "", "cursor", ""},
		{400, "GET", "/v1/dagruns?sate=RUNNING", "", `unknown query parameter "sate"`, ""},
		{400, "GET", "/v1/dagruns?tag=%zz", "", "invalid escape", ""},
		{400, "GET", "/v1/dagruns?%zz=1", "", "invalid escape", ""},
		{400, "GET", "/v1/dagrun/0/tasks?state=PAUSED", "", `unknown state "PAUSED": a task is QUEUED, RUNNING, RETRY, COMPLETED, ERRORED or KILLED`, ""},
		{400, "GET", "/v1/dagrun/0/tasks?cursor=" + formatCursor(runCursor, 1), "", "cursor", ""},
		{400, "GET", "/v1/dagrun/0/tasks?all=1", "", `unknown query parameter "all"`, ""},
		{400, "GET", "/v1/dagrun/0/task/simple_0/log?attempt=0", "", `attempt: "0"`, ""},
		{400, "GET", "/v1/dagrun/0/task/simple_0/log?stream=out", "", `stream: "out"`, ""},
		{400, "GET", "/v1/dagrun/0/task/simple_0/log?offset=-1", "", `offset: "-1"`, ""},
		{400, "GET", "/v1/dagrun/0/task/simple_0/log?follow=2", "", `follow: "2"`, ""},
		{400, "GET", "/v1/dagrun/0/task/simple_0/log?lines=2", "", `unknown query parameter "lines"`, ""},
		{404, "GET", "/v1/dagrun/9/events", "", "unknown run 9", ""},
		{400, "GET", "/v1/dagrun/0/events?tasks=2", "", `tasks: "2"`, ""},
		{400, "GET", "/v1/dagrun/0/events?after=-1", "", `after: "-1" is not the id of an event`, ""},
		{400, "GET", "/v1/dagrun/0/events?tag=x", "", `unknown query parameter "tag"`, ""},
		{400, "GET", "/v1/dagrun/0/events", "", `Last-Event-ID: "x" is not the id of an event`, "Last-Event-ID: x"},
		{400, "GET", "/v1/events?state=RUNNING", "", `unknown query parameter "state"`, ""},
		{400, "GET", "/v1/events?after=18446744073709551615", "", "is not the id of an event", ""},
		{400, "POST", "/v1/dagrun", "", "the body is empty", jsonContentType},
		{400, "POST", "/v1/dagrun", "{", "", ""},
		{400, "POST", "/v1/dagrun", contractSpec, "Idempotency-Key", "Idempotency-Key: " + long},
		{400, "POST", "/v1/dagrun", contractSpec, "Idempotency-Key", "Idempotency-Key: a b"},
		{400, "POST", "/v1/dagrun", contractSpec, "Idempotency-Key", "Idempotency-Key: ü"},
		{400, "POST", "/v1/dagrun", contractSpec, "Idempotency-Key", "Idempotency-Key: "},
		{400, "POST", "/v1/dagrun", "no gzip", "the body is not valid gzip", "Content-Encoding: gzip"},
		{400, "POST", "/v1/dagrun", "no zstd", "the body is not valid zstd", "Content-Encoding: zstd"},
		{415, "POST", "/v1/dagrun", contractSpec, `Content-Encoding "br"`, "Content-Encoding: br"},
		{415, "POST", "/v1/dagrun", contractSpec, "gzip, gzip", "Content-Encoding: gzip, gzip"},
		{415, "POST", "/v1/dagrun", contractSpec, `"text/plain"`, "Content-Type: text/plain"},
		{415, "POST", "/v1/dagrun", contractSpec, `"application/x-www-form-urlencoded"`, "Content-Type: application/x-www-form-urlencoded"},
		{415, "POST", "/v1/dagrun/validate", contractSpec, "latin1", "Content-Type: application/json; charset=latin1"},
		{415, "POST", "/v1/dagrun", contractSpec, "multipart", "Content-Type: multipart/form-data; boundary=x"},
		{413, "POST", "/v1/dagrun", strings.Repeat(" ", 2001), "at most 2000 bytes", ""},
		{413, "POST", "/v1/dagrun/validate", strings.Repeat(" ", 2001), "at most 2000 bytes", ""},
		{413, "PATCH", "/v1/dagrun/0/state/QUEUED", strings.Repeat(" ", maxOtherBody+1), "at most 1048576 bytes", ""},
		{413, "POST", "/v1/dagrun", packed(t, strings.Repeat(" ", 2001)), "2000 bytes when decompressed", "Content-Encoding: gzip"},
		{431, "GET", "/ready", "", "too large", "X-Long: " + strings.Repeat("x", 9000)},
		{431, "GET", "/" + strings.Repeat("x", 9000), "", "too large", ""},
		{422, "POST", "/v1/dagrun", manySpec(4), "4", ""},
		{422, "POST", "/v1/dagrun/validate", manySpec(4), "4", ""},
	} {
		t.Run(fmt.Sprint(c.status, " ", c.method, " ", quoteInput(c.path), " ", quoteInput(c.header)), func(t *testing.T) {
			var header []string
			if c.header != "" {
				header = []string{c.header}
			}
			refusedWith(t, s.do(c.method, c.path, c.body, header...), c.status, c.text)
		})
	}
	if len(e.submitted)+len(e.patched) != 0 {
		t.Errorf("the engine was reached: %v %v", e.submitted, e.patched)
	}
	if log := s.logs.String(); log != "" {
		t.Errorf("clients' mistakes are in the log: %s", log)
	}
}

func packed(t testing.TB, text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestContentEncodings(t *testing.T) {
	e := &fakeEngine{}
	s := serve(t, e)
	zw, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer zw.Close()
	for _, c := range [][2]string{
		{"identity", contractSpec}, {"gzip", packed(t, contractSpec)}, {"X-Gzip", packed(t, contractSpec)},
		{"zstd", string(zw.EncodeAll([]byte(contractSpec), nil))},
	} {
		r := s.do("POST", "/v1/dagrun", c[1], "Content-Encoding: "+c[0])
		if r.status != 200 || string(e.submitted[len(e.submitted)-1].Body) != contractSpec {
			t.Errorf("%s: %d %s", c[0], r.status, r.body)
		}
	}
	if r := s.do("POST", "/v1/dagrun", contractSpec, "Content-Type: Application/JSON; charset=UTF-8"); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestLargeBodiesAreOwned: the next request of a connection does not touch them.
func TestLargeBodiesAreOwned(t *testing.T) {
	e := &fakeEngine{}
	s := serve(t, e)
	pad := strings.Repeat(" ", (100 << 10))
	for i := range 4 {
		if r := s.do("POST", "/v1/dagrun", manySpec(i+1)+pad); r.status != 200 {
			t.Fatal(r)
		}
		s.do("POST", "/v1/dagrun/validate", strings.Repeat("x", 2*(100<<10)))
	}
	for i, sub := range e.submitted {
		if string(sub.Body) != manySpec(i+1)+pad {
			t.Errorf("submission %d was overwritten", i)
		}
	}
}

// TestUnreadBodies: a client that is refused before its body is read gets the answer, however
// long the body is.
func TestUnreadBodies(t *testing.T) {
	s := serve(t, contractEngine(t))
	for _, size := range []int{10, 100 << 10, 900 << 10, 20 << 20} {
		body := strings.Repeat(" ", size)
		refusedWith(t, s.do("POST", "/v1/dagrun", body, "Content-Type: text/plain"), 415, "text/plain")
		refusedWith(t, s.do("POST", "/nowhere", body), 404, "no such path")
	}
}

// TestUnreadBodiesOfClientsThatClose: a client whose connection ends with the answer can send all of its
// body, and gets the answer and not a reset.
func TestUnreadBodiesOfClientsThatClose(t *testing.T) {
	s := serve(t, contractEngine(t))
	piece := strings.Repeat(" ", 10_000)
	for _, head := range []string{" HTTP/1.1\r\nConnection: close", " HTTP/1.0", " HTTP/1.0\r\nConnection: keep-alive", " HTTP/1.1"} {
		c, r := s.raw("POST /v1/dagrun?strict=maybe" + head + "\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n" + piece)
		if _, err := r.Peek(1); err != nil {
			t.Fatal(err)
		}
		for range 9 {
			if _, err := io.WriteString(c, piece); err != nil {
				t.Errorf("%q: reset while it sends: %v", head, err)
				break
			}
		}
		got := s.answerTo(r)
		refusedWith(t, got, 400, "strict")
		if got.close {
			if _, err := io.ReadAll(r); err != nil {
				t.Errorf("%q: after the answer: %v", head, err)
			}
		}
	}
}

// TestMethodsOfEachPath: 405 names the methods that there are, whatever the variant.
func TestMethodsOfEachPath(t *testing.T) {
	s := serve(t, contractEngine(t))
	for _, c := range []struct{ method, path, allow string }{
		{"POST", "/ready", "GET, HEAD, OPTIONS"},
		{"PUT", "/v1/dagrun", "OPTIONS, POST"},
		{"GET", "/v1/dagrun", "OPTIONS, POST"},
		{"GET", "/v1/dagrun/validate", "OPTIONS, POST"},
		{"DELETE", "/v1/dagrun/validate", "OPTIONS, POST"},
		{"PUT", "/v1/dagrun/validate", "OPTIONS, POST"},
		{"POST", "/v1/dagrun/0", "DELETE, GET, HEAD, OPTIONS"},
		{"BREW", "/v1/dagrun/0", "DELETE, GET, HEAD, OPTIONS"},
		{"get", "/v1/dagrun/0", "DELETE, GET, HEAD, OPTIONS"},
		{"DELETE", "/v1/dagrun/0/state", "GET, HEAD, OPTIONS"},
		{"PUT", "/v1/dagrun/0/states", "GET, HEAD, OPTIONS"},
		{"DELETE", "/v1/dagrun/0/graph", "GET, HEAD, OPTIONS"},
		{"POST", "/v1/dagrun/0/events", "GET, HEAD, OPTIONS"},
		{"POST", "/v1/events", "GET, HEAD, OPTIONS"},
		{"PUT", "/v1/dagruns", "GET, HEAD, OPTIONS, POST"},
		{"GET", "/v1/dagrun/0/state/QUEUED", "OPTIONS, PATCH"},
		{"PATCH", "/v1/dagrun/0/task/a%2Fb", "DELETE, GET, HEAD, OPTIONS"},
		{"POST", "/v1/dagrun/0/task/a/log", "GET, HEAD, OPTIONS"},
	} {
		r := s.do(c.method, c.path, "")
		refusedWith(t, r, 405, "is not allowed on")
		if got := r.header.Get("Allow"); got != c.allow {
			t.Errorf("%s %s: Allow %q, want %q", c.method, c.path, got, c.allow)
		}
	}
	for path, allow := range map[string]string{"/v1/dagrun/0": "DELETE, GET, HEAD, OPTIONS", "/v1/dagrun/validate": "OPTIONS, POST"} {
		if r := s.do("OPTIONS", path, ""); r.status != 204 || r.header.Get("Allow") != allow {
			t.Errorf("OPTIONS %s: %d %v", path, r.status, r.header)
		}
	}
	if r := s.do("HEAD", "/v1/dagrun/validate", ""); r.status != 405 || r.body != "" {
		t.Errorf("HEAD validate: %d", r.status)
	}
}

// TestEngineErrors: each code of the domain has one status.
func TestEngineErrors(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	calls := []struct{ engine, method, path, body string }{
		{"Submit", "POST", "/v1/dagrun", contractSpec},
		{"SetState", "PATCH", "/v1/dagrun/0/state/PAUSED", ""},
		{"Kill", "DELETE", "/v1/dagrun/0", ""},
		{"KillTask", "DELETE", "/v1/dagrun/0/task/simple_0", ""},
		{"Summary", "GET", "/v1/dagrun/0/state", ""},
		{"Summary", "GET", "/v1/dagrun/0/summary", ""},
		{"Summaries", "GET", "/v1/dagruns", ""},
		{"Summaries", "GET", "/v1/dagruns?limit=2", ""},
		{"View", "GET", "/v1/dagrun/0", ""},
		{"View", "GET", "/v1/dagrun/0/graph", ""},
		{"Follow", "GET", "/v1/dagrun/0/events", ""},
		{"Listen", "GET", "/v1/events", ""},
		{"View", "GET", "/v1/dagrun/0/states", ""},
		{"View", "GET", "/v1/dagrun/0/tasks", ""},
		{"Attempts", "GET", "/v1/dagrun/0", ""},
		{"Attempts", "GET", "/v1/dagrun/0/tasks", ""},
		{"Task", "GET", "/v1/dagrun/0/task/simple_0", ""},
		{"Task", "GET", "/v1/dagrun/0/task/simple_0/state", ""},
		{"OpenLog", "GET", "/v1/dagrun/0/task/simple_0/log", ""},
	}
	for code, status := range map[messages.ErrorCode]int{
		messages.Invalid: 400, messages.NotFound: 404, messages.Conflict: 409, messages.TooLarge: 422,
		messages.KeyReused: 422, messages.Unavailable: 503, messages.Internal: 500, messages.ErrorCode(99): 500,
	} {
		for _, c := range calls {
			e.fail = map[string]error{c.engine: fmt.Errorf("wrapped: %w", &messages.Error{Code: code, Text: "run 7: the very thing"})}
			text := "run 7: the very thing"
			if code == messages.Internal || code == 99 {
				text = "internal error"
			}
			if code == 99 {
				text = "" // an unknown code is shown, with status 500
			}
			refusedWith(t, s.do(c.method, c.path, c.body), status, text)
		}
	}
	e.fail = map[string]error{"Submit": &messages.Error{Code: messages.OutcomeUnknown, Text: "the run may have been created"}}
	if r := s.do("POST", "/v1/dagrun", calls[0].body); r.status != 503 || !strings.Contains(r.body, `"type":"outcome-unknown"`) {
		t.Errorf("a submission whose outcome is unknown: %d %s", r.status, r.body)
	}
	e.fail = map[string]error{"Kill": errors.New("secret: disk is upside down")}
	r := s.do("DELETE", "/v1/dagrun/0", "")
	refusedWith(t, r, 500, "internal error")
	if strings.Contains(r.body, "secret") || !strings.Contains(s.logs.String(), "disk is upside down") {
		t.Errorf("an internal error belongs in the log: %s", r.body)
	}
}

// TestProblems: a refused document reports everything that is wrong with it.
func TestProblems(t *testing.T) {
	s := serve(t, &fakeEngine{}, func(c *Config) { c.Limits.MaxTasks = 3 })
	bad := `{"tasks":{"a":{"job":{"commandString":"{{NONE}}"},"parents":["x"]},"b":{"job":{"commandString":"y"},"children":["z"]}}}`
	for _, path := range []string{"/v1/dagrun", "/v1/dagrun/validate"} {
		r := s.do("POST", path, bad)
		var doc struct {
			Valid  *bool
			Errors []messages.Problem
		}
		if err := json.Unmarshal([]byte(r.body), &doc); err != nil {
			t.Fatal(err)
		}
		if r.status != 400 || doc.Valid == nil || *doc.Valid || len(doc.Errors) != 3 {
			t.Errorf("%s: %d %s", path, r.status, r.body)
		}
		for _, e := range doc.Errors {
			if !strings.HasPrefix(e.Pointer, "/tasks/") || e.Message == "" {
				t.Errorf("problem %+v", e)
			}
		}
	}
	r := s.do("POST", "/v1/dagrun/validate", manySpec(4))
	if r.status != 422 || !strings.HasPrefix(r.body, `{"valid":false,`) {
		t.Errorf("%d %s", r.status, r.body)
	}
	ps := make(dag.Problems, maxListedErrors+5)
	if n := len(invalidSpec(ps).Problems); n != maxListedErrors+5 {
		t.Errorf("%d problems", n)
	}
	doc := appendProblem(nil, problem{status: 400, isSpecProblem: true, errors: invalidSpec(ps).Problems})
	if n := bytes.Count(doc, []byte(`"pointer"`)); n != maxListedErrors {
		t.Errorf("%d problems are shown", n)
	}
}

func TestIdempotencyKey(t *testing.T) {
	e := &fakeEngine{}
	s := serve(t, e)
	key := "Idempotency-Key: " + strings.Repeat("~", 255)
	first := s.do("POST", "/v1/dagrun", contractSpec, key)
	again := s.do("POST", "/v1/dagrun", contractSpec, key)
	if first.status != 200 || again.body != first.body || first.header.Get("Location") != "/v1/dagrun/0" {
		t.Errorf("%+v, then %+v", first, again)
	}
	refusedWith(t, s.do("POST", "/v1/dagrun", manySpec(2), key), 422, "was used for run 0 with another body")
	if r := s.do("POST", "/v1/dagrun", contractSpec); r.body != `{"runID":1}` {
		t.Errorf("without a key: %s", r.body)
	}
	if e.submitted[1].BodyHash != [32]byte{} || e.submitted[0].BodyHash == [32]byte{} {
		t.Error("the body is hashed when there is a key")
	}
}

func TestPanicIsAnswered(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	e.hook = func(method string) {
		if method == "Kill" || method == "Ready" {
			panic("no camel")
		}
	}
	refusedWith(t, s.do("DELETE", "/v1/dagrun/0", ""), 500, "internal error")
	refusedWith(t, s.get("/ready"), 500, "internal error")
	if log := s.logs.String(); !strings.Contains(log, "no camel") || !strings.Contains(log, "stack") {
		t.Errorf("log: %s", log)
	}
	if r := s.get("/v1/dagrun/0/state"); r.status != 200 {
		t.Errorf("after a panic: %d", r.status)
	}
}
