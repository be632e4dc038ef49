package dagtest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/caravan-dag/caravan/dag"
)

// Shape is a spec of a known form.
type Shape struct {
	Name string
	Spec *dag.Spec
}

// Shapes are the forms that graphs have, of about n tasks each.
func Shapes(n int) []Shape {
	r := rand.New(rand.NewPCG(uint64(n), 2))
	chain := min(n/10, 3000) // templates cost more than tasks
	lattice := max(1, int(math.Sqrt(float64(chain))))
	return []Shape{
		{"alone", shape([]int{n}, nil)},
		{"chain", shape(ones(chain), func(p, c int) edgeKind { return plainIf(c == p+1) })},
		{"star", shape([]int{1, n, 1}, func(p, c int) edgeKind { return plainIf(c == p+1) })},
		{"diamond", shape([]int{1, n / 2, n / 2, 1}, func(p, c int) edgeKind { return plainIf(p == 0 && c < 3 || c == 3 && p > 0) })},
		{"lattice", shape(ones(lattice*lattice), func(p, c int) edgeKind {
			return plainIf(c == p+lattice || c == p+1 && c%lattice != 0)
		})},
		{"layers", shape(slices.Repeat([]int{n / 10}, 10), func(p, c int) edgeKind { return plainIf(c == p+1) })},
		{"every layer", shape(slices.Repeat([]int{n / 10}, 10), func(p, c int) edgeKind { return plainIf(c > p) })},
		{"comb", shape(slices.Repeat([]int{n / 20, 1}, 10), func(p, c int) edgeKind { return plainIf(c == p+1) })},
		{"random", shape(sizes(r, n, 60), func(p, c int) edgeKind { return plainIf(r.IntN(5) == 0) })},
		{"random, thin", shape(ones(min(n, 400)), func(p, c int) edgeKind { return plainIf(r.IntN(20) == 0) })},
		{"match, lines", shape(slices.Repeat([]int{n / 10}, 10), func(p, c int) edgeKind { return matchIf(c == p+1) })},
		{"match, fan", fan(n, []string{"X"}, []string{"X", "Y"})},
		{"match, join", fan(n, []string{"X", "Y"}, []string{"X"})},
		{"match, last", fan(n, []string{"X", "Y"}, []string{"Y"})},
		{"match, cross", fan(n, []string{"X", "Y"}, []string{"Y", "Z"})},
		{"match, random", shape(slices.Repeat([]int{n / 20}, 20), func(p, c int) edgeKind { return edgeKind(r.IntN(9)) - 6 })},
	}
}

type edgeKind int

const (
	plain edgeKind = 1
	match edgeKind = 2
)

func plainIf(yes bool) edgeKind {
	if yes {
		return plain
	}
	return 0
}

func matchIf(yes bool) edgeKind {
	if yes {
		return match
	}
	return 0
}

func ones(n int) []int { return slices.Repeat([]int{1}, n) }

// sizes makes k numbers with a sum of about n.
func sizes(r *rand.Rand, n, k int) []int {
	var out []int
	for range k {
		out = append(out, max(1, r.IntN(max(2, 2*n/k))))
	}
	return out
}

// shape makes tasks t0, t1, … which expand to so many, and the edges that kind gives.
func shape(counts []int, kind func(parent, child int) edgeKind) *dag.Spec {
	s := &dag.Spec{}
	have := map[int]bool{}
	for i, n := range counts {
		t := dag.TaskSpec{Name: fmt.Sprintf("t%d", i), Job: dag.Job{Command: []string{"run"}}}
		t.Retry = dag.RetryPolicy{MaxRetries: 3, Interval: 1000}
		if n > 1 {
			name := fmt.Sprintf("N%d", n)
			t.Job.Command = append(t.Job.Command, "{{"+name+"}}")
			if !have[n] {
				have[n] = true
				s.Parameters = append(s.Parameters, dag.Parameter{Name: name, List: true, Values: values("", n)})
			}
		}
		for p := range i {
			if kind == nil {
				break
			}
			e := dag.EdgeSpec{Task: s.Tasks[p].Name}
			switch kind(p, i) {
			case match:
				e.Match = []string{fmt.Sprintf("N%d", n)}
				fallthrough
			case plain:
				t.Parents = append(t.Parents, e)
			}
		}
		s.Tasks = append(s.Tasks, t)
	}
	slices.SortFunc(s.Parameters, func(a, b dag.Parameter) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return s
}

// fan makes a parent over some axes and a child over others, matched on what
// they share, and a last task behind all.
func fan(n int, parent, child []string) *dag.Spec {
	side := max(2, int(math.Sqrt(float64(n/2))))
	s := &dag.Spec{}
	for _, axis := range []string{"X", "Y", "Z"} {
		s.Parameters = append(s.Parameters, dag.Parameter{Name: axis, List: true, Values: values(axis, side)})
	}
	define := func(name string, axes []string) dag.TaskSpec {
		t := dag.TaskSpec{Name: name, Job: dag.Job{Command: []string{"run"}}, Retry: dag.RetryPolicy{MaxRetries: 3}}
		for _, a := range axes {
			t.Job.Command = append(t.Job.Command, "{{"+a+"}}")
		}
		return t
	}
	p, c, last := define("parent", parent), define("child", child), define("last", nil)
	var shared []string
	for _, a := range parent {
		if slices.Contains(child, a) {
			shared = append(shared, a)
		}
	}
	c.Parents = []dag.EdgeSpec{{Task: "parent", Match: shared}}
	last.Parents = []dag.EdgeSpec{{Task: "child"}}
	s.Tasks = []dag.TaskSpec{last, c, p}
	return s
}
