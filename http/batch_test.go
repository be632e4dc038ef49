package http

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

const asLines = "Content-Type: application/x-ndjson"

// specOf is a spec of one line, with a tag of its own.
func specOf(tag string) string {
	return `{"tag":"` + tag + `","tasks":{"a":{"job":{"executor":"noop"}}}}`
}

// batch sends lines and returns the answers' lines.
func (s *service) batch(body string, header ...string) []string {
	s.t.Helper()
	r := s.do("POST", batchPath, body, append(header, asLines)...)
	if r.status != 200 || r.err != nil || r.header.Get("Content-Type") != linesType {
		s.t.Fatalf("%d %v %v: %s", r.status, r.err, r.header, r.body)
	}
	return strings.Split(strings.TrimSuffix(r.body, "\n"), "\n")
}

// TestBatchAnswersEachLine: each line has its answer, in its place.
func TestBatchAnswersEachLine(t *testing.T) {
	e := &fakeEngine{}
	s := serve(t, e)
	got := s.batch(strings.Join([]string{
		specOf("x"), `{"tasks":`, "", " " + specOf("y") + " \r", `{"tasks":{"a":{"job":{"commandString":"{{N}}"}}}}`,
		`{"spec":` + specOf("z") + `}`, ` { "idempotencyKey" : "k", "spec": ` + specOf("keyed") + "}",
		`{"spec":` + specOf("keyed") + `,"idempotencyKey":"k"}`, `{"spec":` + specOf("other") + `,"idempotencyKey":"k"}`,
		`{"idempotencyKey":"k"}`, `{"spec":{},"more":1}`, `{"spec":{}}`, `{"idempotencyKey":7,"spec":{}}`, `{"idempotencyKey":"a b","spec":{}}`,
		`{"spec":{}} {}`, `{"spec":{},"spec":{}}`, `{"spec":`, `[]`, specOf("last"),
	}, "\n"))
	want := []string{
		`{"runID":0}`, `"status":400`, "the line is empty", `{"runID":1}`, `"pointer":"/tasks/a/job/commandString"`,
		`{"runID":2}`, `{"runID":3}`,
		`{"runID":3}`, `"status":422`,
		"spec is missing", `unknown member \"more\"`, "tasks is missing", "idempotencyKey: must be a string", "must be visible ASCII characters",
		"text follows", `"status":400`, `"status":400`, `"status":400`, `{"runID":4}`,
	}
	if len(got) != len(want) {
		t.Fatalf("%d answers, want %d: %q", len(got), len(want), got)
	}
	for i, line := range got {
		if !strings.Contains(line, want[i]) {
			t.Errorf("answer %d is %s, want %s", i+1, line, want[i])
		}
	}
	for i, tag := range []string{"x", "y", "z", "keyed", "last"} {
		if sub := e.submitted[i]; sub.Plan.Tag != tag || !strings.Contains(string(sub.Body), `"`+tag+`"`) || strings.Contains(string(sub.Body), "spec") || sub.At == 0 {
			t.Errorf("submission %d: %+v %s", i, sub, sub.Body)
		}
	}
}

// TestBatchWithAKey: the request's key and the number of a line are the line's key.
func TestBatchWithAKey(t *testing.T) {
	e := &fakeEngine{}
	s := serve(t, e)
	body := specOf("x") + "\n{\n" + specOf("y") + "\n" + `{"spec":` + specOf("z") + `,"idempotencyKey":"own"}`
	first := s.batch(body, "Idempotency-Key: night")
	again := s.batch(body, "Idempotency-Key: night")
	if strings.Join(first, " ") != strings.Join(again, " ") || len(e.submitted) != 3 {
		t.Errorf("%q, then %q", first, again)
	}
	for i, key := range []string{"night#1", "night#3", "own"} {
		if sub := e.submitted[i]; sub.IdempotencyKey != key || sub.BodyHash == [32]byte{} {
			t.Errorf("key %q, want %q", sub.IdempotencyKey, key)
		}
	}
	if got := s.batch(body + "\n"); got[0] != `{"runID":3}` || len(got) != 4 {
		t.Errorf("without a key, with an end to the last line: %q", got)
	}
}

// TestInvalidBatchIsRefused as a whole before its first line.
func TestInvalidBatchIsRefused(t *testing.T) {
	e := &fakeEngine{}
	s := serve(t, e)
	refusedWith(t, s.do("POST", batchPath, "", asLines), 400, "the body is empty")
	refusedWith(t, s.do("POST", batchPath, specOf("x")), 415, "send application/x-ndjson")
	refusedWith(t, s.do("POST", batchPath, specOf("x"), asLines, "Content-Encoding: br"), 415, `"br"`)
	refusedWith(t, s.do("POST", batchPath, specOf("x"), asLines, "Content-Encoding: gzip"), 400, "the body is not valid gzip")
	refusedWith(t, s.do("POST", batchPath, specOf("x"), asLines, "Content-Encoding: zstd"), 400, "the body is not valid zstd")
	refusedWith(t, s.do("POST", batchPath, specOf("x"), asLines, "Idempotency-Key: a b"), 400, "Idempotency-Key")
	refusedWith(t, s.do("DELETE", batchPath, ""), 405, "is not allowed")
	e.ready = errors.New("starting")
	refusedWith(t, s.do("POST", batchPath, specOf("x"), asLines), 503, "starting")
	if len(e.submitted) != 0 {
		t.Error("something was submitted")
	}
	e.ready = nil
	e.fail = map[string]error{"SubmitAll": &messages.Error{Code: messages.Unavailable, Text: "the disk is full"}}
	for _, line := range s.batch(specOf("x") + "\n" + specOf("y")) {
		if !strings.Contains(line, `"status":503`) || !strings.Contains(line, "the disk is full") {
			t.Error(line)
		}
	}
	e.fail = map[string]error{"Submit": errors.New("secret")}
	if got := s.batch(specOf("x")); !strings.Contains(got[0], "internal error") || !strings.Contains(s.logs.String(), "secret") {
		t.Errorf("%q", got)
	}
}

// TestBatchOfManyLines: a batch may be longer than any limit of a body, in one part or in many.
func TestBatchOfManyLines(t *testing.T) {
	n := 20_000
	if testing.Short() {
		n = 3000
	}
	var body bytes.Buffer
	for i := range n {
		fmt.Fprintln(&body, specOf(fmt.Sprint(i)))
	}
	zw, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer zw.Close()
	for name, send := range map[string]func(s *service) []string{
		"with a length": func(s *service) []string { return s.batch(body.String()) },
		"in chunks": func(s *service) []string {
			req, err := http.NewRequest("POST", "http://"+s.addr+batchPath, io.MultiReader(bytes.NewReader(body.Bytes())))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", linesType)
			resp, err := s.web.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			return strings.Split(strings.TrimSuffix(string(got), "\n"), "\n")
		},
		"gzip": func(s *service) []string { return s.batch(packed(t, body.String()), "Content-Encoding: gzip") },
		"zstd": func(s *service) []string {
			return s.batch(string(zw.EncodeAll(body.Bytes(), nil)), "Content-Encoding: zstd")
		},
	} {
		e := &fakeEngine{}
		s := serve(t, e, func(c *Config) { c.MaxBody = 2000 })
		got := send(s)
		if len(got) != n || len(e.submitted) != n {
			t.Fatalf("%s: %d answers, %d submissions", name, len(got), len(e.submitted))
		}
		for i := range got {
			if got[i] != fmt.Sprintf(`{"runID":%d}`, i) || e.submitted[i].Plan.Tag != fmt.Sprint(i) || string(e.submitted[i].Body) != specOf(fmt.Sprint(i)) {
				t.Fatalf("%s: line %d: %s, tag %s", name, i, got[i], e.submitted[i].Plan.Tag)
			}
		}
	}
}

func TestBatchWithALongLine(t *testing.T) {
	e := &fakeEngine{}
	s := serve(t, e, func(c *Config) { c.MaxBody = 2000 })
	for _, size := range []int{2001, 100_000, 2 << 20} {
		got := s.batch(specOf("x") + "\n" + strings.Repeat(" ", size) + "\n" + specOf("y"))
		if len(got) != 2 || !strings.Contains(got[1], "line 2 is too long: at most 2000 bytes") || !strings.Contains(got[1], `"status":413`) {
			t.Errorf("%d bytes: %q", size, got)
		}
	}
	if got := s.batch(strings.Repeat(" ", 1900) + specOf("x")); got[0] != `{"runID":3}` {
		t.Errorf("%q", got)
	}
}

// TestBatchAnswersLinesAsTheyArrive: a client that waits for each answer before it sends the next
// line gets the answer. When the body breaks off, complete lines are kept, and a part of a line is
// dropped.
func TestBatchAnswersLinesAsTheyArrive(t *testing.T) {
	e := &fakeEngine{}
	s := serve(t, e)
	c, r := s.raw("POST /v1/dagruns HTTP/1.1\r\nHost: c\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
	send := func(text string) {
		t.Helper()
		if _, err := fmt.Fprintf(c, "%x\r\n%s\r\n", len(text), text); err != nil {
			t.Fatal(err)
		}
	}
	send(specOf("0") + "\n" + specOf("1")[:10])
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answers := bufio.NewReader(resp.Body)
	nextLine(t, answers, "{\"runID\":0}\n")
	send(specOf("1")[10:] + "\n")
	nextLine(t, answers, "{\"runID\":1}\n")
	send(specOf("2") + "\n" + specOf("3") + "\n" + specOf("never")[:20])
	nextLine(t, answers, "{\"runID\":2}\n")
	nextLine(t, answers, "{\"runID\":3}\n")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(answers); err == nil || len(rest) > 0 {
		t.Errorf("the answer ends with %q, %v", rest, err)
	}
	if len(e.submitted) != 4 {
		t.Errorf("%d submissions", len(e.submitted))
	}
}

// TestStalledBatchTimesOut is cut off, by its time and by a shutdown.
func TestStalledBatchTimesOut(t *testing.T) {
	testenv.WithGrowingTime(t, 50*time.Millisecond, func(limit time.Duration) error { return stallBatch(t, "time", limit) })
	if err := stallBatch(t, "shutdown", time.Minute); err != nil {
		t.Error(err)
	}
	refusedInTime(t, "POST /v1/dagruns HTTP/1.1\r\nHost: c\r\nContent-Type: application/x-ndjson\r\nContent-Length: 200\r\n\r\n"+specOf("0")+"\n{")
}

// stallBatch returns an error when the first line does not reach the engine within limit.
func stallBatch(t *testing.T, by string, limit time.Duration) error {
	e := &fakeEngine{}
	s := serve(t, e, func(c *Config) { c.ReadTimeout = limit })
	_, r := s.raw("POST /v1/dagruns HTTP/1.1\r\nHost: c\r\nContent-Type: application/x-ndjson\r\nContent-Length: 2000000\r\n\r\n" + specOf("0") + strings.Repeat(" ", 9000) + "\n{")
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answers := bufio.NewReader(resp.Body)
	if line, err := answers.ReadString('\n'); line != "{\"runID\":0}\n" {
		return fmt.Errorf("%d %q %v", resp.StatusCode, line, err)
	}
	if by == "shutdown" {
		ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	}
	if rest, err := io.ReadAll(answers); err == nil || len(rest) > 0 {
		t.Errorf("by %s: answers look whole: %q", by, rest)
	}
	if len(e.submitted) != 1 {
		t.Errorf("%d submissions", len(e.submitted))
	}
	return nil
}

// TestLineReader: the lines of a body do not depend on the pieces in which it arrives.
func TestLineReader(t *testing.T) {
	var want []string
	var body strings.Builder
	for i := range 3000 {
		line := strings.Repeat("x", i*i%997)
		if i == 1500 {
			line = strings.Repeat("y", 300<<10)
		}
		want = append(want, line)
		body.WriteString(line + "\n")
	}
	for _, last := range []string{"", "the end"} {
		text := body.String() + last
		for name, l := range map[string]*lineReader{
			"as it is":  {source: strings.NewReader(text)},
			"half":      {source: iotest.HalfReader(strings.NewReader(text))},
			"with EOF":  {source: iotest.DataErrReader(strings.NewReader(text))},
			"byte wise": {source: iotest.OneByteReader(strings.NewReader(text))},
			"whole":     {source: strings.NewReader(text), wholeBody: len(text)},
		} {
			l.limit, l.reserve = 1<<20, anyRoom
			var got []string
			for {
				lines, err := l.next()
				if len(lines) > maxLinesAtOnce || len(lines) == 0 && err == nil {
					t.Fatalf("%s: %d lines at once", name, len(lines))
				}
				for _, line := range lines {
					got = append(got, string(line))
					for i := range line {
						line[i] = '!' // they are the caller's
					}
				}
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if last != "" {
				if len(got) != len(want)+1 || got[len(want)] != last {
					t.Fatalf("%s: %d lines", name, len(got))
				}
				got = got[:len(want)]
			}
			if strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("%s: other lines", name)
			}
		}
	}
}

func BenchmarkBatch(b *testing.B) {
	s := New(Config{Engine: &fakeEngine{}})
	body := bytes.Repeat([]byte(compact([]byte(contractSpec))+"\n"), 100)
	b.ReportAllocs()
	for b.Loop() {
		p := &batch{s: s, lines: &lineReader{source: bytes.NewReader(body), wholeBody: len(body), limit: 1 << 20, reserve: anyRoom}, body: &bodyReader{}}
		if _, more, err := p.next(nil); more || err != nil {
			b.Fatal(err)
		}
	}
}

// anyRoom is a budget without bounds.
func anyRoom(int64) error { return nil }
