package http

import (
	"context"
	"strconv"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// taskEncoder renders tasks. What is the same for all tasks of a template is
// rendered once.
type taskEncoder struct {
	template   *dag.Template
	head, tail []byte // around the job
	jobTail    []byte // the job's members that hold no token
	task       dag.Task
	job        *dag.Job // of template
	scratch    dag.Scratch
}

// append appends the object of one expanded task.
func (e *taskEncoder) append(dst []byte, p *dag.Plan, task uint32) []byte {
	p.TaskInto(&e.task, task)
	if e.task.Template != e.template {
		e.begin(p, e.task.Template)
	}
	job := e.job
	dst = append(dst, e.head...)
	dst = append(dst, `"job":{"environment":`...)
	dst = appendTexts(dst, e.task.Environment)
	if job.MemoryMB.Raw != "" {
		dst = append(dst, `,"memoryMB":`...)
		dst = append(dst, job.MemoryMB.Raw...)
	}
	if job.Cores.Raw != "" {
		dst = append(dst, `,"cores":`...)
		dst = append(dst, job.Cores.Raw...)
	}
	switch {
	case job.HasString:
		dst = append(dst, `,"commandString":`...)
		dst = appendText(dst, e.task.CommandString)
	case job.Command != nil:
		dst = append(dst, `,"command":`...)
		dst = appendTexts(dst, e.task.Command)
	}
	if job.WorkDir != "" {
		dst = append(dst, `,"workDir":`...)
		dst = appendText(dst, e.task.WorkDir)
	}
	dst = append(dst, e.jobTail...)
	return append(dst, e.tail...)
}

// begin renders what the tasks of a template share.
func (e *taskEncoder) begin(p *dag.Plan, t *dag.Template) {
	e.template, e.job = t, p.Job(t, &e.scratch)
	r := t.Retry
	dst := append(e.head[:0], `{"maxRetries":`...)
	dst = strconv.AppendUint(dst, uint64(r.MaxRetries), 10)
	dst = append(dst, `,"retryIntervalSeconds":`...)
	dst = appendSeconds(dst, r.Interval)
	if r.Backoff != 0 && r.Backoff != 1 {
		dst = append(dst, `,"retryBackoff":`...)
		dst = strconv.AppendFloat(dst, r.Backoff, 'f', -1, 64)
	}
	if r.MaxInterval != 0 {
		dst = append(dst, `,"retryMaxIntervalSeconds":`...)
		dst = appendSeconds(dst, r.MaxInterval)
	}
	e.head = append(dst, ',')

	dst = e.jobTail[:0]
	if e.job.Executor != "" {
		dst = append(dst, `,"executor":`...)
		dst = appendText(dst, e.job.Executor)
	}
	for _, m := range e.job.Other {
		dst = append(dst, ',')
		dst = appendText(dst, m.Name)
		dst = append(dst, ':')
		dst = append(dst, m.Raw...)
	}
	e.jobTail = append(dst, '}')

	dst = append(e.tail[:0], `,"children":`...)
	dst = appendEdges(dst, p, t.Children)
	dst = append(dst, `,"parents":`...)
	dst = appendEdges(dst, p, t.Parents)
	dst = append(dst, `,"isGenerator":`...)
	dst = strconv.AppendBool(dst, t.Generator)
	e.tail = append(dst, '}')
}

// appendEdges appends the other ends' names as defined, or name and match.
func appendEdges(dst []byte, p *dag.Plan, edges []dag.Edge) []byte {
	dst = append(dst, '[')
	for i, edge := range edges {
		if i > 0 {
			dst = append(dst, ',')
		}
		name := p.Templates[edge.Template].Name
		if edge.Match == nil {
			dst = appendText(dst, name)
			continue
		}
		dst = append(dst, `{"task":`...)
		dst = appendText(dst, name)
		dst = append(dst, `,"match":`...)
		dst = appendTexts(dst, edge.Match.Names)
		dst = append(dst, '}')
	}
	return append(dst, ']')
}

// runDocument renders a run's full document, in several passes over its tasks.
// States and changes are those of one durable moment; attempts may be newer.
type runDocument struct {
	view     *messages.View
	pass     int
	opened   bool   // the pass
	task     uint32 // next one of this pass
	name     []byte
	tasks    taskEncoder
	attempts attemptEncoder
}

func newRunDocument(ctx context.Context, engine Engine, v *messages.View) *runDocument {
	return &runDocument{view: v, attempts: attemptEncoder{ctx: ctx, engine: engine, run: v.ID, plan: v.Plan, live: v.Live}}
}

// passes are the members that hold one entry per task, in their order.
const passes = 3

func (d *runDocument) next(dst []byte) (out []byte, more bool, err error) {
	for ; d.pass < passes; d.pass++ {
		if !d.opened {
			d.opened = true
			d.task = 0
			switch d.pass {
			case 0:
				dst = appendHead(dst, &d.view.Summary)
				dst = append(dst, `,"tasks":{`...)
			case 1:
				dst = append(dst, `,"taskStates":{`...)
			case 2:
				dst = append(dst, `,"taskAttempts":{`...)
			}
		}
		if dst, more, err = d.entries(dst); more || err != nil {
			return dst, more, err
		}
		dst = append(dst, '}')
		d.opened = false
	}
	dst = append(dst, `,"dagStateChanges":`...)
	dst = appendChanges(dst, d.view.Changes)
	return append(dst, '}'), false, nil
}

// entries appends entries of this pass, as far as a piece goes.
func (d *runDocument) entries(dst []byte) ([]byte, bool, error) {
	end := uint32(len(d.view.States))
	if d.pass == 2 {
		return d.attempts.append(dst, end, d.attemptEntry)
	}
	for d.task < end {
		if len(dst) >= piece {
			return dst, true, nil
		}
		dst = d.appendName(dst, d.task)
		if d.pass == 0 {
			dst = d.tasks.append(dst, d.view.Plan, d.task)
		} else {
			dst = append(dst, '"')
			dst = append(dst, d.view.States[d.task].String()...)
			dst = append(dst, '"')
		}
		d.task++
	}
	return dst, false, nil
}

func (d *runDocument) attemptEntry(dst []byte, task uint32, begin bool) []byte {
	if begin {
		return d.appendName(dst, task)
	}
	return dst
}

// appendName begins an entry.
func (d *runDocument) appendName(dst []byte, task uint32) []byte {
	if task > 0 {
		dst = append(dst, ',')
	}
	d.name = d.view.Plan.AppendTaskName(d.name[:0], task)
	return append(appendText(dst, d.name), ':')
}
