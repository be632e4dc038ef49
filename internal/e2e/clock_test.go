package e2e

import (
	"bufio"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// startWithClock starts a server whose wall clock the returned function sets.
func startWithClock(t *testing.T, args ...string) (s *e2etest.Server, step func(time.Duration)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "clock")
	step = func(d time.Duration) {
		t.Helper()
		next := file + ".new"
		if err := os.WriteFile(next, []byte(d.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, file); err != nil {
			t.Fatal(err)
		}
	}
	return e2etest.Start(t, e2etest.Faulty(t), e2etest.Env("CARAVAN_FAULT_CLOCK="+file), e2etest.Args(args...)), step
}

// TestClockChanges sets the machine's clock back and forward while a retry waits, while runs are
// retained, and across a kill -9 of the server.
func TestClockChanges(t *testing.T) {
	t.Parallel()
	s, step := startWithClock(t, "--retain-age", "30d", "--retain-runs", "3")
	const retry = `{"tasks":{"a":{"job":{"commandString":"test $CARAVAN_ATTEMPT -gt 1"},"maxRetries":1,"retryIntervalSeconds":3}}}`
	var runs []uint64
	for _, d := range []time.Duration{-time.Hour, time.Hour, 960 * time.Hour, -time.Hour} {
		run := s.Submit(retry)
		s.AwaitTask(run, "a", "RETRY")
		step(d)
		s.Await(run, "COMPLETED")
		doc := s.Get(run)
		first, second := doc.TaskAttempts["a"][0], doc.TaskAttempts["a"][1]
		if waited := time.Duration(second.StartTime - first.StopTime); waited < 3*time.Second || waited > e2etest.Patience {
			t.Errorf("the clock was set to %v: the retry waited for %v", d, waited)
		}
		runs = append(runs, run)
	}
	step(960 * time.Hour)
	s = s.Crash() // a start begins a sweep at once
	if !testenv.Poll(e2etest.Patience, func() bool { return len(s.List("?all=1")) < len(runs) }) {
		t.Fatal("nothing was swept")
	}
	if list := s.List("?all=1"); len(list) != 3 || list[0].RunID != runs[1] {
		t.Errorf("%d runs are left", len(list))
	}
}

// TestRestartWithRunningTaskAcrossCrash: a run with a RUNNING task is not QUEUED, its times ascend,
// and a reader of all events that reconnects receives its changes.
func TestRestartWithRunningTaskAcrossCrash(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	run := s.Submit(`{"tasks":{"a":{"job":{"command":["/bin/sleep","600"]}},"b":{"job":{"command":["/bin/true"]},"parents":["a"]}}}`)
	s.AwaitTask(run, "a", "RUNNING")
	id := firstEventID(t, s)
	for _, state := range []string{"PAUSED", "QUEUED"} {
		s.Want(200, "PATCH", e2etest.Path(run, "/state/"+state), "")
	}
	var last e2etest.Nanos
	look := func(what string) {
		t.Helper()
		s.AwaitTask(run, "a", "RUNNING")
		doc := s.Get(run)
		if s.State(run) != "RUNNING" {
			t.Errorf("%s: the run is %s with a RUNNING task", what, s.State(run))
		}
		changes := doc.DagStateChanges
		for i := range changes[1:] {
			if changes[i].Time >= changes[i+1].Time {
				t.Errorf("%s: changes do not ascend: %v", what, changes)
			}
		}
		if at := s.List("")[0].LastUpdate; at < last {
			t.Errorf("%s: lastUpdate falls by %v", what, time.Duration(last-at))
		} else {
			last = at
		}
	}
	look("before")
	s = s.Crash()
	look("after kill -9")
	told := false
	readEvents(t, s, id, func(event, data string) bool {
		var sum struct {
			RunID uint64
			State string
		}
		if event == "run" && json.Unmarshal([]byte(data), &sum) == nil && sum.RunID == run {
			told = sum.State == "RUNNING"
		}
		return !told
	})
	if !told {
		t.Error("a reader that reconnects does not receive the run")
	}
	s.Want(200, "DELETE", e2etest.Path(run, ""), "")
	s.Await(run, "KILLED")
}

// readEvents reads /v1/events after an id until yield returns false or the time is over.
func readEvents(t *testing.T, s *e2etest.Server, after string, yield func(event, data string) bool) {
	t.Helper()
	req, err := http.NewRequest("GET", s.URL+"/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	if after != "" {
		req.Header.Set("Last-Event-ID", after)
	}
	client := &http.Client{Timeout: e2etest.Patience}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	event := ""
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "event":
			event = value
		case "id", "data":
			if name == "id" {
				event = "id"
			}
			if !yield(event, value) {
				return
			}
		}
	}
}

// firstEventID is the position from which new events are sent.
func firstEventID(t *testing.T, s *e2etest.Server) (id string) {
	t.Helper()
	readEvents(t, s, "", func(event, data string) bool {
		id = data
		return event != "id"
	})
	return id
}

// TestKeysOutliveRetention: a request that is repeated after retention deleted its runs does not
// start new ones.
func TestKeysOutliveRetention(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t, e2etest.Args("--retain-runs", "3"))
	out := filepath.Join(t.TempDir(), "ran")
	doc := `{"tag":"night","tasks":{"a":{"job":{"commandString":"echo ran >>` + out + `"}}}}` + "\n"
	const lines = 20
	submit := func() string {
		t.Helper()
		return string(s.Want(200, "POST", "/v1/dagruns", strings.Repeat(doc, lines), "Content-Type", "application/x-ndjson", "Idempotency-Key", "night").Body)
	}
	first := submit()
	if !testenv.Poll(e2etest.Patience, func() bool { return len(s.List("?limit=1")) == 0 }) {
		t.Fatal("the runs do not end")
	}
	s = s.Crash() // a start begins a sweep at once
	if !testenv.Poll(e2etest.Patience, func() bool { return len(s.List("?all=1")) == 3 }) {
		t.Fatalf("%d runs are left", len(s.List("?all=1")))
	}
	if again := submit(); again != first {
		t.Errorf("repeated: %s\nfirst: %s", again, first)
	}
	s.Want(404, "GET", "/v1/dagrun/0", "")
	other := strings.Repeat(strings.Replace(doc, "night", "day", 1), lines)
	if body := string(s.Want(200, "POST", "/v1/dagruns", other, "Content-Type", "application/x-ndjson", "Idempotency-Key", "night").Body); strings.Count(body, `"status":422`) != lines {
		t.Errorf("another body: %s", body)
	}
	s.Complete(`{"tasks":{"a":{"job":{"command":["/bin/true"]}}}}`) // earlier runs have ended by then
	if text, err := os.ReadFile(out); err != nil || strings.Count(string(text), "ran") != lines {
		t.Errorf("%d commands ran, %v", strings.Count(string(text), "ran"), err)
	}
}
