package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// TestLargeDocument streams; every task is there once, in order, in each part.
func TestLargeDocument(t *testing.T) {
	const n = 5000
	e := &fakeEngine{}
	r := e.add(t, manySpec(n), dag.RunRunning, dag.TaskCompleted)
	rng := rand.New(rand.NewPCG(1, 2))
	want := make([]int, n)
	for task := range n {
		if task%1000 > 900 {
			continue // long stretches without any
		}
		want[task] = rng.IntN(4)
		if task == 77 {
			want[task] = 500
		}
		for a := range want[task] {
			text := strings.Repeat("o", rng.IntN(300))
			r.records = append(r.records, messages.AttemptRecord{Task: uint32(task), Attempt: uint32(a + 1),
				Stdout: messages.Output{Size: int64(len(text)), Head: int64(len(text)), Inline: []byte(text)}})
		}
	}
	s := serve(t, e)
	resp, err := s.open("GET", "/v1/dagrun/0", "")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.ContentLength != -1 || resp.Header.Get("Content-Type") != jsonType {
		t.Errorf("%d bytes of %s", resp.ContentLength, resp.Header.Get("Content-Type"))
	}
	dec := json.NewDecoder(resp.Body)
	part, tasks := "", 0
	expect := func(want any) {
		t.Helper()
		if tok, err := dec.Token(); err != nil || want != nil && tok != want {
			t.Fatalf("in %s, task %d: %v %v, want %v", part, tasks, tok, err, want)
		}
	}
	expect(json.Delim('{'))
	for _, member := range []string{"runID", "tag"} {
		expect(member)
		expect(nil)
	}
	for _, part = range []string{"tasks", "taskStates", "taskAttempts"} {
		expect(part)
		expect(json.Delim('{'))
		for tasks = 0; dec.More(); tasks++ {
			expect(fmt.Sprint("t_", tasks))
			var v any
			if err := dec.Decode(&v); err != nil {
				t.Fatal(err)
			}
			if a, ok := v.([]any); part == "taskAttempts" && (!ok || len(a) != want[tasks]) {
				t.Fatalf("task %d has %d attempts, want %d", tasks, len(a), want[tasks])
			}
			if s, ok := v.(string); part == "taskStates" && (!ok || s != "COMPLETED") {
				t.Fatalf("task %d is %v", tasks, v)
			}
		}
		if tasks != n {
			t.Fatalf("%s has %d entries", part, tasks)
		}
		expect(json.Delim('}'))
	}
	expect("dagStateChanges")
	var changes []any
	if err := dec.Decode(&changes); err != nil {
		t.Fatal(err)
	}
	expect(json.Delim('}'))
	if _, err := dec.Token(); err != io.EOF {
		t.Errorf("then %v", err)
	}
	if e.attemptRanges > 200 {
		t.Errorf("the engine was asked for attempts %d times", e.attemptRanges)
	}
}

// TestPieces: no state of a producer is lost between pieces, wherever they end.
func TestPieces(t *testing.T) {
	e := contractEngine(t)
	for i := range 3 {
		e.runs[0].records = append(e.runs[0].records, messages.AttemptRecord{Task: 1, Attempt: uint32(i + 2),
			Stdout: messages.Output{Size: 40_000, Head: 40_000, Inline: make([]byte, 40_000)}})
	}
	view, err := e.View(t.Context(), 0, 0, 99)
	if err != nil {
		t.Fatal(err)
	}
	whole := produce(t, newRunDocument(t.Context(), e, view), 0)
	for filled := range 20 {
		if got := produce(t, newRunDocument(t.Context(), e, view), filled*pieceBytes/19); got != whole {
			t.Fatalf("with %d bytes before: %d bytes, want %d", filled*pieceBytes/19, len(got), len(whole))
		}
	}
}

// produce reads p to its end, and appends each piece to so many bytes.
func produce(t *testing.T, p producer, before int) string {
	t.Helper()
	var out strings.Builder
	for {
		b, more, err := p.next(make([]byte, before))
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b[before:])
		if !more {
			return out.String()
		}
		before = 0
	}
}

// TestStreamBreaksOff: an error or a panic in mid-stream is no proper end.
func TestStreamBreaksOff(t *testing.T) {
	for _, how := range []string{"error", "panic"} {
		t.Run(how, func(t *testing.T) {
			e := &fakeEngine{}
			e.add(t, manySpec(3000), dag.RunRunning, dag.TaskCompleted)
			e.hook = func(method string) {
				if method == "Attempts" && how == "panic" {
					panic("camel down")
				}
			}
			if how == "error" {
				e.fail = map[string]error{"Attempts": errors.New("camel down")}
			}
			s := serve(t, e)
			r := s.get("/v1/dagrun/0")
			if r.status != 200 || r.err == nil || json.Valid([]byte(r.body)) {
				t.Errorf("%d, %d bytes, %v", r.status, len(r.body), r.err)
			}
			testenv.Eventually(t, "it is in the log", func() bool { return strings.Contains(s.logs.String(), "camel down") })
			if got := s.get("/v1/dagrun/0/state"); got.status != 200 {
				t.Error(got)
			}
		})
	}
}

func TestListPages(t *testing.T) {
	e := &fakeEngine{}
	for i := range 10 {
		e.add(t, contractSpec, dag.RunState(i%3), dag.TaskQueued)
	}
	s := serve(t, e)
	for query, want := range map[string]string{"": "0 1 3 4 6 7 9", "&order=asc": "0 1 3 4 6 7 9", "&order=desc": "9 7 6 4 3 1 0"} {
		if got, pages := walk(t, s, "/v1/dagruns?all=1&limit=4&state=QUEUED,RUNNING&tag=mediumtest"+query); got != want || pages != 2 {
			t.Errorf("%q: %s on %d pages", query, got, pages)
		}
	}
	if r := s.get("/v1/dagruns?limit=4&cursor=" + formatCursor(runCursor, 9)); r.body != "[]" || r.header.Get("Link") != "" {
		t.Errorf("behind the last: %q", r.body)
	}
	if r := s.get("/v1/dagruns?cursor=" + formatCursor(runCursor, 8)); strings.Count(r.body, "runID") != 1 {
		t.Errorf("a cursor without a limit: %s", r.body)
	}
	if r := s.get("/v1/dagruns?all=1&order=desc&cursor=" + formatCursor(runCursor, 2)); strings.Count(r.body, "runID") != 2 || !strings.HasPrefix(r.body, `[{"runID":1,`) {
		t.Errorf("newest first, without a limit: %s", r.body)
	}
}

// walk follows the links of a list from page to page.
func walk(t *testing.T, s *service, target string) (list string, pages int) {
	t.Helper()
	var ids []string
	for target != "" {
		r := s.get(target)
		var page []struct{ RunID int }
		if err := json.Unmarshal([]byte(r.body), &page); err != nil {
			t.Fatal(err)
		}
		for _, run := range page {
			ids = append(ids, fmt.Sprint(run.RunID))
		}
		pages++
		target = ""
		if link := r.header.Get("Link"); link != "" {
			var rel string
			target, rel, _ = strings.Cut(strings.TrimPrefix(link, "<"), ">")
			if rel != `; rel="next"` || !strings.HasSuffix(target, "&cursor="+r.header.Get("X-Next-Cursor")) {
				t.Errorf("Link: %s", link)
			}
		}
	}
	return strings.Join(ids, " "), pages
}

// TestLongList streams, and asks the engine page by page.
func TestLongList(t *testing.T) {
	e := &fakeEngine{}
	e.add(t, contractSpec, dag.RunQueued, dag.TaskQueued)
	for i := range 1999 {
		r := *e.runs[0]
		r.view.ID = messages.RunID(i + 1)
		e.runs = append(e.runs, &r)
	}
	s := serve(t, e)
	r := s.get("/v1/dagruns")
	var list []struct{ RunID int }
	if err := json.Unmarshal([]byte(r.body), &list); err != nil || len(list) != 2000 || r.header.Get("Content-Length") != "" {
		t.Fatalf("%d entries, %v", len(list), err)
	}
	for i, run := range list {
		if run.RunID != i {
			t.Fatalf("entry %d is run %d", i, run.RunID)
		}
	}
}

func TestTaskPages(t *testing.T) {
	e := &fakeEngine{}
	r := e.add(t, manySpec(100), dag.RunRunning, dag.TaskQueued)
	for i := range r.view.States {
		r.view.States[i] = []dag.TaskState{dag.TaskQueued, dag.TaskGranted, dag.TaskRunning, dag.TaskErrored, dag.TaskErrored}[i%5]
		r.records = append(r.records, messages.AttemptRecord{Task: uint32(i), Attempt: 1, RC: int32(i)})
	}
	s := serve(t, e)
	walk := func(query string) (names []string, pages int) {
		cursor := ""
		for {
			r := s.get("/v1/dagrun/0/tasks?" + query + "&cursor=" + cursor)
			if cursor == "" {
				r = s.get("/v1/dagrun/0/tasks?" + query)
			}
			var page struct {
				Tasks []struct {
					Name, State string
					Attempts    []struct{ RC int }
				}
				Next string
			}
			if err := json.Unmarshal([]byte(r.body), &page); err != nil {
				t.Fatal(err, r.body)
			}
			pages++
			for _, task := range page.Tasks {
				if len(task.Attempts) != 1 || fmt.Sprint("t_", task.Attempts[0].RC) != task.Name {
					t.Fatalf("%+v", task)
				}
				names = append(names, task.Name+" "+task.State)
			}
			if page.Next != r.header.Get("X-Next-Cursor") || (page.Next == "") != (r.header.Get("Link") == "") {
				t.Errorf("next %q, headers %v", page.Next, r.header)
			}
			if cursor = page.Next; cursor == "" {
				return names, pages
			}
		}
	}
	if names, pages := walk(""); len(names) != 100 || pages != 1 || names[1] != "t_1 QUEUED" {
		t.Errorf("%d tasks on %d pages", len(names), pages)
	}
	if names, pages := walk("limit=7"); len(names) != 100 || pages != 15 || names[99] != "t_99 ERRORED" {
		t.Errorf("%d tasks on %d pages", len(names), pages)
	}
	if names, pages := walk("limit=10&state=QUEUED"); len(names) != 40 || pages != 4 || names[39] != "t_96 QUEUED" {
		t.Errorf("%d tasks on %d pages: %v", len(names), pages, names)
	}
	if names, pages := walk("limit=13&state=ERRORED,RUNNING"); len(names) != 60 || pages != 5 {
		t.Errorf("%d tasks on %d pages", len(names), pages)
	}
	if names, _ := walk("state=KILLED"); len(names) != 0 {
		t.Errorf("%v", names)
	}
	for _, far := range []uint64{100, 1 << 31, 1<<32 - 1, 1 << 40} {
		if r := s.get("/v1/dagrun/0/tasks?cursor=" + formatCursor(taskCursor, far)); r.body != `{"tasks":[],"next":""}` {
			t.Errorf("from %d: %d %s", far, r.status, r.body)
		}
	}
}

// TestShutdown: what is in flight is answered, a followed log breaks off, what
// is new is asked to come back, and then all is closed.
func TestShutdown(t *testing.T) {
	log := &fakeLog{live: true, data: []byte("x\n")}
	e := logEngine(t, log)
	entered, proceed := holdKill(e)
	own, err := testenv.Listen() // it is dialed after its close
	if err != nil {
		t.Fatal(err)
	}
	s := serveOn(t, own, e)
	_, followed := s.follow("")
	nextLine(t, followed, "x\n")
	keptAlive, kept := s.raw("GET /ready HTTP/1.1\r\nHost: c\r\n\r\n")
	s.answerTo(kept)
	killed := make(chan reply, 1)
	go func() { killed <- s.do("DELETE", "/v1/dagrun/0", "") }()
	<-entered

	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	if rest, err := io.ReadAll(followed); err == nil {
		t.Errorf("a log that breaks off looks whole: %q", rest)
	}
	if _, err := io.WriteString(keptAlive, "GET /ready HTTP/1.1\r\nHost: c\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]reply{"on an open connection": s.answerTo(kept), "on a new one": s.get("/ready")} {
		refusedWith(t, got, 503, "shutting down")
		if !got.close {
			t.Errorf("%s: the connection stays", name)
		}
	}
	select {
	case err := <-down:
		t.Fatalf("shut down with a request in flight: %v", err)
	default:
	}
	close(proceed)
	if r := <-killed; r.status != 200 {
		t.Errorf("in flight: %d %s", r.status, r.body)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", s.addr); err == nil {
		c.Close()
		t.Error("the listener is open")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(l); err != nil {
		t.Errorf("serving after shutdown: %v", err)
	}
}

// holdKill lets a kill wait in the engine until proceed is closed. entered is closed when one waits.
func holdKill(e *fakeEngine) (entered, proceed chan struct{}) {
	entered, proceed = make(chan struct{}), make(chan struct{})
	e.hook = func(method string) {
		if method == "Kill" {
			close(entered)
			<-proceed
		}
	}
	return entered, proceed
}

// TestShutdownTwice: each call returns when all is done.
func TestShutdownTwice(t *testing.T) {
	e := contractEngine(t)
	entered, proceed := holdKill(e)
	s := serve(t, e)
	killed := make(chan reply, 1)
	go func() { killed <- s.do("DELETE", "/v1/dagrun/0", "") }()
	<-entered
	down := make(chan error, 3)
	for range cap(down) {
		go func() { down <- s.Shutdown(context.Background()) }()
	}
	<-s.serviceContext.Done()
	close(proceed)
	for range cap(down) {
		if err := <-down; err != nil {
			t.Error(err)
		}
	}
	if r := <-killed; r.status != 200 {
		t.Error(r)
	}
	if err := New(Config{Engine: e}).Shutdown(context.Background()); err != nil {
		t.Errorf("never served: %v", err)
	}
}

// TestShutdownInMidStream: a document that is being read is sent to its end.
func TestShutdownInMidStream(t *testing.T) {
	e := &fakeEngine{}
	e.add(t, manySpec(60_000), dag.RunRunning, dag.TaskCompleted)
	s := serve(t, e)
	resp, err := s.open("GET", "/v1/dagrun/0", "")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	<-s.serviceContext.Done()
	b, err := io.ReadAll(resp.Body)
	if err != nil || !json.Valid(b) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}

// TestShutdownIsCutShort: a client that does not read cannot hold it up.
func TestShutdownIsCutShort(t *testing.T) {
	e := &fakeEngine{}
	e.add(t, manySpec(60_000), dag.RunRunning, dag.TaskCompleted)
	s := serve(t, e)
	_, r := s.raw("GET /v1/dagrun/0 HTTP/1.1\r\nHost: c\r\n\r\n")
	if _, err := http.ReadResponse(r, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	testenv.Eventually(t, "the stream ends", func() bool { return s.inflight.Load() == 0 })
}

// TestShutdownAnswersUploads: when the time of a shutdown is up, a request whose body is still arriving is
// answered, and has no effect.
func TestShutdownAnswersUploads(t *testing.T) {
	const head = "POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\n"
	some := strings.Repeat(" ", 20_000)
	for what, request := range map[string]string{
		"short":  head + "Content-Length: 100000\r\n\r\n" + some,
		"long":   head + "Content-Length: 50000000\r\n\r\n" + some + strings.Repeat(" ", longBodyBytes),
		"chunks": head + "Transfer-Encoding: chunked\r\n\r\n" + strings.TrimSuffix(inChunks(some, 9000, ""), "0\r\n"),
	} {
		t.Run(what, func(t *testing.T) {
			e := contractEngine(t)
			s := serve(t, e)
			_, r := s.raw(request)
			testenv.Eventually(t, "its body is being read", func() bool {
				return s.bodies.inUse() > 0 && (what != "long" || s.longBodies.len() == 1)
			})
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			defer cancel()
			if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("shutdown: %v", err)
			}
			got := s.answerTo(r)
			if refusedWith(t, got, 503, "the server is shutting down"); !got.close {
				t.Error("the connection stays")
			}
			if len(e.submitted) != 0 {
				t.Error("a part was taken for a submission")
			}
		})
	}
}

// TestShutdownBreaksDocumentsOff: when the time of a shutdown is up, a document whose calls of the engine
// end does not go on with markers in place of output that could be read.
func TestShutdownBreaksDocumentsOff(t *testing.T) {
	for _, target := range []string{"/v1/dagrun/0", "/v1/dagrun/0/tasks?limit=3000"} {
		t.Run(target, func(t *testing.T) {
			e := &fakeEngine{}
			run := e.add(t, manySpec(3000), dag.RunRunning, dag.TaskRunning)
			run.view.Live = []messages.LiveAttempt{{Task: 2999, Attempt: 1, Start: 1}}
			run.logs[logKey("t_2999", 1, messages.Stdout)] = &fakeLog{data: []byte("so far"), live: true}
			s := serve(t, e)
			e.mu.Lock()
			e.wait = func(ctx context.Context, method string) error {
				if method == "OpenLog" {
					s.conns.endCalls()
				}
				return context.Cause(ctx)
			}
			e.mu.Unlock()
			r := s.get(target)
			if r.status != 200 || r.err == nil || strings.Contains(r.body, "not readable") {
				t.Errorf("%d, %d bytes that end with %q, %v", r.status, len(r.body), r.body[max(0, len(r.body)-200):], r.err)
			}
		})
	}
}

// TestStalledClient: a client that stops reading loses the connection.
func TestStalledClient(t *testing.T) {
	e := &fakeEngine{}
	e.add(t, manySpec(60_000), dag.RunRunning, dag.TaskCompleted)
	s := serve(t, e, func(c *Config) { c.WriteTimeout = time.Second })
	_, r := s.raw("GET /v1/dagrun/0 HTTP/1.1\r\nHost: c\r\n\r\n")
	if _, err := http.ReadResponse(r, nil); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "it is cut off", func() bool { return s.connections() == 0 && s.inflight.Load() == 0 })
}

// TestShutdownAnswersClientsThatSend: a client whose body is on its way when the server shuts down gets
// the answer, and not a reset connection.
func TestShutdownAnswersClientsThatSend(t *testing.T) {
	e := contractEngine(t)
	entered, proceed := holdKill(e)
	s := serve(t, e)
	killed := make(chan reply, 1)
	go func() { killed <- s.do("DELETE", "/v1/dagrun/0", "") }()
	<-entered
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	<-s.serviceContext.Done()
	// A body that fasthttp would drain on a connection that stays: each piece is sent after the answer.
	piece := strings.Repeat(" ", 10_000)
	c, r := s.raw("POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n" + piece)
	if _, err := r.Peek(1); err != nil {
		t.Fatal(err)
	}
	for range 9 {
		if _, err := io.WriteString(c, piece); err != nil {
			t.Errorf("reset while it sends: %v", err)
			break
		}
	}
	refusedWith(t, s.answerTo(r), 503, "shutting down")
	c.Close() // else the server reads on
	for range 10 {
		resp, err := s.open("POST", "/v1/dagrun", strings.Repeat(" ", 8<<20))
		if err != nil {
			t.Errorf("without an answer: %v", err)
			continue
		}
		if _, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 503 {
			t.Errorf("%d, %v", resp.StatusCode, err)
		}
		resp.Body.Close()
	}
	close(proceed)
	<-killed
	if err := <-down; err != nil {
		t.Error(err)
	}
}
