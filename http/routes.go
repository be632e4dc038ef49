package http

import (
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/http/access"
)

// route is one row of the API. HEAD is served wherever GET is.
type route struct {
	method string
	path   string        // also the route's name in the metrics
	scope  access.Scopes // one of these is needed; or open
	body   bodyKind
	handle func(*Server, *fasthttp.RequestCtx) error
}

const serverStatePath = "/v1/server/state"

const (
	backupRoute    = "/v1/backup"
	eventsRoute    = "/v1/events"
	runEventsRoute = "/v1/dagrun/{run}/events"
	statesRoute    = "/v1/dagrun/{run}/states"
	logRoute       = "/v1/dagrun/{run}/task/{task}/log"
)

// bulk tells whether the answer is no document, but all that there is, a file or a stream:
// other origins' pages may not so much as navigate there.
func (rt *route) bulk() bool {
	switch rt.path {
	case backupRoute, eventsRoute, runEventsRoute, statesRoute, logRoute:
		return true
	}
	return false
}

const validatePath = "/v1/dagrun/validate"

// routes is the whole surface. The rows of the first block are fixed: their
// paths, members, types and order are those that clients have always known.
func (s *Server) routes() []route {
	const run, task = "/v1/dagrun/{run}", "/v1/dagrun/{run}/task/{task}"
	return []route{
		{"GET", "/ready", open, noBody, (*Server).ready},
		{"GET", "/v1/dagruns", access.Read, noBody, (*Server).listRuns},
		{"POST", "/v1/dagrun", access.Submit, jsonBody, (*Server).submit},
		{"POST", validatePath, access.Read | access.Submit, jsonBody, (*Server).validate},
		{"GET", run, access.Read, noBody, (*Server).runDocument},
		{"DELETE", run, access.Control, noBody, (*Server).killRun},
		{"GET", run + "/state", access.Read, noBody, (*Server).runState},
		{"PATCH", run + "/state/{state}", access.Control, noBody, (*Server).setRunState},
		{"GET", task, access.Read, noBody, (*Server).taskDetails},
		{"DELETE", task, access.Control, noBody, (*Server).killTask},
		{"GET", task + "/state", access.Read, noBody, (*Server).taskState},

		{"POST", batchPath, access.Submit, linesBody, (*Server).submitBatch},
		{"GET", run + "/summary", access.Read, noBody, (*Server).runSummary},
		{"GET", runEventsRoute, access.Read, noBody, (*Server).runEvents},
		{"GET", eventsRoute, access.Read, noBody, (*Server).events},
		{"GET", run + "/graph", access.Read, noBody, (*Server).runGraph},
		{"GET", statesRoute, access.Read, noBody, (*Server).taskStates},
		{"GET", run + "/tasks", access.Read, noBody, (*Server).listTasks},
		{"GET", logRoute, access.Read, noBody, (*Server).taskLog},
		{"GET", backupRoute, access.Control, noBody, (*Server).backup},
		{"GET", serverStatePath, access.Read, noBody, (*Server).serverState},
		{"PATCH", serverStatePath + "/{state}", access.Control, noBody, (*Server).setServerState},
		{"GET", "/healthz", open, noBody, (*Server).healthz},
		{"GET", "/version", access.Read, noBody, (*Server).version},
		{"GET", "/metrics", access.Read, noBody, (*Server).showMetrics},
		{"GET", loginPath, open, noBody, (*Server).loginPage},
		{"POST", loginPath, open, formBody, (*Server).login},
		{"POST", logoutPath, open, formBody, (*Server).logout},
	}
}

// wrap makes a route's handler what fasthttp calls: counted, refused while the
// server shuts down, its error rendered, its panic contained.
func (s *Server) wrap(rt route) fasthttp.RequestHandler {
	if rt.scope == 0 {
		panic("http: the route " + rt.method + " " + rt.path + " has no scope")
	}
	m := s.metrics.route(rt.path)
	return func(ctx *fasthttp.RequestCtx) {
		began := time.Now()
		who := access.Caller{}
		_, waits := ctx.UserValue(expecting{}).(bool) // for permission to send its body
		s.enter()
		if c := connOf(ctx); c != nil {
			c.beginRequest()
			c.chunks.measure(&ctx.Request.Header)
		}
		defer func() {
			if p := recover(); p != nil {
				s.panicked(ctx, p)
			}
			took := time.Since(began)
			if waits && ctx.Response.StatusCode() < 400 {
				s.leave()
				return // the request itself is still to come
			}
			if s.cfg.Access.Audit != nil {
				s.audit(ctx, &rt, &who)
			}
			m.observe(ctx.Response.StatusCode(), took)
			if s.log.Enabled(ctx, slog.LevelDebug) {
				s.log.Debug("http: request", "method", string(ctx.Method()), "path", string(ctx.URI().PathOriginal()),
					"status", ctx.Response.StatusCode(), "took", took, "from", ctx.RemoteAddr().String())
			}
			s.leave()
		}()
		s.protect(ctx)
		err := s.admit(ctx, &rt, &who)
		if err == nil && (!waits || rt.method == "") {
			err = rt.handle(s, ctx)
		}
		if err != nil {
			s.fail(ctx, err)
		}
	}
}

// panicked answers for a handler that panicked.
func (s *Server) panicked(ctx *fasthttp.RequestCtx, p any) {
	s.log.Error("http: panic", "method", string(ctx.Method()), "path", string(ctx.URI().PathOriginal()),
		"panic", p, "stack", string(debug.Stack()))
	ctx.Response.Reset()
	s.protect(ctx)
	ctx.SetConnectionClose()
	writeProblem(ctx, internalProblem)
}

func noRoute(_ *Server, ctx *fasthttp.RequestCtx) error {
	return &refusal{status: fasthttp.StatusNotFound, text: "no such path: " + quote(ctx.URI().PathOriginal())}
}

// wrongMethod answers where the path is known.
func wrongMethod(_ *Server, ctx *fasthttp.RequestCtx) error {
	return &refusal{
		status: fasthttp.StatusMethodNotAllowed,
		text:   "method " + quote(ctx.Method()) + " is not allowed on " + quote(ctx.URI().PathOriginal()) + ": use " + allow(ctx),
	}
}

func options(s *Server, ctx *fasthttp.RequestCtx) error {
	allow(ctx)
	s.preflight(ctx)
	ctx.SetStatusCode(fasthttp.StatusNoContent)
	return nil
}

// allow is the Allow header: the router has set it, except where it was misled.
func allow(ctx *fasthttp.RequestCtx) string {
	if string(ctx.URI().PathOriginal()) == validatePath {
		ctx.Response.Header.Set(fasthttp.HeaderAllow, "OPTIONS, POST")
	}
	return string(ctx.Response.Header.Peek(fasthttp.HeaderAllow))
}
