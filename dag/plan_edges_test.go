package dag_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
)

// graph is a spec of no-op tasks with the given members, and lists L, M, N of 2, 3
// and 1 values, D with a value twice, and the string S.
func graph(tasks ...string) string {
	for i, task := range tasks {
		name, members, _ := strings.Cut(task, " ")
		text, members, _ := strings.Cut(members, " ")
		if members != "" {
			members = ", " + members
		}
		tasks[i] = fmt.Sprintf(`"%s": {"job": {"command": ["x", "%s"]}%s}`, name, text, members)
	}
	return `{"parameters": {"L": ["l0", "l1"], "M": ["m0", "m1", "m2"], "N": ["n0"], "D": ["d", "e", "d"], "S": "s"}, "tasks": {` +
		strings.Join(tasks, ", ") + `}}`
}

// Every sentence of "Dependencies" that planning is about.
func TestEdges(t *testing.T) {
	for _, c := range []struct {
		name, doc string
		want      []string
	}{
		{"from the child", graph(`a -`, `b - "parents": ["a"]`), []string{"a>b"}},
		{"from the parent", graph(`a - "children": ["b"]`, `b -`), []string{"a>b"}},
		{"from both ends it is one", graph(`a - "children": ["b"]`, `b - "parents": ["a"]`), []string{"a>b"}},
		{"twice in a list it is one", graph(`a -`, `b - "parents": ["a", "a", {"task": "a"}]`), []string{"a>b"}},
		{"later tasks as parents", graph(`a - "parents": ["c", "b"]`, `b -`, `c - "children": ["b"]`), []string{"c>a", "b>a", "c>b"}},
		{"names as defined", graph(`a {{L}}`, `b {{M}} "parents": ["a"]`), []string{"a>b"}},
		{"match", graph(`a {{L}}{{M}}`, `b {{M}}{{L}} "parents": [{"task": "a", "match": ["M", "L", "M"]}]`), []string{"a>b:L,M"}},
		{"match from the parent", graph(`a {{L}} "children": [{"task": "b", "match": ["L"]}]`, `b {{L}}{{M}}`), []string{"a>b:L"}},
		{"match of nothing is all to all", graph(`a {{L}}`, `b {{L}} "parents": [{"task": "a", "match": []}]`), []string{"a>b"}},
		{"match and plain: match", graph(`a {{L}} "children": ["b"]`, `b {{L}} "parents": [{"task": "a", "match": ["L"]}]`), []string{"a>b:L"}},
		{"plain and match: match", graph(`b {{L}} "parents": ["a"]`, `a {{L}} "children": [{"task": "b", "match": ["L"]}]`), []string{"a>b:L"}},
		{"the same match twice", graph(`b {{L}}{{M}} "parents": [{"task": "a", "match": ["M", "L"]}]`,
			`a {{L}}{{M}} "children": [{"task": "b", "match": ["L", "M"]}]`), []string{"a>b:L,M"}},
		{"a generator matches its parents", graph(`a {{L}}`, `b {{L}} "isGenerator": true, "parents": [{"task": "a", "match": ["L"]}]`), []string{"a>b:L"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mustEqual(t, c.doc, edgesOf(t, planOf(t, c.doc)), c.want)
		})
	}
}

func TestEdgeProblems(t *testing.T) {
	for _, c := range []struct {
		name, doc string
		want      []string
	}{
		{"parameter", graph(`a {{L}}`, `b {{L}} "parents": [{"task": "a", "match": ["L", "X", "S", "M"]}]`), []string{
			`/tasks/b/parents/0/match/1: unknown parameter "X"`, `/tasks/b/parents/0/match/2: parameter "S" is not a list`,
			`/tasks/b/parents/0/match/3: task "a" does not expand over "M"`}},
		{"only one end expands", graph(`a {{L}} "children": [{"task": "b", "match": ["L"]}]`, `b -`),
			[]string{`/tasks/a/children/0/match/0: task "b" does not expand over "L"`}},
		{"a value twice", graph(`a {{D}}`, `b {{D}} "parents": [{"task": "a", "match": ["D"]}]`, `c {{D}} "parents": [{"task": "b", "match": ["D"]}]`), []string{
			`/tasks/b/parents/0/match/0: parameter "D" has the value "d" twice, tasks cannot be matched by it`,
			`/tasks/c/parents/0/match/0: parameter "D" has the value "d" twice, tasks cannot be matched by it`}},
		{"two matches", graph(`a {{L}}{{M}} "children": [{"task": "b", "match": ["L"]}]`, `b {{L}}{{M}} "parents": [{"task": "a", "match": ["M"]}]`),
			[]string{`/tasks/b/parents/0: the edge from "a" to "b" is matched by other parameters elsewhere`}},
		{"generator", graph(`g {{L}} "isGenerator": true`, `b {{L}} "parents": [{"task": "g", "match": ["L"]}]`),
			[]string{`/tasks/b/parents/0: generator "g" cannot be matched one to one: its children wait for everything that it generates`}},
		{"expanded names", graph(`a {{L}}`, `b - "parents": ["a_0", "b_0"]`), []string{
			`/tasks/b/parents/0: unknown task "a_0"; edges name tasks as defined, "a"`, `/tasks/b/parents/1: unknown task "b_0"`}},
		{"match to itself", graph(`a {{L}} "parents": [{"task": "a", "match": ["L"]}]`), []string{`/tasks/a: the tasks depend on each other: a -> a`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, problems := specjson.Plan([]byte(c.doc), dag.Limits{})
			mustEqual(t, c.doc, problemLines(problems), c.want)
		})
	}
}

func TestCycleIsOnePath(t *testing.T) {
	ring := func(n int) string {
		var tasks []string
		for i := range n {
			tasks = append(tasks, fmt.Sprintf(`t%d - "children": ["t%d"]`, i, (i+1)%n))
		}
		return graph(tasks...)
	}
	var first []string
	for i := range 20 {
		first = append(first, fmt.Sprint("t", i))
	}
	long := 100_000
	if testing.Short() {
		long = 10_000
	}
	for _, c := range []struct{ doc, want string }{
		{ring(3), "t0 -> t1 -> t2 -> t0"},
		{ring(20), strings.Join(first, " -> ") + " -> t0"},
		{ring(21), strings.Join(first, " -> ") + " -> t20 -> t0"},
		{ring(long), fmt.Sprintf("%s -> … (%d more) -> t0", strings.Join(first, " -> "), long-20)},
		// Only what is on the cycle: before, behind and a second one do not count.
		{graph(`before - "children": ["x"]`, `y - "parents": ["x"], "children": ["behind", "x"]`, `x -`, `behind - "children": ["p"]`,
			`p - "parents": ["q"]`, `q - "parents": ["p"]`), "y -> x -> y"},
		{graph(`a - "children": ["b -> c"]`, `b\u0020->\u0020c - "parents": ["a"], "children": ["a"]`), `a -> "b -> c" -> a`},
	} {
		_, problems := specjson.Plan([]byte(c.doc), dag.Limits{})
		if len(problems) != 1 || problems[0].Message != "the tasks depend on each other: "+c.want {
			t.Errorf("got  %v\nwant %s", problems, c.want)
		}
	}
}

// Random graphs: an edge list beside a naive search for cycles.
func TestEdgesAgainstNaive(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 1))
		n := 1 + r.IntN(20)
		s := &dag.Spec{Tasks: make([]dag.TaskSpec, n)}
		for i := range s.Tasks {
			s.Tasks[i] = dag.TaskSpec{Name: fmt.Sprint("t", i), Job: dag.Job{HasString: true}}
		}
		edges := map[[2]int]bool{}
		for range r.IntN(3 * n) {
			a, b := r.IntN(n), r.IntN(n)
			if r.IntN(8) > 0 && a >= b {
				continue // most graphs have no cycle
			}
			edges[[2]int{a, b}] = true
			if r.IntN(2) == 0 {
				s.Tasks[a].Children = append(s.Tasks[a].Children, dag.EdgeSpec{Task: s.Tasks[b].Name})
			} else {
				s.Tasks[b].Parents = append(s.Tasks[b].Parents, dag.EdgeSpec{Task: s.Tasks[a].Name})
			}
		}
		p, problems := dag.NewPlan(s, dag.Limits{})
		if cyclic(n, edges) {
			if len(problems) != 1 || !isCycle(problems[0].Message, edges) {
				t.Fatalf("seed %d: a cycle among %v: %v", seed, edges, problems)
			}
			continue
		}
		if problems != nil {
			t.Fatalf("seed %d: %v", seed, problems)
		}
		var want []string
		for e := range edges {
			want = append(want, fmt.Sprintf("t%d>t%d", e[0], e[1]))
		}
		slices.Sort(want)
		mustEqual(t, fmt.Sprint("seed ", seed), slices.Sorted(slices.Values(edgesOf(t, p))), want)
	}
}

// cyclic removes what has no parents until nothing is left or can be removed.
func cyclic(n int, edges map[[2]int]bool) bool {
	left := map[int]bool{}
	for i := range n {
		left[i] = true
	}
	for removed := true; removed; {
		removed = false
		for i := range left {
			free := true
			for e := range edges {
				free = free && !(e[1] == i && left[e[0]])
			}
			if free {
				delete(left, i)
				removed = true
			}
		}
	}
	return len(left) > 0
}

func isCycle(message string, edges map[[2]int]bool) bool {
	_, path, ok := strings.Cut(message, ": ")
	steps := strings.Split(path, " -> ")
	for i := 1; i < len(steps); i++ {
		var a, b int
		fmt.Sscanf(steps[i-1], "t%d", &a)
		fmt.Sscanf(steps[i], "t%d", &b)
		ok = ok && edges[[2]int{a, b}]
	}
	return ok && len(steps) > 1 && steps[0] == steps[len(steps)-1]
}
