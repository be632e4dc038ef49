package dagtest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/caravan-dag/caravan/dag"
)

// Graph is a spec in full detail: all tasks and all edges. It is immutable; Extend returns a new
// one. Order has the tasks of one definition after the other, in the order of the document, and then
// those of each generated set: their places are the indexes of package dag.
type Graph struct {
	params   []dag.Parameter
	defaults *dag.Job
	maxDepth int           // of nested generators; at least 1
	defs     []*definition // in the order of the document and of the sets
	edges    []defEdge
	Order    []string         // task names by index
	Tasks    map[string]*Node // by name
}

// Node is one expanded task. It is immutable.
type Node struct {
	Name        string
	Def         string            // the task as defined
	Values      map[string]string // of the list parameters that it expands over, by name
	Parents     map[string]bool   // names of the tasks that it waits for
	Command     []string
	Environment []string
	Class       dag.Class
	Retry       dag.RetryPolicy
	Generator   bool
}

// definition is one task as defined.
type definition struct {
	name      string
	job       dag.Job // with the defaults
	retry     dag.RetryPolicy
	generator bool
	depth     int      // 0 in the document, n+1 in a set that a generator of depth n printed
	tasks     []string // expanded names
	axes      []string // list parameters that the job refers to, sorted
}

// defEdge is an edge between two definitions.
type defEdge struct {
	parent, child string
	match         []string // sorted; nil = all to all
	only          string   // the task of the generator that the child depends on; "" = all tasks of parent
}

// NewGraph expands a spec, or returns one reason for which it is invalid. Callers compare only whether
// there is a reason: package dag reports all problems, each with its place.
func NewGraph(s *dag.Spec, l dag.Limits) (*Graph, error) {
	g := &Graph{params: s.Parameters, defaults: s.Defaults, maxDepth: cmp.Or(l.MaxDepth, 16)}
	if err := g.addDefinitions(s.Tasks, 0); err != nil {
		return nil, err
	}
	return g, g.expandAll()
}

// Extend adds the tasks of a generator, in one step: the result is valid as a whole, or it is an error
// and g stays as it is. started reports whether a task of a definition has started; an edge into such
// a definition would come too late. generator is the expanded name of the task that printed them.
//
// Two kinds of edges are implied. The children of the generator, as defined, also wait for every
// generated task. A generated task without a parent waits for the one task that printed it, not for all
// tasks of that definition; one that names the generator as parent waits for all of them.
func (g *Graph) Extend(generator string, tasks []dag.TaskSpec, started func(def string) bool) (*Graph, error) {
	made := g.findDefinition(g.Tasks[generator].Def)
	next := &Graph{params: g.params, defaults: g.defaults, maxDepth: g.maxDepth}
	next.defs = slices.Clone(g.defs)
	next.edges = slices.Clone(g.edges)
	old := len(next.edges)
	if len(tasks) > 0 && made.depth+1 > g.maxDepth {
		return nil, fmt.Errorf("generators are nested deeper than %d", g.maxDepth)
	}
	if err := next.addDefinitions(tasks, made.depth+1); err != nil {
		return nil, err
	}
	isNew := map[string]bool{}
	for _, t := range tasks {
		isNew[t.Name] = true
	}
	for i := old; i < len(next.edges); i++ {
		e := &next.edges[i]
		if !isNew[e.child] && started(e.child) {
			return nil, fmt.Errorf("edge into %q, which has started", e.child)
		}
	}
	// The children of the generator wait for all generated tasks. Tasks that an earlier set hung on
	// one task of the generator (only) are not among them: they were generated, too.
	for _, e := range g.edges {
		if e.parent != made.name || e.only != "" {
			continue
		}
		for _, t := range tasks {
			next.edges = append(next.edges, defEdge{parent: t.Name, child: e.child})
		}
	}
	// A generated task without parents depends on the generator.
	for _, t := range tasks {
		if !slices.ContainsFunc(next.edges, func(e defEdge) bool { return e.child == t.Name }) {
			next.edges = append(next.edges, defEdge{parent: made.name, child: t.Name, only: generator})
		}
	}
	return next, next.expandAll()
}

// findDefinition returns a definition by its name, or nil.
func (g *Graph) findDefinition(name string) *definition {
	for _, d := range g.defs {
		if d.name == name {
			return d
		}
	}
	return nil
}

// DefinitionNames lists the names of the tasks as defined, in order.
func (g *Graph) DefinitionNames() []string {
	var names []string
	for _, d := range g.defs {
		names = append(names, d.name)
	}
	return names
}

// TasksOf lists the expanded names of one definition, in order.
func (g *Graph) TasksOf(name string) []string { return g.findDefinition(name).tasks }

// IsGenerator reports whether a definition is a generator.
func (g *Graph) IsGenerator(name string) bool { return g.findDefinition(name).generator }

// addDefinitions adds definitions and the edges that they name. The names of the ends are checked later,
// by expandAll, because a definition may name one that follows.
func (g *Graph) addDefinitions(tasks []dag.TaskSpec, depth int) error {
	for _, t := range tasks {
		if g.findDefinition(t.Name) != nil {
			return fmt.Errorf("%q is defined twice", t.Name)
		}
		d := &definition{name: t.Name, job: g.effectiveJob(t.Job), retry: t.Retry, generator: t.Generator, depth: depth}
		if d.generator && d.job.Executor == "noop" {
			return fmt.Errorf("%q is a generator without a process", t.Name)
		}
		text := strings.Join(append(slices.Concat(d.job.Command, d.job.Environment), d.job.CommandString, d.job.WorkDir), " ")
		for _, p := range g.params {
			if p.List && strings.Contains(text, "{{"+p.Name+"}}") {
				d.axes = append(d.axes, p.Name)
			}
		}
		slices.Sort(d.axes)
		g.defs = append(g.defs, d)
	}
	for _, t := range tasks {
		for _, e := range t.Parents {
			g.addEdge(e.Task, t.Name, e.Match)
		}
		for _, e := range t.Children {
			g.addEdge(t.Name, e.Task, e.Match)
		}
	}
	return nil
}

// addEdge adds an edge once. When only one of two equal edges has match, match holds. Two edges with
// different matches are both kept, for expandAll to refuse.
func (g *Graph) addEdge(parent, child string, match []string) {
	match = slices.Compact(slices.Sorted(slices.Values(match)))
	for i := range g.edges {
		e := &g.edges[i]
		if e.parent == parent && e.child == child && (len(match) == 0 || len(e.match) == 0 || slices.Equal(match, e.match)) {
			if len(match) > 0 {
				e.match = match
			}
			return
		}
	}
	g.edges = append(g.edges, defEdge{parent: parent, child: child, match: match})
}

// effectiveJob fills what a job leaves out from the defaults of the spec, and then from those of the
// semantics: one core and the executor process. A job with a command of either form takes neither
// form from the defaults.
func (g *Graph) effectiveJob(j dag.Job) dag.Job {
	d := g.defaults
	if d == nil {
		d = &dag.Job{}
	}
	if j.Command == nil && !j.HasString {
		j.Command, j.CommandString, j.HasString = d.Command, d.CommandString, d.HasString
	}
	if !j.HasEnv {
		j.Environment = d.Environment
	}
	if j.Cores.Raw == "" {
		j.Cores = d.Cores
	}
	if j.Cores.Raw == "" {
		j.Cores.Milli = 1000
	}
	if j.MemoryMB.Raw == "" {
		j.MemoryMB = d.MemoryMB
	}
	j.Executor = cmp.Or(j.Executor, d.Executor, "process")
	return j
}

// expandAll makes all tasks and all edges between them, by comparing each task of a parent with each
// task of its child: quadratic, and therefore free of the index arithmetic of package dag.
func (g *Graph) expandAll() error {
	g.Order, g.Tasks = nil, map[string]*Node{}
	for _, d := range g.defs {
		if err := g.expandDefinition(d); err != nil {
			return err
		}
	}
	seen := map[[2]string]string{}
	for _, e := range g.edges {
		parent, child := g.findDefinition(e.parent), g.findDefinition(e.child)
		if parent == nil || child == nil {
			return fmt.Errorf("edge %q -> %q: unknown task", e.parent, e.child)
		}
		if m := strings.Join(e.match, " "); m != "" {
			ends := [2]string{e.parent, e.child}
			if other := seen[ends]; other != "" && other != m {
				return fmt.Errorf("edge %q -> %q: two matches", e.parent, e.child)
			}
			seen[ends] = m
			if parent.generator {
				return fmt.Errorf("edge %q -> %q: match of a generator", e.parent, e.child)
			}
		}
		for _, m := range e.match {
			if !slices.Contains(parent.axes, m) || !slices.Contains(child.axes, m) {
				return fmt.Errorf("edge %q -> %q: no match over %q", e.parent, e.child, m)
			}
			if v := slices.Sorted(slices.Values(g.parameter(m).Values)); len(slices.Compact(v)) < len(g.parameter(m).Values) {
				return fmt.Errorf("edge %q -> %q: match over %q, which repeats a value", e.parent, e.child, m)
			}
		}
		for _, c := range child.tasks {
			for _, p := range parent.tasks {
				if (e.only == "" || e.only == p) && sameValues(g.Tasks[p], g.Tasks[c], e.match) {
					g.Tasks[c].Parents[p] = true
				}
			}
		}
	}
	return g.checkAcyclic()
}

// sameValues reports whether two tasks have the same values of all matched parameters: always, without
// match.
func sameValues(a, b *Node, match []string) bool {
	for _, m := range match {
		if a.Values[m] != b.Values[m] {
			return false
		}
	}
	return true
}

// expandDefinition makes the tasks of a definition, one for each combination of values. The axes are
// sorted by name, and the last one varies fastest: the number in a task's name follows from that. With
// A = [x y] and B = [1 2 3] task t expands to t_0 (x 1), t_1 (x 2), t_2 (x 3), t_3 (y 1), and so on.
func (g *Graph) expandDefinition(d *definition) error {
	d.tasks = nil
	rows := []map[string]string{{}}
	for _, axis := range d.axes {
		var wider []map[string]string
		for _, row := range rows {
			for _, v := range g.parameter(axis).Values {
				r := maps.Clone(row)
				r[axis] = v
				wider = append(wider, r)
			}
		}
		rows = wider
	}
	for i, row := range rows {
		n := &Node{Name: d.name, Def: d.name, Values: row, Parents: map[string]bool{}, Retry: d.retry, Generator: d.generator}
		if len(d.axes) > 0 {
			n.Name = fmt.Sprintf("%s_%d", d.name, i)
		}
		if g.Tasks[n.Name] != nil {
			return fmt.Errorf("two tasks would be called %q", n.Name)
		}
		n.Class = dag.Class{Executor: d.job.Executor, CPUMillis: d.job.Cores.Milli, MemoryBytes: mebibytes(d.job.MemoryMB)}
		n.Command = g.substituteAll(d.job.Command, row)
		n.Environment = g.substituteAll(d.job.Environment, row)
		g.Tasks[n.Name] = n
		g.Order = append(g.Order, n.Name)
		d.tasks = append(d.tasks, n.Name)
	}
	return nil
}

// parameter returns a parameter by its name; the zero Parameter for an unknown one.
func (g *Graph) parameter(name string) dag.Parameter {
	for _, p := range g.params {
		if p.Name == name {
			return p
		}
	}
	return dag.Parameter{}
}

// substituteAll replaces the tokens of all parameters. A parameter without a list has its only value,
// a list parameter that of the row. It replaces one parameter after the other, so it is right only while
// no value contains a token: the values of RandomSpec do not.
func (g *Graph) substituteAll(words []string, row map[string]string) []string {
	var out []string
	for _, w := range words {
		for _, p := range g.params {
			v := p.Values[0]
			if p.List {
				v = row[p.Name]
			}
			w = strings.ReplaceAll(w, "{{"+p.Name+"}}", v)
		}
		out = append(out, w)
	}
	return out
}

// checkAcyclic removes definitions whose parents are all removed, until only those of a cycle
// remain. A cycle of definitions is refused even when the edges between their tasks would not close
// one.
func (g *Graph) checkAcyclic() error {
	gone := map[string]bool{}
	for {
		before := len(gone)
		for _, d := range g.defs {
			free := !slices.ContainsFunc(g.edges, func(e defEdge) bool { return e.child == d.name && !gone[e.parent] })
			if free {
				gone[d.name] = true
			}
		}
		if len(gone) == len(g.defs) {
			return nil
		}
		if len(gone) == before {
			return fmt.Errorf("a cycle")
		}
	}
}

// mebibytes converts a quantity of MiB into bytes.
func mebibytes(q dag.Quantity) int64 { return int64(float64(q.Milli) / 1000 * (1 << 20)) }
