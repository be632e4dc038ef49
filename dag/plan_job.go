package dag

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
)

// The executors that every node offers.
const (
	executorProcess = "process"
	executorNoop    = "noop"
)

// defaultCPUMillis is what a task takes that does not say how many cores.
const defaultCPUMillis = 1000

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

// Job returns the effective job of a template: jobDefaults applied, tokens not
// substituted. A job of a TaskList is unpacked into scratch and valid until scratch is
// used again; any other job belongs to the plan. Do not change either.
func (p *Plan) Job(t *Template, scratch *Scratch) *Job {
	if t.job != nil {
		return t.job
	}
	p.list.unpackTask(t.Index, &scratch.spec)
	if p.defaults == nil {
		return &scratch.spec.Job
	}
	scratch.job = scratch.spec.Job.withDefaults(p.defaults)
	return &scratch.job
}

// Scratch is the buffer that a job of a TaskList is unpacked into. Its zero value is
// ready. It is for one goroutine.
type Scratch struct {
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

// scanTokens fills b.scratch with a job's tokens. A wrong token is reported at the
// pointer that place returns for its field.
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
				k := paramToken{field: int32(field), start: int32(start), end: int32(end), param: int32(param), size: 1, stride: 1}
				if b.plan.Parameters[param].List {
					k.size = uint32(len(b.plan.Parameters[param].Values))
				}
				b.scratch = append(b.scratch, k)
				continue
			}
			if pointer, report := place(field); report {
				b.addProblem(pointer, mistake)
			}
		}
	}
}

// checkDefaults validates jobDefaults, once for all tasks.
func (b *planner) checkDefaults(d *Job) {
	b.checkGiven(jobDefaultsIndex, d)
	place := func(field int) (string, bool) { return b.jobPointer(jobDefaultsIndex) + d.pointerOf(d, field), true }
	b.scanTokens(d, place)
	b.checkTexts(d, place)
	if d.startsProcess() {
		b.checkStart(d, place)
	}
}

// jobDefaultsIndex stands for a template where jobDefaults is meant.
const jobDefaultsIndex = -1

// jobPointer is the pointer of a new template's job.
func (b *planner) jobPointer(template int) string {
	if template == jobDefaultsIndex {
		return "/jobDefaults"
	}
	return b.templatePointer(template) + "/job"
}

// checkGiven validates the members that the job of a template gives itself.
func (b *planner) checkGiven(template int, j *Job) {
	limits := &b.plan.limits
	if j.Command != nil && j.HasString {
		b.addProblem(b.jobPointer(template), "both command and commandString are given")
	}
	if j.Executor != "" && !limits.knowsExecutor(j.Executor) {
		b.addProblem(b.jobPointer(template)+"/executor", "unknown executor "+Quote(j.Executor))
	}
	if j.Cores.Raw != "" && j.Cores.Milli <= 0 {
		b.addProblem(b.jobPointer(template)+"/cores", "cores must be more than 0")
	}
	if j.MemoryMB.Raw != "" && j.MemoryMB.Milli < 0 {
		b.addProblem(b.jobPointer(template)+"/memoryMB", "memoryMB must not be negative")
	}
	cores, has := j.Cores, limits.MaxCPUMillis
	if cores.Raw != "" && has > 0 && cores.Milli > has && b.runsLocally(template, func(j *Job) bool { return j.Cores.Raw != "" }) {
		b.addProblem(b.jobPointer(template)+"/cores", exceedsMachine(formatMilli(cores.Milli), formatMilli(has), "cores"))
	}
	memory, has := j.MemoryMB, limits.MaxMemoryBytes
	if memory.Raw != "" && has > 0 && memory.bytes() > has && b.runsLocally(template, func(j *Job) bool { return j.MemoryMB.Raw != "" }) {
		b.addProblem(b.jobPointer(template)+"/memoryMB", exceedsMachine(formatMilli(memory.Milli), formatMiB(has), "MB of memory"))
	}
}

// runsLocally tells whether a new template's tasks run on this machine. For jobDefaults
// it tells whether this is true of any template that does not set the member itself.
func (b *planner) runsLocally(template int, own func(*Job) bool) bool {
	limits := &b.plan.limits
	if len(limits.ExternalExecutors) == 0 {
		return true
	}
	if template != jobDefaultsIndex {
		return !limits.runsExternally(b.job.Executor)
	}
	for i := range b.templateCount() {
		j := &b.taskSpec(i).Job
		if !own(j) && !limits.runsExternally(cmp.Or(j.Executor, b.plan.defaults.Executor)) {
			return true
		}
	}
	return false
}

// exceedsMachine says what the machine does not have.
func exceedsMachine(asked, has, unit string) string {
	return "asks for " + asked + " " + unit + ", the machine has " + has
}

// formatMilli is a number of thousandths, without trailing zeros.
func formatMilli(milli int64) string {
	return strconv.FormatFloat(float64(milli)/1000, 'f', -1, 64)
}

// formatMiB is a number of bytes in MiB, to a thousandth, without trailing zeros.
func formatMiB(bytes int64) string {
	return strconv.FormatFloat(math.Round(float64(bytes)/(1<<20)*1000)/1000, 'f', -1, 64)
}

// checkJob validates a template's job, and sets its class.
func (b *planner) checkJob(t *Template, spec *TaskSpec) {
	j := b.job
	b.checkGiven(t.Index, &spec.Job)
	class := Class{Executor: j.Executor, CPUMillis: j.Cores.Milli, MemoryBytes: j.MemoryMB.bytes()}
	if class.Executor == "" {
		class.Executor = executorProcess
	}
	if !j.hasCommand() && class.Executor != executorNoop && !spec.HasDecodeErrors {
		b.addProblem(b.jobPointer(t.Index), "neither command nor commandString is given")
	}
	if spec.Generator && class.Executor == executorNoop {
		b.addProblem(b.templatePointer(t.Index)+"/isGenerator", "a generator must print tasks, and executor \"noop\" does not run a command")
	}
	if j.Cores.Raw == "" {
		class.CPUMillis = defaultCPUMillis
		if has := b.plan.limits.MaxCPUMillis; has > 0 && has < defaultCPUMillis && !b.plan.limits.runsExternally(class.Executor) {
			b.addProblem(b.jobPointer(t.Index), exceedsMachine(formatMilli(defaultCPUMillis), formatMilli(has), "cores"))
		}
	}
	t.Class = b.classIndex(class)
}

// maxLinearClasses is how many classes are looked through one by one.
const maxLinearClasses = 8

// classIndex is the index of a class in the plan.
func (b *planner) classIndex(c Class) int {
	p := b.plan
	if len(p.Classes) <= maxLinearClasses {
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
