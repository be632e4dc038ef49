package http

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
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
