package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

func TestNewRefusesInvalidServerURLs(t *testing.T) {
	for server, want := range map[string]string{
		"ftp://x":         `scheme "ftp"`,
		"http://":         "no host",
		"http://x?a=b":    "query",
		"http://x#frag":   "fragment",
		"http://[::1":     "is not a URL",
		"http://x:port/a": "is not a URL",
	} {
		if _, err := New(Config{Server: server}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", server, err, want)
		}
	}
	for server, want := range map[string]string{
		"":                    DefaultServer,
		"localhost:1":         "http://localhost:1",
		"https://x/caravan//": "https://x/caravan",
	} {
		c, err := New(Config{Server: server})
		if err != nil || c.Server() != want {
			t.Errorf("%s: got %v, %v, want %s", server, c.Server(), err, want)
		}
	}
}

// TestCalls holds what each method sends and what it makes of the answer.
func TestCalls(t *testing.T) {
	ctx := context.Background()
	tag := "a b"
	summary := `{"runID":2,"tag":"t","tags":{"k":"v"},"state":"RUNNING","startTime":"1645539903281234588",` +
		`"lastUpdate":"1645539912499992547","taskCounts":{"COMPLETED":11,"RUNNING":14,"KILLED":1},"tasks":26}`
	wantSummary := &Summary{RunID: 2, Tag: "t", Tags: map[string]string{"k": "v"}, State: Running,
		StartTime: 1645539903281234588, LastUpdate: 1645539912499992547,
		TaskCounts: map[string]int{Completed: 11, Running: 14, Killed: 1}, Tasks: 26}
	for _, tc := range []struct {
		name   string
		call   func(*Client) (any, error)
		answer string
		sent   string
		want   any
	}{
		{"ready", func(c *Client) (any, error) { return nil, c.Ready(ctx) }, `{ "msg": "Ya like DAGs?"}`, "GET /ready", nil},
		{"version", func(c *Client) (any, error) { return c.Version(ctx) }, `{"version":"v1","go":"go1"}`, "GET /version",
			&Version{Version: "v1", Go: "go1"}},
		{"cluster", func(c *Client) (any, error) { return c.Cluster(ctx) },
			`{"id":"ab","node":"n1-7","nodes":[{"id":"n1-7","name":"n1","address":"h:1","slots":{"cores":2,"memoryMB":9},"taken":{"cores":1.5,"memoryMB":8},"running":1,"waiting":4,"draining":true,"clockSkewSeconds":-2.5}],"partitions":[{"partition":0,"leader":"n1-7","term":3,"applied":12,"lag":2,"lease":true}],"workers":[{"id":"big.1","name":"big","address":"w:1","state":"connected","slots":{"cores":8,"memoryMB":9},"taken":{"cores":4,"memoryMB":8},"running":1,"waiting":2}]}`,
			"GET /v1/cluster", &Cluster{ID: "ab", Node: "n1-7", Nodes: []ClusterNode{{ID: "n1-7", Name: "n1", Address: "h:1", Slots: ClusterSlots{2, 9}, Taken: ClusterSlots{1.5, 8}, Running: 1, Waiting: 4, Draining: true, ClockSkewSeconds: -2.5}},
				Partitions: []ClusterPartition{{Leader: "n1-7", Term: 3, Applied: 12, Lag: 2, Lease: true}},
				Workers:    []ClusterWorker{{ID: "big.1", Name: "big", Address: "w:1", State: "connected", Slots: ClusterSlots{8, 9}, Taken: ClusterSlots{4, 8}, Running: 1, Waiting: 2}}}},
		{"a dead worker", func(c *Client) (any, error) { return nil, c.DeclareWorkerDead(ctx, "big.1") }, `{"dead":"big.1"}`, "POST /v1/cluster/worker/dead?worker=big.1", nil},
		{"submit", func(c *Client) (any, error) { return c.Submit(ctx, []byte("{}"), SubmitOptions{}) }, `{"runID": 7}`,
			"POST /v1/dagrun", uint64(7)},
		{"submit run 0", func(c *Client) (any, error) { return c.Submit(ctx, nil, SubmitOptions{}) }, `{"runID":0}`,
			"POST /v1/dagrun", uint64(0)},
		{"validate", func(c *Client) (any, error) { return c.Validate(ctx, []byte("{}"), SubmitOptions{}) }, `{"valid":true}`,
			"POST /v1/dagrun/validate", &Validation{Valid: true}},
		{"list", func(c *Client) (any, error) { return c.List(ctx, ListOptions{}) }, "[" + summary + "]", "GET /v1/dagruns",
			&RunPage{Runs: []Summary{*wantSummary}}},
		{"list of some", func(c *Client) (any, error) {
			return c.List(ctx, ListOptions{All: true, Tag: &tag, Tags: map[string]string{"k": "v&"},
				States: []string{Running, Queued}, Newest: true, Limit: 3, Cursor: "c"})
		}, "[]", "GET /v1/dagruns?all=1&cursor=c&limit=3&order=desc&state=RUNNING%2CQUEUED&tag=a+b&tags.k=v%26", &RunPage{Runs: []Summary{}}},
		{"summary", func(c *Client) (any, error) { return c.Summary(ctx, 2) }, summary, "GET /v1/dagrun/2/summary", wantSummary},
		{"graph", func(c *Client) (any, error) { return c.Graph(ctx, 2) },
			`{"runID":2,"state":"RUNNING","tasks":2,"templates":[{"name":"a","first":0,"count":2,"parameters":[{"name":"N","values":2}],"executor":"noop",
			"isGenerator":true,"generatedBy":"g","set":1,"taskCounts":{"QUEUED":2},"firstStartTime":"5","lastStopTime":"6"}],"edges":[{"parent":"g","child":"a","match":["N"]}]}`,
			"GET /v1/dagrun/2/graph", &Graph{Summary: Summary{RunID: 2, State: Running, Tasks: 2},
				Templates: []Template{{Name: "a", Count: 2, Parameters: []Axis{{"N", 2}}, Executor: "noop", IsGenerator: true, GeneratedBy: "g", Set: 1,
					TaskCounts: map[string]int{Queued: 2}, FirstStartTime: 5, LastStopTime: 6}}, Edges: []Edge{{"g", "a", []string{"N"}}}}},
		{"state", func(c *Client) (any, error) { return c.State(ctx, 2) }, `{"state":"QUEUED"}`, "GET /v1/dagrun/2/state", Queued},
		{"await state", func(c *Client) (any, error) { return c.AwaitState(ctx, 2, Queued, 30*time.Second) }, `{"state":"RUNNING"}`,
			"GET /v1/dagrun/2/state?from=QUEUED&wait=30s", Running},
		{"set state", func(c *Client) (any, error) { return nil, c.SetState(ctx, 2, Paused) }, `{"runID":2}`,
			"PATCH /v1/dagrun/2/state/PAUSED", nil},
		{"kill", func(c *Client) (any, error) { return nil, c.Kill(ctx, 2) }, "", "DELETE /v1/dagrun/2", nil},
		{"kill task", func(c *Client) (any, error) { return nil, c.KillTask(ctx, 2, "a/b c") }, "",
			"DELETE /v1/dagrun/2/task/a%2Fb%20c", nil},
		{"task of dots", func(c *Client) (any, error) { return c.TaskState(ctx, 2, "..") }, `{"state":"RETRY"}`,
			"GET /v1/dagrun/2/task/%2E%2E/state", Retry},
		{"task", func(c *Client) (any, error) { return c.Task(ctx, 2, "a") },
			`{"maxRetries":1,"retryIntervalSeconds":0.5,"job":{"cores":"1"},"children":[],"parents":["b"],"isGenerator":true}`,
			"GET /v1/dagrun/2/task/a", &Task{MaxRetries: 1, RetryIntervalSeconds: 0.5, Job: []byte(`{"cores":"1"}`),
				Children: []byte("[]"), Parents: []byte(`["b"]`), IsGenerator: true}},
		{"tasks", func(c *Client) (any, error) {
			return c.Tasks(ctx, 2, TaskOptions{States: []string{Errored}, Limit: 1, Cursor: "x"})
		}, `{"tasks":[{"name":"a","state":"ERRORED","attempts":[{"startTime":"5","stopTime":"7","rc":3,"outputLog":"o"}]}],"next":"y"}`,
			"GET /v1/dagrun/2/tasks?cursor=x&limit=1&state=ERRORED",
			&TaskPage{Tasks: []TaskStatus{{Name: "a", State: Errored, Attempts: []Attempt{{StartTime: 5, StopTime: 7, RC: 3, OutputLog: "o"}}}}, Next: "y"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, c := newFake(t, says(200, tc.answer))
			got, err := tc.call(c)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
			if r := f.seen()[0]; r.method+" "+r.uri != tc.sent {
				t.Errorf("sent %s %s, want %s", r.method, r.uri, tc.sent)
			}
		})
	}
}

func TestGetReadsTheWholeRecord(t *testing.T) {
	_, c := newFake(t, says(200, `{"runID":0,"tag":"m","tasks":{"simple_0":{"maxRetries":0,"retryIntervalSeconds":0,"job":{},"children":[],
		"parents":[],"isGenerator":false}},"taskStates":{"simple_0":"COMPLETED"},"taskAttempts":{"simple_0":[{"startTime":"1",
		"stopTime":"2","rc":0,"outputLog":"x","errorLog":"","executorLog":""}]},"dagStateChanges":[{"time":"1","state":"QUEUED"},
		{"time":"3","state":"COMPLETED"}]}`))
	r, err := c.Get(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if r.State() != Completed || r.TaskStates["simple_0"] != Completed || r.TaskAttempts["simple_0"][0].StopTime != 2 {
		t.Errorf("got %+v", r)
	}
	if (&Run{}).State() != "" {
		t.Error("a run without changes has a state")
	}
}

func TestErrorsAreClassified(t *testing.T) {
	for status, kinds := range map[int][]error{
		400: {ErrInvalid}, 404: {ErrNotFound}, 409: {ErrConflict}, 413: {ErrInvalid, ErrTooLarge}, 415: {ErrInvalid},
		422: {ErrInvalid, ErrTooLarge}, 500: nil, 503: {ErrUnavailable}, 504: {ErrUnavailable},
	} {
		_, c := newFake(t, refuses(status, "run 7 is not there"))
		_, err := c.State(context.Background(), 7)
		var e *Error
		if !errors.As(err, &e) || e.Status != status || e.Error() != "run 7 is not there" || e.Path != "/v1/dagrun/7/state" {
			t.Errorf("%d: got %#v", status, err)
		}
		for _, kind := range []error{ErrInvalid, ErrNotFound, ErrConflict, ErrTooLarge, ErrUnavailable, ErrUnreachable} {
			want := false
			for _, k := range kinds {
				want = want || k == kind
			}
			if errors.Is(err, kind) != want {
				t.Errorf("%d: errors.Is(%v) is %v", status, kind, !want)
			}
		}
	}
}

func TestProblemDocumentKeepsAllProblems(t *testing.T) {
	body := `{"valid":false,"error":"task \"b\": unknown task \"x\" (and 1 more)","errors":[
		{"pointer":"/tasks/b/parents/0","message":"unknown task \"x\""},{"pointer":"","message":"no"}]}`
	_, c := newFake(t, says(400, body))
	_, err := c.Submit(context.Background(), []byte("{}"), SubmitOptions{})
	var e *Error
	if !errors.As(err, &e) || len(e.Problems) != 2 || e.Problems[0].Pointer != "/tasks/b/parents/0" {
		t.Fatalf("got %#v", err)
	}
	v, err := c.Validate(context.Background(), []byte("{}"), SubmitOptions{})
	if err != nil || v.Valid || len(v.Errors) != 2 || !strings.HasPrefix(v.Error, `task "b"`) {
		t.Fatalf("got %+v, %v", v, err)
	}
}

func TestErrorWithoutADocumentNamesTheStatus(t *testing.T) {
	_, c := newFake(t, says(418, "<html>"))
	if err := c.Ready(context.Background()); err == nil || err.Error() != "GET /ready: 418 i'm a teapot" {
		t.Errorf("got %v", err)
	}
}

func TestAnswersThatAreNotJSON(t *testing.T) {
	f, c := newFake(t, says(200, "<html>"))
	_, err := c.Summary(context.Background(), 1)
	if err == nil || !strings.Contains(err.Error(), "unexpected form") || errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	if n := len(f.seen()); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if _, err := c.Submit(context.Background(), nil, SubmitOptions{}); err == nil {
		t.Error("a submission without a runID went through")
	}
	_, c = newFake(t, says(200, "{}"))
	if _, err := c.Submit(context.Background(), nil, SubmitOptions{}); err == nil || !strings.Contains(err.Error(), "no runID") {
		t.Errorf("got %v", err)
	}
}

// TestRetries: what is repeated, and how often.
func TestRetries(t *testing.T) {
	ctx := context.Background()
	submit := func(c *Client) error { _, err := c.Submit(ctx, []byte("{}"), SubmitOptions{}); return err }
	keyed := func(c *Client) error {
		_, err := c.Submit(ctx, []byte("{}"), SubmitOptions{IdempotencyKey: "k"})
		return err
	}
	summary := func(c *Client) error { _, err := c.Summary(ctx, 1); return err }
	kill := func(c *Client) error { return c.Kill(ctx, 1) }
	pause := func(c *Client) error { return c.SetState(ctx, 1, Paused) }
	ok := says(200, `{"runID":1}`)
	busy := refuses(503, "busy")
	for _, tc := range []struct {
		name   string
		call   func(*Client) error
		script []http.HandlerFunc
		asked  int
		kind   error // nil = it works in the end
	}{
		{"read, cut", summary, []http.HandlerFunc{cuts(`{"runID"`), cuts(`{`), ok}, 3, nil},
		{"read, dropped", summary, []http.HandlerFunc{drops, ok}, 2, nil},
		{"read, busy", summary, []http.HandlerFunc{busy, busy, busy, ok}, 4, nil},
		{"read, busy for ever", summary, []http.HandlerFunc{busy}, 4, ErrUnavailable},
		{"read, dropped for ever", summary, []http.HandlerFunc{drops}, 4, ErrUnreachable},
		{"read, refused", summary, []http.HandlerFunc{refuses(404, "no"), ok}, 1, ErrNotFound},
		{"kill, dropped", kill, []http.HandlerFunc{drops, ok}, 2, nil},
		{"submit, dropped", submit, []http.HandlerFunc{drops, ok}, 1, ErrUnreachable},
		{"submit, busy", submit, []http.HandlerFunc{busy, ok}, 1, ErrUnavailable},
		{"submit with a key, dropped", keyed, []http.HandlerFunc{drops, busy, cuts("{"), ok}, 4, nil},
		{"set state, dropped", pause, []http.HandlerFunc{drops, ok}, 1, ErrUnreachable},
		{"set state, busy", pause, []http.HandlerFunc{busy, ok}, 1, ErrUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, c := newFake(t, tc.script...)
			err := tc.call(c)
			if tc.kind == nil && err != nil || tc.kind != nil && !errors.Is(err, tc.kind) {
				t.Errorf("got %v, want %v", err, tc.kind)
			}
			if n := len(f.seen()); n != tc.asked {
				t.Errorf("asked %d times, want %d", n, tc.asked)
			}
			for _, r := range f.seen() {
				if key := r.header.Get("Idempotency-Key"); strings.Contains(tc.name, "key") && (key != "k" || r.body != "{}") {
					t.Errorf("sent key %q and body %q", key, r.body)
				}
			}
		})
	}
}

// TestUnreachableServer: a connection that was refused is tried again even for a
// submission, and then is unreachable.
func TestUnreachableServer(t *testing.T) {
	address, err := testenv.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	dials := 0
	c, err := New(Config{Server: address, Backoff: time.Microsecond, HTTPClient: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			dials++
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}}}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Submit(context.Background(), []byte("{}"), SubmitOptions{})
	if !errors.Is(err, ErrUnreachable) || !errors.Is(err, ErrNoServer) || !strings.HasPrefix(err.Error(), "no server answers at http://127.0.0.1:") {
		t.Errorf("got %v", err)
	}
	if dials != 4 {
		t.Errorf("dialled %d times, want 4", dials)
	}
}

func TestAContextEndsACallAndItsRetries(t *testing.T) {
	began := make(chan struct{})
	_, c := newFake(t, func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-began; cancel() }()
	if _, err := c.Summary(ctx, 1); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v", err)
	}

	// A Retry-After is heeded, and cut short by the context.
	ctx, cancel = context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, c = newFake(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "5")
		w.WriteHeader(503)
	})
	if _, err := c.Summary(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestPause(t *testing.T) {
	c := &Client{backoff: 50 * time.Millisecond}
	for try, want := range map[int]time.Duration{0: 50 * time.Millisecond, 2: 200 * time.Millisecond, 40: 5 * time.Second} {
		if got := c.retryDelay(try, ErrUnreachable); got != want {
			t.Errorf("pause %d is %v, want %v", try, got, want)
		}
	}
	if got := c.retryDelay(0, &Error{RetryAfter: time.Hour}); got != 5*time.Second {
		t.Errorf("got %v", got)
	}
}

func TestNoRetries(t *testing.T) {
	f, _ := newFake(t, drops)
	c, err := New(Config{Server: f.URL, Retries: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseIdle()
	if err := c.Ready(context.Background()); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "broke") {
		t.Errorf("got %v", err)
	}
	if n := len(f.seen()); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// TestRepeatedByTheTransport: net/http sends a request with an idempotency key again when a kept
// connection breaks. That the second connection is refused does not mean that the request was never
// sent.
func TestRepeatedByTheTransport(t *testing.T) {
	l, err := testenv.Listen() // it is dialed after its close
	if err != nil {
		t.Fatal(err)
	}
	received := make(chan string, 1)
	go func() {
		defer close(received)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		for i := 0; ; i++ {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(req.Body)
			if i == 1 { // the server accepts the submission and dies
				l.Close()
				received <- string(body)
				return
			}
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	}()
	c, err := New(Config{Server: l.Addr().String(), HTTPClient: &http.Client{Transport: &http.Transport{}}, Retries: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseIdle()
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = c.Submit(t.Context(), []byte("{}"), SubmitOptions{IdempotencyKey: "k"})
	if body := <-received; body != "{}" {
		t.Fatalf("the server has received %q", body)
	}
	if !errors.Is(err, ErrUnreachable) || errors.Is(err, ErrNoServer) {
		t.Errorf("a submission that was received fails with %v", err)
	}
}
