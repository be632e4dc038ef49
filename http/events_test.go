package http

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

const runEventsPath = "/v1/dagrun/2/events"

// listen opens a stream of events.
func (s *service) listen(path string, header ...string) (*http.Response, *bufio.Reader) {
	s.t.Helper()
	resp, err := s.open("GET", path, "", header...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("Cache-Control") != "no-store" {
		s.t.Fatal(resp.Status, resp.Header)
	}
	return resp, bufio.NewReader(resp.Body)
}

// nextBlock reads up to an empty line.
func nextBlock(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	var b strings.Builder
	for !strings.HasSuffix(b.String(), "\n\n") {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("%q, then %v; want %q", b.String()+line, err, want)
		}
		b.WriteString(line)
	}
	if got := strings.TrimSuffix(b.String(), "\n\n"); got != want {
		t.Fatalf("\n got %s\nwant %s", got, want)
	}
}

func changed(task uint32, state dag.TaskState, attempt uint32) messages.VisibleChange {
	return messages.VisibleChange{Transition: dag.Transition{At: 7, Task: task, State: state, Attempt: attempt}}
}

func TestRunEvents(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	plan, sum := e.runs[2].view.Plan, e.runs[2].view.Summary
	failed, moved := changed(0, dag.TaskErrored, 2), messages.VisibleChange{Transition: dag.Transition{At: 8, OfRun: true, Run: dag.RunErrored}}
	failed.Ended, failed.RC = true, 3
	end := sum
	end.State = dag.RunErrored
	const summary = `{"runID":2,"tag":"mediumtest","state":"RUNNING","startTime":"1645539903281234588","lastUpdate":"1645539912499992547","taskCounts":{"COMPLETED":11,"RUNNING":14},"tasks":2}`
	for _, path := range []string{runEventsPath, runEventsPath + "?tasks=0"} {
		e.feed = newFakeFeed()
		e.feed.news <- &messages.RunEvents{Seq: 4, Plan: plan, Summary: &sum}
		resp, r := s.listen(path)
		nextBlock(t, r, "id: 4\nevent: summary\ndata: "+summary)
		resp.Body.Close()
	}
	e.feed = newFakeFeed()
	for path, want := range map[string][]string{
		runEventsPath + "?after=4": {
			"event: tasks\ndata: " + `[{"time":"7","task":"simple_1","state":"RUNNING","attempt":1},{"time":"7","task":"simple_0","state":"QUEUED","attempt":2}]`,
			"id: 5",
			"event: gap\ndata: " + `{"missed":3}`,
			"event: tasks\ndata: " + `[{"time":"7","task":"simple_0","state":"ERRORED","attempt":2,"rc":3}]`,
			"event: state\ndata: " + `{"time":"8","state":"ERRORED"}`,
			"id: 9\nevent: summary\ndata: " + strings.Replace(summary, "RUNNING", "ERRORED", 1),
		},
		runEventsPath + "?tasks=0&after=4": {
			"id: 5",
			"event: gap\ndata: " + `{"missed":3}`,
			"event: state\ndata: " + `{"time":"8","state":"ERRORED"}`,
			"id: 9\nevent: summary\ndata: " + strings.Replace(summary, "RUNNING", "ERRORED", 1),
		},
	} {
		e.feed.news <- &messages.RunEvents{Seq: 5, Plan: plan, Changes: []messages.VisibleChange{changed(1, dag.TaskRunning, 1), changed(0, dag.TaskGranted, 2)}}
		e.feed.news <- &messages.RunEvents{Seq: 9, Dropped: 3, Plan: plan, Changes: []messages.VisibleChange{failed, moved}, Summary: &end}
		_, r := s.listen(path)
		for _, block := range want {
			nextBlock(t, r, block)
		}
		if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
			t.Errorf("the run has ended, and then comes %q, %v", rest, err)
		}
	}
	if want := []uint64{messages.FromNow, messages.FromNow, 4, 4}; !slices.Equal(e.follows, want) {
		t.Errorf("followed from %v, want %v", e.follows, want)
	}
	testenv.Eventually(t, "the feed is closed", func() bool { return e.feed.opened.Load() == 0 })
}

// TestEventsAreResumed by the ID that an EventSource sends. It is told to stop when all events
// were sent.
func TestEventsAreResumed(t *testing.T) {
	e := contractEngine(t)
	e.runs[0].view.Seq = 12
	s := serve(t, e)
	if r := s.do("GET", "/v1/dagrun/0/events?after=3", "", "Last-Event-ID: 12"); r.status != 204 || r.body != "" {
		t.Errorf("%d %q", r.status, r.body)
	}
	r := s.do("GET", "/v1/dagrun/0/events", "", "Last-Event-ID: 3")
	if r.status != 200 || !strings.HasPrefix(r.body, "id: 12\nevent: summary\ndata: {") || r.err != nil {
		t.Errorf("%d %q %v", r.status, r.body, r.err)
	}
	if want := []uint64{12, 3}; !slices.Equal(e.follows, want) {
		t.Errorf("followed from %v, want %v", e.follows, want)
	}
}

func TestEventsOfManyTasks(t *testing.T) {
	const n = 2*maxTasksPerEvent + 5
	e := &fakeEngine{feed: newFakeFeed()}
	run := e.add(t, manySpec(n), dag.RunCompleted, dag.TaskCompleted)
	news := &messages.RunEvents{Seq: 2, Plan: run.view.Plan, Summary: &run.view.Summary}
	for i := range uint32(n) {
		news.Changes = append(news.Changes, changed(i, dag.TaskCompleted, 1))
	}
	e.feed.news <- news
	s := serve(t, e)
	got := s.get("/v1/dagrun/0/events")
	if events, tasks := strings.Count(got.body, "event: tasks\n"), strings.Count(got.body, `"task":"t_`); events != 3 || tasks != n || got.err != nil {
		t.Errorf("%d events of %d tasks, %v", events, tasks, got.err)
	}
}

func TestEventsOfAllRuns(t *testing.T) {
	e := contractEngine(t)
	e.feed = newFakeFeed()
	s := serve(t, e)
	_, r := s.listen("/v1/events?tag=mediumtest&tags.team=a", "Last-Event-ID: 77")
	sum := e.runs[3].view.Summary
	sum.Start, sum.LastUpdate = 1, 2
	const data = `data: {"runID":3,"tag":"mediumtest","state":"QUEUED","startTime":"1","lastUpdate":"2","taskCounts":{"QUEUED":2},"tasks":2}`
	e.feed.runs <- &messages.RunListEvents{Summaries: []*messages.Summary{&sum}}
	e.feed.runs <- &messages.RunListEvents{ResumeAt: 100}
	e.feed.runs <- &messages.RunListEvents{Summaries: []*messages.Summary{&sum, &sum}, Dropped: 2, ResumeAt: 200}
	for _, block := range []string{"event: run\n" + data, "id: 100", "event: gap\ndata: {\"missed\":2}", "event: run\n" + data, "id: 200\nevent: run\n" + data} {
		nextBlock(t, r, block)
	}
	if e.follows[0] != 77 || e.listens[0].Tag != "mediumtest" || !e.listens[0].HasTag || len(e.listens[0].Labels) != 1 {
		t.Errorf("listened to %+v from %v", e.listens, e.follows)
	}
}

// TestIdleEventStreamHasHeartbeats: a stream without news says that it is there, and notices when
// its reader has gone.
func TestIdleEventStreamHasHeartbeats(t *testing.T) {
	e := contractEngine(t)
	e.feed = newFakeFeed()
	s := serve(t, e, func(c *Config) { c.heartbeat = 5 * time.Millisecond })
	resp, r := s.listen(runEventsPath)
	for range 3 {
		nextBlock(t, r, ": nothing new")
	}
	resp.Body.Close()
	testenv.Eventually(t, "the feed is closed", func() bool { return e.feed.opened.Load() == 0 && s.inflight.Load() == 0 })
	if r := s.do("HEAD", runEventsPath, ""); r.status != 200 {
		t.Errorf("HEAD: %d", r.status)
	}
	testenv.Eventually(t, "the feed is closed", func() bool { return e.feed.opened.Load() == 0 })
	if log := s.logs.String(); log != "" {
		t.Errorf("log: %s", log)
	}
}

// TestEventsEnd properly at shutdown, and in pieces when the engine fails.
func TestEventsEnd(t *testing.T) {
	e := contractEngine(t)
	e.feed = newFakeFeed()
	s := serve(t, e)
	e.feed.fails <- &messages.Error{Code: messages.Unavailable, Text: "closing"}
	if _, r := s.listen(runEventsPath); true {
		if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
			t.Errorf("%q, %v", rest, err)
		}
	}
	e.feed.fails <- io.ErrNoProgress
	if _, r := s.listen(runEventsPath); true {
		if _, err := io.ReadAll(r); err == nil {
			t.Error("a stream that broke off looks whole")
		}
	}
	_, run := s.listen(runEventsPath)
	_, runs := s.listen("/v1/events")
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*bufio.Reader{run, runs} {
		if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
			t.Errorf("%q, %v", rest, err)
		}
	}
	if n := e.feed.opened.Load(); n != 0 {
		t.Errorf("%d feeds are open", n)
	}
}
