package e2etest

import "strconv"

// Doc is a graph under construction, in the form of its JSON.
type Doc map[string]any

// Task is a task under construction.
type Task map[string]any

// Graph returns a document of tasks.
func Graph(tasks map[string]Task) Doc { return Doc{"tag": "e2e", "tasks": tasks} }

// With returns the document with a member set.
func (d Doc) With(member string, value any) Doc { d[member] = value; return d }

// Sh is a task that runs a script by /bin/sh.
func Sh(script string) Task { return Task{"job": map[string]any{"commandString": script}} }

// Noop is a task of the noop executor; token is "" or a parameter to expand over.
func Noop(token string) Task {
	job := map[string]any{"executor": "noop"}
	if token != "" {
		job["command"] = []string{"noop", "{{" + token + "}}"}
	}
	return Task{"job": job}
}

// With returns the task with a member set.
func (t Task) With(member string, value any) Task { t[member] = value; return t }

// After returns the task with parents.
func (t Task) After(parents ...string) Task { return t.With("parents", parents) }

// Job returns the task with a member of its job set.
func (t Task) Job(member string, value any) Task {
	t["job"].(map[string]any)[member] = value
	return t
}

// Numbers returns "0" … "n-1".
func Numbers(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = strconv.Itoa(i)
	}
	return list
}
