package dag

// nameIndex finds templates by their names as defined.
type nameIndex struct{}

// TemplateOf is the template that a task was expanded from, in O(log templates).
func (p *Plan) TemplateOf(task uint32) *Template { return nil }

// TaskName is the name of an expanded task.
func (p *Plan) TaskName(task uint32) string { return string(p.AppendTaskName(nil, task)) }

// AppendTaskName appends the name of an expanded task to dst.
func (p *Plan) AppendTaskName(dst []byte, task uint32) []byte { return dst }

// Find is the task of an expanded name. Only the canonical form of a number is
// found: "a_1", not "a_01".
func (p *Plan) Find(name string) (task uint32, ok bool) { return 0, false }
