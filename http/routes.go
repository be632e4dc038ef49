package http

import (
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/valyala/fasthttp"
)

// route is one row of the API. HEAD is served wherever GET is.
type route struct {
	method string
	path   string // also the route's name in the metrics
	handle func(*Server, *fasthttp.RequestCtx) error
}

const validatePath = "/v1/dagrun/validate"

// routes is the whole surface. The rows of the first block are fixed: their
// paths, members, types and order are those that clients have always known.
func (s *Server) routes() []route {
	const run, task = "/v1/dagrun/{run}", "/v1/dagrun/{run}/task/{task}"
	return []route{
		{"GET", "/ready", (*Server).ready},
		{"GET", "/v1/dagruns", (*Server).listRuns},
		{"POST", "/v1/dagrun", (*Server).submit},
		{"POST", validatePath, (*Server).validate},
		{"GET", run, (*Server).runDocument},
		{"DELETE", run, (*Server).killRun},
		{"GET", run + "/state", (*Server).runState},
		{"PATCH", run + "/state/{state}", (*Server).setRunState},
		{"GET", task, (*Server).taskDetails},
		{"DELETE", task, (*Server).killTask},
		{"GET", task + "/state", (*Server).taskState},

		{"POST", batchPath, (*Server).submitBatch},
		{"GET", run + "/summary", (*Server).runSummary},
		{"GET", run + "/events", (*Server).runEvents},
		{"GET", "/v1/events", (*Server).events},
		{"GET", run + "/graph", (*Server).runGraph},
		{"GET", run + "/states", (*Server).taskStates},
		{"GET", run + "/tasks", (*Server).listTasks},
		{"GET", task + "/log", (*Server).taskLog},
		{"GET", "/healthz", (*Server).healthz},
		{"GET", "/version", (*Server).version},
		{"GET", "/metrics", (*Server).showMetrics},
	}
}

// wrap makes a route's handler what fasthttp calls: counted, refused while the
// server shuts down, its error rendered, its panic contained.
func (s *Server) wrap(rt route) fasthttp.RequestHandler {
	m := s.metrics.route(rt.path)
	return func(ctx *fasthttp.RequestCtx) {
		began := time.Now()
		s.enter()
		defer func() {
			if p := recover(); p != nil {
				s.panicked(ctx, p)
			}
			took := time.Since(began)
			m.observe(ctx.Response.StatusCode(), took)
			if s.log.Enabled(ctx, slog.LevelDebug) {
				s.log.Debug("http: request", "method", string(ctx.Method()), "path", string(ctx.URI().PathOriginal()),
					"status", ctx.Response.StatusCode(), "took", took, "from", ctx.RemoteAddr().String())
			}
			s.leave()
		}()
		err := s.admit(ctx)
		if err == nil {
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

func options(_ *Server, ctx *fasthttp.RequestCtx) error {
	allow(ctx)
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
