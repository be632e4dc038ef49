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
	maxTaskIndex = math.MaxInt32
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
	l.MaxTasks = min(l.MaxTasks, maxTaskIndex)
	if l.MaxDepth <= 0 {
		l.MaxDepth = defaultMaxDepth
	}
	return l
}

func (l *Limits) knowsExecutor(executor string) bool {
	if l.Executors == nil {
		return executor == executorProcess || executor == executorNoop
	}
	return slices.Contains(l.Executors, executor)
}

// runsExternally tells whether tasks of this executor run on other machines.
func (l *Limits) runsExternally(executor string) bool {
	return slices.Contains(l.ExternalExecutors, executor)
}

// planner makes a plan, or the list of all problems. It lives for one call of NewPlan or Extend.
//
// It goes on after a problem, so that one answer lists all of them. Therefore each step must bear what
// an earlier one has found wrong: edges to unknown tasks are left out, a total that overflows is
// saturated, and what would need a right plan (matches) is left out once there are problems.
//
// Its time and memory are linear in the document, whatever the product of the parameters is: it
// looks at tokens, edges and values of parameters, never at tasks. The bounds maxEdges, maxTaskBytes
// and maxMergedMembers are there for the three places where a small document could ask for more.
type planner struct {
	ProblemCollector
	plan           *Plan
	prefix         string       // JSON pointer of the object that holds the tasks
	firstNew       int          // plan.Templates[first:] are new
	specs          []TaskSpec   // of the new templates
	list           *TaskList    // instead of specs
	packed         *packedTasks // of list
	job            *Job         // the effective one of the template that is being added
	taskCount      uint64       // tasks, saturated
	edges          []edgeMention
	matchParams    [][]int // parameters of one-to-one edges; edge.match indexes it
	classes        map[Class]int
	tokens         []paramToken
	mergedMembers  int                         // members of jobs, where defaults were merged in
	valueLengths   []int                       // of the parameters' longest values
	properties     []valueProperties           // of the parameters
	hasStarted     func(template int) bool     // of templates that were there before
	repeatedValues map[int]repeatedValueResult // answers of repeatedValue, by parameter
}

// NewPlan validates a spec as a graph and lays out its templates. It reports all problems, and then
// the plan is nil. Problem.Limit is set where the document is sound but too large.
//
// The plan keeps the strings and slices of the spec, and takes over its TaskList: neither may be
// changed afterwards. The result depends on the spec and the limits alone, so a stored document gives
// the same indexes at each load. It costs O(templates + edges + tokens + values of parameters).
func NewPlan(s *Spec, l Limits) (*Plan, Problems) {
	b := planner{
		prefix: "/tasks",
		specs:  s.Tasks,
		list:   s.TaskList,
		plan: &Plan{
			Tag: s.Tag, Tags: s.Tags, Parameters: s.Parameters,
			limits: l.withDefaults(), defaults: s.Defaults, taskList: s.TaskList,
		},
	}
	if b.list != nil {
		b.packed = new(packedTasks)
	}
	if s.Defaults != nil {
		b.checkDefaults(s.Defaults)
	}
	if b.templateCount() == 0 {
		b.addProblem(b.prefix, "there must be at least one task")
	}
	b.addTemplates(-1)
	b.collectEdges()
	return b.finishPlan()
}

// Extend adds what a task of a generator generated: a new plan, p is unchanged. The templates that get
// edges are new values, the others are shared. Started tells whether any task of a template was ever
// granted a slot: such a template gets no new parents. Pointers of problems are those of the
// generator's output. It costs O(templates + new edges), because the list of templates is copied.
//
// The set keeps its own edges. A new template without parents becomes a child of the
// generator's template. The templates that wait for the generator wait for every new
// template too, except those that the same generator made before.
//
// A task whose template is not a generator is a bug of the caller and panics.
func (p *Plan) Extend(generator uint32, tasks []TaskSpec, started func(template int) bool) (*Plan, Problems) {
	g := p.TemplateOf(generator)
	if !g.Generator {
		panic(fmt.Sprintf("dag: extended by task %d of %q, which is not a generator", generator, g.Name))
	}
	next := *p
	next.Sets++
	b := planner{
		plan: &next, firstNew: len(p.Templates), specs: tasks,
		taskCount: uint64(p.Tasks), hasStarted: started,
	}
	if depth := g.Depth + 1; depth > p.limits.MaxDepth && len(tasks) > 0 {
		b.addProblem("", fmt.Sprintf("generators are nested %d deep, the limit is %d", depth, p.limits.MaxDepth))
	}
	b.addTemplates(g.Index)
	b.collectEdges()
	b.attachGenerated(g)
	return b.finishPlan()
}

// finishPlan lays out the edges that were found, does the checks that need all of them, and returns
// the plan or the problems.
func (b *planner) finishPlan() (*Plan, Problems) {
	b.dedupeEdges()
	b.layOutEdges()
	b.checkCycle()
	b.checkTotal()
	if b.Len() > 0 {
		return nil, b.Problems()
	}
	b.plan.Tasks = uint32(b.taskCount)
	b.plan.edges += len(b.edges)
	return b.plan, nil
}

// templateCount is how many templates are new.
func (b *planner) templateCount() int {
	if b.list != nil {
		return b.list.Len()
	}
	return len(b.specs)
}

// taskSpec returns the definition of the i-th new template, valid until the next call.
// A definition from a TaskList comes without its edges.
func (b *planner) taskSpec(i int) *TaskSpec {
	if b.list == nil {
		return &b.specs[i]
	}
	b.list.unpackTask(i, &b.packed.spec)
	return &b.packed.spec
}

func (b *planner) addProblem(pointer, message string) {
	b.Add(Problem{Pointer: pointer, Message: message})
}

// templatePointer is the pointer of a new template's definition.
func (b *planner) templatePointer(template int) string {
	return b.prefix + "/" + EscapePointer(b.plan.Templates[template].Name)
}

// addTemplates appends the new templates to the plan, and validates each of them and their names.
// origin is the generator's template, or -1. Lists that Extend shares with the plan before (templates,
// classes, matches) are copied or clipped first, so that an append never writes into that plan.
func (b *planner) addTemplates(origin int) {
	p := b.plan
	n := b.templateCount()
	p.Templates = append(make([]*Template, 0, b.firstNew+n), p.Templates...)
	p.bases = append(make([]uint32, 0, b.firstNew+n), p.bases...)
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
	newTemplate := b.allocTemplates(n)
	for i := range n {
		spec, t := b.taskSpec(i), newTemplate(i)
		b.job = &spec.Job
		t.Index, t.Name, t.Base = b.firstNew+i, spec.Name, uint32(b.taskCount)
		*t.Traits = Traits{Retry: spec.Retry, Generator: spec.Generator, Depth: depth, Set: p.Sets, Origin: origin}
		p.Templates = append(p.Templates, t)
		p.bases = append(p.bases, t.Base)
		if jobs != nil && b.checkMergeLimit(&spec.Job) {
			b.job = &jobs[i%len(jobs)]
			*b.job = spec.Job.withDefaults(p.defaults)
		}
		b.checkJob(t, spec)
		b.expandTemplate(t, &spec.Job)
		if b.list == nil {
			t.job = b.job
		} else {
			t.Traits = b.packed.sharedTraits()
		}
	}
	b.job = nil
	p.names = p.names.extended(p.Templates, b.firstNew, b.list)
	b.checkNames()
}

// allocTemplates allocates n templates in one slab. The templates of a list share equal
// traits and edges; each other one has its own next to it.
func (b *planner) allocTemplates(n int) func(i int) *Template {
	if l := b.packed; l != nil {
		slab := make([]Template, n)
		return func(i int) *Template {
			slab[i].Traits, slab[i].Edges = &l.traits, &l.noEdges
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

// packedTasks is the planner's state for the tasks of a TaskList.
type packedTasks struct {
	spec    TaskSpec // that was unpacked last
	traits  Traits   // of the template that is being added
	noEdges Edges
	shared  *Traits // of the last one that shares them
	byKey   map[traitsKey]*Traits
}

// traitsKey finds Traits without axes that can be shared.
type traitsKey struct {
	class     int
	retry     RetryPolicy
	generator bool
}

func keyOfTraits(t *Traits) traitsKey {
	return traitsKey{class: t.Class, retry: t.Retry, generator: t.Generator}
}

// sharedTraits returns a value equal to l.traits that several templates may share. Neighbours in a
// document are mostly alike, so the last one is tried first, and the map is made only for the second
// kind. Traits with axes are not shared: they are few, and the key would need a slice.
func (l *packedTasks) sharedTraits() *Traits {
	own := &l.traits
	if own.Axes != nil {
		kept := *own
		return &kept
	}
	key := keyOfTraits(own)
	if s := l.shared; s != nil {
		if keyOfTraits(s) == key {
			return s
		}
		if l.byKey == nil {
			l.byKey = make(map[traitsKey]*Traits)
		}
		l.byKey[keyOfTraits(s)] = s
		if l.shared = l.byKey[key]; l.shared != nil {
			return l.shared
		}
	}
	kept := *own
	l.shared = &kept
	return l.shared
}

// checkMergeLimit counts the members of a job merged with the defaults. It is false
// beyond maxMergedMembers.
func (b *planner) checkMergeLimit(j *Job) bool {
	if len(j.Other) == 0 || len(b.plan.defaults.Other) == 0 {
		return true
	}
	before := b.mergedMembers
	b.mergedMembers += len(j.Other) + len(b.plan.defaults.Other)
	if b.mergedMembers > maxMergedMembers && before <= maxMergedMembers {
		b.Add(Problem{
			Pointer: b.prefix,
			Message: "the tasks have more than " + strconv.Itoa(maxMergedMembers) + " job members in all, with those of jobDefaults",
			Limit:   true,
		})
	}
	return b.mergedMembers <= maxMergedMembers
}

// expandTemplate finds a template's tokens and axes and counts its tasks. own is the job
// without defaults: checkDefaults has reported the problems of the defaults.
func (b *planner) expandTemplate(t *Template, own *Job) {
	locate := func(field int) (string, bool) {
		if !own.ownsText(b.job, field) {
			return "", false
		}
		return b.jobPointer(t.Index) + own.pointerOf(b.job, field), true
	}
	b.scanTokens(b.job, locate)
	count, tooLong := uint64(1), false
	if len(b.tokens) > 0 {
		t.tokens = slices.Clone(b.tokens)
		t.Axes, count = b.listAxes(t.tokens)
		t.Expanded = len(t.Axes) > 0
		if size := b.longestTexts(t); size > maxTaskBytes {
			tooLong = true
			b.addProblem(b.jobPointer(t.Index), "the job has "+strconv.Itoa(size)+" bytes when the longest values are substituted, the limit is "+strconv.Itoa(maxTaskBytes))
		}
	}
	b.checkTexts(b.job, locate)
	if b.job.startsProcess() && !tooLong {
		b.checkStartTotal(t, b.checkStart(b.job, locate))
	}
	t.Count = uint32(min(count, maxTaskIndex))
	sum, carry := bits.Add64(b.taskCount, count, 0)
	if carry != 0 {
		sum = math.MaxUint64
	}
	b.taskCount = sum
}

// longestTexts is an upper bound, in bytes, of the texts with tokens of any task of t.
func (b *planner) longestTexts(t *Template) int {
	size, field := 0, int32(-1)
	for _, k := range t.tokens {
		if k.field != field {
			field = k.field
			size += len(b.job.textAt(int(field)))
		}
		size += b.longestValues()[k.param] - int(k.end-k.start)
	}
	return size
}

// listAxes are the list parameters among tokens, sorted by name, and the product of their lengths,
// saturated. It sets the strides of the tokens: the axes are the digits of a task's local number, the
// last one fastest, so the value of an axis is local / stride % size.
func (b *planner) listAxes(tokens []paramToken) ([]int, uint64) {
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
		strides[i] = uint32(min(count, maxTaskIndex))
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

// checkNames reports two tasks with the same name: a name that is defined twice, or that
// another task expands to.
func (b *planner) checkNames() {
	p := b.plan
	expanded := false
	for _, t := range p.Templates[b.firstNew:] {
		expanded = expanded || t.Expanded
		if at := p.names.lookup(t.Name); at < b.firstNew {
			b.addProblem(b.templatePointer(t.Index), "task "+Quote(t.Name)+" is already defined")
		} else if at != t.Index {
			b.addProblem(b.templatePointer(t.Index), "task "+Quote(t.Name)+" is defined twice")
		}
		if other := b.expandsTo(t); other != nil {
			b.addProblem(b.templatePointer(t.Index), "task "+Quote(t.Name)+" has a name that "+Quote(other.Name)+" expands to")
		}
	}
	if !expanded {
		return
	}
	for _, t := range p.Templates[:b.firstNew] {
		if other := b.expandsTo(t); other != nil && other.Index >= b.firstNew {
			b.addProblem(b.templatePointer(other.Index), "task "+Quote(other.Name)+" expands to a name that is defined, "+Quote(t.Name))
		}
	}
}

// expandsTo returns the template that expands to the name of t, or nil. It takes the name apart in
// place of making the names that others expand to, so it costs O(1) whatever their product is.
func (b *planner) expandsTo(t *Template) *Template {
	base, local, ok := splitName(t.Name)
	if !ok || t.Expanded {
		return nil
	}
	i := b.plan.names.lookup(base)
	if i < 0 || !b.plan.Templates[i].Expanded || local >= b.plan.Templates[i].Count {
		return nil
	}
	return b.plan.Templates[i]
}

// checkTotal compares the number of tasks with the limit.
func (b *planner) checkTotal() {
	limit := uint64(b.plan.limits.MaxTasks)
	if b.taskCount <= limit {
		return
	}
	number := strconv.FormatUint(b.taskCount, 10)
	if b.taskCount == math.MaxUint64 {
		number = "more than " + number
	}
	b.Add(Problem{
		Pointer: b.prefix,
		Message: "the run has " + number + " tasks, the limit is " + strconv.FormatUint(limit, 10),
		Limit:   true,
	})
}
