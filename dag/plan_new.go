package dag

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
)

// Defaults of Limits.
const (
	defaultMaxTasks = 10_000_000
	defaultMaxDepth = 16
	// Whatever the limits say: indexes of tasks and templates fit in an int32.
	mostTasks = math.MaxInt32
	// maxEdges bounds the edges between templates. A generated set makes one to each
	// task that waits for its generator, so a small document can ask for many.
	maxEdges = 10_000_000
	// maxTaskBytes bounds a task's texts after substitution. It is more than Linux
	// lets a process start with.
	maxTaskBytes = 4 << 20
)

func (l Limits) withDefaults() Limits {
	if l.MaxTasks <= 0 {
		l.MaxTasks = defaultMaxTasks
	}
	l.MaxTasks = min(l.MaxTasks, mostTasks)
	if l.MaxDepth <= 0 {
		l.MaxDepth = defaultMaxDepth
	}
	return l
}

func (l *Limits) knows(executor string) bool {
	if l.Executors == nil {
		return executor == executorProcess || executor == executorNoop
	}
	return slices.Contains(l.Executors, executor)
}

// elsewhere tells whether tasks of this executor take nothing of this machine.
func (l *Limits) elsewhere(executor string) bool { return slices.Contains(l.Elsewhere, executor) }

// planner makes a plan, or the list of everything that is wrong.
type planner struct {
	Collector
	plan    *Plan
	prefix  string     // JSON pointer of the object that holds the tasks
	first   int        // plan.Templates[first:] are new
	specs   []TaskSpec // of the new templates
	list    *TaskList  // instead of specs
	listed  *listed    // of list
	job     *Job       // the effective one of the template that is being added
	total   uint64     // tasks, saturated
	edges   []edge
	matched [][]int // parameters of one-to-one edges; edge.match indexes it
	classes map[Class]int
	scratch []token
	merged  int                     // members of jobs, where defaults were merged in
	lengths []int                   // of the parameters' longest values
	traits  []valueTrait            // of the parameters
	started func(template int) bool // of templates that were there before
	repeats map[int]repeat          // answers of repeated
}

// NewPlan validates a spec as a graph and lays out its templates. It reports
// everything that is wrong; the plan is nil when anything is. Problem.Limit is
// set on what is too large rather than wrong.
func NewPlan(s *Spec, l Limits) (*Plan, Problems) {
	b := planner{
		prefix: "/tasks",
		specs:  s.Tasks,
		list:   s.Listed,
		plan: &Plan{
			Tag: s.Tag, Tags: s.Tags, Parameters: s.Parameters,
			limits: l.withDefaults(), defaults: s.Defaults, list: s.Listed,
		},
	}
	if b.list != nil {
		b.listed = new(listed)
	}
	if s.Defaults != nil {
		b.checkDefaults(s.Defaults)
	}
	if b.len() == 0 {
		b.problem(b.prefix, "there must be at least one task")
	}
	b.addTemplates(-1)
	b.collectEdges()
	return b.finish()
}

// Extend adds what a task of a generator generated: a new plan, p is unchanged.
// The templates that get edges are new values, the others are shared. Started
// tells whether any task of a template was ever granted a slot: such a template
// gets no new parents. Pointers of problems are those of the generator's output.
//
// The set's own edges are kept. A template of it without parents hangs on the
// generator's template, and what waits for the generator waits for every new
// template too, except what the same generator made before.
//
// A task that is of no generator is a bug of the caller and panics.
func (p *Plan) Extend(generator uint32, tasks []TaskSpec, started func(template int) bool) (*Plan, Problems) {
	g := p.TemplateOf(generator)
	if !g.Generator {
		panic(fmt.Sprintf("dag: extended by task %d of %q, which is no generator", generator, g.Name))
	}
	next := *p
	next.Sets++
	b := planner{
		plan: &next, first: len(p.Templates), specs: tasks,
		total: uint64(p.Tasks), started: started,
	}
	if depth := g.Depth + 1; depth > p.limits.MaxDepth && len(tasks) > 0 {
		b.problem("", fmt.Sprintf("generators are nested %d deep, the limit is %d", depth, p.limits.MaxDepth))
	}
	b.addTemplates(g.Index)
	b.collectEdges()
	b.hang(g)
	return b.finish()
}

func (b *planner) finish() (*Plan, Problems) {
	b.dedupeEdges()
	b.layOutEdges()
	b.checkCycle()
	b.checkTotal()
	if b.Len() > 0 {
		return nil, b.Problems()
	}
	b.plan.Tasks = uint32(b.total)
	b.plan.edges += len(b.edges)
	return b.plan, nil
}

// len is how many templates are new.
func (b *planner) len() int {
	if b.list != nil {
		return b.list.Len()
	}
	return len(b.specs)
}

// spec is the definition of the i-th new template, valid until the next call. Of a
// listed one the edges are not there.
func (b *planner) spec(i int) *TaskSpec {
	if b.list == nil {
		return &b.specs[i]
	}
	b.list.task(i, &b.listed.spec)
	return &b.listed.spec
}

func (b *planner) problem(pointer, message string) {
	b.Add(Problem{Pointer: pointer, Message: message})
}

// at is the pointer of a new template's definition.
func (b *planner) at(template int) string {
	return b.prefix + "/" + EscapePointer(b.plan.Templates[template].Name)
}

// addTemplates appends the new templates to the plan, and finds what is wrong
// with each by itself and with their names.
func (b *planner) addTemplates(origin int) {
	p := b.plan
	n := b.len()
	p.Templates = append(make([]*Template, 0, b.first+n), p.Templates...)
	p.bases = append(make([]uint32, 0, b.first+n), p.bases...)
	p.Classes = slices.Clip(p.Classes)
	p.Matches = slices.Clip(p.Matches)
	var jobs []Job // effective ones, where there are defaults
	switch {
	case p.defaults == nil:
	case b.list != nil:
		jobs = make([]Job, 1) // the plan makes them again when they are needed
	default:
		jobs = make([]Job, n)
	}
	depth := 0
	if origin >= 0 {
		depth = p.Templates[origin].Depth + 1
	}
	seats := b.seats(n)
	for i := range n {
		spec, t := b.spec(i), seats(i)
		b.job = &spec.Job
		t.Index, t.Name, t.Base = b.first+i, spec.Name, uint32(b.total)
		*t.Traits = Traits{Retry: spec.Retry, Generator: spec.Generator, Depth: depth, Set: p.Sets, Origin: origin}
		p.Templates = append(p.Templates, t)
		p.bases = append(p.bases, t.Base)
		if jobs != nil && b.mayMerge(&spec.Job) {
			b.job = &jobs[i%len(jobs)]
			*b.job = spec.Job.over(p.defaults)
		}
		b.checkJob(t, spec)
		b.expand(t, &spec.Job)
		if b.list == nil {
			t.job = b.job
		} else {
			t.Traits = b.listed.share()
		}
	}
	b.job = nil
	p.names = p.names.add(p.Templates, b.first, b.list)
	b.checkNames()
}

// seats is where the new templates lie. Those of a list lie close, and share what is
// the same for many; any other has its traits and edges beside it.
func (b *planner) seats(n int) func(i int) *Template {
	if l := b.listed; l != nil {
		slab := make([]Template, n)
		return func(i int) *Template {
			slab[i].Traits, slab[i].Edges = &l.traits, &l.none
			return &slab[i]
		}
	}
	slab := make([]struct {
		Template
		traits Traits
		edges  Edges
	}, n)
	return func(i int) *Template {
		s := &slab[i]
		s.Traits, s.Edges = &s.traits, &s.edges
		return &s.Template
	}
}

// listed is what a planner needs for the tasks of a list.
type listed struct {
	spec   TaskSpec // that was unpacked last
	traits Traits   // of the template that is being added
	none   Edges
	shared *Traits // of the last one that shares them
	common map[traitsKey]*Traits
}

// traitsKey is what Traits are found by that have no axes.
type traitsKey struct {
	class     int
	retry     RetryPolicy
	generator bool
}

// share is the traits at hand as a value that other templates may have, too.
func (l *listed) share() *Traits {
	own := &l.traits
	if own.Axes != nil {
		kept := *own
		return &kept
	}
	key := traitsKey{own.Class, own.Retry, own.Generator}
	if s := l.shared; s != nil {
		if (traitsKey{s.Class, s.Retry, s.Generator}) == key {
			return s
		}
		if l.common == nil {
			l.common = make(map[traitsKey]*Traits)
		}
		l.common[traitsKey{s.Class, s.Retry, s.Generator}] = s
		if l.shared = l.common[key]; l.shared != nil {
			return l.shared
		}
	}
	kept := *own
	l.shared = &kept
	return l.shared
}

// mayMerge counts what a job and the defaults come to, and is false beyond the limit.
func (b *planner) mayMerge(j *Job) bool {
	if len(j.Other) == 0 || len(b.plan.defaults.Other) == 0 {
		return true
	}
	before := b.merged
	b.merged += len(j.Other) + len(b.plan.defaults.Other)
	if b.merged > maxMerged && before <= maxMerged {
		b.Add(Problem{
			Pointer: b.prefix,
			Message: "the tasks have more than " + strconv.Itoa(maxMerged) + " job members in all, with those of jobDefaults",
			Limit:   true,
		})
	}
	return b.merged <= maxMerged
}

// expand finds a template's tokens and axes and counts its tasks. Own is the job
// without defaults: what is wrong in these is reported once, there.
func (b *planner) expand(t *Template, own *Job) {
	place := func(field int) (string, bool) {
		if !own.owns(b.job, field) {
			return "", false
		}
		return b.jobAt(t.Index) + own.pointerOf(b.job, field), true
	}
	b.scanTokens(b.job, place)
	count, tooLong := uint64(1), false
	if len(b.scratch) > 0 {
		t.tokens = slices.Clone(b.scratch)
		t.Axes, count = b.axes(t.tokens)
		t.Expanded = len(t.Axes) > 0
		if size := b.longest(t); size > maxTaskBytes {
			tooLong = true
			b.problem(b.jobAt(t.Index), "the job has "+strconv.Itoa(size)+" bytes when the longest values are substituted, the limit is "+strconv.Itoa(maxTaskBytes))
		}
	}
	b.checkTexts(b.job, place)
	if b.job.starts() && !tooLong {
		b.checkStartTotal(t, b.checkStart(b.job, place))
	}
	t.Count = uint32(min(count, mostTasks))
	sum, carry := bits.Add64(b.total, count, 0)
	if carry != 0 {
		sum = math.MaxUint64
	}
	b.total = sum
}

// longest is at least how many bytes the texts with tokens of any task of t have.
func (b *planner) longest(t *Template) int {
	size, field := 0, int32(-1)
	for _, k := range t.tokens {
		if k.field != field {
			field = k.field
			size += len(b.job.text(int(field)))
		}
		size += b.longestValues()[k.param] - int(k.end-k.start)
	}
	return size
}

// axes are the list parameters among tokens, whose strides it sets, and the
// product of their lengths, saturated.
func (b *planner) axes(tokens []token) ([]int, uint64) {
	lists := 0
	for i := range tokens {
		if b.plan.Parameters[tokens[i].param].List {
			lists++
		}
	}
	if lists == 0 {
		return nil, 1
	}
	axes := make([]int, 0, lists)
	for i := range tokens {
		if k := int(tokens[i].param); b.plan.Parameters[k].List {
			axes = append(axes, k)
		}
	}
	slices.Sort(axes) // parameters are sorted by name
	axes = slices.Compact(axes)
	strides := make([]uint32, len(axes))
	count := uint64(1)
	for i := len(axes) - 1; i >= 0; i-- {
		strides[i] = uint32(min(count, mostTasks))
		over, product := bits.Mul64(count, uint64(len(b.plan.Parameters[axes[i]].Values)))
		count = product
		if over != 0 {
			count = math.MaxUint64
		}
	}
	for i := range tokens {
		if b.plan.Parameters[tokens[i].param].List {
			at, _ := slices.BinarySearch(axes, int(tokens[i].param))
			tokens[i].stride = strides[at]
		}
	}
	return axes, count
}

// checkNames finds two tasks that would get one name: defined twice, or defined
// with a name that another one expands to.
func (b *planner) checkNames() {
	p := b.plan
	expanded := false
	for _, t := range p.Templates[b.first:] {
		expanded = expanded || t.Expanded
		if at := p.names.find(t.Name); at < b.first {
			b.problem(b.at(t.Index), "task "+Quote(t.Name)+" is already defined")
		} else if at != t.Index {
			b.problem(b.at(t.Index), "task "+Quote(t.Name)+" is defined twice")
		}
		if other := b.expandsTo(t); other != nil {
			b.problem(b.at(t.Index), "task "+Quote(t.Name)+" has a name that "+Quote(other.Name)+" expands to")
		}
	}
	if !expanded {
		return
	}
	for _, t := range p.Templates[:b.first] {
		if other := b.expandsTo(t); other != nil && other.Index >= b.first {
			b.problem(b.at(other.Index), "task "+Quote(other.Name)+" expands to a name that is defined, "+Quote(t.Name))
		}
	}
}

// expandsTo is the template that expands to the name of t; nil when there is none.
func (b *planner) expandsTo(t *Template) *Template {
	base, local, ok := splitName(t.Name)
	if !ok || t.Expanded {
		return nil
	}
	i := b.plan.names.find(base)
	if i < 0 || !b.plan.Templates[i].Expanded || local >= b.plan.Templates[i].Count {
		return nil
	}
	return b.plan.Templates[i]
}

// checkTotal compares the number of tasks with the limit.
func (b *planner) checkTotal() {
	limit := uint64(b.plan.limits.MaxTasks)
	if b.total <= limit {
		return
	}
	number := strconv.FormatUint(b.total, 10)
	if b.total == math.MaxUint64 {
		number = "more than " + number
	}
	b.Add(Problem{
		Pointer: b.prefix,
		Message: "the run has " + number + " tasks, the limit is " + strconv.FormatUint(limit, 10),
		Limit:   true,
	})
}
