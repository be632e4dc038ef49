package http

import (
	"context"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// maxStateWait bounds how long a state is waited for: less than what proxies and
// clients take for a connection that hangs.
const maxStateWait = time.Minute

// awaitState is the long poll of a run's state: it returns the run's summary once
// the state is not what it was, at the end of the wait, when the client closes its side
// (it may still read), or when the server shuts down.
func (s *Server) awaitState(ctx *fasthttp.RequestCtx, sum *messages.Summary) (*messages.Summary, error) {
	q := stateQuery{from: sum.State}
	if err := query(ctx, q.parameter); err != nil {
		return nil, err
	}
	if q.wait == 0 || sum.State != q.from {
		return sum, nil
	}
	until, end, err := s.beginWait(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	within, cancel := context.WithTimeout(until, q.wait)
	defer cancel()
	latest, err := s.engine.Await(within, sum.ID, func(sum *messages.Summary) bool { return sum.State != q.from })
	if err := s.permitOf(ctx).check(); err != nil {
		return nil, err // the token or session went meanwhile
	}
	if latest != nil {
		return latest, nil // also at the end of the wait
	}
	return nil, err
}

// stateQuery says how long to wait for another state than which.
type stateQuery struct {
	wait time.Duration
	from dag.RunState
}

func (q *stateQuery) parameter(name, value string) (err error) {
	switch name {
	case "wait":
		q.wait, err = time.ParseDuration(value)
		if err != nil || q.wait < 0 || q.wait > maxStateWait {
			return invalid("query parameter wait: " + quote(value) + " is no duration from 0s to 60s")
		}
	case "from":
		q.from, err = runStateOf(value)
	default:
		err = unknownParameter(name)
	}
	return err
}
