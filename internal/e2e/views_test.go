package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/client"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// TestLongPoll: a request that waits for another state is answered when the state changes, not
// before.
func TestLongPoll(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("sleep 300")}))
	s.AwaitTask(run, "a", "RUNNING")
	answer := make(chan string, 1)
	go func() {
		answer <- string(s.Do("GET", e2etest.Path(run, "/state?wait=60s&from=RUNNING"), "").Body)
	}()
	select {
	case early := <-answer:
		t.Fatalf("answered before anything changed: %s", early)
	case <-time.After(100 * time.Millisecond):
	}
	s.Want(200, "DELETE", e2etest.Path(run, ""), "")
	select {
	case got := <-answer:
		if got != `{"state":"KILLED"}` {
			t.Errorf("answered %s", got)
		}
	case <-time.After(e2etest.Patience):
		t.Error("not answered")
	}
}

// TestStateVector: a byte per task in the order of the plan, while tasks run, after the end and
// after a crash.
func TestStateVector(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"a": e2etest.Noop("N"), "b": e2etest.Sh("exit 3").After("a"), "c": e2etest.Sh("sleep 300").After("a"), "d": e2etest.Noop("").After("c"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(2000)}))
	s.AwaitTask(run, "b", "ERRORED")
	s.AwaitTask(run, "c", "RUNNING")
	want := strings.Repeat("C", 2000) + "ERQ"
	r := s.Want(200, "GET", e2etest.Path(run, "/states"), "")
	if got := string(r.Body); got != want || r.Header.Get("X-Tasks") != "2003" || r.Header.Get("X-State") != "RUNNING" {
		t.Errorf("%d bytes, %v", len(got), r.Header)
	}
	s.Want(200, "DELETE", e2etest.Path(run, ""), "")
	s.Await(run, "KILLED")
	s = s.Crash()
	want = strings.Repeat("C", 2000) + "EKQ"
	if got := string(s.Want(200, "GET", e2etest.Path(run, "/states"), "").Body); got != want {
		t.Errorf("after the end and a crash: %d bytes, the last are %q", len(got), got[max(len(got)-3, 0):])
	}
}

// TestGraphView: the templates and edges of a run, including generated ones.
func TestGraphView(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	run := s.Complete(e2etest.Graph(map[string]e2etest.Task{
		"gen":  e2etest.Sh(`printf '{"made":{"job":{"executor":"noop","command":["{%sN}}"]}}}' '{'`).With("isGenerator", true),
		"a":    e2etest.Noop("N"),
		"last": e2etest.Noop("").After("a", "gen"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(3)})).RunID
	var got client.Graph
	s.Want(200, "GET", e2etest.Path(run, "/graph"), "").Decode(t, &got)
	if got.State != "COMPLETED" || got.Tasks != 8 || len(got.Templates) != 4 {
		t.Fatalf("%+v", got)
	}
	next := 0
	for _, tpl := range got.Templates {
		if tpl.First != next || tpl.TaskCounts["COMPLETED"] != tpl.Count || (tpl.Name == "made") != (tpl.GeneratedBy == "gen") {
			t.Errorf("%+v", tpl)
		}
		next += tpl.Count
	}
	checkTemplateTimes(t, s, run, got.Templates)
	s = s.Crash()
	s.Want(200, "GET", e2etest.Path(run, "/graph"), "").Decode(t, &got)
	checkTemplateTimes(t, s, run, got.Templates)
	for _, edge := range []client.Edge{{Parent: "a", Child: "last"}, {Parent: "gen", Child: "last"}, {Parent: "gen", Child: "made"}, {Parent: "made", Child: "last"}} {
		if !slices.ContainsFunc(got.Edges, func(e client.Edge) bool { return e.Parent == edge.Parent && e.Child == edge.Child }) {
			t.Errorf("no edge %+v among %+v", edge, got.Edges)
		}
	}
}

// checkTemplateTimes compares the times of a run's templates with its attempts.
func checkTemplateTimes(t *testing.T, s *e2etest.Server, run uint64, templates []client.Template) {
	t.Helper()
	first, last := map[string]e2etest.Nanos{}, map[string]e2etest.Nanos{}
	for name, attempts := range s.Get(run).TaskAttempts {
		name, _, _ = strings.Cut(name, "_")
		for _, a := range attempts {
			if first[name] == 0 || a.StartTime < first[name] {
				first[name] = a.StartTime
			}
			last[name] = max(last[name], a.StopTime)
		}
	}
	for _, tpl := range templates {
		if a, b := e2etest.Nanos(tpl.FirstStartTime), e2etest.Nanos(tpl.LastStopTime); a != first[tpl.Name] || b != last[tpl.Name] || a == 0 || b == 0 {
			t.Errorf("%s ran from %d to %d, its attempts from %d to %d", tpl.Name, a, b, first[tpl.Name], last[tpl.Name])
		}
	}
}

// TestEventsResumeAfterCrash: a reader of events that reconnects after a kill -9 of the server gets
// the rest, by its last id.
func TestEventsResumeAfterCrash(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	gate := filepath.Join(t.TempDir(), "gate")
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"a": e2etest.Sh("exit 0"), "b": e2etest.Noop("N").After("a"),
		"c": e2etest.Sh("until [ -e " + gate + " ]; do sleep 0.05; done; exit 3").After("b"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(100)}))
	ctx, cancel := context.WithTimeout(t.Context(), 2*e2etest.Patience)
	defer cancel()
	told := map[string]bool{}
	follow := func(after string, until func(client.TaskChange) bool) (id string) {
		c, err := client.New(client.Config{Server: s.URL})
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseIdle()
		for e, err := range c.Events(ctx, run, client.EventOptions{After: after}) {
			if err != nil {
				t.Fatal(err)
			}
			id = e.ID
			for _, change := range e.Tasks {
				told[change.Task+" "+change.State] = true
				if until(change) {
					return id
				}
			}
			if e.Summary != nil && e.Summary.State == "ERRORED" {
				told["ended"] = true
			}
		}
		return id
	}
	id := follow("0", func(c client.TaskChange) bool { return c.Task == "c" && c.State == "RUNNING" })
	s = s.Crash()
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	follow(id, func(c client.TaskChange) bool {
		if c.Task == "c" && c.State == "ERRORED" && (c.RC == nil || *c.RC != 3) {
			t.Errorf("%+v", c)
		}
		return false
	})
	for _, want := range []string{"a COMPLETED", "b_0 COMPLETED", "b_99 COMPLETED", "c RUNNING", "c ERRORED", "ended"} {
		if !told[want] {
			t.Errorf("not told: %s", want)
		}
	}
}

// TestEventsAcrossManyCrashes: a reader of a large run's events, across several kill -9 of the
// server, gets every end of a task, or a message that it has missed some.
func TestEventsAcrossManyCrashes(t *testing.T) {
	t.Parallel()
	const n, kills = 20_000, 3
	s := e2etest.Start(t)
	run := s.Submit(noopFan(t, n))
	ctx, cancel := context.WithTimeout(t.Context(), 4*e2etest.Patience)
	defer cancel()
	told, missed, id, ended := map[string]bool{}, 0, "0", false
	for kill := 0; !ended; kill++ {
		c, err := client.New(client.Config{Server: s.URL})
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for e, err := range c.Events(ctx, run, client.EventOptions{After: id}) {
			if err != nil {
				t.Fatal(err)
			}
			if e.ID != "" {
				id = e.ID
			}
			for _, change := range e.Tasks {
				told[change.Task] = true
			}
			missed += int(e.Missed)
			ended = ended || e.Summary != nil && e.Summary.State == "COMPLETED"
			if seen++; kill < kills && seen > 5 {
				break
			}
		}
		c.CloseIdle()
		if kill < kills {
			s, ended = s.Crash(), false
		}
	}
	t.Logf("received %d tasks, %d missed", len(told), missed)
	if len(told) != n && missed == 0 {
		t.Errorf("received %d tasks of %d, without a report of missed ones", len(told), n)
	}
}

// TestBatchSurvivesCrash: graphs that were sent as lines and answered are runs after a kill -9. Sent
// again with the same key they are the same runs.
func TestBatchSurvivesCrash(t *testing.T) {
	t.Parallel()
	const n = 3000
	s := e2etest.Start(t)
	var lines strings.Builder
	for i := range n {
		if i == 1234 {
			lines.WriteString("{\n")
			continue
		}
		fmt.Fprintf(&lines, `{"tag":"b%d","tasks":{"a":{"job":{"executor":"noop"}}}}`+"\n", i)
	}
	send := func() (ids []uint64) {
		c, err := client.New(client.Config{Server: s.URL})
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseIdle()
		for got, err := range c.SubmitLines(t.Context(), strings.NewReader(lines.String()), client.SubmitOptions{IdempotencyKey: "night"}) {
			switch {
			case err != nil:
				t.Fatal(err)
			case (got.Err != nil) != (len(ids) == 1234):
				t.Fatalf("line %d: %+v", len(ids)+1, got)
			}
			ids = append(ids, got.RunID)
		}
		return ids
	}
	ids := send()
	s = s.Crash()
	if len(ids) != n {
		t.Fatalf("%d answers", len(ids))
	}
	for _, i := range []int{0, 1, 1233, 1235, n - 1} {
		s.Await(ids[i], "COMPLETED")
		if tag := s.Get(ids[i]).Tag; tag != fmt.Sprint("b", i) {
			t.Errorf("run %d is %s", ids[i], tag)
		}
	}
	if again := send(); !slices.Equal(again, ids) {
		t.Error("sent again they are other runs")
	}
	if all := s.List("?all=1"); len(all) != n-1 {
		t.Errorf("%d runs", len(all))
	}
}

// TestMetricsAreDocumented proves that the table of metrics in docs/operations.md has exactly the metrics
// of a single server. TestClusterOfSeveralPartitions has those of nodes.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	s.Want(200, "GET", "/ready", "")
	written, shown := e2etest.DocumentedMetrics(t, "operations.md"), e2etest.ShownMetrics(s.Do("GET", "/metrics", "").Body)
	if !slices.Equal(written, shown) {
		t.Errorf("the document has\n%q, the server\n%q", written, shown)
	}
}

// TestMetricsFollowTheConventions checks what promtool checks: base units in names, _total on counters
// only, a help text for each. The collectors of Go and of the process have names of their own.
func TestMetricsFollowTheConventions(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	s.Want(200, "GET", "/ready", "")
	problems, err := promlint.New(bytes.NewReader(s.Do("GET", "/metrics", "").Body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "caravan_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}
