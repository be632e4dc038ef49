package dag

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// Spec is a submitted graph, decoded and syntactically sound, not yet validated as a graph (see
// NewPlan). It is immutable, except for the TaskList, which NewPlan takes over. Package specjson
// makes it from JSON; a Spec from elsewhere must be sorted as its comments say.
type Spec struct {
	Tag        string
	Tags       []Label     // sorted by name
	Parameters []Parameter // sorted by name
	Defaults   *Job        // jobDefaults; nil when absent
	Tasks      []TaskSpec  // in the order of the document
	TaskList   *TaskList   // replaces Tasks for a long document, else nil. The plan takes it over
}

// Label is one member of a spec's `tags`.
type Label struct{ Name, Value string }

// Parameter is one member of a spec's `parameters`: a string or a list of strings.
type Parameter struct {
	Name   string
	List   bool     // given as a list; a list of one value is still a list
	Values []string // exactly one value when List is false
}

// TaskSpec is one task as defined, before expansion.
type TaskSpec struct {
	Name      string
	Job       Job
	Parents   []EdgeSpec
	Children  []EdgeSpec
	Retry     RetryPolicy
	Generator bool
	// HasDecodeErrors is set by a decoder that has reported problems inside this task and
	// left parts of it out. Planning then does not report these parts as missing.
	HasDecodeErrors bool
}

// EdgeSpec names the other end of an edge, by its name as defined. Match is nil
// for all-to-all, or the parameters whose values must be the same at both ends.
type EdgeSpec struct {
	Task  string
	Match []string
}

// Job says what an attempt executes. A zero member means "not given".
//
// {{NAME}} in Command, CommandString, Environment or WorkDir stands for a value of
// the parameter NAME, byte for byte: no spaces inside the braces, upper and lower
// case differ. A substituted value is not expanded again. An unknown NAME is a
// problem when it looks like a name: a letter, a digit or "_", then letters, digits,
// "_", "-" and ".". All other text with braces stays as it is: "{{", "{{ x }}",
// "{{.Names}}". In "{{{A}}}" the inner two pairs are the token. For a literal "{{end}}",
// define a parameter "end" with that value.
type Job struct {
	Command       []string // argv; nil when not given
	CommandString string   // run by /bin/sh -c
	HasString     bool     // commandString was given (it may be empty)
	Environment   []string // K=V, in the order submitted (an object: in the order of the document)
	HasEnv        bool
	EnvObject     bool // environment was submitted as an object (for pointers of problems)
	WorkDir       string
	Executor      string        // "" = "process"
	Timeout       time.Duration // 0 = none
	Cores         Quantity
	MemoryMB      Quantity
	// Other holds the remaining members as submitted, in the order of the document;
	// they are kept and echoed. timeoutSeconds is among them, so that it is echoed
	// as it was written.
	Other []Member
}

// Quantity is a number that is echoed exactly as it was submitted.
type Quantity struct {
	Raw   string // the JSON text: `"1"` or `1`; "" when not given
	Milli int64  // thousandths: cores "1" is 1000; memoryMB "100" is 100000
}

// bytesOfMiB converts a quantity of MiB, the unit of memoryMB, to bytes. It rounds down,
// and stops at the largest int64.
func (q Quantity) bytesOfMiB() int64 {
	if q.Milli >= math.MaxInt64>>20 {
		return math.MaxInt64
	}
	return q.Milli << 20 / 1000
}

// Member is one JSON object member, its value as raw JSON text.
type Member struct{ Name, Raw string }

// RetryPolicy says when a failed attempt is followed by another one.
type RetryPolicy struct {
	MaxRetries  uint32        // attempts after the first
	Interval    time.Duration // before the first retry
	Backoff     float64       // factor per further retry, >= 1; 0 counts as 1
	MaxInterval time.Duration // cap of the interval; 0 = none
}

// Delay returns how long a task waits before its n-th retry (1, 2, …):
// Interval * Backoff^(n-1), at most MaxInterval where that is set. It never
// overflows and is never negative.
func (p RetryPolicy) Delay(n uint32) time.Duration {
	if p.Interval <= 0 || n == 0 {
		return 0
	}
	delay := p.Interval
	if p.Backoff > 1 && n > 1 {
		f := float64(p.Interval) * math.Pow(p.Backoff, float64(n-1))
		delay = math.MaxInt64
		if f < math.MaxInt64 {
			delay = time.Duration(f)
		}
	}
	if p.MaxInterval > 0 {
		delay = min(delay, p.MaxInterval)
	}
	return delay
}

// addSaturated adds a duration (ns, not negative) to a time without overflow: a retry after 292
// years is the latest time that there is.
func addSaturated(at, d int64) int64 {
	if at > math.MaxInt64-d {
		return math.MaxInt64
	}
	return at + d
}

// withDefaults returns the effective job: the members that j gives, and those of d for
// the rest. A member is taken as a whole; command and commandString count as one.
func (j *Job) withDefaults(d *Job) Job {
	e := *j
	if !j.hasCommand() {
		e.Command, e.CommandString, e.HasString = d.Command, d.CommandString, d.HasString
	}
	if !j.HasEnv {
		e.Environment, e.HasEnv, e.EnvObject = d.Environment, d.HasEnv, d.EnvObject
	}
	if e.WorkDir == "" {
		e.WorkDir = d.WorkDir
	}
	if e.Executor == "" {
		e.Executor = d.Executor
	}
	if e.Timeout == 0 {
		e.Timeout = d.Timeout
	}
	if e.Cores.Raw == "" {
		e.Cores = d.Cores
	}
	if e.MemoryMB.Raw == "" {
		e.MemoryMB = d.MemoryMB
	}
	e.Other = mergeMembers(j.Other, d.Other)
	return e
}

// maxMergedMembers bounds the members that tasks and jobDefaults have together where a
// task has its own: those are copied for each such task. 32 bytes each.
const maxMergedMembers = 4_000_000

// mergeMembers is own, followed by those defaults that own does not have.
func mergeMembers(own, defaults []Member) []Member {
	if len(own) == 0 {
		return defaults
	}
	if len(defaults) == 0 {
		return own
	}
	names := make(map[string]struct{}, len(own))
	for _, m := range own {
		names[m.Name] = struct{}{}
	}
	merged := append(make([]Member, 0, len(own)+len(defaults)), own...)
	for _, m := range defaults {
		if _, ok := names[m.Name]; !ok {
			merged = append(merged, m)
		}
	}
	return merged
}

// Job returns the effective job of a template: jobDefaults applied, tokens not
// substituted. A job of a TaskList is unpacked into scratch and valid until scratch is
// used again; any other job belongs to the plan. Do not change either.
func (p *Plan) Job(t *Template, scratch *JobBuffer) *Job {
	if t.job != nil {
		return t.job
	}
	p.taskList.unpackTask(t.Index, &scratch.spec)
	if p.defaults == nil {
		return &scratch.spec.Job
	}
	scratch.job = scratch.spec.Job.withDefaults(p.defaults)
	return &scratch.job
}

// JobBuffer is the buffer that a job of a TaskList is unpacked into. Its zero value is
// ready. It is for one goroutine.
type JobBuffer struct {
	spec TaskSpec
	job  Job // with the defaults: apart, for spec's slices are written to again
}

func (j *Job) hasCommand() bool { return j.Command != nil || j.HasString }

// ownsText tells whether a text of the effective job is j's own, and not from the defaults.
func (j *Job) ownsText(effective *Job, field int) bool {
	if j == effective {
		return true
	}
	switch n := len(effective.Command); {
	case field <= n:
		return j.hasCommand()
	case field <= n+len(effective.Environment):
		return j.HasEnv
	default:
		return j.WorkDir != ""
	}
}

// pointerOf is the place of a text of the effective job, below the job's own.
func (j *Job) pointerOf(effective *Job, field int) string {
	if field < len(effective.Command) {
		return "/command/" + strconv.Itoa(field)
	}
	field -= len(effective.Command)
	if field == 0 {
		return "/commandString"
	}
	field--
	if field == len(effective.Environment) {
		return "/workDir"
	}
	if j.EnvObject {
		name, _, _ := strings.Cut(j.Environment[field], "=")
		return "/environment/" + EscapePointer(name)
	}
	return "/environment/" + strconv.Itoa(field)
}

func (j *Job) textCount() int { return len(j.Command) + len(j.Environment) + 2 }

func (j *Job) textAt(field int) string {
	if field < len(j.Command) {
		return j.Command[field]
	}
	field -= len(j.Command)
	if field == 0 {
		return j.CommandString
	}
	field--
	if field < len(j.Environment) {
		return j.Environment[field]
	}
	return j.WorkDir
}
