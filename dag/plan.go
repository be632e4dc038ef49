package dag

import "time"

// Limits bound what a plan may be. A zero member means the default.
type Limits struct {
	MaxTasks       int   // tasks of one run, generated ones included; default 10,000,000
	MaxDepth       int   // nesting of generators; default 16
	MaxCoresMilli  int64 // what the machine has, thousandths of a core; 0 = not checked
	MaxMemoryMilli int64 // what the machine has, thousandths of a MB; 0 = not checked
	// Executors are the names that a job may choose; nil = "process", "noop".
	Executors []string
}

// Plan is a validated graph: templates (tasks as defined), each with a
// contiguous range of task indexes. It is immutable: Extend returns a new one.
// Nothing in it is per task; names, commands and environments are made from a
// task's index when they are needed.
type Plan struct {
	Tag        string
	Tags       []Label
	Parameters []Parameter
	Templates  []*Template // ordered by Base; the submitted ones first, then each generated set
	Classes    []Class     // what the dispatcher distinguishes; Template.Class indexes it
	Matches    []*Match    // one-to-one edges; Match.ID indexes it
	Tasks      uint32      // tasks in all
	Sets       int         // generated sets that were added by Extend
	names      nameIndex
	edges      int      // how many there are
	limits     Limits   // defaults applied
	defaults   *Job     // jobDefaults, for what is generated
	bases      []uint32 // Template.Base, side by side
}

// Template is one task as defined. It is immutable.
type Template struct {
	Index     int    // in Plan.Templates
	Name      string // as defined
	Base      uint32 // index of its first task
	Count     uint32 // tasks it expands to, at least 1
	Expanded  bool   // it refers to a list: its tasks are Name_0, Name_1, …
	Axes      []int  // the list parameters it refers to, as indexes into Plan.Parameters, sorted by name; the last one varies fastest
	Parents   []Edge // each edge once, whichever end it was given from
	Children  []Edge
	Class     int
	Retry     RetryPolicy
	Generator bool
	Depth     int  // 0 for submitted tasks, n+1 for what a generator of depth n made
	Set       int  // 0 for submitted tasks, else the number (1, 2, …) of its generated set
	Origin    int  // the template of the generator that made it; -1 for submitted tasks
	Job       *Job // effective: jobDefaults applied; tokens not substituted
	tokens    []token
}

// Edge is one end of a dependency between two templates. Match is nil when
// every task of the child waits for every task of the parent.
type Edge struct {
	Template int // index of the template at the other end
	Match    *Match
}

// Class is what the dispatcher tells apart: tasks of one class are
// interchangeable as far as slots are concerned.
type Class struct {
	Executor    string // "process", "noop", …
	CoresMilli  int64
	MemoryMilli int64
}

// Task is one expanded task, its tokens substituted.
type Task struct {
	Index         uint32
	Name          string
	Template      *Template
	Command       []string // nil when CommandString is used
	CommandString string
	Environment   []string
	WorkDir       string
	Timeout       time.Duration
}

// WithLimits returns the plan with other limits for what is generated from now
// on. What it has already stays, also beyond them.
func (p *Plan) WithLimits(l Limits) *Plan {
	q := *p
	q.limits = l.withDefaults()
	return &q
}
