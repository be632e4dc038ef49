package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// attack is one malformed or hostile request.
type attack struct {
	kind   string
	text   string // sent on a fresh connection
	method string
	half   bool // the client closes its side after the request
	leave  bool // the client leaves without waiting for the answer
	// want are the correct statuses; 0 means that the connection may be closed without an
	// answer.
	want []int
}

// attacks are the kinds of requests. Each call makes a random one.
var attacks = []func(*rand.Rand) attack{
	fuzzedJSON, deepNesting, hugeNumber, rawBytes, hostilePath, wrongMethod, wrongID, protocolAttack, halfClosed, slowBody,
}

func postAttack(kind, path, body string, want ...int) attack {
	return attack{kind: kind, method: "POST", text: rawRequest("POST", path, body), want: want}
}

// submitOrValidate picks one of the two paths that accept a document.
func submitOrValidate(rng *rand.Rand) string {
	return []string{"/v1/dagrun", "/v1/dagrun/validate"}[rng.IntN(2)]
}

// soundJSON is a valid document with most of the members that a document may have.
const soundJSON = `{"tag":"x","tags":{"a":"b"},"parameters":{"N":["1","2"],"S":"s"},"jobDefaults":{"executor":"noop","cores":1},` +
	`"tasks":{"a":{"job":{"command":["a","{{N}}"],"environment":["K=V"],"memoryMB":"10"},"maxRetries":1,"retryIntervalSeconds":0},` +
	`"b":{"job":{"commandString":"{{S}} {{N}}","timeoutSeconds":9},"parents":[{"task":"a","match":["N"]}],"children":["c"]},` +
	`"c":{"job":{"command":["x"],"other":[1.5e3,{"y":null}]},"isGenerator":false}}}`

// fuzzedJSON mutates a valid document. When the result is not JSON, 400 is the only correct answer.
func fuzzedJSON(rng *rand.Rand) attack {
	doc := []byte(soundJSON)
	const bytes = "{}[]\",:0123456789eE+-.tfn\\/ \t\n\x00\xff\u00e9{{}}"
	for range 1 + rng.IntN(4) {
		at := rng.IntN(len(doc))
		switch rng.IntN(5) {
		case 0:
			doc[at] = bytes[rng.IntN(len(bytes))]
		case 1:
			doc = slices.Insert(doc, at, bytes[rng.IntN(len(bytes))])
		case 2:
			doc = slices.Delete(doc, at, min(len(doc), at+1+rng.IntN(12)))
		case 3: // a repeated part
			end := min(len(doc), at+rng.IntN(60))
			doc = slices.Insert(doc, end, slices.Clone(doc[at:end])...)
		case 4:
			doc = doc[:at+1]
		}
		if len(doc) == 0 {
			doc = []byte("{")
		}
	}
	want := []int{400}
	if json.Valid(doc) {
		want = []int{200, 400, 422}
	}
	return postAttack("fuzzed JSON", submitOrValidate(rng), string(doc), want...)
}

func deepNesting(rng *rand.Rand) attack {
	n := 1 + rng.IntN(100_000)
	open, shut := "[", "]"
	if rng.IntN(2) == 0 {
		open, shut = `{"a":`, "}"
	}
	body := strings.Repeat(open, n) + "1" + strings.Repeat(shut, n)
	if rng.IntN(2) == 0 { // inside a member that is kept unchanged
		return postAttack("deep nesting", submitOrValidate(rng), `{"tasks":{"a":{"job":{"executor":"noop","x":`+body+`}}}}`, 200, 400)
	}
	return postAttack("deep nesting", submitOrValidate(rng), body, 400)
}

func hugeNumber(rng *rand.Rand) attack {
	numbers := []string{"1e400", "-1", "99999999999999999999", "1e-400", "-0.5", "1.5", "NaN", "Infinity", "0x10", strings.Repeat("9", 5000), "1" + strings.Repeat("0", 400) + ".5"}
	number := numbers[rng.IntN(len(numbers))]
	tasks := []string{
		`{"tasks":{"a":{"job":{"executor":"noop"},"maxRetries":%s}}}`,
		`{"tasks":{"a":{"job":{"executor":"noop","cores":%s}}}}`,
		`{"tasks":{"a":{"job":{"executor":"noop","cores":"%s"}}}}`,
		`{"tasks":{"a":{"job":{"executor":"noop","memoryMB":%s}}}}`,
		`{"tasks":{"a":{"job":{"executor":"noop","timeoutSeconds":%s}}}}`,
		`{"tasks":{"a":{"job":{"executor":"noop"},"retryIntervalSeconds":%s}}}`,
		`{"tasks":{"a":{"job":{"executor":"noop"},"retryBackoff":%s}}}`,
		`{"tag":%s,"tasks":{"a":{"job":{"executor":"noop"}}}}`,
	}
	body := fmt.Sprintf(tasks[rng.IntN(len(tasks))], number)
	want := []int{400}
	if number == "1.5" || number == "1e-400" { // some members accept fractions
		want = []int{200, 400}
	}
	return postAttack("huge number", submitOrValidate(rng), body, want...)
}

func rawBytes(rng *rand.Rand) attack {
	raw := make([]byte, 1+rng.IntN(300))
	for i := range raw {
		raw[i] = byte(rng.Uint32())
	}
	bodies := []string{
		"\x00", "\x00" + string(raw), string(raw) + "\xff",
		"{\"tag\":\"\xff\xfe\",\"tasks\":{\"a\":{\"job\":{\"executor\":\"noop\"}}}}",
		"{\"tag\":\"a\x00b\",\"tasks\":{\"a\":{\"job\":{\"executor\":\"noop\"}}}}",
		`{"tasks":{"a":{"job":{"commandString":"x\u0000y"}}}}`,
		`{"tag":"\ud800","tasks":{"a":{"job":{"executor":"noop"}}}}`,
		`{"tasks":{"a":{"job":{"executor":"noop"}},"a":{"job":{"executor":"noop"}}}}`,
		`{"tasks":{"":{"job":{"executor":"noop"}}}}`, `{"tasks":{}}`, `null`, `""`, `[]`, `7`,
		"\xef\xbb\xbf{}", `{"tasks":{"a":null}}`, `{"tasks":null}`, "",
	}
	return postAttack("raw bytes", submitOrValidate(rng), bodies[rng.IntN(len(bodies))], 400)
}

func hostilePath(rng *rand.Rand) attack {
	names := []string{
		"a%2Fb", "%2E%2E", "..", ".", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "a%252Fb", "%00", "%ff%fe", "%", "%zz", "%2", "a%5cb",
		strings.Repeat("a", 4000), "a;b", "a&b", "{task}", "{{N}}", "a%0d%0aX: y", "%F0%9F%90%AB",
	}
	name := names[rng.IntN(len(names))]
	paths := []string{
		"/v1/dagrun/0/task/%s", "/v1/dagrun/0/task/%s/state", "/v1/dagrun/0/task/%s/log", "/v1/dagrun/%s", "/v1/dagrun/0/%s",
		"/%s", "//v1//dagrun/%s", "/v1/dagrun/0/state/%s", "/v1/../v1/dagrun/%s", "/v1/dagrun/0/task/../../%s",
	}
	path := fmt.Sprintf(paths[rng.IntN(len(paths))], name)
	method := []string{"GET", "DELETE"}[rng.IntN(2)]
	return attack{kind: "hostile path", method: method, text: method + " " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n", want: []int{400, 404, 405}}
}

func wrongMethod(rng *rand.Rand) attack {
	methods := []string{"PUT", "POST", "PATCH", "TRACE", "CONNECT", "BREW", "get"}
	paths := []string{"/ready", "/v1/dagruns", "/v1/dagrun/0/state", "/v1/dagrun/0", "/v1/dagrun/0/task/a", "/metrics"}
	method, path := methods[rng.IntN(len(methods))], paths[rng.IntN(len(paths))]
	want := []int{405, 400, 501}
	if method == "POST" && path == "/v1/dagruns" { // this one exists, for lines
		want = []int{415}
	}
	return attack{kind: "wrong method", method: method, text: rawRequest(method, path, "{}"), want: want}
}

func wrongID(rng *rand.Rand) attack {
	ids := []string{"-1", "1e3", "0x1", "18446744073709551616", "18446744073709551615", "99999999", "1.0", "+1", " 1", "1%20", "%31%00", "NaN", strings.Repeat("9", 2000)}
	id := strings.ReplaceAll(ids[rng.IntN(len(ids))], " ", "%20")
	rows := []string{"GET /v1/dagrun/%s", "GET /v1/dagrun/%s/state", "DELETE /v1/dagrun/%s", "PATCH /v1/dagrun/%s/state/QUEUED", "GET /v1/dagrun/%s/task/a", "DELETE /v1/dagrun/%s/task/a", "GET /v1/dagrun/%s/summary", "GET /v1/dagrun/%s/tasks"}
	line := fmt.Sprintf(rows[rng.IntN(len(rows))], id)
	method, _, _ := strings.Cut(line, " ")
	return attack{kind: "wrong id", method: method, text: line + " HTTP/1.1\r\nHost: localhost\r\n\r\n", want: []int{404, 400}}
}

// protocolAttack violates HTTP itself.
func protocolAttack(rng *rand.Rand) attack {
	const doc = `{"tasks":{"a":{"job":{"executor":"noop"}}}}`
	texts := []string{
		"GET\r\n\r\n", "\r\n\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET /ready\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
		"POST /v1/dagrun HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: -1\r\n\r\n" + doc,
		"POST /v1/dagrun HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1e9\r\n\r\n" + doc,
		"POST /v1/dagrun HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n" + doc,
		"POST /v1/dagrun HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST /v1/dagrun HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 44\r\nContent-Length: 3\r\n\r\n" + doc,
		"POST /v1/dagrun HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + doc + "\r\n0\r\n\r\n",
		"POST /v1/dagrun HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: gzip\r\n\r\n" + doc,
		"POST /v1/dagrun HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Encoding: br\r\nContent-Length: 3\r\n\r\nabc",
		"POST /v1/dagrun HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\nabc",
		"GET /ready HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 100_000) + "\r\n\r\n",
		"GET /" + strings.Repeat("x", 100_000) + " HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /ready HTTP/1.1\r\nHost: localhost\r\n" + strings.Repeat("X: y\r\n", 10_000) + "\r\n",
		"GET /ready HTTP/1.1\nno colon here\r\n\r\n",
	}
	text := texts[rng.IntN(len(texts))]
	method, _, _ := strings.Cut(text, " ")
	// A lenient parser may accept a violation on /ready, but not in submissions.
	want := []int{400, 404, 405, 408, 411, 413, 415, 431, 501, 505, 0}
	if strings.Contains(text, "/ready") {
		want = append(want, 200)
	}
	return attack{kind: "protocol", method: method, text: text, half: true, want: want}
}

// halfClosed is a valid request whose client closes its sending side at once and still waits for the
// answer.
func halfClosed(rng *rand.Rand) attack {
	paths := []string{"/ready", "/v1/dagruns?all=1&limit=3", "/v1/dagrun/0", "/v1/dagrun/0/state", "/metrics"}
	return attack{kind: "half-closed", method: "GET", half: true, want: []int{200},
		text: "GET " + paths[rng.IntN(len(paths))] + " HTTP/1.1\r\nHost: localhost\r\n\r\n"}
}

// slowBody announces more than it sends, and leaves.
func slowBody(rng *rand.Rand) attack {
	whole := rawRequest("POST", "/v1/dagrun", `{"tag":"never whole","tasks":{"a":{"job":{"executor":"noop"}}}}`)
	return attack{kind: "slow body", method: "POST", text: whole[:1+rng.IntN(len(whole)-1)], leave: true}
}

// TestHostileRequests makes -hostile requests of all kinds, from 16 clients at a time,
// while 1,000 idle connections are open. Each gets a correct status. 20 submissions whose body
// arrives one byte at a time succeed, truncated ones are never accepted, and afterwards the server
// has its former numbers of goroutines and descriptors.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	const clients, idle = 16, 1000
	s := e2etest.Start(t)
	s.Complete(seedDAG)
	s.Want(200, "POST", "/v1/dagrun/validate", soundJSON)
	hold := raiseFileLimit(t, 4096)
	before := resourceLevel(t, s)

	conns := make([]*rawConn, min(idle, hold/2))
	for i := range conns {
		c, err := dialRaw(s.URL)
		if err != nil {
			t.Fatalf("idle connection %d: %v", i, err)
		}
		defer c.Close()
		conns[i] = c
		if i%2 == 0 { // half of them in the middle of a request
			if err := c.send("GET /ready HTTP/1.1\r\nHo"); err != nil {
				t.Fatal(err)
			}
		}
	}

	seed := seededRandom(t).Uint64()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := submitByteByByte(s.URL, fmt.Sprintf(`{"tag":"drop %d","tasks":{"a":{"job":{"executor":"noop"}}}}`, i)); err != nil {
				t.Errorf("a slow submission: %v", err)
			}
		})
	}
	var mu sync.Mutex
	tally := map[string]int{}
	for client := range clients {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(client)))
			for i := client; i < scaled(*hostileFlag); i += clients {
				a := attacks[i/clients%len(attacks)](rng)
				status, body, err := a.send(s.URL)
				mu.Lock()
				tally[fmt.Sprintf("%-12s %d", a.kind, status)]++
				mu.Unlock()
				if problem := a.verdict(status, body, err); problem != "" {
					t.Errorf("%s: %s\nrequest %.300q\nanswer %.300q", a.kind, problem, a.text, body)
				}
			}
		})
	}
	wg.Wait()
	for _, line := range sortedCounts(tally) {
		t.Logf("%s: %d", line, tally[line])
	}
	s.Want(200, "GET", "/ready", "")
	for _, r := range s.List("?all=1&tag=never+whole") {
		t.Errorf("a submission that was cut off became run %d", r.RunID)
	}
	for _, c := range conns {
		c.Close()
	}

	var after [2]int
	if !testenv.Poll(2*e2etest.Patience, func() bool {
		after = resourceLevel(t, s)
		return after[0] <= before[0]+3 && after[1] <= before[1]+3
	}) {
		t.Errorf("goroutines and descriptors: %v before, %v after", before, after)
	}
	t.Logf("goroutines and descriptors: %v before, %v after", before, after)
	s.CheckLog()
}

// submitByteByByte submits a document one byte at a time.
func submitByteByByte(url, doc string) error {
	c, err := dialSubmitter(url)
	if err != nil {
		return err
	}
	defer c.Close()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	whole := rawRequest("POST", "/v1/dagrun", doc)
	for i := range len(whole) - 1 {
		if err := c.send(whole[i : i+1]); err != nil {
			return err
		}
		<-tick.C
	}
	if err := c.send(whole[len(whole)-1:]); err != nil {
		return err
	}
	_, err = c.readRunID()
	return err
}

// send makes the request. Status 0 means that the connection ended without an answer.
func (a attack) send(url string) (status int, body []byte, err error) {
	c, err := dialRaw(url)
	if err != nil {
		return 0, nil, err
	}
	defer c.Close()
	if err := c.send(a.text); err != nil {
		return 0, nil, nil //nolint:nilerr // the server closed early: an answer may have been lost with it
	}
	if a.leave {
		return 0, nil, nil
	}
	if a.half {
		if err := c.CloseWrite(); err != nil {
			return 0, nil, nil //nolint:nilerr // as above
		}
	}
	status, body, err = c.readResponse(a.method)
	if err != nil && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)) {
		return status, body, nil
	}
	return status, body, err
}

// verdict describes the error in an answer; it is empty for a correct one.
func (a attack) verdict(status int, body []byte, err error) string {
	switch {
	case err != nil:
		return err.Error()
	case a.leave:
		return ""
	case !slices.Contains(a.want, status):
		return fmt.Sprintf("status %d, want one of %v", status, a.want)
	case status >= 400 && a.method != "HEAD" && !json.Valid(body):
		return fmt.Sprintf("the body of a %d is not JSON", status)
	}
	return ""
}

// resourceLevel is the number of goroutines and of descriptors of the server when only the test is
// connected. Descriptors of storage come and go: the caller allows for a few.
func resourceLevel(t *testing.T, s *e2etest.Server) (n [2]int) {
	t.Helper()
	goroutines, err := s.Metric("go_goroutines")
	if err != nil {
		t.Fatal(err)
	}
	fds, err := s.FDs()
	if err != nil {
		t.Fatal(err)
	}
	return [2]int{int(goroutines), fds}
}

// raiseFileLimit requests n open files for this process and returns the resulting limit. It sets a limit
// only if that raises it: after a call of Setrlimit the runtime no longer restores the former limit in
// the processes that it starts, which are those of all later tests.
func raiseFileLimit(t *testing.T, n uint64) int {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if most := min(n, limit.Max); limit.Cur < most {
		limit.Cur = most
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
	}
	return int(min(limit.Cur, 1<<20))
}

func sortedCounts(m map[string]int) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// TestDisconnectingClients: clients that leave during a followed log or a large answer free all
// resources, and a slow reader does not delay others.
func TestDisconnectingClients(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	big := s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Noop("N")}).
		With("parameters", map[string]any{"N": e2etest.Numbers(5000)})).RunID
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"talk": e2etest.Sh("while :; do echo line; sleep 0.05; done")}))
	s.AwaitTask(run, "talk", "RUNNING")
	before := resourceLevel(t, s)

	var conns []*rawConn
	for i := range 100 {
		c, err := dialRaw(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		path := e2etest.Path(run, "/task/talk/log?follow=1")
		if i%2 == 0 {
			path = e2etest.Path(big, "") // some 2 MB; only the first line is read
		}
		if err := c.send("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := c.r.ReadString('\n'); err != nil || !strings.Contains(line, " 200 ") {
			t.Fatalf("GET %s: %q, %v", path, line, err)
		}
		conns = append(conns, c)
	}
	s.Complete(seedDAG) // they do not delay others
	for _, c := range conns {
		if err := c.SetLinger(0); err != nil { // a reset instead of a close
			t.Fatal(err)
		}
		c.Close()
	}
	var after [2]int
	if !testenv.Poll(2*e2etest.Patience, func() bool {
		after = resourceLevel(t, s)
		return after[0] <= before[0]+3 && after[1] <= before[1]+3
	}) {
		t.Errorf("goroutines and descriptors: %v before, %v after", before, after)
	}
	s.Want(200, "DELETE", e2etest.Path(run, ""), "")
	s.Await(run, "KILLED")
}

// TestHostileLoad combines attacks on one server that could take gigabytes: compressed documents of
// one huge text, endless lines, compressed empty lines whose answers are not read, thousands of
// watchers, and clients that leave. Clients at another address are served throughout, and the server
// stays below 1 GB.
func TestHostileLoad(t *testing.T) {
	s := e2etest.Start(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("sleep 300")}))
	s.AwaitTask(run, "a", "RUNNING")
	address := strings.TrimPrefix(s.URL, "http://")
	least := scaled(100)
	bomb := compressedText(t, "zstd", `{"tag":"`, 'x', scaled(255)<<20, `","tasks":{"a":{"job":{"executor":"noop"}}}}`)
	newlines := compressedText(t, "gzip", "", '\n', scaled(30)<<20, "")
	t.Logf("bombs of %d and %d bytes", len(bomb), len(newlines))
	// On a slow machine it lasts longer: until the honest clients have their answers.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var hostile sync.WaitGroup
	dial := func() net.Conn {
		c, err := net.DialTimeout("tcp", address, e2etest.Patience)
		if err != nil {
			return nil
		}
		context.AfterFunc(ctx, func() { c.Close() })
		return c
	}
	post := func(path, kind, coding string, body []byte, read bool) {
		c := dial()
		if c == nil {
			return
		}
		defer c.Close()
		_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n", path, kind, coding, len(body))
		_, _ = c.Write(body)
		if read {
			_, _ = io.CopyN(io.Discard, c, 100)
		} else {
			<-ctx.Done()
		}
	}
	for range 8 {
		hostile.Go(func() {
			for ctx.Err() == nil {
				post("/v1/dagrun", "application/json", "zstd", bomb, true)
			}
		})
		hostile.Go(func() { post("/v1/dagruns", "application/x-ndjson", "gzip", newlines, false) })
	}
	line := bytes.Repeat([]byte("x"), 60<<20)
	for range 24 {
		hostile.Go(func() {
			c := dial()
			if c == nil {
				return
			}
			_, _ = fmt.Fprintf(c, "POST /v1/dagruns HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n", 200<<20)
			_, _ = c.Write(line)
			<-ctx.Done()
			c.Close()
		})
	}
	for range 7 {
		hostile.Go(func() {
			for i := range 1000 {
				c := dial()
				if c == nil {
					return
				}
				path := [...]string{"/v1/events", fmt.Sprintf("/v1/dagrun/%d/events", run)}[i%2]
				_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path)
			}
		})
	}
	for range 4 {
		hostile.Go(func() {
			for ctx.Err() == nil {
				if c := dial(); c != nil {
					_, _ = fmt.Fprintf(c, "GET /v1/dagrun/%d/state?wait=60s HTTP/1.1\r\nHost: localhost\r\n\r\n", run)
					c.Close()
				}
			}
		})
	}
	began := time.Now()
	took := honestClient(t, s, least, 3*time.Second)
	cancel()
	hostile.Wait()
	if len(took) < least {
		t.Fatalf("honest clients got %d answers in %v, want %d", len(took), time.Since(began), least)
	}
	slices.Sort(took)
	peak := peakMemory(t, s.PID())
	t.Logf("%d requests of honest clients, p50 %v, p99 %v; the server took %d MB at the peak",
		len(took), took[len(took)/2], took[len(took)*99/100], peak>>20)
	if peak >= 1<<30 && !e2etest.Race { // the race detector multiplies the memory
		t.Errorf("the server took %d MB at the peak, want less than 1 GB", peak>>20)
	}
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Noop("")}))
}

// honestClient submits and reads runs from another address, for some time and until it has some
// answers, within a limit. It returns how long each request took.
func honestClient(t *testing.T, s *e2etest.Server, answers int, atLeast time.Duration) (took []time.Duration) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	transport := &http.Transport{DialContext: dialer.DialContext}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: e2etest.Patience}
	doc := e2etest.Body(t, e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Noop("")}))
	for begin := time.Now(); time.Since(begin) < atLeast || len(took) < answers && time.Since(begin) < 2*e2etest.Patience; {
		for _, path := range []string{"POST /v1/dagrun", "GET /v1/dagrun/0/state", "GET /v1/dagruns?limit=10", "GET /ready"} {
			method, path, _ := strings.Cut(path, " ")
			req, err := http.NewRequest(method, s.URL+path, strings.NewReader(doc))
			if err != nil {
				t.Fatal(err)
			}
			if method == "GET" {
				req.Body = http.NoBody
				req.ContentLength = 0
			}
			req.Header.Set("Content-Type", "application/json")
			began := time.Now()
			resp, err := client.Do(req)
			if err != nil {
				t.Errorf("%s %s: %v", method, path, err)
				return took
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Errorf("%s %s: %d %s", method, path, resp.StatusCode, body)
			}
			took = append(took, time.Since(began))
		}
	}
	return took
}

// compressedText is text, n times a byte, and more text, compressed.
func compressedText(t *testing.T, coding, before string, fill byte, n int, after string) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser = gzip.NewWriter(&b)
	if coding == "zstd" {
		var err error
		if w, err = zstd.NewWriter(&b, zstd.WithWindowSize(1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = io.WriteString(w, before)
	part := bytes.Repeat([]byte{fill}, 1<<20)
	for ; n > 0; n -= len(part) {
		_, _ = w.Write(part[:min(n, len(part))])
	}
	_, _ = io.WriteString(w, after)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// peakMemory is the peak memory of a process, in bytes.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		t.Skip("this kernel does not tell the peak of a process's memory")
	}
	kb, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}
