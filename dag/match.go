package dag

// Match is a one-to-one edge: a task of the child waits for those tasks of the
// parent that have the same values of the named parameters. The tasks of either
// end fall into the same number of groups, one per combination of values; a
// child's group waits for the parent's group of the same number. It is immutable.
type Match struct {
	ID            int      // in Plan.Matches
	Names         []string // the parameters, sorted, each once
	Groups        uint32   // combinations of their values
	Parent, Child int      // templates, as indexes into Plan.Templates

	perGroup   uint32 // tasks of the parent in a group
	parent     []axisDigit
	child      []axisDigit
	free       []axisDigit // the child's axes left of the last matched one that are not matched: EachChild's loop
	neighbours uint32      // the child's tasks that are neighbours in a group
}

// axisDigit is one axis of a template's tasks, seen as the digits of the task's
// local number: the value of the axis is local / stride % size.
type axisDigit struct {
	stride, size uint32
	weight       uint32 // what the value counts in a group's number
}

// newMatch lays out a match over params, indexes into parameters in ascending
// order, all of which both ends expand over.
func newMatch(parameters []Parameter, parent, child *Template, params []int) *Match {
	m := &Match{Groups: 1, Parent: parent.Index, Child: child.Index, perGroup: parent.Count, neighbours: 1}
	weights := make([]uint32, len(params))
	for i := len(params) - 1; i >= 0; i-- {
		weights[i] = m.Groups
		m.Groups *= uint32(len(parameters[params[i]].Values))
	}
	for _, i := range params {
		m.Names = append(m.Names, parameters[i].Name)
	}
	m.perGroup /= m.Groups
	m.parent, _ = splitAxes(parameters, parent.Axes, params, weights)
	m.child, m.free = splitAxes(parameters, child.Axes, params, weights)
	// A free axis right of every matched one makes neighbours.
	last := child.Count
	if n := len(m.child); n > 0 {
		last = m.child[n-1].stride
	}
	m.neighbours = last
	for n := len(m.free); n > 0 && m.free[n-1].stride < last; n-- {
		m.free = m.free[:n-1]
	}
	return m
}

// splitAxes are the matched and the free axes of a template, slowest first. An axis
// of one value is left out: all tasks share that value.
func splitAxes(parameters []Parameter, axes, params []int, weights []uint32) (matched, free []axisDigit) {
	stride := uint32(1)
	k := len(params) - 1
	for i := len(axes) - 1; i >= 0; i-- {
		size := uint32(len(parameters[axes[i]].Values))
		d := axisDigit{stride: stride, size: size}
		stride *= size
		isMatched := k >= 0 && params[k] == axes[i]
		if isMatched {
			d.weight = weights[k]
			k--
		}
		switch {
		case size == 1:
		case isMatched:
			matched = append(matched, d)
		default:
			free = append(free, d)
		}
	}
	reverse(matched)
	reverse(free)
	return matched, free
}

func reverse(d []axisDigit) {
	for i, j := 0, len(d)-1; i < j; i, j = i+1, j-1 {
		d[i], d[j] = d[j], d[i]
	}
}

// GroupOfParent is the group of a task of the parent. Local counts from the
// template's Base.
func (m *Match) GroupOfParent(local uint32) uint32 { return groupNumber(m.parent, local) }

// GroupOfChild is the group of a task of the child. Local counts from the
// template's Base.
func (m *Match) GroupOfChild(local uint32) uint32 { return groupNumber(m.child, local) }

func groupNumber(axes []axisDigit, local uint32) uint32 {
	var g uint32
	for i := range axes {
		g += local / axes[i].stride % axes[i].size * axes[i].weight
	}
	return g
}

// ParentsPerGroup is how many tasks of the parent every group has.
func (m *Match) ParentsPerGroup() uint32 { return m.perGroup }

// EachChild yields the child's tasks in a group as maximal ranges of
// neighbours, ascending: n tasks from firstLocal on.
func (m *Match) EachChild(group uint32, yield func(firstLocal, n uint32)) {
	var first uint32
	for _, d := range m.child {
		first += group / d.weight % d.size * d.stride
	}
	total := uint32(1)
	for _, d := range m.free {
		total *= d.size
	}
	for i := uint32(0); i < total; i++ {
		at, rest := first, i
		for k := len(m.free) - 1; k >= 0; k-- {
			at += rest % m.free[k].size * m.free[k].stride
			rest /= m.free[k].size
		}
		yield(at, m.neighbours)
	}
}
