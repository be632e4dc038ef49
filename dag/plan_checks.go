package dag

import (
	"strconv"
	"strings"
)

// checkTexts reports texts of a job that are wrong for some value of a parameter: the
// name of an environment variable that contains "=" or is empty, or an empty program
// name. It looks at each token once and at the values of each parameter once, never at a
// task. b.scratch holds the job's tokens.
func (b *planner) checkTexts(j *Job, place func(field int) (pointer string, report bool)) {
	for rest := b.scratch; len(rest) > 0; {
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
			if b.mayBeEmpty(j.text(at), tokens) {
				mistake = "the program of command is empty when " + b.emptyValues(tokens)
			}
		case at > len(j.Command) && at < j.texts()-1:
			mistake = b.variableName(j.text(at), tokens)
		}
		if mistake == "" {
			continue
		}
		if pointer, report := place(int(field)); report {
			b.addProblem(pointer, mistake)
		}
	}
}

// variableName returns the mistake in the name of an environment variable, K=V, for some
// value of its tokens; "" when every value is right.
func (b *planner) variableName(entry string, tokens []paramToken) string {
	end := nameEnd(entry, tokens)
	inName := 0
	for inName < len(tokens) && int(tokens[inName].end) <= end {
		inName++
	}
	tokens = tokens[:inName]
	for _, k := range tokens {
		if trait := &b.valueTraits()[k.param]; trait.hasAssigned {
			return "the name of an environment variable has \"=\" when " + Quote(b.plan.Parameters[k.param].Name) + " is " + Quote(trait.assigned)
		}
	}
	if b.mayBeEmpty(entry[:end], tokens) {
		return "the name of an environment variable is empty when " + b.emptyValues(tokens)
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
		if !b.valueTraits()[k.param].empty {
			return false
		}
		literal -= int(k.end - k.start)
	}
	return literal == 0 && len(tokens) > 0
}

// emptyValues names the parameters of tokens whose values are empty.
func (b *planner) emptyValues(tokens []paramToken) string {
	text := Quote(b.plan.Parameters[tokens[0].param].Name)
	if len(tokens) > 1 {
		return text + " and others are empty"
	}
	return text + " is empty"
}

// valueTrait holds the properties of a parameter's values that checks need.
type valueTrait struct {
	empty       bool   // one is empty
	hasAssigned bool   // one has "="
	assigned    string // the first of those
}

// valueTraits are those of all parameters, made once.
func (b *planner) valueTraits() []valueTrait {
	if b.traits == nil {
		b.traits = make([]valueTrait, len(b.plan.Parameters))
		for i, p := range b.plan.Parameters {
			trait := &b.traits[i]
			for _, v := range p.Values {
				trait.empty = trait.empty || v == ""
				if !trait.hasAssigned && strings.IndexByte(v, '=') >= 0 {
					trait.hasAssigned, trait.assigned = true, v
				}
			}
		}
	}
	return b.traits
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

// checkStart reports each text that is too long to start a process with, assuming the
// longest values of the parameters. b.scratch holds the job's tokens. It returns the
// bytes that the kernel counts for all texts together.
func (b *planner) checkStart(j *Job, place func(field int) (pointer string, report bool)) (total int) {
	tokens := b.scratch
	for field := range j.texts() {
		size, substituted := len(j.text(field)), false
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
		case field == j.texts()-1:
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
		if pointer, report := place(field); report {
			b.addProblem(pointer, sizeText(size, substituted)+", the kernel takes at most "+strconv.Itoa(limit)+" in "+what)
		}
	}
	return total
}

// checkStartTotal reports a job whose arguments and environment together exceed the
// kernel's limit.
func (b *planner) checkStartTotal(t *Template, total int) {
	limit := b.plan.limits.MaxStartBytes
	if limit > 0 && total > limit && !b.plan.limits.runsExternally(b.job.Executor) {
		b.addProblem(b.jobPointer(t.Index), sizeText(total, len(b.scratch) > 0)+
			" in its command and environment, the kernel takes at most "+strconv.Itoa(limit)+" of a process on this machine")
	}
}

// startsProcess tells whether the job's tasks are processes.
func (j *Job) startsProcess() bool { return j.Executor != executorNoop }

func sizeText(size int, substituted bool) string {
	text := "has " + strconv.Itoa(size) + " bytes"
	if substituted {
		text += " when the longest values are substituted"
	}
	return text
}

// longestValues are the lengths of the parameters' longest values.
func (b *planner) longestValues() []int {
	if b.lengths == nil {
		b.lengths = make([]int, len(b.plan.Parameters))
		for i, p := range b.plan.Parameters {
			for _, v := range p.Values {
				b.lengths[i] = max(b.lengths[i], len(v))
			}
		}
	}
	return b.lengths
}
