package dag_test

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
)

// set is a generated set of no-op tasks, written as for graph.
func set(t testing.TB, tasks ...string) []dag.TaskSpec {
	t.Helper()
	doc := graph(tasks...)
	doc = strings.TrimSuffix(doc[strings.Index(doc, `"tasks": `)+len(`"tasks": `):], "}")
	specs, problems := specjson.DecodeTasks([]byte(doc))
	if problems != nil {
		t.Fatalf("%s\n%v", doc, problems)
	}
	return specs
}

func nothingStarted(int) bool { return false }

func extend(t testing.TB, p *dag.Plan, generator string, tasks ...string) *dag.Plan {
	t.Helper()
	task, ok := p.FindTask(generator)
	if !ok {
		t.Fatalf("no task %q", generator)
	}
	next, problems := p.Extend(task, set(t, tasks...), nothingStarted)
	if problems != nil {
		t.Fatal(problems)
	}
	return next
}

func TestExtend(t *testing.T) {
	start := graph(`a {{L}}`, `g - "isGenerator": true, "parents": ["a"]`, `c - "parents": ["g"]`, `d - "parents": ["c"]`, `free -`)
	for _, c := range []struct {
		name  string
		tasks []string
		want  []string // beside a>g g>c c>d
	}{
		{"nothing", nil, nil},
		{"hangs on the generator, its children wait", []string{`x {{M}}`}, []string{"g>x", "x>c"}},
		{"own edges are kept", []string{`x -`, `y - "parents": ["x"]`, `z - "children": ["x"]`}, []string{"z>x", "x>y", "g>z", "x>c", "y>c", "z>c"}},
		{"to tasks that were there", []string{`x - "parents": ["a", "free"], "children": ["d"]`}, []string{"a>x", "free>x", "x>c", "x>d"}},
		{"to the generator and its child", []string{`x - "parents": ["g"], "children": ["c"]`}, []string{"g>x", "x>c"}},
		{"matches", []string{`x {{L}} "parents": [{"task": "a", "match": ["L"]}]`, `y {{L}} "parents": [{"task": "x", "match": ["L"]}]`},
			[]string{"a>x:L", "x>y:L", "x>c", "y>c"}},
		{"a generator", []string{`h - "isGenerator": true`}, []string{"g>h", "h>c"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := planOf(t, start)
			before := planOf(t, start)
			next := extend(t, p, "g", c.tasks...)
			if !reflect.DeepEqual(p, before) {
				t.Error("the plan itself changed")
			}
			want := append([]string{"a>g", "g>c", "c>d"}, c.want...)
			mustEqual(t, "edges", slices.Sorted(slices.Values(edgesOf(t, next))), slices.Sorted(slices.Values(want)))
			if next.Sets != 1 || p.Sets != 0 {
				t.Errorf("%d sets, %d before", next.Sets, p.Sets)
			}
			for i, tm := range next.Templates {
				switch {
				case i >= len(p.Templates):
					if tm.Set != 1 || tm.Depth != 1 || tm.Origin != 1 {
						t.Errorf("%s: set %d, depth %d, origin %d", tm.Name, tm.Set, tm.Depth, tm.Origin)
					}
				case len(tm.Parents) == len(p.Templates[i].Parents) && len(tm.Children) == len(p.Templates[i].Children):
					if tm != p.Templates[i] {
						t.Errorf("%s got no edges and is not shared", tm.Name)
					}
				case tm == p.Templates[i]:
					t.Errorf("%s got edges and is shared", tm.Name)
				}
			}
			for i := range next.Tasks {
				if at, ok := next.FindTask(next.TaskName(i)); !ok || at != i {
					t.Errorf("%s is found as %d %v", next.TaskName(i), at, ok)
				}
			}
		})
	}
}

func TestExtendProblems(t *testing.T) {
	p := planOf(t, graph(`a {{L}}`, `g - "isGenerator": true`, `c - "parents": ["g"]`, `d - "parents": ["c"]`, `started -`, `e_1 -`, `s {{L}}`))
	started := func(i int) bool { return p.Templates[i].Name == "started" || p.Templates[i].Name == "g" }
	for _, c := range []struct {
		name  string
		tasks []string
		want  []string
	}{
		{"clash", []string{`a -`}, []string{`/a: task "a" is already defined`}},
		{"clash with what was expanded", []string{`a_1 -`, `a_2 -`}, []string{`/a_1: task "a_1" has a name that "a" expands to`}},
		{"clash of what it expands to", []string{`e {{L}}`}, []string{`/e: task "e" expands to a name that is defined, "e_1"`}},
		{"clash in the set", []string{`n {{L}}`, `n_0 -`}, []string{`/n_0: task "n_0" has a name that "n" expands to`}},
		{"unknown", []string{`n - "parents": ["q"]`}, []string{`/n/parents/0: unknown task "q"`}},
		{"into what has started", []string{`n - "children": ["d", "started"]`}, []string{`/n/children/1: task "started" has already started`}},
		{"into the generator", []string{`n - "children": ["g"]`}, []string{`/n/children/0: task "g" has already started`}},
		{"cycle in the set", []string{`n - "parents": ["m"]`, `m - "parents": ["n"]`}, []string{`/n: the tasks depend on each other: n -> m -> n`}},
		{"cycle through what was there", []string{`m -`, `n - "parents": ["d"]`}, []string{`/n: the tasks depend on each other: n -> c -> d -> n`}},
		{"unknown token", []string{`n {{Q}}`}, []string{`/n/job/command/1: unknown parameter "Q"`}},
		{"match of a generator", []string{`n {{L}} "parents": [{"task": "g", "match": ["L"]}]`}, []string{
			`/n/parents/0: generator "g" cannot be matched one to one: its children wait for everything that it generates`,
			`/n/parents/0/match/0: task "g" does not expand over "L"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, _ := p.FindTask("g")
			next, problems := p.Extend(g, set(t, c.tasks...), started)
			if next != nil {
				t.Error("there is a plan")
			}
			mustEqual(t, c.name, problemLines(problems), c.want)
		})
	}
}

func TestExtendLimits(t *testing.T) {
	p, problems := specjson.Plan([]byte(graph(`g - "isGenerator": true`)), dag.Limits{MaxTasks: 5, MaxDepth: 2})
	if problems != nil {
		t.Fatal(problems)
	}
	_, problems = p.Extend(0, set(t, `x {{L}}`, `y {{M}}`), nothingStarted)
	mustEqual(t, "too many", problemLines(problems), []string{`! : the run has 6 tasks, the limit is 5`})

	p = extend(t, p, "g", `h - "isGenerator": true`)
	p = extend(t, p, "h", `i - "isGenerator": true`)
	if i := p.Templates[2]; i.Depth != 2 || i.Set != 2 || i.Origin != 1 {
		t.Errorf("%+v", i)
	}
	_, problems = p.Extend(2, set(t, `j -`), nothingStarted)
	mustEqual(t, "too deep", problemLines(problems), []string{`: generators are nested 3 deep, the limit is 2`})
	if _, problems = p.Extend(2, nil, nothingStarted); problems != nil {
		t.Errorf("nothing is too deep: %v", problems)
	}
}

// What a generator makes gets an edge to each task that waits for it: two short
// documents can ask for more edges than there is memory.
func TestEdgesAreBounded(t *testing.T) {
	const n = 4000
	spec := &dag.Spec{Tasks: []dag.TaskSpec{{Name: "g", Job: dag.Job{HasString: true}, Generator: true}}}
	var made []dag.TaskSpec
	for i := range n {
		made = append(made, dag.TaskSpec{Name: fmt.Sprint("made", i), Job: dag.Job{HasString: true}})
		spec.Tasks = append(spec.Tasks, dag.TaskSpec{Name: fmt.Sprint("waits", i), Job: dag.Job{HasString: true}, Parents: []dag.EdgeSpec{{Task: "g"}}})
	}
	p, problems := dag.NewPlan(spec, dag.Limits{})
	if problems != nil {
		t.Fatal(problems)
	}
	_, problems = p.Extend(0, made, nothingStarted)
	mustEqual(t, "problems", problemLines(problems), []string{fmt.Sprintf("! : the tasks have %d edges, the limit is 10000000", n+n+n*n)})
	parents := make([]dag.EdgeSpec, 5_000_001)
	for i := range parents {
		parents[i].Task = "g"
	}
	spec.Tasks = append(spec.Tasks[:1], dag.TaskSpec{Name: "a", Job: dag.Job{HasString: true}, Parents: parents, Children: parents})
	_, problems = dag.NewPlan(spec, dag.Limits{})
	mustEqual(t, "problems", problemLines(problems), []string{"! /tasks: the tasks have 10000002 edges, the limit is 10000000"})
}

func TestDefaultsApplyToGeneratedTasks(t *testing.T) {
	p := planOf(t, `{"parameters": {"L": ["1", "2"]}, "jobDefaults": {"command": ["d", "{{L}}"], "cores": 3}, "tasks": {"g": {"isGenerator": true, "job": {"command": ["x"]}}}}`)
	next, problems := p.Extend(0, []dag.TaskSpec{{Name: "n"}}, nothingStarted)
	if problems != nil {
		t.Fatal(problems)
	}
	mustEqual(t, "task", []string{taskText(next.Task(2))}, []string{"n_1 d 2"})
	if next.Templates[1].Class != p.Templates[0].Class {
		t.Error("another class")
	}
}

// Each task of an expanded generator adds a set: what the first made does not wait
// for what the second made, and what waits for the generator waits for both.
func TestSetsOfOneGenerator(t *testing.T) {
	p := planOf(t, graph(`g {{L}} "isGenerator": true`, `c - "parents": ["g"]`))
	p = extend(t, p, "g_0", `x -`, `y - "parents": ["x"]`)
	p = extend(t, p, "g_1", `z - "parents": ["x"]`, `w - "parents": ["g"]`)
	mustEqual(t, "edges", slices.Sorted(slices.Values(edgesOf(t, p))), []string{"g>c", "g>w", "g>x", "w>c", "x>c", "x>y", "x>z", "y>c", "z>c"})
	if len(p.Templates) != 6 || p.Templates[5].Set != 2 {
		t.Errorf("%d templates", len(p.Templates))
	}
}

// The names of many sets are found, in plans that branch from one another too.
func TestManySets(t *testing.T) {
	p := planOf(t, graph(`g - "isGenerator": true`))
	for i := range 200 {
		next := extend(t, p, "g", fmt.Sprintf("n%d {{L}}", i), fmt.Sprintf("m%d -", i))
		other := extend(t, p, "g", fmt.Sprintf("other%d -", i))
		for _, c := range []struct {
			plan  *dag.Plan
			name  string
			found bool
		}{
			{next, fmt.Sprint("other", i), false}, {other, fmt.Sprint("other", i), true},
			{next, fmt.Sprint("m", i), true}, {other, fmt.Sprint("m", i), false}, {p, fmt.Sprint("m", i), false},
			{next, fmt.Sprintf("n%d_1", i/2), true}, {next, "g", true},
		} {
			if at, ok := c.plan.FindTask(c.name); ok != c.found || ok && c.plan.TaskName(at) != c.name {
				t.Fatalf("set %d: %q: %d %v", i, c.name, at, ok)
			}
		}
		p = next
	}
	if want := uint32(1 + 200*3); p.Tasks != want || p.Sets != 200 {
		t.Errorf("%d tasks, %d sets", p.Tasks, p.Sets)
	}
}

func TestExtendRequiresAGenerator(t *testing.T) {
	defer func() {
		if got := fmt.Sprint(recover()); got != `dag: extended by task 0 of "a", which is not a generator` {
			t.Errorf("panic %v", got)
		}
	}()
	_, _ = planOf(t, graph(`a -`)).Extend(0, nil, nothingStarted)
}

// However many templates there are (the index of names changes its form with
// their number), a generated set cannot define a name again.
func TestExtendRefusesDefinedNames(t *testing.T) {
	for n := 1; n < 40; n++ {
		var doc strings.Builder
		doc.WriteString(`{"tasks":{"gen":{"job":{"command":["g"]},"isGenerator":true}`)
		for i := 1; i < n; i++ {
			fmt.Fprintf(&doc, `,"t%d":{"job":{"command":["x"]}}`, i)
		}
		doc.WriteString(`}}`)
		plan, problems := specjson.Plan([]byte(doc.String()), dag.Limits{})
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		for i := 1; i < n; i++ {
			for _, more := range []string{"", `"fresh":{"job":{"command":["x"]}},`} {
				tasks, problems := specjson.DecodeTasks([]byte(fmt.Sprintf(`{%s"t%d":{"job":{"command":["y"]}}}`, more, i)))
				if len(problems) > 0 {
					t.Fatal(problems)
				}
				if _, problems := plan.Extend(0, tasks, func(int) bool { return false }); len(problems) == 0 {
					t.Fatalf("%d templates: t%d was defined again", n, i)
				}
			}
		}
	}
}

// TestGeneratorsNestSixteenDeep holds the default limit and its message.
func TestGeneratorsNestSixteenDeep(t *testing.T) {
	generator := func(depth int) dag.TaskSpec {
		return dag.TaskSpec{Name: "g" + strconv.Itoa(depth), Generator: true, Job: dag.Job{Command: []string{"g"}}}
	}
	p, problems := dag.NewPlan(&dag.Spec{Tasks: []dag.TaskSpec{generator(0)}}, dag.Limits{})
	if problems != nil {
		t.Fatal(problems)
	}
	for depth := 1; depth <= 16; depth++ {
		next, problems := p.Extend(uint32(depth-1), []dag.TaskSpec{generator(depth)}, nothingStarted)
		if problems != nil {
			t.Fatalf("depth %d: %v", depth, problems)
		}
		p = next
	}
	_, problems = p.Extend(16, []dag.TaskSpec{generator(17)}, nothingStarted)
	if len(problems) != 1 || problems[0].Message != "generators are nested 17 deep, the limit is 16" {
		t.Errorf("depth 17: %v", problems)
	}
}
