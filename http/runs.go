package http

import (
	"context"
	"errors"
	"math"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// runState is GET /v1/dagrun/{run}/state; clients poll it in tight loops.
func (s *Server) runState(ctx *fasthttp.RequestCtx) error {
	run, err := runOf(ctx)
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

// runSummary is GET /v1/dagrun/{run}/summary: the run's entry in the list, and
// the number of its tasks.
func (s *Server) runSummary(ctx *fasthttp.RequestCtx) error {
	run, err := runOf(ctx)
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
	answer(ctx, append(dst, '}'))
	return nil
}

// setRunState is PATCH /v1/dagrun/{run}/state/{state}.
func (s *Server) setRunState(ctx *fasthttp.RequestCtx) error {
	run, err := runOf(ctx)
	if err != nil {
		return err
	}
	word, err := param(ctx, "state")
	if err != nil {
		return err
	}
	state, err := runStateOf(word)
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
	run, err := runOf(ctx)
	if err != nil {
		return err
	}
	if err := s.engine.Kill(contextOf(ctx), run); err != nil {
		return err
	}
	answerRun(ctx, run, "")
	return nil
}

// runDocument is GET /v1/dagrun/{run}: everything there is on a run.
func (s *Server) runDocument(ctx *fasthttp.RequestCtx) error {
	run, err := runOf(ctx)
	if err != nil {
		return err
	}
	view, err := s.engine.View(contextOf(ctx), run, 0, math.MaxUint32)
	if err != nil {
		return err
	}
	return s.send(ctx, jsonType, newRunDocument(contextOf(ctx), s.engine, view))
}

// listRuns is GET /v1/dagruns: the seed's array, ascending by id unless asked otherwise.
func (s *Server) listRuns(ctx *fasthttp.RequestCtx) error {
	q, err := listQuery(ctx)
	if err != nil {
		return err
	}
	l := &runList{ctx: contextOf(ctx), engine: s.engine, q: q, left: q.Limit}
	if q.Limit > 0 {
		// One more than the page tells whether there is a next one.
		next, err := l.page()
		if err != nil {
			return err
		}
		if next {
			nextPage(ctx, cursorText(runCursor, uint64(l.q.After)))
		}
		answer(ctx, append(l.buf, ']'))
		return nil
	}
	return s.send(ctx, jsonType, l)
}

// listQuery decodes the query of a list of runs. A label is tags.NAME=VALUE.
func listQuery(ctx *fasthttp.RequestCtx) (messages.ListQuery, error) {
	var q messages.ListQuery
	err := query(ctx, func(name, value string) error {
		var err error
		switch {
		case name == "all":
			q.All, err = switchOf(name, value)
		case name == "tag":
			q.Tag, q.HasTag = value, true
		case name == "state":
			for word := range strings.SplitSeq(value, ",") {
				var state dag.RunState
				if state, err = runStateOf(word); err != nil {
					return err
				}
				q.States = append(q.States, state)
			}
		case name == "order":
			if value != "asc" && value != "desc" {
				return invalid("query parameter order: " + quote(value) + " is neither asc nor desc")
			}
			q.Desc = value == "desc"
		case name == "limit":
			q.Limit, err = limitOf(value)
		case name == "cursor":
			var at uint64
			at, err = cursorOf(runCursor, value)
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

// runList renders runs, a page of the engine's at a time: nothing of the engine
// is held while a client reads slowly.
type runList struct {
	ctx    context.Context // of the engine's calls
	engine Views
	q      messages.ListQuery
	left   int    // entries to render; 0 = all
	buf    []byte // of page
	begun  bool
}

// pageBudget is how many stored runs are looked at for one page. What an index can tell costs
// nothing of it.
const pageBudget = 4096

// page renders a whole page of q.Limit entries, without the closing bracket, and
// tells whether there are more. It has fewer entries when pageBudget is used up before.
func (l *runList) page() (more bool, err error) {
	q, budget := l.q, pageBudget+l.q.Limit
	q.Budget = &budget
	q.Limit++
	n := 0
	l.buf = append(l.buf, '[')
	err = l.engine.Summaries(l.ctx, q, func(sum *messages.Summary) bool {
		if n == l.q.Limit {
			more = true
			return false
		}
		l.buf = l.entry(l.buf, sum)
		n++
		return true
	})
	if paused := new(messages.ListPaused); errors.As(err, &paused) {
		l.q.After, l.q.HasAfter = paused.After, true
		return true, nil
	}
	return more, err
}

// entry appends one entry and moves the cursor behind it.
func (l *runList) entry(dst []byte, sum *messages.Summary) []byte {
	if l.begun {
		dst = append(dst, ',')
	}
	l.begun = true
	l.q.After, l.q.HasAfter = sum.ID, true
	return append(appendSummary(dst, sum), '}')
}

func (l *runList) next(dst []byte) ([]byte, bool, error) {
	if !l.begun {
		dst = append(dst, '[')
	}
	full := false
	err := l.engine.Summaries(l.ctx, l.q, func(sum *messages.Summary) bool {
		dst = l.entry(dst, sum)
		full = len(dst) >= piece
		return !full
	})
	if !full {
		dst = append(dst, ']')
	}
	return dst, full, err
}
