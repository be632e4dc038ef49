package dag

import (
	"slices"
	"strings"
	"unicode"
)

// This file derives what a task is from its index, when it is needed. The tasks of a template are
// the product of the lists that its job refers to: a task's local number (index - Base) is a number
// in mixed radix, with a digit per list (its axes, the last one fastest), and a digit is a place in
// the list. So a product of a million tasks takes the memory of its lists, and the values of a task take a
// division each. One-to-one edges are numbers too: see Match.

// Task is one expanded task, all its tokens substituted. A task that the plan does not have panics.
func (p *Plan) Task(task uint32) Task {
	var t Task
	p.TaskInto(&t, task)
	return t
}

// TaskInto is Task without new slices: it reuses those of t, which never belong to the template. The
// strings share at most one new allocation; texts without tokens are those of the plan. t must not be
// copied while it is reused.
func (p *Plan) TaskInto(t *Task, task uint32) {
	tm := p.TemplateOf(task)
	job := tm.job
	if job == nil {
		if t.scratch == nil {
			t.scratch = new(JobBuffer)
		}
		job = p.Job(tm, t.scratch)
	}
	s := textBuilder{parameters: p.Parameters, template: tm, job: job, tokensLeft: tm.tokens, local: task - tm.Base}

	t.Index, t.Template, t.Name = task, tm, tm.Name
	if size := s.textBytes(); size > 0 {
		s.text.Grow(size)
	}
	if tm.Expanded {
		t.Name = s.taskName()
	}
	field := int32(0)
	if len(job.Command) == 0 {
		t.Command = nil
	} else {
		t.Command = t.Command[:0]
		for _, arg := range job.Command {
			t.Command = append(t.Command, s.substitute(arg, field))
			field++
		}
	}
	t.CommandString = s.substitute(job.CommandString, field)
	field++
	t.Environment = t.Environment[:0]
	for _, entry := range job.Environment {
		t.Environment = append(t.Environment, s.substitute(entry, field))
		field++
	}
	t.WorkDir = s.substitute(job.WorkDir, field)
	t.Timeout = job.Timeout
}

// textBuilder builds the texts of one task in one buffer. Tokens are sorted by field and place, and
// fields are asked for in ascending order, so each token is looked at once.
type textBuilder struct {
	parameters []Parameter
	template   *Template
	job        *Job
	local      uint32
	tokensLeft []paramToken // of the fields to come
	text       strings.Builder
}

// textBytes is how many bytes the task's own texts have at most: the buffer is allocated once, for all
// of them.
func (s *textBuilder) textBytes() int {
	n := 0
	if s.template.Expanded {
		n = len(s.template.Name) + len("_4294967295")
	}
	field := int32(-1)
	for i := range s.tokensLeft {
		k := &s.tokensLeft[i]
		if k.field != field {
			field = k.field
			n += len(s.job.textAt(int(field)))
		}
		n += len(s.tokenValue(k)) - int(k.end-k.start)
	}
	return n
}

func (s *textBuilder) tokenValue(k *paramToken) string {
	values := s.parameters[k.param].Values
	if k.size == 1 {
		return values[0]
	}
	return values[s.local/k.stride%k.size]
}

func (s *textBuilder) taskName() string {
	var digits [64]byte
	start := s.text.Len()
	if len(s.template.Name) > len(digits)-11 {
		s.text.Write(s.template.appendName(nil, s.local))
	} else {
		s.text.Write(s.template.appendName(digits[:0], s.local))
	}
	return s.text.String()[start:]
}

// substitute returns the text of a field. Fields must be asked for in ascending order.
func (s *textBuilder) substitute(text string, field int32) string {
	if len(s.tokensLeft) == 0 || s.tokensLeft[0].field != field {
		return text
	}
	start, done := s.text.Len(), int32(0)
	for len(s.tokensLeft) > 0 && s.tokensLeft[0].field == field {
		k := &s.tokensLeft[0]
		s.text.WriteString(text[done:k.start])
		s.text.WriteString(s.tokenValue(k))
		done = k.end
		s.tokensLeft = s.tokensLeft[1:]
	}
	s.text.WriteString(text[done:])
	return s.text.String()[start:]
}

// nextToken finds the next {{NAME}} in s from an offset on, of any NAME without braces:
// s[start:end], or ok false. It looks for the closing braces and from there for the nearest opening
// ones, so that the inner pairs of "{{{A}}}" are the token. It is linear in s.
func nextToken(s string, from int) (start, end int, ok bool) {
	for {
		closing := strings.Index(s[from:], "}}")
		if closing < 0 {
			return 0, 0, false
		}
		inside := s[from : from+closing]
		opening := strings.LastIndexByte(inside, '{')
		if opening > 0 && inside[opening-1] == '{' && strings.IndexByte(inside[opening:], '}') < 0 {
			return from + opening - 1, from + closing + 2, true
		}
		from += closing + 2
	}
}

// looksLikeName tells a token with a mistake from text that happens to have braces.
func looksLikeName(s string) bool {
	for i, r := range s {
		inner := r == '-' || r == '.'
		if r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) && !(inner && i > 0) {
			return false
		}
	}
	return s != ""
}

// paramToken is one {{NAME}} of a job.
type paramToken struct {
	field      int32 // which of the job's texts
	start, end int32 // its place there
	param      int32 // index into Plan.Parameters
	stride     uint32
	size       uint32 // of a list: the value is local / stride % size; 1 for a string
}

// findParameter is the index of a parameter, or -1.
func findParameter(parameters []Parameter, name string) int {
	low, high := 0, len(parameters)
	for low < high {
		middle := int(uint(low+high) / 2)
		if parameters[middle].Name < name {
			low = middle + 1
		} else {
			high = middle
		}
	}
	if low < len(parameters) && parameters[low].Name == name {
		return low
	}
	return -1
}

// Match is a one-to-one edge: a task of the child waits for those tasks of the parent that have the
// same values of the named parameters. The tasks of either end fall into the same number of groups,
// one per combination of values; a child's group waits for the parent's group of the same number.
// It is immutable.
//
// A group's number is the matched digits of a task, read as a number in mixed radix of their own. Both
// directions are arithmetic: from a task to its group (a division per matched axis), and from a group
// to the child's tasks (EachChild). So an edge takes O(axes) memory, whatever the product is. Events
// come from parents, so a match has only the free axes of the child. A list of the parent's tasks of a
// group would need those of the parent as well (newMatch), or the group of each task (GroupOfParent).
type Match struct {
	ID            int      // in Plan.Matches
	Names         []string // the parameters, sorted, each once
	Groups        uint32   // combinations of their values
	Parent, Child int      // templates, as indexes into Plan.Templates

	parentsPerGroup uint32 // tasks of the parent in a group
	parentAxes      []axisDigit
	childAxes       []axisDigit
	// freeAxes are the child's axes that are not matched and slower than the last matched one:
	// EachChild loops over them. Faster ones make neighbours, in ranges of rangeLength tasks.
	freeAxes    []axisDigit
	rangeLength uint32
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
	m := &Match{Groups: 1, Parent: parent.Index, Child: child.Index, parentsPerGroup: parent.Count, rangeLength: 1}
	weights := make([]uint32, len(params))
	for i := len(params) - 1; i >= 0; i-- {
		weights[i] = m.Groups
		m.Groups *= uint32(len(parameters[params[i]].Values))
	}
	for _, i := range params {
		m.Names = append(m.Names, parameters[i].Name)
	}
	m.parentsPerGroup /= m.Groups
	m.parentAxes, _ = splitAxes(parameters, parent.Axes, params, weights)
	m.childAxes, m.freeAxes = splitAxes(parameters, child.Axes, params, weights)
	// A free axis right of every matched one makes neighbours.
	last := child.Count
	if n := len(m.childAxes); n > 0 {
		last = m.childAxes[n-1].stride
	}
	m.rangeLength = last
	for n := len(m.freeAxes); n > 0 && m.freeAxes[n-1].stride < last; n-- {
		m.freeAxes = m.freeAxes[:n-1]
	}
	return m
}

// splitAxes are the matched and the free axes of a template, slowest first. axes and params are
// indexes of parameters, ascending; weights belong to params. An axis of one value is left out: all
// tasks share that value.
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
	slices.Reverse(matched)
	slices.Reverse(free)
	return matched, free
}

// GroupOfParent is the group of a task of the parent. Local counts from the
// template's Base.
func (m *Match) GroupOfParent(local uint32) uint32 { return groupNumber(m.parentAxes, local) }

// GroupOfChild is the group of a task of the child. Local counts from the
// template's Base.
func (m *Match) GroupOfChild(local uint32) uint32 { return groupNumber(m.childAxes, local) }

func groupNumber(axes []axisDigit, local uint32) uint32 {
	var g uint32
	for i := range axes {
		g += local / axes[i].stride % axes[i].size * axes[i].weight
	}
	return g
}

// ParentsPerGroup is how many tasks of the parent every group has.
func (m *Match) ParentsPerGroup() uint32 { return m.parentsPerGroup }

// EachChild yields the child's tasks in a group as maximal ranges of neighbours, ascending: n tasks
// from firstLocal on, counted from the child's Base. It costs O(ranges), and allocates only what
// yield does.
func (m *Match) EachChild(group uint32, yield func(firstLocal, n uint32)) {
	var first uint32
	for _, d := range m.childAxes {
		first += group / d.weight % d.size * d.stride
	}
	total := uint32(1)
	for _, d := range m.freeAxes {
		total *= d.size
	}
	for i := uint32(0); i < total; i++ {
		at, rest := first, i
		for k := len(m.freeAxes) - 1; k >= 0; k-- {
			at += rest % m.freeAxes[k].size * m.freeAxes[k].stride
			rest /= m.freeAxes[k].size
		}
		yield(at, m.rangeLength)
	}
}
