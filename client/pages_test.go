package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestRunsWalksAllPages(t *testing.T) {
	page := func(next, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if next != "" {
				w.Header().Set("X-Next-Cursor", next)
			}
			_, _ = io.WriteString(w, body)
		}
	}
	f, c := newFake(t, page("p2", `[{"runID":0},{"runID":1}]`), page("", `[{"runID":2}]`))
	var ids []uint64
	for s, err := range c.Runs(context.Background(), ListOptions{All: true, Limit: 2}) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, s.RunID)
	}
	if fmt.Sprint(ids) != "[0 1 2]" || len(f.seen()) != 2 || f.seen()[1].uri != "/v1/dagruns?all=1&cursor=p2&limit=2" {
		t.Errorf("got %v by %+v", ids, f.seen())
	}
	for range c.Runs(context.Background(), ListOptions{}) {
		break // leaves the walk
	}
	if last := f.seen()[2].uri; last != "/v1/dagruns?limit=1000" {
		t.Errorf("asked %s", last)
	}
}

func TestAllTasksWalksAllPagesAndEndsWithAnError(t *testing.T) {
	f, c := newFake(t, says(200, `{"tasks":[{"name":"a"},{"name":"b"}],"next":"p2"}`), refuses(404, "gone"))
	var names []string
	var last error
	for task, err := range c.AllTasks(context.Background(), 3, TaskOptions{}) {
		if last = err; err == nil {
			names = append(names, task.Name)
		}
	}
	if fmt.Sprint(names) != "[a b]" || !errors.Is(last, ErrNotFound) {
		t.Errorf("got %v, %v", names, last)
	}
	if uri := f.seen()[1].uri; uri != "/v1/dagrun/3/tasks?cursor=p2&limit=1000" {
		t.Errorf("asked %s", uri)
	}
	_, c = newFake(t, refuses(503, "busy"))
	for _, err := range c.Runs(context.Background(), ListOptions{}) {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	}
	_, c = newFake(t, says(200, `{"tasks":[{"name":"a"}],"next":""}`))
	for range c.AllTasks(context.Background(), 3, TaskOptions{}) {
		break
	}
}

func TestGetRawStreamsAndReportsABreak(t *testing.T) {
	_, c := newFake(t, says(200, `{"runID":1}`), cuts(`{"runID":1`))
	body, err := c.GetRaw(context.Background(), 1)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(body)
	if err != nil || string(text) != `{"runID":1}` || body.Close() != nil {
		t.Errorf("got %q, %v", text, err)
	}
	if body, err = c.GetRaw(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if text, err = io.ReadAll(body); !errors.Is(err, ErrUnreachable) || string(text) != `{"runID":1` {
		t.Errorf("got %q, %v", text, err)
	}
	_, c = newFake(t, refuses(404, "no"))
	if _, err := c.GetRaw(context.Background(), 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestNanos(t *testing.T) {
	for text, want := range map[string]Nanos{`"1645112245996647771"`: 1645112245996647771, `12`: 12, `null`: 0, `""`: 0, `"-1"`: -1} {
		var n Nanos
		if err := json.Unmarshal([]byte(text), &n); err != nil || n != want {
			t.Errorf("%s: got %d, %v", text, n, err)
		}
	}
	for _, text := range []string{`"x"`, `"1.5"`, `true`, `"99999999999999999999"`} {
		var n Nanos
		if err := json.Unmarshal([]byte(text), &n); err == nil {
			t.Errorf("%s: taken as %d", text, n)
		}
	}
	if b, err := json.Marshal(Nanos(5)); err != nil || string(b) != `"5"` {
		t.Errorf("got %s, %v", b, err)
	}
	if !Nanos(0).Time().IsZero() || Nanos(1e9).Time().Unix() != 1 {
		t.Error("times are wrong")
	}
}

func TestSummaryCounts(t *testing.T) {
	s := Summary{TaskCounts: map[string]int{Completed: 3, Errored: 1, Killed: 1, Queued: 4}}
	if s.Total() != 9 || s.Ended() != 5 {
		t.Errorf("got %d of %d", s.Ended(), s.Total())
	}
}

func TestWait(t *testing.T) {
	at := func(state string) http.HandlerFunc { return says(200, `{"runID":1,"state":"`+state+`"}`) }
	ctx := context.Background()
	for _, tc := range []struct {
		name   string
		script []http.HandlerFunc
		want   string // of the looks
		kind   error
	}{
		{"to the end", []http.HandlerFunc{at(Queued), at(Running), at(Completed)}, "QUEUED RUNNING COMPLETED", nil},
		{"already over", []http.HandlerFunc{at(Killed)}, "KILLED", nil},
		{"over a restart", []http.HandlerFunc{at(Running), drops, drops, refuses(503, "starting"), at(Errored)}, "RUNNING ERRORED", nil},
		{"unknown run", []http.HandlerFunc{refuses(404, "no run 1")}, "", ErrNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, c := newFake(t, tc.script...)
			c.retries = 0
			f.state = refuses(503, "busy") // it has to be polled
			var seen []string
			s, err := c.Wait(ctx, 1, WaitOptions{Poll: time.Microsecond, Progress: func(s *Summary) { seen = append(seen, s.State) }})
			if !errors.Is(err, tc.kind) {
				t.Fatalf("got %v", err)
			}
			if strings.Join(seen, " ") != tc.want {
				t.Errorf("saw %v", seen)
			}
			if err == nil && s.State != seen[len(seen)-1] {
				t.Errorf("ended with %v", s)
			}
		})
	}
}

func TestWaitGivesUp(t *testing.T) {
	_, c := newFake(t, drops)
	c.retries = 0
	if _, err := c.Wait(context.Background(), 1, WaitOptions{Outage: -1}); !errors.Is(err, ErrUnreachable) || !strings.HasPrefix(err.Error(), "run 1: ") {
		t.Errorf("got %v", err)
	}
	f, c := newFake(t, says(200, `{"state":"RUNNING"}`))
	f.state = says(200, `{"state":"RUNNING"}`) // it is too old to wait
	tired := errors.New("tired")
	ctx, cancel := context.WithTimeoutCause(context.Background(), 10*time.Millisecond, tired)
	defer cancel()
	if _, err := c.Wait(ctx, 1, WaitOptions{}); !errors.Is(err, tired) {
		t.Errorf("got %v", err)
	}
	hang := make(chan struct{})
	_, c = newFake(t, func(_ http.ResponseWriter, r *http.Request) { <-hang })
	defer close(hang)
	ctx, cancel = context.WithTimeoutCause(context.Background(), 10*time.Millisecond, tired)
	defer cancel()
	if _, err := c.Wait(ctx, 1, WaitOptions{}); !errors.Is(err, tired) {
		t.Errorf("got %v", err)
	}
}

// TestWaitLetsTheServerWait: between two changes of the state the client asks once.
func TestWaitLetsTheServerWait(t *testing.T) {
	var asked []string
	changed := make(chan string, 3)
	changed <- Running
	changed <- Paused
	changed <- Completed
	at := func(state string) http.HandlerFunc { return says(200, `{"runID":1,"state":"`+state+`"}`) }
	f, c := newFake(t, at(Queued), at(Running), at(Paused), at(Completed))
	f.state = func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.RequestURI)
		fmt.Fprintf(w, `{"state":%q}`, <-changed)
	}
	s, err := c.Wait(context.Background(), 1, WaitOptions{})
	if err != nil || s.State != Completed {
		t.Fatalf("%+v, %v", s, err)
	}
	want := []string{"/v1/dagrun/1/state?from=QUEUED&wait=1m0s", "/v1/dagrun/1/state?from=RUNNING&wait=1m0s", "/v1/dagrun/1/state?from=PAUSED&wait=1m0s"}
	if !slices.Equal(asked, want) || len(f.seen()) != 4 {
		t.Errorf("asked %q and looked %d times", asked, len(f.seen()))
	}
}

func TestTaskStates(t *testing.T) {
	f, c := newFake(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-State", Running)
		w.Header().Set("ETag", `W/"7"`)
		_, _ = io.WriteString(w, "CRQ")
	}, says(304, ""), cuts("C"), refuses(404, "no"))
	ctx := context.Background()
	got, err := c.TaskStates(ctx, 1, "")
	if err != nil || string(got.Tasks) != "CRQ" || got.State != Running {
		t.Fatalf("%+v, %v", got, err)
	}
	if again, err := c.TaskStates(ctx, 1, got.Tag); again != nil || err != nil {
		t.Errorf("%+v, %v", again, err)
	}
	if h := f.seen()[1].header.Get("If-None-Match"); h != got.Tag {
		t.Errorf("If-None-Match %s", h)
	}
	if _, err := c.TaskStates(ctx, 1, ""); !errors.Is(err, ErrNotFound) { // after a cut answer
		t.Error(err)
	}
}

func TestSubmitLines(t *testing.T) {
	ctx := context.Background()
	f, c := newFake(t,
		says(200, `{"runID":0}`+"\n"+`{"valid":false,"status":400,"error":"no tasks","errors":[{"pointer":"/tasks","message":"no tasks"}]}`+"\n"+`{"runID":7}`+"\n"),
		refuses(415, "no"), cuts(`{"runID":1}`+"\n"), says(200, "<html>"))
	var got []string
	for s, err := range c.SubmitLines(ctx, strings.NewReader("a\nb\nc\n"), SubmitOptions{IdempotencyKey: "k"}) {
		switch {
		case err != nil:
			t.Fatal(err)
		case s.Err != nil:
			got = append(got, s.Err.Error()+" "+s.Err.Problems[0].Pointer)
			if !errors.Is(s.Err, ErrInvalid) {
				t.Errorf("%+v", s.Err)
			}
		default:
			got = append(got, fmt.Sprint(s.RunID))
		}
	}
	if want := []string{"0", "no tasks /tasks", "7"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	r := f.seen()[0]
	if r.body != "a\nb\nc\n" || r.uri != "/v1/dagruns" || r.header.Get("Content-Type") != "application/x-ndjson" || r.header.Get("Idempotency-Key") != "k" {
		t.Errorf("sent %+v", r)
	}
	for _, want := range []error{ErrInvalid, ErrUnreachable, nil} {
		var last error
		for _, err := range c.SubmitLines(ctx, strings.NewReader("a\n"), SubmitOptions{}) {
			last = err
		}
		if last == nil || want != nil && !errors.Is(last, want) {
			t.Errorf("got %v, want %v", last, want)
		}
	}
}

// TestBackupReportsABreak: a backup that breaks off is a server that went away, as in all streams.
func TestBackupReportsABreak(t *testing.T) {
	_, c := newFake(t, says(200, "whole"), cuts("half"))
	for _, want := range []error{nil, ErrUnreachable} {
		body, err := c.Backup(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(body); want == nil && (err != nil || string(text) != "whole") || want != nil && !errors.Is(err, want) {
			t.Errorf("got %q, %v, want %v", text, err, want)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestSubmitLinesNamesItsSource: lines that cannot be read are not a server that went away.
func TestSubmitLinesNamesItsSource(t *testing.T) {
	_, c := newFake(t, says(200, `{"runID":0}`+"\n"))
	broken := errors.New("the disk of the lines is broken")
	var last error
	for _, err := range c.SubmitLines(context.Background(), io.MultiReader(strings.NewReader("a\n"), iotest.ErrReader(broken)), SubmitOptions{}) {
		last = err
	}
	if !errors.Is(last, broken) || errors.Is(last, ErrUnreachable) {
		t.Errorf("got %v", last)
	}
}
