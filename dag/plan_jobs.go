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

// scanTokens fills b.tokens with a job's tokens, in the order of fields and of places in them. A wrong
// token is reported at the pointer that locate returns for its field, unless locate says that it was
// reported elsewhere: a text that a task takes from jobDefaults is reported there, once for all tasks.
func (b *planner) scanTokens(j *Job, locate func(field int) (pointer string, report bool)) {
	b.tokens = b.tokens[:0]
	for field := range j.textCount() {
		text := j.textAt(field)
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
				b.tokens = append(b.tokens, k)
				continue
			}
			if pointer, report := locate(field); report {
				b.addProblem(pointer, mistake)
			}
		}
	}
}

// checkDefaults validates jobDefaults, once for all tasks. It is checked even where each task sets
// its own members: a mistake in it would show when the next task is added.
func (b *planner) checkDefaults(d *Job) {
	b.checkGiven(jobDefaultsIndex, d)
	locate := func(field int) (string, bool) { return b.jobPointer(jobDefaultsIndex) + d.pointerOf(d, field), true }
	b.scanTokens(d, locate)
	b.checkTexts(d, locate)
	if d.startsProcess() {
		b.checkStart(d, locate)
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
		b.addProblem(b.jobPointer(template)+"/cores", exceedsMachineText(formatMilli(cores.Milli), formatMilli(has), "cores"))
	}
	memory, has := j.MemoryMB, limits.MaxMemoryBytes
	if memory.Raw != "" && has > 0 && memory.bytesOfMiB() > has && b.runsLocally(template, func(j *Job) bool { return j.MemoryMB.Raw != "" }) {
		b.addProblem(b.jobPointer(template)+"/memoryMB", exceedsMachineText(formatMilli(memory.Milli), formatMiB(has), "MB of memory"))
	}
}

// runsLocally tells whether a new template's tasks run on this machine: only then are its resources
// compared with what the machine has. For jobDefaults it tells whether this is true of any template
// that does not set the member itself (own): O(templates), when there are external executors.
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

// exceedsMachineText says what the machine does not have.
func exceedsMachineText(asked, has, unit string) string {
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
	class := Class{Executor: j.Executor, CPUMillis: j.Cores.Milli, MemoryBytes: j.MemoryMB.bytesOfMiB()}
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
			b.addProblem(b.jobPointer(t.Index), exceedsMachineText(formatMilli(defaultCPUMillis), formatMilli(has), "cores"))
		}
	}
	t.Class = b.classIndex(class)
}

// maxLinearClasses is how many classes are looked through one by one: most runs have one or two.
const maxLinearClasses = 8

// classIndex is the index of a class in the plan, which gets it when it is new. Classes only grow:
// the dispatcher knows them by their indexes.
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

// checkTexts reports texts of a job that are wrong for some value of a parameter: the name of an
// environment variable that contains "=" or is empty, or an empty program name. Such a task could only
// fail, long after the submission was accepted. It looks at each token once and at the values of each
// parameter once, never at a task. b.tokens holds the job's tokens.
func (b *planner) checkTexts(j *Job, locate func(field int) (pointer string, report bool)) {
	for rest := b.tokens; len(rest) > 0; {
		field := rest[0].field
		n := 1
		for n < len(rest) && rest[n].field == field {
			n++
		}
		tokens := rest[:n]
		rest = rest[n:]
		mistake := ""
		switch at := int(field); {
		case at == 0 && len(j.Command) > 0:
			if b.mayBeEmpty(j.textAt(at), tokens) {
				mistake = "the program of command is empty when " + b.describeEmptyValues(tokens)
			}
		case at > len(j.Command) && at < j.textCount()-1:
			mistake = b.variableNameMistake(j.textAt(at), tokens)
		}
		if mistake == "" {
			continue
		}
		if pointer, report := locate(int(field)); report {
			b.addProblem(pointer, mistake)
		}
	}
}

// variableNameMistake returns the mistake in the name of an environment variable, K=V, for some
// value of its tokens; "" when every value is right.
func (b *planner) variableNameMistake(entry string, tokens []paramToken) string {
	end := nameEnd(entry, tokens)
	inName := 0
	for inName < len(tokens) && int(tokens[inName].end) <= end {
		inName++
	}
	tokens = tokens[:inName]
	for _, k := range tokens {
		if trait := &b.propertiesOfValues()[k.param]; trait.hasAssigned {
			return "the name of an environment variable has \"=\" when " + Quote(b.plan.Parameters[k.param].Name) + " is " + Quote(trait.assigned)
		}
	}
	if b.mayBeEmpty(entry[:end], tokens) {
		return "the name of an environment variable is empty when " + b.describeEmptyValues(tokens)
	}
	return ""
}

// nameEnd is where the name of K=V ends: at its first "=" that is not in a token.
func nameEnd(entry string, tokens []paramToken) int {
	at := 0
	for _, k := range tokens {
		if i := strings.IndexByte(entry[at:int(k.start)], '='); i >= 0 {
			return at + i
		}
		at = int(k.end)
	}
	if i := strings.IndexByte(entry[at:], '='); i >= 0 {
		return at + i
	}
	return len(entry)
}

// mayBeEmpty tells whether a text with tokens is empty for some of their values.
func (b *planner) mayBeEmpty(text string, tokens []paramToken) bool {
	literal := len(text)
	for _, k := range tokens {
		if !b.propertiesOfValues()[k.param].empty {
			return false
		}
		literal -= int(k.end - k.start)
	}
	return literal == 0 && len(tokens) > 0
}

// describeEmptyValues names the parameters of tokens whose values are empty.
func (b *planner) describeEmptyValues(tokens []paramToken) string {
	text := Quote(b.plan.Parameters[tokens[0].param].Name)
	if len(tokens) > 1 {
		return text + " and others are empty"
	}
	return text + " is empty"
}

// valueProperties holds the properties of a parameter's values that checks need.
type valueProperties struct {
	empty       bool   // one is empty
	hasAssigned bool   // one has "="
	assigned    string // the first of those
}

// propertiesOfValues are those of all parameters, by index, made when the first check needs them.
func (b *planner) propertiesOfValues() []valueProperties {
	if b.properties == nil {
		b.properties = make([]valueProperties, len(b.plan.Parameters))
		for i, p := range b.plan.Parameters {
			trait := &b.properties[i]
			for _, v := range p.Values {
				trait.empty = trait.empty || v == ""
				if !trait.hasAssigned && strings.IndexByte(v, '=') >= 0 {
					trait.hasAssigned, trait.assigned = true, v
				}
			}
		}
	}
	return b.properties
}

// Limits of the Linux kernel on starting a process. They do not apply to a command
// string: executors hand a long one to the shell as a file.
const (
	// MaxArgumentBytes bounds one argument of a command, or one K=V of its environment:
	// MAX_ARG_STRLEN, less the NUL at its end.
	MaxArgumentBytes = 128<<10 - 1
	// MaxPathBytes bounds the name of a working folder: PATH_MAX, less the NUL.
	MaxPathBytes = 4<<10 - 1
	// pointerBytes is the kernel's overhead per string: the NUL and a pointer.
	pointerBytes = 1 + 8
)

// checkStart reports each text that is too long to start a process with, assuming the longest
// values of the parameters. Some task has all of these at once, because tasks are the product of
// the lists. b.tokens holds the job's tokens. It returns the bytes that the kernel counts for all
// texts together, the NUL and the pointer of each included.
func (b *planner) checkStart(j *Job, locate func(field int) (pointer string, report bool)) (total int) {
	tokens := b.tokens
	for field := range j.textCount() {
		size, substituted := len(j.textAt(field)), false
		for len(tokens) > 0 && int(tokens[0].field) == field {
			size += b.longestValues()[tokens[0].param] - int(tokens[0].end-tokens[0].start)
			tokens, substituted = tokens[1:], true
		}
		limit, what := MaxArgumentBytes, "an argument"
		switch n := len(j.Command); {
		case field < n:
		case field == n: // the command string
			total += min(size, MaxArgumentBytes)
			continue
		case field == j.textCount()-1:
			limit, what = MaxPathBytes, "the name of a folder"
		default:
			what = "an entry of the environment"
		}
		if limit == MaxArgumentBytes {
			total += size + pointerBytes
		}
		if size <= limit {
			continue
		}
		if pointer, report := locate(field); report {
			b.addProblem(pointer, describeSize(size, substituted)+", the kernel takes at most "+strconv.Itoa(limit)+" in "+what)
		}
	}
	return total
}

// checkStartTotal reports a job whose arguments and environment together exceed the
// kernel's limit.
func (b *planner) checkStartTotal(t *Template, total int) {
	limit := b.plan.limits.MaxStartBytes
	if limit > 0 && total > limit && !b.plan.limits.runsExternally(b.job.Executor) {
		b.addProblem(b.jobPointer(t.Index), describeSize(total, len(b.tokens) > 0)+
			" in its command and environment, the kernel takes at most "+strconv.Itoa(limit)+" of a process on this machine")
	}
}

// startsProcess tells whether the job's tasks are processes.
func (j *Job) startsProcess() bool { return j.Executor != executorNoop }

func describeSize(size int, substituted bool) string {
	text := "has " + strconv.Itoa(size) + " bytes"
	if substituted {
		text += " when the longest values are substituted"
	}
	return text
}

// longestValues are the lengths of the parameters' longest values.
func (b *planner) longestValues() []int {
	if b.valueLengths == nil {
		b.valueLengths = make([]int, len(b.plan.Parameters))
		for i, p := range b.plan.Parameters {
			for _, v := range p.Values {
				b.valueLengths[i] = max(b.valueLengths[i], len(v))
			}
		}
	}
	return b.valueLengths
}
