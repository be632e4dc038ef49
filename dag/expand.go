package dag

import "strings"

// Task is one expanded task, all its tokens substituted.
func (p *Plan) Task(task uint32) Task {
	var t Task
	p.TaskInto(&t, task)
	return t
}

// TaskInto is Task, and uses t's slices again: they never are the template's.
// Its strings share at most one new allocation.
func (p *Plan) TaskInto(t *Task, task uint32) {
	tm := p.TemplateOf(task)
	job := tm.job
	if job == nil {
		if t.scratch == nil {
			t.scratch = new(Scratch)
		}
		job = p.Job(tm, t.scratch)
	}
	s := substitution{parameters: p.Parameters, tm: tm, job: job, rest: tm.tokens, local: task - tm.Base}

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

// substitution makes the texts of one task, all in one buffer.
type substitution struct {
	parameters []Parameter
	tm         *Template
	job        *Job
	local      uint32
	rest       []token // of the fields to come
	text       strings.Builder
}

// size is how many bytes the task's own texts have.
func (s *substitution) size() int {
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

func (s *substitution) value(k *token) string {
	values := s.parameters[k.param].Values
	if k.size == 1 {
		return values[0]
	}
	return values[s.local/k.stride%k.size]
}

func (s *substitution) name() string {
	var digits [64]byte
	start := s.text.Len()
	if len(s.tm.Name) > len(digits)-11 {
		s.text.Write(s.tm.appendName(nil, s.local))
	} else {
		s.text.Write(s.tm.appendName(digits[:0], s.local))
	}
	return s.text.String()[start:]
}

// substitute is the text of a field, which must be asked for in order.
func (s *substitution) substitute(text string, field int32) string {
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
