package dagtest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/caravan-dag/caravan/dag"
)

// Order tells which task may start when, in linear time, for graphs of any size. It identifies a
// task by its name: the definition and, after the last "_", the number of its combination of values.
// The values follow from the number, and the parents of a task from its values, so Order does not
// use results of package dag.
//
// Oracle is too slow for large graphs, because it stores each edge between tasks. Order stores a
// counter per group of an edge: a task is ready when the completed parents of its group are as many
// as the group has. It does not know generated tasks, states or attempts. For example, with lists OS of
// two values and ARCH of three, both in parent and child:
//
//	match         groups          a child waits for
//	none          1, of 6 tasks   6 parents
//	[OS]          2, of 3 tasks   3 parents
//	[ARCH OS]     6, of 1 task    1 parent
//
// ExecuteSpec uses it, and the tests of package actors, which know tasks by their names.
// TestOrderMatchesGraph compares Order with Graph. One goroutine uses an Order.
type Order struct {
	defs  []orderDef
	index map[string]int // of a definition
	edges []orderEdge
}

// orderDef is one task as defined.
type orderDef struct {
	name    string
	axes    []axis // sorted by name; the last one varies fastest
	tasks   int    // number of expanded tasks
	in, out []int  // edges, by their index: those to this child and from this parent
}

// axis is a list parameter that a definition expands over, with the number of its values. The values
// themselves do not matter: equal places in the list are equal values.
type axis struct {
	name   string
	values int
}

// orderEdge is an edge between two definitions. Tasks with equal values of the matched parameters
// form a group, which has a number.
type orderEdge struct {
	parent, child int
	match         []string // nil = all to all, in one group
	parents       []uint32 // number of parents, by group
	completed     []uint32 // of these, by group
	newest        []int64  // time of the last completion, by group
}

// NewOrder resolves the edges of a spec, group by group, in O(tasks + edges). The spec is a valid one,
// with its parameters sorted by name: an edge to an unknown task is the only error. It keeps no
// reference to the spec.
func NewOrder(s *dag.Spec) (*Order, error) {
	o := &Order{index: map[string]int{}}
	g := &Graph{defaults: s.Defaults}
	for i, t := range s.Tasks {
		job := g.effectiveJob(t.Job)
		text := strings.Join(append(slices.Concat(job.Command, job.Environment), job.CommandString, job.WorkDir), " ")
		def := orderDef{name: t.Name, tasks: 1}
		for _, p := range s.Parameters { // sorted by name
			if p.List && strings.Contains(text, "{{"+p.Name+"}}") {
				def.axes = append(def.axes, axis{p.Name, len(p.Values)})
				def.tasks *= len(p.Values)
			}
		}
		o.defs, o.index[t.Name] = append(o.defs, def), i
	}
	known := map[[2]int]int{} // edges by their ends
	for i, t := range s.Tasks {
		for _, e := range t.Parents {
			if err := o.addEdge(known, e.Task, o.defs[i].name, e.Match); err != nil {
				return nil, err
			}
		}
		for _, e := range t.Children {
			if err := o.addEdge(known, o.defs[i].name, e.Task, e.Match); err != nil {
				return nil, err
			}
		}
	}
	for i := range o.edges {
		o.countGroups(i)
	}
	return o, nil
}

// addEdge adds an edge once. When only one of two equal edges has match, match holds.
func (o *Order) addEdge(known map[[2]int]int, from, to string, match []string) error {
	parent, ok := o.index[from]
	child, also := o.index[to]
	if !ok || !also {
		return fmt.Errorf("edge %q -> %q: unknown task", from, to)
	}
	ends := [2]int{parent, child}
	i, again := known[ends]
	if !again {
		i = len(o.edges)
		known[ends] = i
		o.edges = append(o.edges, orderEdge{parent: parent, child: child})
	}
	if len(match) > 0 {
		o.edges[i].match = match
	}
	return nil
}

// countGroups makes the groups of an edge and counts the parents of each.
func (o *Order) countGroups(i int) {
	e := &o.edges[i]
	parent, child := &o.defs[e.parent], &o.defs[e.child]
	groups := 1
	for _, a := range parent.axes {
		if slices.Contains(e.match, a.name) {
			groups *= a.values
		}
	}
	e.parents, e.completed, e.newest = make([]uint32, groups), make([]uint32, groups), make([]int64, groups)
	for task := range parent.tasks {
		e.parents[o.groupOf(e, e.parent, task)]++
	}
	parent.out, child.in = append(parent.out, i), append(child.in, i)
}

// groupOf numbers the matched values of a task at one end of an edge. The number of a task is written in
// digits of its axes, the last of which varies fastest, so the digits of the matched axes alone are the
// number of the group. Axes are sorted by name at both ends, so equal values give equal numbers.
func (o *Order) groupOf(e *orderEdge, def, task int) int {
	if len(e.match) == 0 {
		return 0
	}
	axes := o.defs[def].axes
	group, scale := 0, 1
	for i := len(axes) - 1; i >= 0; i-- {
		value := task % axes[i].values
		task /= axes[i].values
		if slices.Contains(e.match, axes[i].name) {
			group += value * scale
			scale *= axes[i].values
		}
	}
	return group
}

func (o *Order) isExpanded(def int) bool { return len(o.defs[def].axes) > 0 }

// findTask splits a name into the definition and the number.
func (o *Order) findTask(name string) (def, task int, err error) {
	if def, ok := o.index[name]; ok && !o.isExpanded(def) {
		return def, 0, nil
	}
	if i := strings.LastIndexByte(name, '_'); i >= 0 {
		def, ok := o.index[name[:i]]
		task, err := strconv.Atoi(name[i+1:])
		if ok && o.isExpanded(def) && err == nil && task >= 0 && task < o.defs[def].tasks {
			return def, task, nil
		}
	}
	return 0, 0, fmt.Errorf("unknown task %q", name)
}

// TaskNames yields the names of all tasks, definition by definition: in the order of their indexes.
func (o *Order) TaskNames(yield func(string) bool) {
	for def, d := range o.defs {
		for task := range d.tasks {
			name := d.name
			if o.isExpanded(def) {
				name += "_" + strconv.Itoa(task)
			}
			if !yield(name) {
				return
			}
		}
	}
}

// MarkCompleted records that a task has completed, with the time. A second completion is an error as soon
// as a group has more completions than parents, so not for a task without children.
func (o *Order) MarkCompleted(name string, at int64) error {
	def, task, err := o.findTask(name)
	if err != nil {
		return err
	}
	for _, i := range o.defs[def].out {
		e := &o.edges[i]
		group := o.groupOf(e, def, task)
		if e.completed[group]++; e.completed[group] > e.parents[group] {
			return fmt.Errorf("%s completes a second time", name)
		}
		e.newest[group] = max(e.newest[group], at)
	}
	return nil
}

// ReadySince reports whether all parents of a task have completed, and when the last one did: 0
// without parents.
func (o *Order) ReadySince(name string) (at int64, ready bool, err error) {
	def, task, err := o.findTask(name)
	if err != nil {
		return 0, false, err
	}
	for _, i := range o.defs[def].in {
		e := &o.edges[i]
		group := o.groupOf(e, def, task)
		if e.completed[group] < e.parents[group] {
			return 0, false, nil
		}
		at = max(at, e.newest[group])
	}
	return at, true, nil
}
