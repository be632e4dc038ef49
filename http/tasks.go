package http

import (
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// taskDetails is GET /v1/dagrun/{run}/task/{task}: the definition of an expanded task. Its texts are
// made here, of the run's template and the index of the task.
func (s *Server) taskDetails(ctx *fasthttp.RequestCtx) error {
	view, err := s.viewOfTask(ctx)
	if err != nil {
		return err
	}
	var e taskEncoder
	answerJSON(ctx, e.appendTask(nil, view.Plan, view.First))
	return nil
}

// taskState is GET /v1/dagrun/{run}/task/{task}/state.
func (s *Server) taskState(ctx *fasthttp.RequestCtx) error {
	view, err := s.viewOfTask(ctx)
	if err != nil {
		return err
	}
	answerState(ctx, view.States[0].String())
	return nil
}

// viewOfTask returns the view of the task in the path: View.First is its index, and States has its
// state alone. An unknown run or task is a *messages.Error with the code NotFound.
func (s *Server) viewOfTask(ctx *fasthttp.RequestCtx) (*messages.View, error) {
	run, name, err := taskParameter(ctx)
	if err != nil {
		return nil, err
	}
	return s.engine.Task(contextOf(ctx), run, name)
}

// killTask is DELETE /v1/dagrun/{run}/task/{task}. The intent is durable when it answers; the task is
// KILLED once its process is dead.
func (s *Server) killTask(ctx *fasthttp.RequestCtx) error {
	run, name, err := taskParameter(ctx)
	if err != nil {
		return err
	}
	if err := s.engine.KillTask(contextOf(ctx), run, name); err != nil {
		return err
	}
	answerRun(ctx, run, name)
	return nil
}

// tasksPerView is how many tasks are in one view while a run is searched. The view of an unfinished run
// is a copy that the run's actor makes: this bounds how long one message keeps the actor.
const tasksPerView = 1 << 16

// listTasks is GET /v1/dagrun/{run}/tasks: a page of tasks, in the order of the plan, each with
// its state and attempts.
//
// It selects the page first and renders it afterwards: the next page's cursor is in the header. A
// selective state reads the states of the whole run, tasksPerView at a time, each view of a moment of
// its own. So a task that moves during the search may be missed, or be listed with the state before;
// attempts are read later, and may be newer than the state next to them.
func (s *Server) listTasks(ctx *fasthttp.RequestCtx) error {
	run, err := runParameter(ctx)
	if err != nil {
		return err
	}
	q := taskQuery{limit: defaultPageSize}
	if err := eachParameter(ctx, q.setParameter); err != nil {
		return err
	}
	l := &taskList{attempts: attemptEncoder{ctx: contextOf(ctx), engine: s.engine, run: run}}
	at := q.firstTask
	for {
		view, err := s.engine.View(contextOf(ctx), run, at, tasksPerView)
		if err != nil {
			return err
		}
		l.attempts.live = append(l.attempts.live, view.Live...)
		l.attempts.plan = view.Plan
		for i, state := range view.States {
			if !q.selects(state) {
				continue
			}
			if len(l.tasks) == q.limit {
				l.cursor = formatCursor(taskCursor, uint64(at)+uint64(i))
				setNextPage(ctx, l.cursor)
				return s.send(ctx, jsonType, l)
			}
			l.tasks = append(l.tasks, listedTask{at + uint32(i), state})
		}
		at += uint32(len(view.States))
		if len(view.States) == 0 || at >= view.Tasks {
			return s.send(ctx, jsonType, l)
		}
	}
}

// taskQuery selects tasks of a run.
type taskQuery struct {
	states    [dag.NumTaskStates]bool
	anyState  bool   // states has the selected ones; false = all tasks
	limit     int    // tasks of a page, 1 to maxPageSize
	firstTask uint32 // index of the first task to look at, from the cursor
}

func (q *taskQuery) setParameter(name, value string) (err error) {
	switch name {
	case "state":
		for word := range strings.SplitSeq(value, ",") {
			state, err := parseTaskState(word)
			if err != nil {
				return err
			}
			q.states[state], q.anyState = true, true
			if state == dag.TaskQueued { // users see both as QUEUED
				q.states[dag.TaskGranted] = true
			}
		}
	case "limit":
		q.limit, err = parseLimit(value)
	case "cursor":
		// A cursor beyond every task is one of another run: it gives an empty page.
		var at uint64
		if at, err = parseCursor(taskCursor, value); at > 1<<32-1 {
			at = 1<<32 - 1
		}
		q.firstTask = uint32(at)
	default:
		err = unknownParameter(name)
	}
	return err
}

func (q *taskQuery) selects(s dag.TaskState) bool { return !q.anyState || q.states[s] }

// listedTask is a task of the page, with its state at the time of the search.
type listedTask struct {
	task  uint32
	state dag.TaskState
}

// taskList renders a page of tasks:
//
//	{"tasks":[{"name":"simple_0","state":"COMPLETED","attempts":[…]},…],"next":"dAE"}
//
// Attempts are read in ranges of neighbouring tasks: a page without a filter is one range, and a page
// of scattered tasks has up to one range for each of them.
type taskList struct {
	tasks              []listedTask
	cursor             string // of the next page; "" on the last page
	attempts           attemptEncoder
	begun              bool
	nextTask, rangeEnd int // the neighbours in tasks that are being rendered: [nextTask, rangeEnd)
}

func (l *taskList) next(dst []byte) ([]byte, bool, error) {
	if !l.begun {
		l.begun = true
		dst = append(dst, `{"tasks":[`...)
	}
	for {
		if l.nextTask == l.rangeEnd {
			if l.rangeEnd == len(l.tasks) {
				break
			}
			l.rangeEnd++
			for l.rangeEnd < len(l.tasks) && l.tasks[l.rangeEnd].task == l.tasks[l.rangeEnd-1].task+1 {
				l.rangeEnd++
			}
			l.attempts.task = l.tasks[l.nextTask].task
		}
		var more bool
		var err error
		if dst, more, err = l.attempts.appendTasks(dst, l.tasks[l.rangeEnd-1].task+1, l.appendEntry); more || err != nil {
			return dst, true, err
		}
	}
	dst = append(dst, `],"next":`...)
	dst = appendString(dst, l.cursor)
	return append(dst, '}'), false, nil
}

// appendEntry is the appendEntryPart of this list.
func (l *taskList) appendEntry(dst []byte, task uint32, begin bool) []byte {
	if !begin {
		l.nextTask++
		return append(dst, '}')
	}
	if l.nextTask > 0 {
		dst = append(dst, ',')
	}
	dst = append(dst, `{"name":`...)
	dst = appendString(dst, l.attempts.plan.TaskName(task))
	dst = append(dst, `,"state":"`...)
	dst = append(dst, l.tasks[l.nextTask].state.String()...)
	return append(dst, `","attempts":`...)
}

// taskEncoder renders tasks, one at a time. The parts that all tasks of a template share are rendered
// once: a template of a million tasks costs its edges once, and each task its own texts. The zero value
// is ready. It keeps its buffers from task to task.
type taskEncoder struct {
	template            *dag.Template
	beforeJob, afterJob []byte // rendered members of the task before and after its job
	jobEnd              []byte // rendered members of the job without tokens
	task                dag.Task
	job                 *dag.Job // of template
	scratch             dag.JobBuffer
}

// appendTask appends the object of one expanded task. The order of its members is part of the API:
//
//	maxRetries, retryIntervalSeconds [, retryBackoff, retryMaxIntervalSeconds], job, children, parents, isGenerator
//	job: environment [, memoryMB, cores, commandString or command, workDir, executor, other members]
func (e *taskEncoder) appendTask(dst []byte, p *dag.Plan, task uint32) []byte {
	p.TaskInto(&e.task, task)
	if e.task.Template != e.template {
		e.beginTemplate(p, e.task.Template)
	}
	job := e.job
	dst = append(dst, e.beforeJob...)
	dst = append(dst, `"job":{"environment":`...)
	dst = appendStrings(dst, e.task.Environment)
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
		dst = appendString(dst, e.task.CommandString)
	case job.Command != nil:
		dst = append(dst, `,"command":`...)
		dst = appendStrings(dst, e.task.Command)
	}
	if job.WorkDir != "" {
		dst = append(dst, `,"workDir":`...)
		dst = appendString(dst, e.task.WorkDir)
	}
	dst = append(dst, e.jobEnd...)
	return append(dst, e.afterJob...)
}

// beginTemplate renders what the tasks of a template share. Members with their default are left out,
// except those that docs/rest.md promises for every task.
func (e *taskEncoder) beginTemplate(p *dag.Plan, t *dag.Template) {
	e.template, e.job = t, p.Job(t, &e.scratch)
	r := t.Retry
	dst := append(e.beforeJob[:0], `{"maxRetries":`...)
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
	e.beforeJob = append(dst, ',')

	dst = e.jobEnd[:0]
	if e.job.Executor != "" {
		dst = append(dst, `,"executor":`...)
		dst = appendString(dst, e.job.Executor)
	}
	for _, m := range e.job.Other {
		dst = append(dst, ',')
		dst = appendString(dst, m.Name)
		dst = append(dst, ':')
		dst = append(dst, m.Raw...)
	}
	e.jobEnd = append(dst, '}')

	dst = append(e.afterJob[:0], `,"children":`...)
	dst = appendEdges(dst, p, t.Children)
	dst = append(dst, `,"parents":`...)
	dst = appendEdges(dst, p, t.Parents)
	dst = append(dst, `,"isGenerator":`...)
	dst = strconv.AppendBool(dst, t.Generator)
	e.afterJob = append(dst, '}')
}

// appendEdges appends the names of the templates at the other ends, as defined. An edge with a
// match is an object of name and match.
func appendEdges(dst []byte, p *dag.Plan, edges []dag.Edge) []byte {
	dst = append(dst, '[')
	for i, edge := range edges {
		if i > 0 {
			dst = append(dst, ',')
		}
		name := p.Templates[edge.Template].Name
		if edge.Match == nil {
			dst = appendString(dst, name)
			continue
		}
		dst = append(dst, `{"task":`...)
		dst = appendString(dst, name)
		dst = append(dst, `,"match":`...)
		dst = appendStrings(dst, edge.Match.Names)
		dst = append(dst, '}')
	}
	return append(dst, ']')
}
