package dag

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// The executors that every node has.
const (
	executorProcess = "process"
	executorNoop    = "noop"
)

// defaultCoresMilli is what a task takes that does not say how many cores.
const defaultCoresMilli = 1000

// over is the effective job: what j gives, and of the defaults d the rest. A
// member is taken as a whole; command and commandString count as one.
func (j *Job) over(d *Job) Job {
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

// maxMerged bounds the members that tasks and jobDefaults have together where a
// task has its own: those are copied for each such task. 32 bytes each.
const maxMerged = 4_000_000

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

// Job is the effective job of a template: jobDefaults applied, tokens not substituted.
// A listed one is unpacked into scratch, which is used again; otherwise it is the
// plan's own. Either way it must not be changed.
func (p *Plan) Job(t *Template, scratch *Scratch) *Job {
	if t.job != nil {
		return t.job
	}
	p.list.task(t.Index, &scratch.spec)
	if p.defaults == nil {
		return &scratch.spec.Job
	}
	scratch.job = scratch.spec.Job.over(p.defaults)
	return &scratch.job
}

// Scratch is what a listed job is unpacked into; its zero value is ready. It is for
// one goroutine.
type Scratch struct {
	spec TaskSpec
	job  Job // with the defaults: apart, for spec's slices are written to again
}

func (j *Job) hasCommand() bool { return j.Command != nil || j.HasString }

// owns tells whether a text of the effective job is j's own, and not from the defaults.
func (j *Job) owns(effective *Job, field int) bool {
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

// scanTokens fills b.scratch with a job's tokens. What is wrong with one is
// reported at the place that is asked for.
func (b *planner) scanTokens(j *Job, place func(field int) (pointer string, report bool)) {
	b.scratch = b.scratch[:0]
	for field := range j.texts() {
		text := j.text(field)
		end := 0
		for {
			start, next, ok := nextToken(text, end)
			if !ok {
				break
			}
			end = next
			name := text[start+2 : end-2]
			param := findParameter(b.plan.Parameters, name)
			mistake := ""
			switch {
			case param < 0 && !looksLikeName(name):
				continue
			case param < 0:
				mistake = "unknown parameter " + Quote(name)
			case len(b.plan.Parameters[param].Values) == 0:
				mistake = "parameter " + Quote(name) + " is an empty list"
			default:
				k := token{field: int32(field), start: int32(start), end: int32(end), param: int32(param), size: 1, stride: 1}
				if b.plan.Parameters[param].List {
					k.size = uint32(len(b.plan.Parameters[param].Values))
				}
				b.scratch = append(b.scratch, k)
				continue
			}
			if pointer, report := place(field); report {
				b.problem(pointer, mistake)
			}
		}
	}
}

// checkDefaults finds what is wrong with jobDefaults, once for all tasks.
func (b *planner) checkDefaults(d *Job) {
	b.checkGiven(inDefaults, d)
	place := func(field int) (string, bool) { return b.jobAt(inDefaults) + d.pointerOf(d, field), true }
	b.scanTokens(d, place)
	b.checkTexts(d, place)
	if d.starts() {
		b.checkStart(d, place)
	}
}

// inDefaults stands for a template where jobDefaults is meant.
const inDefaults = -1

// jobAt is the pointer of a new template's job.
func (b *planner) jobAt(template int) string {
	if template == inDefaults {
		return "/jobDefaults"
	}
	return b.at(template) + "/job"
}

// checkGiven finds what is wrong with the members that the job of a template gives.
func (b *planner) checkGiven(template int, j *Job) {
	limits := &b.plan.limits
	if j.Command != nil && j.HasString {
		b.problem(b.jobAt(template), "both command and commandString are given")
	}
	if j.Executor != "" && !limits.knows(j.Executor) {
		b.problem(b.jobAt(template)+"/executor", "unknown executor "+Quote(j.Executor))
	}
	if j.Cores.Raw != "" && j.Cores.Milli <= 0 {
		b.problem(b.jobAt(template)+"/cores", "cores must be more than 0")
	}
	if j.MemoryMB.Raw != "" && j.MemoryMB.Milli < 0 {
		b.problem(b.jobAt(template)+"/memoryMB", "memoryMB must not be negative")
	}
	cores, has := j.Cores, limits.MaxCoresMilli
	if cores.Raw != "" && has > 0 && cores.Milli > has && b.here(template, func(j *Job) bool { return j.Cores.Raw != "" }) {
		b.problem(b.jobAt(template)+"/cores", tooMuch(cores.Milli, has, "cores"))
	}
	memory, has := j.MemoryMB, limits.MaxMemoryMilli
	if memory.Raw != "" && has > 0 && memory.Milli > has && b.here(template, func(j *Job) bool { return j.MemoryMB.Raw != "" }) {
		b.problem(b.jobAt(template)+"/memoryMB", tooMuch(memory.Milli, has, "MB of memory"))
	}
}

// here tells whether a new template's tasks run on this machine. For jobDefaults it
// is whether those of any template do that has not its own value of the member.
func (b *planner) here(template int, own func(*Job) bool) bool {
	limits := &b.plan.limits
	if len(limits.Elsewhere) == 0 {
		return true
	}
	if template != inDefaults {
		return !limits.elsewhere(b.job.Executor)
	}
	for i := range b.len() {
		j := &b.spec(i).Job
		if !own(j) && !limits.elsewhere(cmp.Or(j.Executor, b.plan.defaults.Executor)) {
			return true
		}
	}
	return false
}

// tooMuch says what the machine does not have. Both numbers are thousandths.
func tooMuch(asked, has int64, unit string) string {
	return "asks for " + formatMilli(asked) + " " + unit + ", the machine has " + formatMilli(has)
}

// formatMilli is a number of thousandths, without trailing zeros.
func formatMilli(milli int64) string {
	return strconv.FormatFloat(float64(milli)/1000, 'f', -1, 64)
}

// checkJob finds what is wrong with a template's job, and gives it its class.
func (b *planner) checkJob(t *Template, spec *TaskSpec) {
	j := b.job
	b.checkGiven(t.Index, &spec.Job)
	class := Class{Executor: j.Executor, CoresMilli: j.Cores.Milli, MemoryMilli: j.MemoryMB.Milli}
	if class.Executor == "" {
		class.Executor = executorProcess
	}
	if !j.hasCommand() && class.Executor != executorNoop && !spec.Faulty {
		b.problem(b.jobAt(t.Index), "neither command nor commandString is given")
	}
	if spec.Generator && class.Executor == executorNoop {
		b.problem(b.at(t.Index)+"/isGenerator", "a generator has to print tasks, and executor \"noop\" runs nothing")
	}
	if j.Cores.Raw == "" {
		class.CoresMilli = defaultCoresMilli
		if has := b.plan.limits.MaxCoresMilli; has > 0 && has < defaultCoresMilli && !b.plan.limits.elsewhere(class.Executor) {
			b.problem(b.jobAt(t.Index), tooMuch(defaultCoresMilli, has, "cores"))
		}
	}
	t.Class = b.class(class)
}

// fewClasses is how many classes are looked through one by one.
const fewClasses = 8

// class is the index of a class in the plan.
func (b *planner) class(c Class) int {
	p := b.plan
	if len(p.Classes) <= fewClasses {
		if i := slices.Index(p.Classes, c); i >= 0 {
			return i
		}
		p.Classes = append(p.Classes, c)
		return len(p.Classes) - 1
	}
	if b.classes == nil {
		b.classes = make(map[Class]int, 2*len(p.Classes))
		for i, known := range p.Classes {
			b.classes[known] = i
		}
	}
	i, ok := b.classes[c]
	if !ok {
		i = len(p.Classes)
		p.Classes = append(p.Classes, c)
		b.classes[c] = i
	}
	return i
}
