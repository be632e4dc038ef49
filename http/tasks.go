package http

import (
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// taskDetails is GET /v1/dagrun/{run}/task/{task}.
func (s *Server) taskDetails(ctx *fasthttp.RequestCtx) error {
	view, err := s.task(ctx)
	if err != nil {
		return err
	}
	var e taskEncoder
	answer(ctx, e.append(nil, view.Plan, view.First))
	return nil
}

// taskState is GET /v1/dagrun/{run}/task/{task}/state.
func (s *Server) taskState(ctx *fasthttp.RequestCtx) error {
	view, err := s.task(ctx)
	if err != nil {
		return err
	}
	answerState(ctx, view.States[0].String())
	return nil
}

// task is the view of the task that the path names.
func (s *Server) task(ctx *fasthttp.RequestCtx) (*messages.View, error) {
	run, name, err := taskOf(ctx)
	if err != nil {
		return nil, err
	}
	return s.engine.Task(contextOf(ctx), run, name)
}

// killTask is DELETE /v1/dagrun/{run}/task/{task}.
func (s *Server) killTask(ctx *fasthttp.RequestCtx) error {
	run, name, err := taskOf(ctx)
	if err != nil {
		return err
	}
	if err := s.engine.KillTask(contextOf(ctx), run, name); err != nil {
		return err
	}
	answerRun(ctx, run, name)
	return nil
}

// viewStep is how many tasks are viewed at a time when a run is searched.
const viewStep = 1 << 16

// listTasks is GET /v1/dagrun/{run}/tasks: a page of tasks, in the order of the
// plan, each with its state and attempts.
func (s *Server) listTasks(ctx *fasthttp.RequestCtx) error {
	run, err := runOf(ctx)
	if err != nil {
		return err
	}
	q := taskQuery{limit: defaultPage}
	if err := query(ctx, q.parameter); err != nil {
		return err
	}
	l := &taskList{attempts: attemptEncoder{ctx: contextOf(ctx), engine: s.engine, run: run}}
	at := q.from
	for {
		view, err := s.engine.View(contextOf(ctx), run, at, viewStep)
		if err != nil {
			return err
		}
		l.attempts.live = append(l.attempts.live, view.Live...)
		l.attempts.plan = view.Plan
		for i, state := range view.States {
			if !q.wants(state) {
				continue
			}
			if len(l.tasks) == q.limit {
				l.cursor = cursorText(taskCursor, uint64(at)+uint64(i))
				nextPage(ctx, l.cursor)
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
	states [dag.NumTaskStates]bool
	some   bool // states are given
	limit  int
	from   uint32
}

func (q *taskQuery) parameter(name, value string) (err error) {
	switch name {
	case "state":
		for word := range strings.SplitSeq(value, ",") {
			state, err := taskStateOf(word)
			if err != nil {
				return err
			}
			q.states[state], q.some = true, true
			if state == dag.TaskQueued {
				q.states[dag.TaskGranted] = true
			}
		}
	case "limit":
		q.limit, err = limitOf(value)
	case "cursor":
		var at uint64
		if at, err = cursorOf(taskCursor, value); at > 1<<32-1 {
			at = 1<<32 - 1
		}
		q.from = uint32(at)
	default:
		err = unknownParameter(name)
	}
	return err
}

func (q *taskQuery) wants(s dag.TaskState) bool { return !q.some || q.states[s] }

type listedTask struct {
	task  uint32
	state dag.TaskState
}

// taskList renders a page of tasks.
type taskList struct {
	tasks    []listedTask
	cursor   string // of the next page; "" when there is none
	attempts attemptEncoder
	begun    bool
	at, end  int // in tasks: the neighbours that are being rendered
}

func (l *taskList) next(dst []byte) ([]byte, bool, error) {
	if !l.begun {
		l.begun = true
		dst = append(dst, `{"tasks":[`...)
	}
	for {
		if l.at == l.end {
			if l.end == len(l.tasks) {
				break
			}
			l.end++
			for l.end < len(l.tasks) && l.tasks[l.end].task == l.tasks[l.end-1].task+1 {
				l.end++
			}
			l.attempts.task = l.tasks[l.at].task
		}
		var more bool
		var err error
		if dst, more, err = l.attempts.append(dst, l.tasks[l.end-1].task+1, l.entry); more || err != nil {
			return dst, true, err
		}
	}
	dst = append(dst, `],"next":`...)
	dst = appendText(dst, l.cursor)
	return append(dst, '}'), false, nil
}

func (l *taskList) entry(dst []byte, task uint32, begin bool) []byte {
	if !begin {
		l.at++
		return append(dst, '}')
	}
	if l.at > 0 {
		dst = append(dst, ',')
	}
	dst = append(dst, `{"name":`...)
	dst = appendText(dst, l.attempts.plan.TaskName(task))
	dst = append(dst, `,"state":"`...)
	dst = append(dst, l.tasks[l.at].state.String()...)
	return append(dst, `","attempts":`...)
}
