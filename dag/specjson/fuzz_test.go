package specjson

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
)

// seeds are documents of every shape, sound and not.
var seeds = []string{
	`{"tag":"t","parameters":{"J":["1","2"]},"tasks":{"simple":{"job":{"command":["x","{{J}}"],"cores":"1","memoryMB":"100"}}}}`,
	`{"parameters":{"A":["1","2"],"B":["3","4","5"],"S":"s"},"jobDefaults":{"commandString":"echo {{A}}","timeoutSeconds":1,"q":{}},
	  "tasks":{"a":{"children":["b"]},"b":{"job":{"environment":{"K":"{{A}}{{B}}{{S}}"}},"parents":[{"task":"a","match":["A"]}]},
	  "g":{"isGenerator":true,"job":{"workDir":"/{{B}}"},"parents":["b"],"maxRetries":3,"retryBackoff":1.5}}}`,
	`{"tasks":{"a":{"job":{"command":["{{X}}"]},"parents":["b","a"]},"b":null,"a_0":{},"a":{}},"x":{"y":1,"y":2}} 4`,
	`{"tasks":{"\ud800":{"job":{"cores":"NaN","memoryMB":-1,"timeoutSeconds":1e40,"x":[[{"z":1,"z":2}]]}},"a/~":{"job":{"environment":["X",""]}}}}`,
	`{"tasks":{"a":{"job":{"commandString":""},"parents":["c"]},"b":{"job":{"commandString":""},"parents":["a"]},"c":{"job":{"commandString":""},"parents":["b"]}}}`,
	`{"jobDefaults":{"executor":"noop","command":["a"],"commandString":"b"},"tags":{"a":"b"},"tasks":{"g":{"isGenerator":true},"h":{"parents":["g"]}}}`,
	`{`, ``, `[]`, `{"tasks":{}}`, "{\"tag\":\"\xff\"}",
}

// isSyntax tells a syntax error from the other problems.
func isSyntax(problems dag.Problems) bool {
	return len(problems) == 1 && strings.HasPrefix(problems[0].Message, "invalid JSON at")
}

func FuzzDecode(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		s, problems := Decode(doc)
		if len(problems) == 0 && s == nil {
			t.Fatal("neither spec nor problems")
		}
		if valid := json.Valid(doc); valid && isSyntax(problems) || !valid && len(problems) == 0 {
			t.Fatalf("valid JSON is %v, problems: %v", json.Valid(doc), problems)
		}
		checkPointers(t, doc, problems)
		if s != nil {
			plan, more := dag.NewPlan(s, dag.Limits{MaxTasks: 1000})
			if (plan == nil) == (len(more) == 0) {
				t.Fatalf("plan %v and problems %v", plan, more)
			}
			checkPointers(t, doc, slices.Concat(problems, more))
		}
		_, again := Decode(doc)
		if !slices.Equal(problems, again) {
			t.Fatalf("first %v, then %v", problems, again)
		}
		tasks, problems := DecodeTasks(doc)
		if tasks != nil && isSyntax(problems) {
			t.Fatal("both tasks and a syntax error")
		}
		checkPointers(t, doc, problems)
	})
}

// checkPointers fails when neither a problem's place nor what encloses it exists.
func checkPointers(t *testing.T, doc []byte, problems dag.Problems) {
	t.Helper()
	var value any
	if json.Unmarshal(doc, &value) != nil {
		return
	}
	for _, p := range problems {
		if p.Message == "duplicate member" || p.Message == "invalid UTF-8" {
			return // this is not what encoding/json sees
		}
	}
	for _, p := range problems {
		if p.Message == "" {
			t.Fatalf("a problem without words at %q", p.Pointer)
		}
		segments := strings.Split(p.Pointer, "/")[1:]
		at := value
		for i, s := range segments {
			next, ok := step(at, s)
			if !ok && i < len(segments)-1 {
				t.Fatalf("%q (%s) is nowhere in %s", p.Pointer, p.Message, doc)
			}
			at = next
		}
	}
}

func step(at any, segment string) (any, bool) {
	name := strings.ReplaceAll(strings.ReplaceAll(segment, "~1", "/"), "~0", "~")
	switch v := at.(type) {
	case map[string]any:
		next, ok := v[name]
		return next, ok
	case []any:
		if i, err := strconv.Atoi(name); err == nil && i < len(v) {
			return v[i], true
		}
	}
	return nil, false
}

func FuzzPlan(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s), []byte(`{"x":{"parents":["g"]},"y":{"job":{"commandString":"{{A}}"},"children":["x"]},"a_0":{}}`))
		f.Add([]byte(s), []byte(s))
	}
	f.Fuzz(func(t *testing.T, doc, set []byte) {
		checkStream(t, doc, dag.Limits{MaxTasks: 200, MaxCPUMillis: 8000})
		plan, problems := Plan(doc, dag.Limits{MaxTasks: 200, MaxCPUMillis: 8000})
		if (plan == nil) == (len(problems) == 0) {
			t.Fatalf("plan %v and problems %v", plan, problems)
		}
		checkPointers(t, doc, problems)
		if plan == nil {
			return
		}
		checkPlan(t, plan)
		tasks, problems := DecodeTasks(set)
		if len(problems) > 0 {
			return
		}
		for _, g := range plan.Templates {
			if !g.Generator {
				continue
			}
			next, problems := plan.Extend(g.Base, tasks, func(i int) bool { return i == g.Index })
			if (next == nil) == (len(problems) == 0) {
				t.Fatalf("plan %v and problems %v", next, problems)
			}
			checkPointers(t, set, problems)
			checkPlan(t, plan)
			if next != nil {
				checkPlan(t, next)
			}
		}
	})
}

// checkPlan fails when a plan does not hold what its documentation says.
func checkPlan(t *testing.T, p *dag.Plan) {
	t.Helper()
	names := map[string]bool{}
	var task dag.Task
	for i := range p.Tasks {
		p.TaskInto(&task, i)
		if at, ok := p.FindTask(task.Name); !ok || at != i || names[task.Name] {
			t.Fatalf("task %d, %q, is found as %d %v", i, task.Name, at, ok)
		}
		names[task.Name] = true
		if j := p.Job(task.Template, new(dag.JobBuffer)); len(task.Command) != len(j.Command) || len(task.Environment) != len(j.Environment) {
			t.Fatalf("task %+v", task)
		}
	}
	base, edges := uint32(0), 0
	for i, tm := range p.Templates {
		if tm.Index != i || tm.Base != base || tm.Count == 0 || tm.Class >= len(p.Classes) {
			t.Fatalf("template %d: %+v, base %d", i, tm, base)
		}
		base += tm.Count
		for _, e := range tm.Parents {
			edges++
			if !slices.Contains(p.Templates[e.Template].Children, dag.Edge{Template: i, Match: e.Match, ViaGenerator: e.ViaGenerator}) {
				t.Fatalf("%q is no child of its parent %q", tm.Name, p.Templates[e.Template].Name)
			}
		}
		edges -= len(tm.Children)
	}
	if base != p.Tasks || edges != 0 {
		t.Fatalf("%d tasks of %d, %d edges too many", base, p.Tasks, edges)
	}
	for _, m := range p.Matches {
		parent, child := p.Templates[m.Parent], p.Templates[m.Child]
		if m.Groups*m.ParentsPerGroup() != parent.Count {
			t.Fatalf("%d groups of %d, %d parents", m.Groups, m.ParentsPerGroup(), parent.Count)
		}
		children := uint32(0)
		for g := range m.Groups {
			m.EachChild(g, func(first, n uint32) {
				for i := range n {
					if m.GroupOfChild(first+i) != g {
						t.Fatalf("child %d is not of group %d", first+i, g)
					}
				}
				children += n
			})
		}
		if children != child.Count {
			t.Fatalf("%d children of %d", children, child.Count)
		}
	}
}
