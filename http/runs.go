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

// Runs as a whole. State and summary cost the same for every run; the document grows with its tasks.
// Changes return when they are durable, not when they have taken effect: a killed run is KILLED once
// its last process is dead.

// runState is GET /v1/dagrun/{run}/state; clients poll it in tight loops. Without a query it allocates
// little (TestStateAllocatesLittle). A query makes it a long poll, also one with unknown parameters:
// they are an error.
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

// setRunState is PATCH /v1/dagrun/{run}/state/{state}. The engine decides what the present state allows
// (409); only a word that is not a state is refused here (400). The query has no meaning.
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

// killRun is DELETE /v1/dagrun/{run}. It is idempotent: a run that is killed or finished gives the same
// answer without a change.
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

// listRuns is GET /v1/dagruns: an array of runs, by ascending id by default. With a limit the page is
// rendered as a whole, because the cursor of the next page is in the header. Without a limit the list
// is a stream of any length.
func (s *Server) listRuns(ctx *fasthttp.RequestCtx) error {
	q, err := listQuery(ctx)
	if err != nil {
		return err
	}
	l := &runList{ctx: contextOf(ctx), engine: s.engine, query: q, pageBytes: maxPageBytes}
	if hopsOf(ctx) > 0 {
		if l.pageBytes, err = forwardedPageBytes(&ctx.Request.Header); err != nil {
			return err
		}
	}
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

// listQuery decodes the query of a list of runs, such as
//
//	all=1&state=ERRORED,KILLED&tags.team=blue&order=desc&limit=50&cursor=cgE
//
// A label is tags.NAME=VALUE. Repeated states and labels add up; of any other parameter the last one
// counts. An unknown parameter is an error: a misspelt filter must not select all runs.
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

// runList renders runs, one page of the engine at a time: between pages a slow client does not hold the
// engine. Each page goes on after the last rendered run (query.After), so the list is not of one
// moment: a run that changes between two pages is shown as it is when its page is read.
type runList struct {
	ctx        context.Context // of the engine's calls
	engine     Views
	query      messages.ListQuery // of the rest of the list
	pageBuffer []byte             // for renderPage
	pageBytes  int                // length from which renderPage ends a page
	begun      bool               // an entry was rendered
}

// maxRunsPerPage is how many stored runs are read for one page, in addition to its limit. Runs that an
// index excludes do not count. It bounds the time of a request whose filter selects few of many runs.
const maxRunsPerPage = 4096

// maxPageBytes is the length from which a page ends; that of one of several partitions has a share of it
// (partPageBytes). 10,000 runs with all the tags that specjson permits (80 KiB each) would take 780 MiB
// otherwise.
const maxPageBytes = 8 << 20

// renderPage renders a whole page of query.Limit entries, without the closing bracket, and tells
// whether there are more. The page has fewer entries when maxRunsPerPage or pageBytes is exceeded
// first, possibly zero. It leaves the position of the next page in query.After.
func (l *runList) renderPage() (more bool, err error) {
	q, budget := l.query, maxRunsPerPage+l.query.Limit
	q.Budget = &budget
	q.Limit++
	n := 0
	l.pageBuffer = append(l.pageBuffer, '[')
	err = l.engine.Summaries(l.ctx, q, func(sum *messages.Summary) bool {
		if n == l.query.Limit || n > 0 && len(l.pageBuffer) >= l.pageBytes {
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

// next is the list without a limit. The engine stops as soon as a piece is full.
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
// read), or when the server shuts down. The state is compared before a place for the wait is taken:
// an answer that is known already is never refused because too many requests wait.
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

// stateQuery is the state to leave and the longest time to wait for that: ?wait=30s&from=RUNNING.
type stateQuery struct {
	wait      time.Duration // 0 to maxWaitForState; 0 = answer at once
	leftState dag.RunState  // the present state unless the client names one
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
