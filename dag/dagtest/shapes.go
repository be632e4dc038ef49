package dagtest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/caravan-dag/caravan/dag"
)

// Shape is a spec of a known form.
type Shape struct {
	Name string
	Spec *dag.Spec
}

// NumShapes is how many shapes there are.
const NumShapes = 24

// Shapes are the forms that graphs have, of about n tasks each; n is at least 40.
// The forms whose tasks are all defined one by one have n/10 of them, 30,000 at most.
func Shapes(n int) []Shape {
	r := rand.New(rand.NewPCG(uint64(n), 2))
	ones := min(n/10, 30_000) // templates cost more than tasks
	side := max(2, int(math.Sqrt(float64(ones))))
	wide := max(2, ones/9)
	lane := n / 10
	return []Shape{
		{"alone", shape([]int{n}, nil)},
		{"chain", shape(repeat(1, ones), before(1))},
		{"star", shape([]int{1, n, 1}, before(1))},
		{"diamond", shape([]int{1, n / 2, n / 2, 1}, edges{1: {0}, 2: {0}, 3: {1, 2}}.of)},
		{"diamonds", shape(slices.Repeat([]int{1, n / 20, n / 20}, 10), diamonds)},
		{"hourglass", shape([]int{n / 2, 1, n / 2}, before(1))},
		{"lattice", shape(repeat(1, side*side), func(c int) []link {
			if c%side == 0 {
				return plain(c - side)
			}
			return plain(c-side, c-1)
		})},
		{"butterfly", shape(repeat(1, wide*9), func(c int) []link {
			over := c - wide // the same place in the layer above; each layer reaches twice as far
			if over < 0 {
				return nil
			}
			return plain(over, over-over%wide+(over+1<<(c/wide%8))%wide)
		})},
		{"islands", shape(repeat(n/40, 40), func(c int) []link {
			if c%4 == 0 {
				return nil
			}
			return plain(c - 1)
		})},
		{"tree, out", shape(powers(n), before(1))},
		{"tree, in", shape(reversed(powers(n)), before(1))},
		{"layers", shape(repeat(lane, 10), before(1))},
		{"every layer", shape(repeat(lane, 10), all)},
		{"comb", shape(slices.Repeat([]int{n / 20, 1}, 10), before(1))},
		{"random", shape(sizes(r, n, 60), random(r, 5, all))},
		{"random, thin", shape(repeat(1, min(n, 400)), random(r, 20, all))},
		{"match, lines", shape(repeat(lane, 10), matched(before(1)))},
		{"match, fan", fan(n, []string{"X"}, []string{"X", "Y"})},
		{"match, join", fan(n, []string{"X", "Y"}, []string{"X"})},
		{"match, last", fan(n, []string{"X", "Y"}, []string{"Y"})},
		{"match, cross", fan(n, []string{"X", "Y"}, []string{"Y", "Z"})},
		{"match, diamonds", shape(repeat(n/13, 13), matched(diamonds))},
		{"match, pyramid", fan(n, []string{"X", "Y", "Z"}, []string{"X", "Z"}, []string{"Z"}, []string{"Y", "Z"})},
		{"match, random", shape(repeat(n/20, 20), func(c int) []link {
			return append(random(r, 9, all)(c), matched(random(r, 9, all))(c)...)
		})},
	}
}

// link is an edge from a parent, by its number.
type link struct {
	parent int
	match  bool // by all that the child expands over
}

func plain(parents ...int) (links []link) {
	for _, p := range parents {
		links = append(links, link{parent: p})
	}
	return links
}

// edges are the parents of each child.
type edges map[int][]int

func (e edges) of(c int) []link { return plain(e[c]...) }

// before makes task c a child of task c-n.
func before(n int) func(int) []link { return func(c int) []link { return plain(c - n) } }

// all makes task c a child of all tasks before it.
func all(c int) (links []link) {
	for p := range c {
		links = append(links, link{parent: p})
	}
	return links
}

// diamonds are the edges of 0 -> 1 and 2 -> 3 -> 4 and 5 -> 6 ….
func diamonds(c int) []link {
	if c%3 > 0 {
		return plain(c - c%3)
	}
	return plain(c-1, c-2)
}

// random takes one in n of the links.
func random(r *rand.Rand, n int, of func(int) []link) func(int) []link {
	return func(c int) []link {
		return slices.DeleteFunc(of(c), func(link) bool { return r.IntN(n) > 0 })
	}
}

// matched makes the links one to one.
func matched(of func(int) []link) func(int) []link {
	return func(c int) []link {
		links := of(c)
		for i := range links {
			links[i].match = true
		}
		return links
	}
}

func repeat(size, n int) []int { return slices.Repeat([]int{size}, n) }

// powers are 1, 2, 4, … with a sum of at most n.
func powers(n int) (out []int) {
	for size := 1; 2*size-1 <= n; size *= 2 {
		out = append(out, size)
	}
	return out
}

func reversed(list []int) []int {
	slices.Reverse(list)
	return list
}

// sizes makes k numbers with a sum of about n.
func sizes(r *rand.Rand, n, k int) []int {
	var out []int
	for range k {
		out = append(out, max(1, r.IntN(max(2, 2*n/k))))
	}
	return out
}

// shape makes tasks t0, t1, … which expand to so many, with the parents that of
// gives; numbers below 0 are none, and of several links to one parent the first counts.
func shape(counts []int, of func(child int) []link) *dag.Spec {
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
		taken := map[int]bool{}
		for _, l := range links(of, i) {
			if l.parent < 0 || taken[l.parent] {
				continue
			}
			taken[l.parent] = true
			e := dag.EdgeSpec{Task: s.Tasks[l.parent].Name}
			if l.match && n > 1 && counts[l.parent] == n {
				e.Match = []string{fmt.Sprintf("N%d", n)}
			}
			t.Parents = append(t.Parents, e)
		}
		s.Tasks = append(s.Tasks, t)
	}
	slices.SortFunc(s.Parameters, func(a, b dag.Parameter) int { return strings.Compare(a.Name, b.Name) })
	return s
}

func links(of func(int) []link, child int) []link {
	if of == nil {
		return nil
	}
	return of(child)
}

// fan makes tasks over some axes, each a child of the one before, matched on what
// the two share, and a last task behind all. They are defined last to first.
func fan(n int, levels ...[]string) *dag.Spec {
	side := 2
	for total(side+1, levels) <= n {
		side++
	}
	s := &dag.Spec{}
	for _, axis := range []string{"X", "Y", "Z"} {
		s.Parameters = append(s.Parameters, dag.Parameter{Name: axis, List: true, Values: values(axis, side)})
	}
	for i, axes := range append(levels, nil) {
		t := dag.TaskSpec{Name: fmt.Sprintf("level%d", i), Job: dag.Job{Command: []string{"run"}}, Retry: dag.RetryPolicy{MaxRetries: 3}}
		for _, axis := range axes {
			t.Job.Command = append(t.Job.Command, "{{"+axis+"}}")
		}
		if i > 0 {
			e := dag.EdgeSpec{Task: s.Tasks[0].Name}
			if shared := shared(levels[i-1], axes); len(shared) > 0 {
				e.Match = shared
			}
			t.Parents = append(t.Parents, e)
		}
		s.Tasks = slices.Insert(s.Tasks, 0, t)
	}
	return s
}

// total is how many tasks the levels have when each axis has so many values.
func total(side int, levels [][]string) (n int) {
	for _, axes := range levels {
		tasks := 1
		for range axes {
			tasks *= side
		}
		n += tasks
	}
	return n
}
