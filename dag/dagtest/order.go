package dagtest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/caravan-dag/caravan/dag"
)

// Order says which task may start when, in linear time, for graphs of any size.
// It knows a task by its name: the definition and, behind the last "_", the number
// of its combination of values. The values follow from the number, and which parents
// a task has from the values; so nothing is taken over from package dag.
type Order struct {
	defs  []orderDef
	index map[string]int // of a definition
	edges []orderEdge
}

// orderDef is one task as defined.
type orderDef struct {
	name    string
	axes    []axis // sorted by name; the last one varies fastest
	tasks   int    // how many it expands to
	in, out []int  // edges
}

type axis struct {
	name   string
	values int
}

// orderEdge is an edge between two definitions. Tasks that have the same values of
// what it matches are a group, by a number.
type orderEdge struct {
	parent, child int
	match         []string
	parents       []uint32 // by group: how many there are
	completed     []uint32
	newest        []int64 // by group: when the last of them completed
}

// NewOrder spells the edges of a spec out, group by group.
func NewOrder(s *dag.Spec) (*Order, error) {
	o := &Order{index: map[string]int{}}
	g := &Graph{defaults: s.Defaults}
	for i, t := range s.Tasks {
		job := g.effective(t.Job)
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
			if err := o.connect(known, e.Task, o.defs[i].name, e.Match); err != nil {
				return nil, err
			}
		}
		for _, e := range t.Children {
			if err := o.connect(known, o.defs[i].name, e.Task, e.Match); err != nil {
				return nil, err
			}
		}
	}
	for i := range o.edges {
		o.count(i)
	}
	return o, nil
}

// connect adds an edge once; of a plain one and one with match, the latter holds.
func (o *Order) connect(known map[[2]int]int, from, to string, match []string) error {
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

// count makes an edge's groups.
func (o *Order) count(i int) {
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
		e.parents[o.group(e, e.parent, task)]++
	}
	parent.out, child.in = append(parent.out, i), append(child.in, i)
}

// group numbers the values of what an edge matches that a task of one of its ends has.
func (o *Order) group(e *orderEdge, def, task int) int {
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

func (o *Order) expanded(def int) bool { return len(o.defs[def].axes) > 0 }

// find takes a name apart.
func (o *Order) find(name string) (def, task int, err error) {
	if def, ok := o.index[name]; ok && !o.expanded(def) {
		return def, 0, nil
	}
	if i := strings.LastIndexByte(name, '_'); i >= 0 {
		def, ok := o.index[name[:i]]
		task, err := strconv.Atoi(name[i+1:])
		if ok && o.expanded(def) && err == nil && task >= 0 && task < o.defs[def].tasks {
			return def, task, nil
		}
	}
	return 0, 0, fmt.Errorf("there is no task %q", name)
}

// Names yields the names of all tasks, definition by definition.
func (o *Order) Names(yield func(string) bool) {
	for def, d := range o.defs {
		for task := range d.tasks {
			name := d.name
			if o.expanded(def) {
				name += "_" + strconv.Itoa(task)
			}
			if !yield(name) {
				return
			}
		}
	}
}

// Completed notes that a task has completed, at a time.
func (o *Order) Completed(name string, at int64) error {
	def, task, err := o.find(name)
	if err != nil {
		return err
	}
	for _, i := range o.defs[def].out {
		e := &o.edges[i]
		group := o.group(e, def, task)
		if e.completed[group]++; e.completed[group] > e.parents[group] {
			return fmt.Errorf("%s completes a second time", name)
		}
		e.newest[group] = max(e.newest[group], at)
	}
	return nil
}

// Since tells whether all parents of a task have completed, and when the last one
// did: 0 without parents.
func (o *Order) Since(name string) (at int64, ready bool, err error) {
	def, task, err := o.find(name)
	if err != nil {
		return 0, false, err
	}
	for _, i := range o.defs[def].in {
		e := &o.edges[i]
		group := o.group(e, def, task)
		if e.completed[group] < e.parents[group] {
			return 0, false, nil
		}
		at = max(at, e.newest[group])
	}
	return at, true, nil
}
