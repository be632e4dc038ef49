package http

import (
	"context"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// runState is GET /v1/dagrun/{run}/state; clients poll it in tight loops.
func (s *Server) runState(ctx *fasthttp.RequestCtx) error {
	run, err := runParameter(ctx)
	if err != nil {
		return err
	}
	sum, err := s.engine.Summary(contextOf(ctx), run)
	if err == nil && len(ctx.URI().QueryString()) > 0 {
		sum, err = s.awaitState(ctx, sum)
	}
	if err != nil {
		return err
	}
	answerState(ctx, sum.State.String())
	return nil
}

// runSummary is GET /v1/dagrun/{run}/summary: the run's entry in the list, and the number of its
// tasks.
func (s *Server) runSummary(ctx *fasthttp.RequestCtx) error {
	run, err := runParameter(ctx)
	if err != nil {
		return err
	}
	sum, err := s.engine.Summary(contextOf(ctx), run)
	if err != nil {
		return err
	}
	dst := appendSummary(make([]byte, 0, 512), sum)
	dst = append(dst, `,"tasks":`...)
	dst = strconv.AppendUint(dst, uint64(sum.Tasks), 10)
	answerJSON(ctx, append(dst, '}'))
	return nil
}

// setRunState is PATCH /v1/dagrun/{run}/state/{state}.
func (s *Server) setRunState(ctx *fasthttp.RequestCtx) error {
	run, err := runParameter(ctx)
	if err != nil {
		return err
	}
	word, err := pathParameter(ctx, "state")
	if err != nil {
		return err
	}
	state, err := parseRunState(word)
	if err != nil {
		return err
	}
	if err := s.engine.SetState(contextOf(ctx), run, state); err != nil {
		return err
	}
	answerRun(ctx, run, "")
	return nil
}

// killRun is DELETE /v1/dagrun/{run}.
func (s *Server) killRun(ctx *fasthttp.RequestCtx) error {
	run, err := runParameter(ctx)
	if err != nil {
		return err
	}
	if err := s.engine.Kill(contextOf(ctx), run); err != nil {
		return err
	}
	answerRun(ctx, run, "")
	return nil
}

// runDocument is GET /v1/dagrun/{run}: everything about a run.
func (s *Server) runDocument(ctx *fasthttp.RequestCtx) error {
	run, err := runParameter(ctx)
	if err != nil {
		return err
	}
	view, err := s.engine.View(contextOf(ctx), run, 0, math.MaxUint32)
	if err != nil {
		return err
	}
	return s.send(ctx, jsonType, newRunDocument(contextOf(ctx), s.engine, view))
}

// listRuns is GET /v1/dagruns: an array of runs, by ascending id by default.
func (s *Server) listRuns(ctx *fasthttp.RequestCtx) error {
	q, err := listQuery(ctx)
	if err != nil {
		return err
	}
	l := &runList{ctx: contextOf(ctx), engine: s.engine, query: q}
	if q.Limit > 0 {
		// One entry more than the page tells whether there is a next page.
		next, err := l.renderPage()
		if err != nil {
			return err
		}
		if next {
			setNextPage(ctx, formatCursor(runCursor, uint64(l.query.After)))
		}
		answerJSON(ctx, append(l.pageBuffer, ']'))
		return nil
	}
	return s.send(ctx, jsonType, l)
}

// listQuery decodes the query of a list of runs. A label is tags.NAME=VALUE.
func listQuery(ctx *fasthttp.RequestCtx) (messages.ListQuery, error) {
	var q messages.ListQuery
	err := eachParameter(ctx, func(name, value string) error {
		var err error
		switch {
		case name == "all":
			q.All, err = parseSwitch(name, value)
		case name == "tag":
			q.Tag, q.HasTag = value, true
		case name == "state":
			for word := range strings.SplitSeq(value, ",") {
				var state dag.RunState
				if state, err = parseRunState(word); err != nil {
					return err
				}
				q.States = append(q.States, state)
			}
		case name == "order":
			if value != "asc" && value != "desc" {
				return invalid("query parameter order: " + quoteInput(value) + " must be asc or desc")
			}
			q.Desc = value == "desc"
		case name == "limit":
			q.Limit, err = parseLimit(value)
		case name == "cursor":
			var at uint64
			at, err = parseCursor(runCursor, value)
			q.After, q.HasAfter = messages.RunID(at), true
		case strings.HasPrefix(name, "tags."):
			q.Labels = append(q.Labels, dag.Label{Name: name[len("tags."):], Value: value})
		default:
			err = unknownParameter(name)
		}
		return err
	})
	return q, err
}

// runList renders runs, one page of the engine at a time: between pages a slow client
// does not hold the engine.
type runList struct {
	ctx        context.Context // of the engine's calls
	engine     Views
	query      messages.ListQuery
	pageBuffer []byte // for renderPage
	begun      bool
}

// maxRunsPerPage is how many stored runs are read for one page. Runs that an index excludes do not
// count.
const maxRunsPerPage = 4096

// renderPage renders a whole page of query.Limit entries, without the closing bracket, and tells
// whether there are more. The page has fewer entries when maxRunsPerPage is exceeded first.
func (l *runList) renderPage() (more bool, err error) {
	q, budget := l.query, maxRunsPerPage+l.query.Limit
	q.Budget = &budget
	q.Limit++
	n := 0
	l.pageBuffer = append(l.pageBuffer, '[')
	err = l.engine.Summaries(l.ctx, q, func(sum *messages.Summary) bool {
		if n == l.query.Limit {
			more = true
			return false
		}
		l.pageBuffer = l.appendEntry(l.pageBuffer, sum)
		n++
		return true
	})
	if paused := new(messages.ListPaused); errors.As(err, &paused) {
		l.query.After, l.query.HasAfter = paused.After, true
		return true, nil
	}
	return more, err
}

// appendEntry appends one entry and moves the cursor after it.
func (l *runList) appendEntry(dst []byte, sum *messages.Summary) []byte {
	if l.begun {
		dst = append(dst, ',')
	}
	l.begun = true
	l.query.After, l.query.HasAfter = sum.ID, true
	return append(appendSummary(dst, sum), '}')
}

func (l *runList) next(dst []byte) ([]byte, bool, error) {
	if !l.begun {
		dst = append(dst, '[')
	}
	full := false
	err := l.engine.Summaries(l.ctx, l.query, func(sum *messages.Summary) bool {
		dst = l.appendEntry(dst, sum)
		full = len(dst) >= pieceBytes
		return !full
	})
	if !full {
		dst = append(dst, ']')
	}
	return dst, full, err
}

// maxWaitForState bounds the wait for a state. It is shorter than the usual timeout of proxies and
// clients for a connection that hangs.
const maxWaitForState = time.Minute

// awaitState is the long poll of a run's state. It returns the run's summary once the state
// differs from q.leftState, at the end of the wait, when the client closes its side (it may still
// read), or when the server shuts down.
func (s *Server) awaitState(ctx *fasthttp.RequestCtx, sum *messages.Summary) (*messages.Summary, error) {
	q := stateQuery{leftState: sum.State}
	if err := eachParameter(ctx, q.setParameter); err != nil {
		return nil, err
	}
	if q.wait == 0 || sum.State != q.leftState {
		return sum, nil
	}
	until, end, err := s.beginWait(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	within, cancel := context.WithTimeout(until, q.wait)
	defer cancel()
	latest, err := s.engine.Await(within, sum.ID, func(sum *messages.Summary) bool { return sum.State != q.leftState })
	if err := s.permitOf(ctx).check(); err != nil {
		return nil, err // the token or session became invalid during the wait
	}
	if latest != nil {
		return latest, nil // also at the end of the wait
	}
	return nil, err
}

// stateQuery is the state to leave and the longest time to wait for that.
type stateQuery struct {
	wait      time.Duration
	leftState dag.RunState
}

func (q *stateQuery) setParameter(name, value string) (err error) {
	switch name {
	case "wait":
		q.wait, err = time.ParseDuration(value)
		if err != nil || q.wait < 0 || q.wait > maxWaitForState {
			return invalid("query parameter wait: " + quoteInput(value) + " must be a duration from 0s to 60s")
		}
	case "from":
		q.leftState, err = parseRunState(value)
	default:
		err = unknownParameter(name)
	}
	return err
}

// taskDetails is GET /v1/dagrun/{run}/task/{task}.
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

// viewOfTask returns the view of the task in the path.
func (s *Server) viewOfTask(ctx *fasthttp.RequestCtx) (*messages.View, error) {
	run, name, err := taskParameter(ctx)
	if err != nil {
		return nil, err
	}
	return s.engine.Task(contextOf(ctx), run, name)
}

// killTask is DELETE /v1/dagrun/{run}/task/{task}.
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

// tasksPerView is how many tasks are in one view while a run is searched.
const tasksPerView = 1 << 16

// listTasks is GET /v1/dagrun/{run}/tasks: a page of tasks, in the order of the plan, each with
// its state and attempts.
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
	anyState  bool // states has the selected ones
	limit     int
	firstTask uint32
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
			if state == dag.TaskQueued {
				q.states[dag.TaskGranted] = true
			}
		}
	case "limit":
		q.limit, err = parseLimit(value)
	case "cursor":
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

type listedTask struct {
	task  uint32
	state dag.TaskState
}

// taskList renders a page of tasks.
type taskList struct {
	tasks              []listedTask
	cursor             string // of the next page; "" on the last page
	attempts           attemptEncoder
	begun              bool
	nextTask, rangeEnd int // the neighbours in tasks that are being rendered
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
