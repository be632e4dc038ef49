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
	body   bodyKind
	handle func(*Server, *fasthttp.RequestCtx) error
}

const serverStatePath = "/v1/server/state"

const validatePath = "/v1/dagrun/validate"

// routes is the whole surface. The rows of the first block are fixed: their
// paths, members, types and order are those that clients have always known.
func (s *Server) routes() []route {
	const run, task = "/v1/dagrun/{run}", "/v1/dagrun/{run}/task/{task}"
	return []route{
		{"GET", "/ready", noBody, (*Server).ready},
		{"GET", "/v1/dagruns", noBody, (*Server).listRuns},
		{"POST", "/v1/dagrun", jsonBody, (*Server).submit},
		{"POST", validatePath, jsonBody, (*Server).validate},
		{"GET", run, noBody, (*Server).runDocument},
		{"DELETE", run, noBody, (*Server).killRun},
		{"GET", run + "/state", noBody, (*Server).runState},
		{"PATCH", run + "/state/{state}", noBody, (*Server).setRunState},
		{"GET", task, noBody, (*Server).taskDetails},
		{"DELETE", task, noBody, (*Server).killTask},
		{"GET", task + "/state", noBody, (*Server).taskState},

		{"POST", batchPath, linesBody, (*Server).submitBatch},
		{"GET", run + "/summary", noBody, (*Server).runSummary},
		{"GET", run + "/events", noBody, (*Server).runEvents},
		{"GET", "/v1/events", noBody, (*Server).events},
		{"GET", run + "/graph", noBody, (*Server).runGraph},
		{"GET", run + "/states", noBody, (*Server).taskStates},
		{"GET", run + "/tasks", noBody, (*Server).listTasks},
		{"GET", task + "/log", noBody, (*Server).taskLog},
		{"GET", serverStatePath, noBody, (*Server).serverState},
		{"PATCH", serverStatePath + "/{state}", noBody, (*Server).setServerState},
		{"GET", "/healthz", noBody, (*Server).healthz},
		{"GET", "/version", noBody, (*Server).version},
		{"GET", "/metrics", noBody, (*Server).showMetrics},
	}
}

// wrap makes a route's handler what fasthttp calls: counted, refused while the
// server shuts down, its error rendered, its panic contained.
func (s *Server) wrap(rt route) fasthttp.RequestHandler {
	m := s.metrics.route(rt.path)
	return func(ctx *fasthttp.RequestCtx) {
		began := time.Now()
		_, waits := ctx.UserValue(expecting{}).(bool) // for permission to send its body
		s.enter()
		if c := connOf(ctx); c != nil {
			c.busy.Store(true)
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
			m.observe(ctx.Response.StatusCode(), took)
			if s.log.Enabled(ctx, slog.LevelDebug) {
				s.log.Debug("http: request", "method", string(ctx.Method()), "path", string(ctx.URI().PathOriginal()),
					"status", ctx.Response.StatusCode(), "took", took, "from", ctx.RemoteAddr().String())
			}
			s.leave()
		}()
		s.protect(ctx)
		err := s.admit(ctx, &rt)
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
