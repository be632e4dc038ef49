package dag

import "strconv"

// What the Linux kernel lets a process start with. A command string has no such limit:
// the executors hand a long one to the shell as a file.
const (
	// MaxArgumentBytes bounds one argument of a command, or one K=V of its environment:
	// MAX_ARG_STRLEN, less the NUL at its end.
	MaxArgumentBytes = 128<<10 - 1
	// MaxPathBytes bounds the name of a working folder: PATH_MAX, less the NUL.
	MaxPathBytes = 4<<10 - 1
	// pointerBytes is what the kernel counts for each string beside its bytes: the NUL
	// and a pointer.
	pointerBytes = 1 + 8
)

// checkStart finds the texts of a job that no process can be started with, each at its
// place, with the longest values of the parameters. B.scratch holds the job's tokens. It
// returns how many bytes all of them have for the kernel.
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
			b.problem(pointer, sizeText(size, substituted)+", the kernel takes at most "+strconv.Itoa(limit)+" in "+what)
		}
	}
	return total
}

// checkStartTotal finds a job that has more text than the kernel takes from all
// arguments and the environment together.
func (b *planner) checkStartTotal(t *Template, total int) {
	limit := b.plan.limits.MaxStartBytes
	if limit > 0 && total > limit && !b.plan.limits.elsewhere(b.job.Executor) {
		b.problem(b.jobAt(t.Index), sizeText(total, len(b.scratch) > 0)+
			" in its command and environment, the kernel takes at most "+strconv.Itoa(limit)+" of a process on this machine")
	}
}

// starts tells whether the job's tasks are processes.
func (j *Job) starts() bool { return j.Executor != executorNoop }

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
