package dag

// Task is one expanded task, all its tokens substituted.
func (p *Plan) Task(task uint32) Task {
	var t Task
	p.TaskInto(&t, task)
	return t
}

// TaskInto is Task, and uses t's slices again.
func (p *Plan) TaskInto(t *Task, task uint32) {}
