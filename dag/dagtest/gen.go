package dagtest

import (
	"fmt"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/dag"
)

// Source turns bytes into choices. When it is exhausted every choice is 0.
type Source struct{ Bytes []byte }

// N chooses a number in [0, n).
func (s *Source) N(n int) int {
	if len(s.Bytes) == 0 || n <= 1 {
		return 0
	}
	b := s.Bytes[0]
	s.Bytes = s.Bytes[1:]
	return int(b) % n
}

// One is true once in n times; never when the source is exhausted.
func (s *Source) One(n int) bool { return s.N(n) == n-1 }

const second = int64(time.Second)

// Spec makes a spec: nearly always a sound one, rarely with a cycle or a name
// that is given twice. All zeros are one task without parameters.
func Spec(src *Source) *dag.Spec {
	s := &dag.Spec{Tag: "random"}
	s.Parameters = []dag.Parameter{
		{Name: "A", List: true, Values: values("a", 1+src.N(3))},
		{Name: "B", List: true, Values: values("b", 1+src.N(3))},
		{Name: "C", List: true, Values: values("c", 1+src.N(4))},
		{Name: "S", Values: []string{"text"}},
	}
	if src.One(6) { // the same value twice
		s.Parameters[2].Values = append(s.Parameters[2].Values, "c0")
	}
	if src.One(5) {
		s.Defaults = &dag.Job{Executor: "noop", Cores: quantity(2)}
		if src.One(2) {
			s.Defaults.HasEnv, s.Defaults.Environment = true, []string{"X={{B}}"}
		}
	}
	n := 1 + src.N(7)
	for i := range n {
		s.Tasks = append(s.Tasks, task(src, fmt.Sprintf("t%d", i)))
	}
	for child := range n {
		for parent := range child {
			if src.One(3) {
				connect(src, s, parent, child)
			}
		}
	}
	if src.One(40) {
		connect(src, s, n-1, 0)
	}
	if src.One(60) {
		s.Tasks = append(s.Tasks, task(src, "t0"))
	}
	if src.One(2) {
		slices.Reverse(s.Tasks)
	}
	return s
}

func values(prefix string, n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprint(prefix, i))
	}
	return out
}

func quantity(n int) dag.Quantity { return dag.Quantity{Raw: fmt.Sprint(n), Milli: int64(n) * 1000} }

func task(src *Source, name string) dag.TaskSpec {
	t := dag.TaskSpec{Name: name, Job: dag.Job{Command: []string{"run"}}}
	for bit, token := range []string{"{{A}}", "x{{B}}", "{{C}}{{C}}", "{{S}}"} {
		if src.N(10)>>bit&1 == 1 {
			t.Job.Command = append(t.Job.Command, token)
		}
	}
	if src.One(4) {
		t.Job.Command, t.Job.HasString, t.Job.CommandString = nil, true, "echo {{A}}"
	}
	if src.One(5) {
		t.Job.HasEnv, t.Job.Environment = true, []string{"V={{C}}"}
	}
	switch src.N(5) {
	case 3:
		t.Job.Cores = quantity(2)
	case 4:
		t.Job.MemoryMB = quantity(100)
	}
	t.Generator = src.One(5)
	if src.One(2) {
		t.Retry = dag.RetryPolicy{MaxRetries: uint32(1 + src.N(3)), Interval: time.Duration(src.N(3)) * time.Second}
		t.Retry.Backoff = []float64{0, 1, 1.5, 2}[src.N(4)]
		t.Retry.MaxInterval = time.Duration(src.N(3)) * 1500 * time.Millisecond
	}
	return t
}

// connect adds an edge, from one end or from both, now and then with match.
func connect(src *Source, s *dag.Spec, parent, child int) {
	p, c := &s.Tasks[parent], &s.Tasks[child]
	down, up := dag.EdgeSpec{Task: c.Name}, dag.EdgeSpec{Task: p.Name}
	var match []string
	if shared := shared(axes(s, p), axes(s, c)); len(shared) > 0 && !p.Generator && src.One(2) {
		match = shared[:1+src.N(len(shared))]
		if src.One(3) {
			match = slices.Clone(match)
			slices.Reverse(match)
		}
	}
	switch src.N(4) {
	case 0:
		up.Match = match
		c.Parents = append(c.Parents, up)
	case 1:
		down.Match = match
		p.Children = append(p.Children, down)
	case 2:
		up.Match, down.Match = match, match
		c.Parents = append(c.Parents, up)
		p.Children = append(p.Children, down)
	case 3:
		down.Match = match
		c.Parents = append(c.Parents, up)
		p.Children = append(p.Children, down)
	}
}

// axes are the lists that a task expands over.
func axes(s *dag.Spec, t *dag.TaskSpec) []string {
	g := &Graph{params: s.Parameters, defaults: s.Defaults}
	if err := g.add([]dag.TaskSpec{{Name: t.Name, Job: t.Job}}, 0); err != nil {
		return nil
	}
	return g.defs[0].axes
}

func shared(a, b []string) []string {
	var both []string
	for _, axis := range a {
		if slices.Contains(b, axis) {
			both = append(both, axis)
		}
	}
	return both
}

// Set makes a generator's output: edges within the set, from and to tasks that
// exist, now and then a clash, a cycle, or an edge into what has started.
func Set(src *Source, g *Graph, s *dag.Spec, number int) []dag.TaskSpec {
	set := &dag.Spec{Parameters: s.Parameters, Defaults: s.Defaults}
	n := src.N(4)
	for i := range n {
		set.Tasks = append(set.Tasks, task(src, fmt.Sprintf("g%d.%d", number, i)))
		if src.One(12) {
			set.Tasks[i].Name = g.Defs()[src.N(len(g.Defs()))]
		}
	}
	for child := range n {
		for parent := range child {
			if src.One(3) {
				connect(src, set, parent, child)
			}
		}
	}
	for i := range n {
		old := g.Defs()[src.N(len(g.Defs()))]
		up := src.N(6) - 4
		if up < 0 {
			continue
		}
		t := &set.Tasks[i]
		e := dag.EdgeSpec{Task: old}
		if shared := shared(g.def(old).axes, axes(s, t)); len(shared) > 0 && src.One(2) && !(t.Generator && up == 0) {
			e.Match = shared[:1+src.N(len(shared))]
		}
		if up == 1 {
			t.Parents = append(t.Parents, e)
		} else {
			t.Children = append(t.Children, e)
		}
	}
	return set.Tasks
}
