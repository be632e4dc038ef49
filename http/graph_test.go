package http

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/http/access"
)

func TestGraph(t *testing.T) {
	e := &fakeEngine{}
	r := e.add(t, `{"tag":"g","parameters":{"OS":["l","m"],"ARCH":["a","b","c"],"WHO":"w"},"tasks":{
		"build":{"job":{"command":["b","{{OS}}","{{ARCH}}","{{WHO}}"]}},
		"test":{"job":{"command":["t","{{OS}}","{{ARCH}}"]},"parents":[{"task":"build","match":["OS"]}]},
		"gen":{"job":{"command":["g"]},"isGenerator":true},
		"end":{"job":{"executor":"noop"},"parents":["test","gen"]}}}`, dag.RunRunning, dag.TaskQueued, 5, 7)
	plan := r.view.Plan
	var gen, base uint32
	for _, tpl := range plan.Templates {
		switch tpl.Name {
		case "gen":
			gen = tpl.Base
		case "build":
			base = tpl.Base
		}
	}
	set, problems := specjson.DecodeTasks([]byte(`{"made":{"job":{"executor":"noop","command":["{{OS}}"]}}}`))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if plan, problems = plan.Extend(gen, set, func(int) bool { return false }); len(problems) > 0 {
		t.Fatal(problems)
	}
	r.view.Plan, r.view.Tasks = plan, plan.Tasks
	r.view.States = append(r.view.States, dag.TaskGranted, dag.TaskRetry)
	copy(r.view.States[base:], []dag.TaskState{dag.TaskCompleted, dag.TaskErrored, dag.TaskRunning, dag.TaskKilled, dag.TaskCompleted, dag.TaskGranted})
	r.view.States[gen] = dag.TaskCompleted
	r.view.Times = []dag.Times{{First: 1645218441353189612, Last: 1645218455775103710}, {}, {First: 8}, {}, {Last: 9}}
	s := serve(t, e)
	got := s.get("/v1/dagrun/0/graph")
	sameJSON(t, got.body, `{"runID":0,"tag":"g","state":"RUNNING","startTime":"5","lastUpdate":"7","taskCounts":{"QUEUED":14},"tasks":16,
		"templates":[
		{"name":"build","first":0,"count":6,"parameters":[{"name":"ARCH","values":3},{"name":"OS","values":2}],"executor":"process","isGenerator":false,
		 "taskCounts":{"COMPLETED":2,"ERRORED":1,"KILLED":1,"QUEUED":1,"RUNNING":1},"firstStartTime":"1645218441353189612","lastStopTime":"1645218455775103710"},
		{"name":"test","first":6,"count":6,"parameters":[{"name":"ARCH","values":3},{"name":"OS","values":2}],"executor":"process","isGenerator":false,"taskCounts":{"QUEUED":6}},
		{"name":"gen","first":12,"count":1,"parameters":[],"executor":"process","isGenerator":true,"taskCounts":{"COMPLETED":1},"firstStartTime":"8"},
		{"name":"end","first":13,"count":1,"parameters":[],"executor":"noop","isGenerator":false,"taskCounts":{"QUEUED":1}},
		{"name":"made","first":14,"count":2,"parameters":[{"name":"OS","values":2}],"executor":"noop","isGenerator":false,"generatedBy":"gen","set":1,"taskCounts":{"QUEUED":1,"RETRY":1},"lastStopTime":"9"}],
		"edges":[{"parent":"build","child":"test","match":["OS"]},{"parent":"test","child":"end"},{"parent":"gen","child":"end"},
		{"parent":"made","child":"end"},{"parent":"gen","child":"made"}]}`)
	refusedWith(t, s.get("/v1/dagrun/1/graph"), 404, "unknown run 1")
}

// TestGraphOfManyTemplates is streamed, and whole.
func TestGraphOfManyTemplates(t *testing.T) {
	const n = 5000
	var b strings.Builder
	b.WriteString(`{"tasks":{"t0":{"job":{"executor":"noop"}}`)
	for i := 1; i < n; i++ {
		fmt.Fprintf(&b, `,"t%d":{"job":{"executor":"noop"},"parents":["t%d"]}`, i, i-1)
	}
	b.WriteString(`}}`)
	e := &fakeEngine{}
	e.add(t, b.String(), dag.RunRunning, dag.TaskRunning)
	s := serve(t, e)
	var doc struct {
		Templates []struct {
			Name       string
			First      int
			TaskCounts map[string]int
		}
		Edges []struct{ Parent, Child string }
	}
	got := s.get("/v1/dagrun/0/graph")
	if err := json.Unmarshal([]byte(got.body), &doc); err != nil || got.err != nil {
		t.Fatal(err, got.err)
	}
	if len(doc.Templates) != n || len(doc.Edges) != n-1 {
		t.Fatalf("%d templates, %d edges", len(doc.Templates), len(doc.Edges))
	}
	for i, tpl := range doc.Templates {
		if tpl.Name != fmt.Sprint("t", i) || tpl.First != i || tpl.TaskCounts["RUNNING"] != 1 {
			t.Fatalf("template %d: %+v", i, tpl)
		}
	}
}

// BenchmarkGraph counts the states of 1,000,000 tasks.
func BenchmarkGraph(b *testing.B) {
	e := &fakeEngine{}
	e.add(b, manySpec(1_000_000), dag.RunRunning, dag.TaskQueued)
	view, err := e.View(b.Context(), 0, 0, 1<<30)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, _, err := (&graphDocument{view: view}).next(nil); err != nil {
			b.Fatal(err)
		}
	}
}

func TestStates(t *testing.T) {
	e := &fakeEngine{}
	r := e.add(t, manySpec(7), dag.RunRunning, dag.TaskQueued, 1, 36)
	r.view.States = []dag.TaskState{dag.TaskCompleted, dag.TaskRunning, dag.TaskErrored, dag.TaskKilled, dag.TaskRetry, dag.TaskGranted, dag.TaskQueued}
	s := serve(t, e)
	const path = "/v1/dagrun/0/states"
	got := s.get(path)
	if got.status != 200 || got.body != "CREKTQQ" {
		t.Fatalf("%d %q", got.status, got.body)
	}
	for name, want := range map[string]string{
		"Content-Type": octetStream, "X-Tasks": "7", "X-State": "RUNNING", "Content-Length": "7", "Vary": "Accept-Encoding", "Content-Encoding": "",
	} {
		if v := got.header.Get(name); v != want {
			t.Errorf("%s: %q, want %q", name, v, want)
		}
	}
	tag := got.header.Get("ETag")
	if !strings.HasPrefix(tag, `W/"10-`) {
		t.Errorf("ETag %s", tag)
	}
	for _, header := range []string{tag, strings.TrimPrefix(tag, "W/"), `"x", ` + tag, "*"} {
		if r := s.do("GET", path, "", "If-None-Match: "+header); r.status != 304 || r.body != "" || r.header.Get("ETag") != tag {
			t.Errorf("If-None-Match %s: %d %q", header, r.status, r.body)
		}
	}
	r.view.States[6] = dag.TaskRunning // a start: no update
	if r := s.do("GET", path, "", "If-None-Match: "+tag); r.status != 200 || r.body != "CREKTQR" || r.header.Get("ETag") == tag {
		t.Errorf("after a start: %d %q", r.status, r.body)
	}
	refusedWith(t, s.get("/v1/dagrun/1/states"), 404, "unknown run 1")
}

// TestStatesAndCaches: the states of a run keep the headers for caches that the middlewares have set. The
// answer depends on Origin as well where origins are listed, and is private where tokens are needed.
func TestStatesAndCaches(t *testing.T) {
	option, secret, _ := withTokenFile(t)
	s := serve(t, contractEngine(t), option, func(c *Config) {
		var err error
		if c.Access.Origins, err = access.NewOrigins("https://app.example"); err != nil {
			t.Fatal(err)
		}
	})
	h := s.do("GET", "/v1/dagrun/0/states", "", bearer(secret[access.Read]), "Origin: https://app.example").header
	if vary, control := h.Get("Vary"), h.Get("Cache-Control"); vary != "Origin, Accept-Encoding" || control != "private, no-cache" {
		t.Errorf("Vary %q, Cache-Control %q", vary, control)
	}
}

func TestStatesOfManyTasks(t *testing.T) {
	const n = 1_000_000
	e := &fakeEngine{}
	r := e.add(t, manySpec(1), dag.RunRunning, dag.TaskCompleted)
	r.view.States = bytesOf(n)
	s := serve(t, e)
	plain := s.get("/v1/dagrun/0/states")
	if len(plain.body) != n || plain.header.Get("Content-Encoding") != "" {
		t.Fatalf("%d bytes, %v", len(plain.body), plain.header)
	}
	for header, want := range map[string]string{
		"gzip": "gzip", "br, GZip;q=0.5": "gzip", "*": "gzip", "gzip;q=0": "", "*, gzip; q=0": "", "br": "", "gzip;q=x": "",
	} {
		got := s.do("GET", "/v1/dagrun/0/states", "", "Accept-Encoding: "+header)
		if v := got.header.Get("Content-Encoding"); v != want {
			t.Errorf("Accept-Encoding %s: Content-Encoding %q", header, v)
			continue
		}
		body := []byte(got.body)
		if want != "" {
			if len(body) > n/10 {
				t.Errorf("%d bytes are %d", n, len(body))
			}
			z, err := gzip.NewReader(bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if body, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
		}
		if string(body) != plain.body {
			t.Errorf("Accept-Encoding %s: other bytes", header)
		}
	}
}

// bytesOf is a run in progress: done, then live, then waiting.
func bytesOf(n int) []dag.TaskState {
	states := make([]dag.TaskState, n)
	for i := range n / 2 {
		states[i] = dag.TaskCompleted
	}
	for i := range 1000 {
		states[n/2+i] = dag.TaskRunning
	}
	return states
}
