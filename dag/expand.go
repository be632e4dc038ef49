package dag

import (
	"strings"
	"unicode"
)

// Task is one expanded task, all its tokens substituted.
func (p *Plan) Task(task uint32) Task {
	var t Task
	p.TaskInto(&t, task)
	return t
}

// TaskInto is Task without new slices: it reuses those of t, which never belong to the
// template. The strings share at most one new allocation.
func (p *Plan) TaskInto(t *Task, task uint32) {
	tm := p.TemplateOf(task)
	job := tm.job
	if job == nil {
		if t.scratch == nil {
			t.scratch = new(Scratch)
		}
		job = p.Job(tm, t.scratch)
	}
	s := textBuilder{parameters: p.Parameters, tm: tm, job: job, rest: tm.tokens, local: task - tm.Base}

	t.Index, t.Template, t.Name = task, tm, tm.Name
	if size := s.size(); size > 0 {
		s.text.Grow(size)
	}
	if tm.Expanded {
		t.Name = s.name()
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

// textBuilder builds the texts of one task in one buffer.
type textBuilder struct {
	parameters []Parameter
	tm         *Template
	job        *Job
	local      uint32
	rest       []paramToken // of the fields to come
	text       strings.Builder
}

// size is how many bytes the task's own texts have.
func (s *textBuilder) size() int {
	n := 0
	if s.tm.Expanded {
		n = len(s.tm.Name) + len("_4294967295")
	}
	field := int32(-1)
	for i := range s.rest {
		k := &s.rest[i]
		if k.field != field {
			field = k.field
			n += len(s.job.text(int(field)))
		}
		n += len(s.value(k)) - int(k.end-k.start)
	}
	return n
}

func (s *textBuilder) value(k *paramToken) string {
	values := s.parameters[k.param].Values
	if k.size == 1 {
		return values[0]
	}
	return values[s.local/k.stride%k.size]
}

func (s *textBuilder) name() string {
	var digits [64]byte
	start := s.text.Len()
	if len(s.tm.Name) > len(digits)-11 {
		s.text.Write(s.tm.appendName(nil, s.local))
	} else {
		s.text.Write(s.tm.appendName(digits[:0], s.local))
	}
	return s.text.String()[start:]
}

// substitute returns the text of a field. Fields must be asked for in ascending order.
func (s *textBuilder) substitute(text string, field int32) string {
	if len(s.rest) == 0 || s.rest[0].field != field {
		return text
	}
	start, done := s.text.Len(), int32(0)
	for len(s.rest) > 0 && s.rest[0].field == field {
		k := &s.rest[0]
		s.text.WriteString(text[done:k.start])
		s.text.WriteString(s.value(k))
		done = k.end
		s.rest = s.rest[1:]
	}
	s.text.WriteString(text[done:])
	return s.text.String()[start:]
}

// nextToken finds the next {{NAME}} in s from an offset on, of any NAME without
// braces: s[start:end], or ok false.
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

// A job's texts, those that may have tokens, are numbered: the arguments of
// command, commandString, the environment, workDir.

func (j *Job) texts() int { return len(j.Command) + len(j.Environment) + 2 }

func (j *Job) text(field int) string {
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
