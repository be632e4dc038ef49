package http

import (
	"slices"

	"github.com/fasthttp/router"
	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/http/access"
)

// route is one row of the API. HEAD is served wherever GET is, by the same handler: fasthttp leaves out
// the body. A new row needs its section in docs/rest.md (TestReferenceIsComplete).
type route struct {
	method   string        // "" for the pseudo routes of 404, 405 and OPTIONS
	path     string        // also the route's name in the metrics and in the audit log
	scope    access.Scopes // the caller needs one of these, or publicRoute
	servedBy servedBy      // which nodes of a cluster can serve it
	body     bodyKind      // the media type that the limits middleware requires
	handle   func(*Server, *fasthttp.RequestCtx) error
}

// publicRoute marks a route that needs no token.
const publicRoute access.Scopes = 1 << 7

// Paths with a meaning outside of the table.
const (
	backupRoute        = "/v1/backup"
	eventsRoute        = "/v1/events"
	runEventsRoute     = "/v1/dagrun/{run}/events"
	statesRoute        = "/v1/dagrun/{run}/states"
	logRoute           = "/v1/dagrun/{run}/task/{task}/log"
	serverStatePath    = "/v1/server/state"
	setServerStatePath = serverStatePath + "/{state}"
	clusterPath        = "/v1/cluster"
	verifyPath         = "/v1/cluster/verify"
	transferPath       = "/v1/cluster/transfer"
	upgradePath        = "/v1/cluster/upgrade"
	repairPath         = "/v1/cluster/repair"
	removePath         = "/v1/cluster/remove"
	deadWorkerPath     = "/v1/cluster/worker/dead"
	validatePath       = "/v1/dagrun/validate"
	runPathPrefix      = "/v1/dagrun/"
)

// isBulk tells whether the answer is a file, a stream or everything the server has, instead of
// a document. Pages of other origins may not even navigate there.
func (rt *route) isBulk() bool {
	switch rt.path {
	case backupRoute, eventsRoute, runEventsRoute, statesRoute, logRoute:
		return true
	}
	return false
}

// isChange tells whether the route changes anything. Changes are in the audit log.
func (rt *route) isChange() bool {
	switch rt.method {
	case "", fasthttp.MethodGet:
		return false
	}
	return rt.path != validatePath
}

// routes is the whole surface. The rows of the first block are fixed: clients rely on their paths,
// and on the members of their answers, which are never removed or renamed and keep their types and
// their order. A later version may add members, at the end of an object. contract_test.go holds the
// rows and their answers.
func (s *Server) routes() []route {
	const run, task = "/v1/dagrun/{run}", "/v1/dagrun/{run}/task/{task}"
	return []route{
		{"GET", "/ready", publicRoute, anyNode, noBody, (*Server).ready},
		{"GET", "/v1/dagruns", access.Read, everyLeader, noBody, (*Server).listRuns},
		{"POST", "/v1/dagrun", access.Submit, keyLeader, jsonBody, (*Server).submit},
		{"POST", validatePath, access.Read | access.Submit, anyNode, jsonBody, (*Server).validate},
		{"GET", run, access.Read, runLeader, noBody, (*Server).runDocument},
		{"DELETE", run, access.Control, runLeader, noBody, (*Server).killRun},
		{"GET", run + "/state", access.Read, runLeader, noBody, (*Server).runState},
		{"PATCH", run + "/state/{state}", access.Control, runLeader, noBody, (*Server).setRunState},
		{"GET", task, access.Read, runLeader, noBody, (*Server).taskDetails},
		{"DELETE", task, access.Control, runLeader, noBody, (*Server).killTask},
		{"GET", task + "/state", access.Read, runLeader, noBody, (*Server).taskState},

		{"POST", batchPath, access.Submit, keyLeader, linesBody, (*Server).submitBatch},
		{"GET", run + "/summary", access.Read, runLeader, noBody, (*Server).runSummary},
		{"GET", runEventsRoute, access.Read, runLeader, noBody, (*Server).runEvents},
		{"GET", eventsRoute, access.Read, everyLeader, noBody, (*Server).events},
		{"GET", run + "/graph", access.Read, runLeader, noBody, (*Server).runGraph},
		{"GET", statesRoute, access.Read, runLeader, noBody, (*Server).taskStates},
		{"GET", run + "/tasks", access.Read, runLeader, noBody, (*Server).listTasks},
		{"GET", logRoute, access.Read, runLeader, noBody, (*Server).taskLog},
		{"GET", backupRoute, access.Control, anyNode, noBody, (*Server).backup},
		{"GET", serverStatePath, access.Read, everyLeader, noBody, (*Server).serverState},
		{"PATCH", setServerStatePath, access.Control, everyLeader, noBody, (*Server).setServerState},
		{"GET", "/healthz", publicRoute, anyNode, noBody, (*Server).healthz},
		{"GET", clusterPath, access.Read, anyNode, noBody, (*Server).clusterStatus},
		{"POST", verifyPath, access.Control, anyNode, noBody, (*Server).verifyCluster},
		{"POST", transferPath, access.Control, anyNode, noBody, (*Server).transferLeaders},
		{"POST", upgradePath, access.Control, anyNode, noBody, (*Server).upgradeCluster},
		{"POST", repairPath, access.Control, anyNode, noBody, (*Server).repairReplica},
		{"POST", removePath, access.Control, anyNode, noBody, (*Server).removeNode},
		{"POST", deadWorkerPath, access.Control, anyNode, noBody, (*Server).declareWorkerDead},
		{"GET", "/version", access.Read, anyNode, noBody, (*Server).version},
		{"GET", "/metrics", access.Read, anyNode, noBody, (*Server).showMetrics},
		{"GET", loginPath, publicRoute, anyNode, noBody, (*Server).loginPage},
		{"POST", loginPath, publicRoute, anyNode, formBody, (*Server).login},
		{"POST", logoutPath, publicRoute, anyNode, formBody, (*Server).logout},
	}
}

// forwardedRoutes are the routes that the entrance for other nodes has.
func (s *Server) forwardedRoutes() []route {
	return slices.DeleteFunc(s.routes(), func(rt route) bool { return rt.servedBy == anyNode })
}

// router lays out routes, each within the middlewares of a chain. Redirects are off: a path is matched as
// the client wrote it, escapes and dots included, so a task may be named "..". Paths and methods that are
// not in the table pass the same middlewares: their answers have the headers for browsers, and a caller
// without a token gets 401.
func (s *Server) router(routes []route, chain []middleware) *router.Router {
	r := router.New()
	r.RedirectTrailingSlash = false
	r.RedirectFixedPath = false
	r.PanicHandler = s.answerPanic
	for _, rt := range routes {
		h := s.handlerOf(rt, chain)
		r.Handle(rt.method, rt.path, h)
		if rt.method == fasthttp.MethodGet {
			r.HEAD(rt.path, h)
		}
	}
	// The router would take "validate" for a run ID.
	notPost := s.handlerOf(route{path: "none", scope: access.All, servedBy: anyNode, handle: methodNotAllowed}, chain)
	for _, method := range []string{fasthttp.MethodGet, fasthttp.MethodHead, fasthttp.MethodDelete} {
		r.Handle(method, validatePath, notPost)
	}
	r.NotFound = s.handlerOf(route{path: "none", scope: access.All, servedBy: anyNode, handle: routeNotFound}, chain)
	r.MethodNotAllowed = s.handlerOf(route{path: "none", scope: access.All, servedBy: anyNode, handle: methodNotAllowed}, chain)
	r.GlobalOPTIONS = s.handlerOf(route{path: "none", scope: publicRoute, servedBy: anyNode, handle: answerOptions}, chain)
	return r
}

// routeNotFound answers a path that is not in the table.
func routeNotFound(_ *Server, ctx *fasthttp.RequestCtx) error {
	return &refusal{status: fasthttp.StatusNotFound, detail: "no such path: " + quoteInput(ctx.URI().PathOriginal())}
}

// methodNotAllowed answers a method that a known path does not have.
func methodNotAllowed(_ *Server, ctx *fasthttp.RequestCtx) error {
	return &refusal{
		status: fasthttp.StatusMethodNotAllowed,
		detail: "method " + quoteInput(ctx.Method()) + " is not allowed on " + quoteInput(ctx.URI().PathOriginal()) + ": use " + allowedMethods(ctx),
	}
}

// answerOptions answers OPTIONS of a known path: Allow, and for a browser that asks before it sends a
// request from a listed origin the headers of CORS. It needs no token, because browsers ask without
// one.
func answerOptions(s *Server, ctx *fasthttp.RequestCtx) error {
	allowedMethods(ctx)
	s.preflight(ctx)
	ctx.SetStatusCode(fasthttp.StatusNoContent)
	return nil
}

// allowedMethods returns the Allow header, which the router has set. It corrects the header for
// validatePath, which the router takes for the path of a run.
func allowedMethods(ctx *fasthttp.RequestCtx) string {
	if string(ctx.URI().PathOriginal()) == validatePath {
		ctx.Response.Header.Set(fasthttp.HeaderAllow, "OPTIONS, POST")
	}
	return string(ctx.Response.Header.Peek(fasthttp.HeaderAllow))
}
