package dagtest

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/caravan-dag/caravan/dag"
)

// ChoiceSource turns bytes into choices. When it is exhausted every choice is 0. So every byte string
// is a valid spec, a fuzzer can change it freely, and a shorter string is a simpler spec. Generators
// choose so that 0 is the plainest alternative, which makes zeroing a byte a step of shrinking. Bytes
// are the choices that are left.
type ChoiceSource struct{ Bytes []byte }

// Choose returns a number in [0, n). It takes a byte unless there is only one alternative, so n
// is at most 256. Small n that do not divide 256 are slightly uneven.
func (s *ChoiceSource) Choose(n int) int {
	if len(s.Bytes) == 0 || n <= 1 {
		return 0
	}
	b := s.Bytes[0]
	s.Bytes = s.Bytes[1:]
	return int(b) % n
}

// OneIn is true once in n times, and never when the source is exhausted, because the last alternative is
// the true one: what is rare is left out of a shrunk spec first.
func (s *ChoiceSource) OneIn(n int) bool { return s.Choose(n) == n-1 }

const second = int64(time.Second)

// RandomSpec makes a spec. Nearly all are valid; a few have a cycle or a repeated name. A source of
// zeros makes one task without parameters.
//
// It is small on purpose, because the oracle is quadratic and rare combinations need few tasks: lists
// of one to five values, of which one may occur twice; up to seven tasks; an edge between each pair with
// a probability of a third. Edges lead from lower to higher numbers, so they are acyclic, except for the
// one in forty specs with an edge back. Half of the specs are reversed, so that a task is defined before
// its parents.
func RandomSpec(src *ChoiceSource) *dag.Spec {
	s := &dag.Spec{Tag: "random"}
	s.Parameters = []dag.Parameter{
		{Name: "A", List: true, Values: parameterValues("a", 1+src.Choose(3))},
		{Name: "B", List: true, Values: parameterValues("b", 1+src.Choose(3))},
		{Name: "C", List: true, Values: parameterValues("c", 1+src.Choose(4))},
		{Name: "S", Values: []string{"text"}},
	}
	if src.OneIn(6) { // a repeated value
		s.Parameters[2].Values = append(s.Parameters[2].Values, "c0")
	}
	if src.OneIn(5) {
		s.Defaults = &dag.Job{Executor: "noop", Cores: wholeQuantity(2)}
		if src.OneIn(2) {
			s.Defaults.HasEnv, s.Defaults.Environment = true, []string{"X={{B}}"}
		}
	}
	n := 1 + src.Choose(7)
	for i := range n {
		s.Tasks = append(s.Tasks, randomTask(src, fmt.Sprintf("t%d", i)))
	}
	for child := range n {
		for parent := range child {
			if src.OneIn(3) {
				addRandomEdge(src, s, parent, child)
			}
		}
	}
	if src.OneIn(40) {
		addRandomEdge(src, s, n-1, 0)
	}
	if src.OneIn(60) {
		s.Tasks = append(s.Tasks, randomTask(src, "t0"))
	}
	if src.OneIn(2) {
		slices.Reverse(s.Tasks)
	}
	return s
}

// parameterValues returns n values that differ: the prefix and a number from 0 up.
func parameterValues(prefix string, n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprint(prefix, i))
	}
	return out
}

// wholeQuantity is what specjson makes of the number n in a document.
func wholeQuantity(n int) dag.Quantity {
	return dag.Quantity{Raw: fmt.Sprint(n), Milli: int64(n) * 1000}
}

// randomTask makes a task without edges: its job, resources, retries, and whether it generates tasks.
// Tokens may stand in the command, in a command string and in the environment, alone, within a word and
// twice, because each place decides on the expansion. Retry intervals are 0 to 2 s, with and without
// growth and bound, so that some are at once and some are cut by the bound.
func randomTask(src *ChoiceSource, name string) dag.TaskSpec {
	t := dag.TaskSpec{Name: name, Job: dag.Job{Command: []string{"run"}}}
	for bit, token := range []string{"{{A}}", "x{{B}}", "{{C}}{{C}}", "{{S}}"} {
		if src.Choose(10)>>bit&1 == 1 {
			t.Job.Command = append(t.Job.Command, token)
		}
	}
	if src.OneIn(4) {
		t.Job.Command, t.Job.HasString, t.Job.CommandString = nil, true, "echo {{A}}"
	}
	if src.OneIn(5) {
		t.Job.HasEnv, t.Job.Environment = true, []string{"V={{C}}"}
	}
	switch src.Choose(5) {
	case 3:
		t.Job.Cores = wholeQuantity(2)
	case 4:
		t.Job.MemoryMB = wholeQuantity(100)
	}
	t.Generator = src.OneIn(5)
	if src.OneIn(2) {
		t.Retry = dag.RetryPolicy{MaxRetries: uint32(1 + src.Choose(3)), Interval: time.Duration(src.Choose(3)) * time.Second}
		t.Retry.Backoff = []float64{0, 1, 1.5, 2}[src.Choose(4)]
		t.Retry.MaxInterval = time.Duration(src.Choose(3)) * 1500 * time.Millisecond
	}
	return t
}

// addRandomEdge adds an edge, from one end or from both, sometimes with match. match is used only where
// it is valid: over parameters that both ends expand over, and not of a generator's children. It may be
// in another order than the parameters, and at one of two ends only. Numbers are places in s.Tasks.
func addRandomEdge(src *ChoiceSource, s *dag.Spec, parent, child int) {
	p, c := &s.Tasks[parent], &s.Tasks[child]
	down, up := dag.EdgeSpec{Task: c.Name}, dag.EdgeSpec{Task: p.Name}
	var match []string
	if shared := commonAxes(expansionAxes(s, p), expansionAxes(s, c)); len(shared) > 0 && !p.Generator && src.OneIn(2) {
		match = shared[:1+src.Choose(len(shared))]
		if src.OneIn(3) {
			match = slices.Clone(match)
			slices.Reverse(match)
		}
	}
	switch src.Choose(4) {
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

// expansionAxes returns the lists that a task expands over, sorted; nil for a task that the graph
// refuses.
func expansionAxes(s *dag.Spec, t *dag.TaskSpec) []string {
	g := &Graph{params: s.Parameters, defaults: s.Defaults}
	if err := g.addDefinitions([]dag.TaskSpec{{Name: t.Name, Job: t.Job}}, 0); err != nil {
		return nil
	}
	return g.defs[0].axes
}

// commonAxes returns the lists that are in both, in the order of a.
func commonAxes(a, b []string) []string {
	var both []string
	for _, axis := range a {
		if slices.Contains(b, axis) {
			both = append(both, axis)
		}
	}
	return both
}

// RandomSet makes the output of a generator: edges within the set, and from and to existing tasks.
// Sometimes it has a clash of names, a cycle, or an edge into a task that has started. g is the present
// graph, s the spec, and number that of the set, which keeps names of different sets apart: g2.0 is the
// first task of the third set. A source of zeros makes an empty set, which a generator may print.
func RandomSet(src *ChoiceSource, g *Graph, s *dag.Spec, number int) []dag.TaskSpec {
	set := &dag.Spec{Parameters: s.Parameters, Defaults: s.Defaults}
	n := src.Choose(4)
	for i := range n {
		set.Tasks = append(set.Tasks, randomTask(src, fmt.Sprintf("g%d.%d", number, i)))
		if src.OneIn(12) {
			set.Tasks[i].Name = g.DefinitionNames()[src.Choose(len(g.DefinitionNames()))]
		}
	}
	for child := range n {
		for parent := range child {
			if src.OneIn(3) {
				addRandomEdge(src, set, parent, child)
			}
		}
	}
	for i := range n {
		old := g.DefinitionNames()[src.Choose(len(g.DefinitionNames()))]
		up := src.Choose(6) - 4
		if up < 0 {
			continue
		}
		t := &set.Tasks[i]
		e := dag.EdgeSpec{Task: old}
		if shared := commonAxes(g.findDefinition(old).axes, expansionAxes(s, t)); len(shared) > 0 && src.OneIn(2) && !(t.Generator && up == 0) {
			e.Match = shared[:1+src.Choose(len(shared))]
		}
		if up == 1 {
			t.Parents = append(t.Parents, e)
		} else {
			t.Children = append(t.Children, e)
		}
	}
	return set.Tasks
}

// Shape is a spec of a known form. Its names of tasks are t0, t1, … or level0, level1, …
type Shape struct {
	Name string
	Spec *dag.Spec
}

// NumShapes is the number of shapes.
const NumShapes = 24

// Shapes returns graphs of all forms, of about n tasks each; n is at least 40. The forms that define
// each task separately have n/10 tasks, 30,000 at most. The same n gives the same graphs.
//
//	alone      n tasks without edges          tree, out  1 -> 2 -> 4 -> …
//	chain      1 -> 1 -> 1 -> …               tree, in   … -> 4 -> 2 -> 1
//	star       1 -> n -> 1                    layers     10 layers, each all to all with the next
//	diamond    1 -> n/2 and n/2 -> 1          every layer  10 layers, each with all before it
//	diamonds   ten of them in a row           comb       wide and single layers in turn
//	hourglass  n/2 -> 1 -> n/2                lattice    a square; edges from above and from the left
//	islands    ten chains of four             butterfly  9 layers; each task has two parents, the
//	                                          second one twice as far away in each layer
//
// The forms that begin with "match" have one-to-one edges: along lines, from one list to two (fan) and
// back (join, last), over one of two lists each (cross), and over three lists (pyramid). The random ones
// mix both kinds of edges.
func Shapes(n int) []Shape {
	r := rand.New(rand.NewPCG(uint64(n), 2))
	ones := min(n/10, 30_000) // templates cost more than tasks
	side := max(2, int(math.Sqrt(float64(ones))))
	wide := max(2, ones/9)
	lane := n / 10
	return []Shape{
		{"alone", specOfShape([]int{n}, nil)},
		{"chain", specOfShape(repeatSize(1, ones), childOfNthBefore(1))},
		{"star", specOfShape([]int{1, n, 1}, childOfNthBefore(1))},
		{"diamond", specOfShape([]int{1, n / 2, n / 2, 1}, edgeTable{1: {0}, 2: {0}, 3: {1, 2}}.linksOf)},
		{"diamonds", specOfShape(slices.Repeat([]int{1, n / 20, n / 20}, 10), diamondLinks)},
		{"hourglass", specOfShape([]int{n / 2, 1, n / 2}, childOfNthBefore(1))},
		{"lattice", specOfShape(repeatSize(1, side*side), func(c int) []parentLink {
			if c%side == 0 {
				return plainLinks(c - side)
			}
			return plainLinks(c-side, c-1)
		})},
		{"butterfly", specOfShape(repeatSize(1, wide*9), func(c int) []parentLink {
			over := c - wide // the same place in the layer above; each layer reaches twice as far
			if over < 0 {
				return nil
			}
			return plainLinks(over, over-over%wide+(over+1<<(c/wide%8))%wide)
		})},
		{"islands", specOfShape(repeatSize(n/40, 40), func(c int) []parentLink {
			if c%4 == 0 {
				return nil
			}
			return plainLinks(c - 1)
		})},
		{"tree, out", specOfShape(powersOfTwo(n), childOfNthBefore(1))},
		{"tree, in", specOfShape(reversedSizes(powersOfTwo(n)), childOfNthBefore(1))},
		{"layers", specOfShape(repeatSize(lane, 10), childOfNthBefore(1))},
		{"every layer", specOfShape(repeatSize(lane, 10), childOfAllBefore)},
		{"comb", specOfShape(slices.Repeat([]int{n / 20, 1}, 10), childOfNthBefore(1))},
		{"random", specOfShape(randomSizes(r, n, 60), randomSubset(r, 5, childOfAllBefore))},
		{"random, thin", specOfShape(repeatSize(1, min(n, 400)), randomSubset(r, 20, childOfAllBefore))},
		{"match, lines", specOfShape(repeatSize(lane, 10), matchedLinks(childOfNthBefore(1)))},
		{"match, fan", matchedFan(n, []string{"X"}, []string{"X", "Y"})},
		{"match, join", matchedFan(n, []string{"X", "Y"}, []string{"X"})},
		{"match, last", matchedFan(n, []string{"X", "Y"}, []string{"Y"})},
		{"match, cross", matchedFan(n, []string{"X", "Y"}, []string{"Y", "Z"})},
		{"match, diamonds", specOfShape(repeatSize(n/13, 13), matchedLinks(diamondLinks))},
		{"match, pyramid", matchedFan(n, []string{"X", "Y", "Z"}, []string{"X", "Z"}, []string{"Z"}, []string{"Y", "Z"})},
		{"match, random", specOfShape(repeatSize(n/20, 20), func(c int) []parentLink {
			return append(randomSubset(r, 9, childOfAllBefore)(c), matchedLinks(randomSubset(r, 9, childOfAllBefore))(c)...)
		})},
	}
}

// parentLink is an edge from a parent, by its number. specOfShape ignores a number below 0, so that a
// form need not treat its first tasks apart.
type parentLink struct {
	parent int
	match  bool // over all parameters of the child
}

// plainLinks are all-to-all edges from each of the parents.
func plainLinks(parents ...int) (links []parentLink) {
	for _, p := range parents {
		links = append(links, parentLink{parent: p})
	}
	return links
}

// edgeTable has the parents of each child.
type edgeTable map[int][]int

// linksOf returns the edges to task c, as specOfShape asks for them.
func (e edgeTable) linksOf(c int) []parentLink { return plainLinks(e[c]...) }

// childOfNthBefore makes task c a child of task c-n.
func childOfNthBefore(n int) func(int) []parentLink {
	return func(c int) []parentLink { return plainLinks(c - n) }
}

// childOfAllBefore makes task c a child of all tasks before it.
func childOfAllBefore(c int) (links []parentLink) {
	for p := range c {
		links = append(links, parentLink{parent: p})
	}
	return links
}

// diamondLinks are the edges of 0 -> 1 and 2 -> 3 -> 4 and 5 -> 6 ….
func diamondLinks(c int) []parentLink {
	if c%3 > 0 {
		return plainLinks(c - c%3)
	}
	return plainLinks(c-1, c-2)
}

// randomSubset keeps one in n of the links, by the numbers of r: calls must come in the order of the
// children, which specOfShape does.
func randomSubset(r *rand.Rand, n int, of func(int) []parentLink) func(int) []parentLink {
	return func(c int) []parentLink {
		return slices.DeleteFunc(of(c), func(parentLink) bool { return r.IntN(n) > 0 })
	}
}

// matchedLinks makes the links one to one. specOfShape drops match where the ends differ in size.
func matchedLinks(of func(int) []parentLink) func(int) []parentLink {
	return func(c int) []parentLink {
		links := of(c)
		for i := range links {
			links[i].match = true
		}
		return links
	}
}

func repeatSize(size, n int) []int { return slices.Repeat([]int{size}, n) }

// powersOfTwo returns 1, 2, 4, … with a sum of at most n.
func powersOfTwo(n int) (out []int) {
	for size := 1; 2*size-1 <= n; size *= 2 {
		out = append(out, size)
	}
	return out
}

func reversedSizes(list []int) []int {
	slices.Reverse(list)
	return list
}

// randomSizes makes k numbers with a sum of about n.
func randomSizes(r *rand.Rand, n, k int) []int {
	var out []int
	for range k {
		out = append(out, max(1, r.IntN(max(2, 2*n/k))))
	}
	return out
}

// specOfShape makes tasks t0, t1, … which expand to counts tasks, with the parents that of returns.
// It skips numbers below 0. When several links name one parent, the first one counts. A task of count n
// expands over a list N<n> that all tasks of that count share, so two of them can be matched. A task
// of count 1 is not expanded. All tasks may fail three times, with an interval of 1 us.
func specOfShape(counts []int, of func(child int) []parentLink) *dag.Spec {
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
				s.Parameters = append(s.Parameters, dag.Parameter{Name: name, List: true, Values: parameterValues("", n)})
			}
		}
		taken := map[int]bool{}
		for _, l := range linksTo(of, i) {
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

// linksTo calls of, which is nil for a form without edges.
func linksTo(of func(int) []parentLink, child int) []parentLink {
	if of == nil {
		return nil
	}
	return of(child)
}

// matchedFan makes tasks over some axes, each a child of the one before, matched on the axes that
// both share, and a last task that depends on the last level. They are defined in reverse order. The
// axes have as many values each as make about n tasks in all, and at least 2.
func matchedFan(n int, levels ...[]string) *dag.Spec {
	side := 2
	for countFanTasks(side+1, levels) <= n {
		side++
	}
	s := &dag.Spec{}
	for _, axis := range []string{"X", "Y", "Z"} {
		s.Parameters = append(s.Parameters, dag.Parameter{Name: axis, List: true, Values: parameterValues(axis, side)})
	}
	for i, axes := range append(levels, nil) {
		t := dag.TaskSpec{Name: fmt.Sprintf("level%d", i), Job: dag.Job{Command: []string{"run"}}, Retry: dag.RetryPolicy{MaxRetries: 3}}
		for _, axis := range axes {
			t.Job.Command = append(t.Job.Command, "{{"+axis+"}}")
		}
		if i > 0 {
			e := dag.EdgeSpec{Task: s.Tasks[0].Name}
			if shared := commonAxes(levels[i-1], axes); len(shared) > 0 {
				e.Match = shared
			}
			t.Parents = append(t.Parents, e)
		}
		s.Tasks = slices.Insert(s.Tasks, 0, t)
	}
	return s
}

// countFanTasks returns the number of tasks of all levels when each axis has side values.
func countFanTasks(side int, levels [][]string) (n int) {
	for _, axes := range levels {
		tasks := 1
		for range axes {
			tasks *= side
		}
		n += tasks
	}
	return n
}

// SpecJSON is a spec as a user submits it: its parameters, and the command, parents and retries of
// its tasks. With noop set the tasks use the noop executor. Intervals of retries, defaults, children and
// resources are left out: it is for Shapes, and would change a RandomSpec.
func SpecJSON(s *dag.Spec, noop bool) []byte {
	type edge struct {
		Task  string   `json:"task"`
		Match []string `json:"match,omitempty"`
	}
	type task struct {
		Job        map[string]any `json:"job"`
		Parents    []any          `json:"parents,omitempty"`
		MaxRetries uint32         `json:"maxRetries,omitempty"`
	}
	parameters, tasks := map[string]any{}, orderedObject{}
	for _, p := range s.Parameters {
		if p.List {
			parameters[p.Name] = p.Values
		} else {
			parameters[p.Name] = p.Values[0]
		}
	}
	for _, t := range s.Tasks {
		out := task{Job: map[string]any{"command": t.Job.Command}, MaxRetries: t.Retry.MaxRetries}
		if noop {
			out.Job["executor"] = "noop"
		}
		for _, e := range t.Parents {
			if len(e.Match) == 0 {
				out.Parents = append(out.Parents, e.Task)
			} else {
				out.Parents = append(out.Parents, edge{e.Task, e.Match})
			}
		}
		tasks = append(tasks, objectMember{t.Name, out})
	}
	text, err := json.Marshal(map[string]any{"parameters": parameters, "tasks": tasks})
	if err != nil {
		panic(err)
	}
	return text
}

// orderedObject is a JSON object whose members keep their order.
type orderedObject []objectMember

type objectMember struct {
	name  string
	value any
}

// MarshalJSON writes the members in their order, because the order of tasks in a document is that of
// their indexes. A Go map would be sorted by name.
func (o orderedObject) MarshalJSON() ([]byte, error) {
	text := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			text = append(text, ',')
		}
		name, err := json.Marshal(m.name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(m.value)
		if err != nil {
			return nil, err
		}
		text = append(append(append(text, name...), ':'), value...)
	}
	return append(text, '}'), nil
}
