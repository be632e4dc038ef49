package http

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// A stream of events is an answer without an end of its own length (stream.go). Its producer waits in
// the subscription's Next, on the connection's goroutine, and renders what comes:
//
//	eventProducer.next → eventSource.appendEvents → Subscription.Next   at most heartbeat
//	                   → a piece: blocks of lines, each ended by an empty line
//
// A piece of one run, with the id that a client resumes from at its end:
//
//	event: tasks
//	data: [{"time":"1645112246001010638","task":"simple_0","state":"RUNNING","attempt":1}]
//
//	event: state
//	data: {"time":"1645112245997607895","state":"RUNNING"}
//
//	id: 17
//	event: summary
//	data: {"runID":0,…,"tasks":2}
//
// An EventSource takes over an id when it reads the empty line after it. So a client that loses the
// connection within a piece resumes before the piece, and may get some changes twice, but misses none
// of them.
//
// How a stream ends:
//
//	the run has ended (its last summary), or the subscription has          complete
//	the server shuts down, or the engine does                              complete: connect again
//	the client left, or its token, scope or session is no longer valid     broken off
//	damage, or an unexpected error                                         broken off, and logged

// Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html
const (
	eventStream = "text/event-stream"
	// minPieceInterval is the shortest time between two pieces of a stream, which gathers events
	// under load.
	minPieceInterval = 10 * time.Millisecond
	// maxTasksPerEvent is the highest number of tasks in one event, so that clients parse documents of
	// some 100 KB at a time.
	maxTasksPerEvent = 1000
)

// runEvents is GET /v1/dagrun/{run}/events: the changes of a run, each when it is durable, until
// the run ends.
func (s *Server) runEvents(ctx *fasthttp.RequestCtx) error {
	run, err := runParameter(ctx)
	if err != nil {
		return err
	}
	q := eventQuery{withTasks: true}
	if err := q.decode(ctx, q.setRunParameter); err != nil {
		return err
	}
	after := uint64(messages.FromNow)
	if q.resumes {
		after = q.resumeAfter
	}
	subscription, err := s.engine.Follow(contextOf(ctx), run, after)
	if err != nil {
		return err
	}
	if subscription == nil {
		ctx.SetStatusCode(fasthttp.StatusNoContent) // tells an EventSource to stop
		return nil
	}
	return s.streamEvents(ctx, &runEventSource{subscription: subscription, withTasks: q.withTasks})
}

// events is GET /v1/events: the runs that change. The ids of this list are times of the server's own
// clock, those of a run are numbers of commits; both come as decimal digits of at most 63 bits.
func (s *Server) events(ctx *fasthttp.RequestCtx) error {
	var q eventQuery
	if err := q.decode(ctx, q.setListParameter); err != nil {
		return err
	}
	subscription, err := s.engine.Listen(contextOf(ctx), q.list, int64(q.resumeAfter&(1<<63-1)))
	if err != nil {
		return err
	}
	return s.streamEvents(ctx, &listEventSource{subscription: subscription})
}

// eventQuery selects the events, and where to resume.
type eventQuery struct {
	resumes     bool   // resumeAfter is given; 0 is a valid position
	resumeAfter uint64 // the id of the last event that the client has
	withTasks   bool   // of a run: changes of tasks, too
	list        messages.ListQuery
}

// decode reads the query and the Last-Event-ID header. An EventSource sends the header when it
// connects again to the same address, so the header prevails.
func (q *eventQuery) decode(ctx *fasthttp.RequestCtx, parameter func(name, value string) error) error {
	err := eachParameter(ctx, func(name, value string) error {
		if name == "after" {
			return q.setResume("query parameter after", value)
		}
		return parameter(name, value)
	})
	if id := ctx.Request.Header.Peek("Last-Event-ID"); err == nil && len(id) > 0 {
		err = q.setResume("Last-Event-ID", string(id))
	}
	return err
}

// setResume sets the position. what names the parameter or header, for the error.
func (q *eventQuery) setResume(what, id string) (err error) {
	if q.resumeAfter, err = strconv.ParseUint(id, 10, 63); err != nil {
		return invalid(what + ": " + quoteInput(id) + " is not the id of an event")
	}
	q.resumes = true
	return nil
}

func (q *eventQuery) setRunParameter(name, value string) (err error) {
	if name != "tasks" {
		return unknownParameter(name)
	}
	q.withTasks, err = parseSwitch(name, value)
	return err
}

func (q *eventQuery) setListParameter(name, value string) error {
	switch {
	case name == "tag":
		q.list.Tag, q.list.HasTag = value, true
	case strings.HasPrefix(name, "tags."):
		q.list.Labels = append(q.list.Labels, dag.Label{Name: name[len("tags."):], Value: value})
	default:
		return unknownParameter(name)
	}
	return nil
}

// eventSource renders changes as events.
type eventSource interface {
	// appendEvents waits for changes and appends them; done tells that they were the last ones. When
	// ctx ends first it returns dst as it was and the error of ctx, or its cause.
	appendEvents(ctx context.Context, dst []byte) (out []byte, done bool, err error)
	Close()
}

// streamEvents takes a place for the wait and answers with the events of source, which it closes in any
// case. The header leaves at once (ImmediateHeaderFlush): a browser reports the connection as open when
// it has the header, and the first event may be far away.
func (s *Server) streamEvents(ctx *fasthttp.RequestCtx, source eventSource) error {
	until, end, err := s.beginWait(ctx)
	if err != nil {
		source.Close()
		return err
	}
	h := &ctx.Response.Header
	h.Set(fasthttp.HeaderCacheControl, "no-store")
	h.Set("X-Accel-Buffering", "no") // tells a proxy not to buffer events
	ctx.Response.ImmediateHeaderFlush = true
	s.stream(ctx, eventStream, &eventProducer{s: s, source: source, ctx: until, endWait: end}, nil, -1)
	return nil
}

// eventProducer streams events until the last one, or until the client leaves or the server shuts
// down.
type eventProducer struct {
	s         *Server
	source    eventSource
	ctx       context.Context // ends when the client leaves, or at shutdown
	endWait   func()          // ends the place of the wait
	lastPiece time.Time       // time of the last piece
}

// next waits for changes, at most for a heartbeat, and appends them. Two pieces are at least
// minPieceInterval apart, so that a busy run costs one write for many commits. The comment line of a
// heartbeat keeps proxies from closing the connection. It is also a write, which fails if the client is
// gone without a word, and a piece, for which the permit is checked: sessions expire by themselves.
func (p *eventProducer) next(dst []byte) ([]byte, bool, error) {
	if rest := minPieceInterval - time.Since(p.lastPiece); rest > 0 {
		timer := time.NewTimer(rest)
		select {
		case <-timer.C:
		case <-p.ctx.Done():
			timer.Stop()
		}
	}
	within, cancel := context.WithTimeout(p.ctx, p.s.cfg.heartbeat)
	defer cancel()
	dst, done, err := p.source.appendEvents(within, dst)
	p.lastPiece = time.Now()
	var m *messages.Error
	switch {
	case err == nil:
		return dst, !done, nil
	case context.Cause(p.ctx) == errClientGone, context.Cause(p.ctx) == errRevoked:
		return dst, true, errStreamBroken
	case p.s.serviceContext.Err() != nil, errors.Is(err, io.EOF), errors.As(err, &m) && (m.Code == messages.Unavailable || m.Code == messages.NotLeader):
		return dst, false, nil // the client connects again for more
	case errors.Is(err, context.DeadlineExceeded):
		return append(dst, ": nothing new\n\n"...), true, nil
	default:
		return dst, true, err
	}
}

func (p *eventProducer) Close() error {
	p.endWait()
	p.source.Close()
	return nil
}

// appendEvent begins an event. Its data follows, and then eventEnd.
func appendEvent(dst []byte, kind string) []byte {
	dst = append(dst, "event: "...)
	dst = append(dst, kind...)
	return append(dst, "\ndata: "...)
}

const eventEnd = "\n\n"

// appendID sets the id to resume from: a line of the block that follows. A block of an id alone is not
// an event, but an EventSource still takes over the id.
func appendID(dst []byte, id uint64) []byte {
	dst = append(dst, "id: "...)
	dst = strconv.AppendUint(dst, id, 10)
	return append(dst, '\n')
}

// appendGap appends the event that tells how many changes the stream left out. It comes before the
// events that follow the gap.
func appendGap(dst []byte, missed uint64) []byte {
	dst = appendEvent(dst, "gap")
	dst = append(dst, `{"missed":`...)
	dst = strconv.AppendUint(dst, missed, 10)
	return append(dst, '}', '\n', '\n')
}

// runEventSource renders the changes of one run. The id is that of the last event of a piece: a
// client that was cut off before the id gets the piece again.
type runEventSource struct {
	subscription messages.Subscription
	withTasks    bool
	openTasks    int    // in the event that is being rendered; 0 = no such event is open
	name         []byte // of a task, reused
}

func (r *runEventSource) appendEvents(ctx context.Context, dst []byte) ([]byte, bool, error) {
	update, err := r.subscription.Next(ctx)
	if err != nil {
		return dst, false, err
	}
	if update.Dropped > 0 {
		dst = appendGap(dst, update.Dropped)
	}
	for i := range update.Changes {
		dst = r.appendChange(dst, update.Plan, &update.Changes[i])
	}
	dst = r.closeTasks(dst)
	dst = appendID(dst, update.Seq)
	if update.Summary == nil {
		return append(dst, '\n'), false, nil
	}
	dst = appendEvent(dst, "summary")
	dst = appendSummary(dst, update.Summary)
	dst = append(dst, `,"tasks":`...)
	dst = strconv.AppendUint(dst, uint64(update.Summary.Tasks), 10)
	dst = append(dst, '}')
	return append(dst, eventEnd...), update.Summary.State.Final(), nil
}

// appendChange appends a change. Changes of tasks gather in one event until one of the run comes, the
// event is full, or the piece ends: the order of all changes is kept.
func (r *runEventSource) appendChange(dst []byte, p *dag.Plan, c *messages.VisibleChange) []byte {
	switch {
	case c.OfRun:
		dst = r.closeTasks(dst)
		dst = appendEvent(dst, "state")
		dst = append(dst, `{"time":`...)
		dst = appendNanos(dst, c.At)
		dst = append(dst, `,"state":"`...)
		dst = append(dst, c.Run.String()...)
		dst = append(dst, `"}`...)
		return append(dst, eventEnd...)
	case !r.withTasks:
		return dst
	case r.openTasks == maxTasksPerEvent:
		dst = r.closeTasks(dst)
	}
	if r.openTasks == 0 {
		dst = appendEvent(dst, "tasks")
		dst = append(dst, '[')
	} else {
		dst = append(dst, ',')
	}
	r.openTasks++
	dst = append(dst, `{"time":`...)
	dst = appendNanos(dst, c.At)
	dst = append(dst, `,"task":`...)
	r.name = p.AppendTaskName(r.name[:0], c.Task)
	dst = appendString(dst, r.name)
	dst = append(dst, `,"state":"`...)
	dst = append(dst, c.State.String()...)
	dst = append(dst, `","attempt":`...)
	dst = strconv.AppendUint(dst, uint64(c.Attempt), 10)
	if c.Ended {
		dst = append(dst, `,"rc":`...)
		dst = strconv.AppendInt(dst, int64(c.RC), 10)
	}
	return append(dst, '}')
}

// closeTasks ends the event of changes of tasks, if one is open.
func (r *runEventSource) closeTasks(dst []byte) []byte {
	if r.openTasks == 0 {
		return dst
	}
	r.openTasks = 0
	dst = append(dst, ']')
	return append(dst, eventEnd...)
}

func (r *runEventSource) Close() { r.subscription.Close() }

// listEventSource renders the runs that have changed. The id stands before the last event of a piece: a
// client that has it has all of the piece.
type listEventSource struct{ subscription messages.RunListSubscription }

func (r *listEventSource) appendEvents(ctx context.Context, dst []byte) ([]byte, bool, error) {
	update, err := r.subscription.Next(ctx)
	if err != nil {
		return dst, false, err
	}
	if update.Dropped > 0 {
		dst = appendGap(dst, update.Dropped)
	}
	for i, sum := range update.Summaries {
		if i == len(update.Summaries)-1 && update.ResumeAt > 0 {
			dst = appendID(dst, uint64(update.ResumeAt))
		}
		dst = appendEvent(dst, "run")
		dst = appendSummary(dst, sum)
		dst = append(dst, `,"tasks":`...)
		dst = strconv.AppendUint(dst, uint64(sum.Tasks), 10)
		dst = append(dst, '}')
		dst = append(dst, eventEnd...)
	}
	if len(update.Summaries) == 0 && update.ResumeAt > 0 {
		dst = append(appendID(dst, uint64(update.ResumeAt)), '\n')
	}
	return dst, false, nil
}

func (r *listEventSource) Close() { r.subscription.Close() }
