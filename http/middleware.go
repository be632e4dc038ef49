package http

import (
	"bytes"
	"log/slog"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/messages"
)

// A request passes these functions, all on the goroutine of its connection:
//
//	fasthttp        reads the header, then asks requestLimits (server.go) how long the body may take
//	router          finds the row of the table (routes.go), or the pseudo route of 404, 405, OPTIONS
//	middlewares     in the order below, each from the header alone
//	handler         decodes, calls the engine, sets the answer or returns an error
//	fasthttp        writes the answer; a stream is rendered while it is written (stream.go)
//
// Input that is not a request never comes here: answerMalformed (errors.go) answers it.

// handler answers a request, or returns the error to answer it with. Headers that it sets before an
// error stay in the answer, except Content-Type; a body is dropped (writeProblem).
type handler func(ctx *fasthttp.RequestCtx) error

// middleware wraps the handler of a route in one concern. It is called once for each route, when the
// server is made, so lookups there are not repeated for each request. It calls next once, or ends the
// request itself.
type middleware func(s *Server, rt *route, next handler) handler

// middlewares are around the handler of every route, the outermost first. Everything up to
// authentication decides from the header alone, before any of the body is read.
//
// The order carries the guarantees:
//
//   - accounting is outermost, so that Shutdown waits for refused requests as well.
//   - auditing is outside of rendering, because it records the status that rendering sets.
//   - admission comes first of those that refuse: an overloaded server does the least work then.
//   - wellFormedness comes before the first header that decides is read. Two values of Host or
//     Authorization would let a proxy and this server decide about different requests.
//   - protection comes before authentication. A browser attaches the session's cookie to requests
//     that pages of other ports of this host cause, so a valid cookie must not vouch for them.
//   - authentication comes before limits: a caller without a token learns only that it needs one.
//   - forwarding comes after all of these: another node trusts this one to have checked the request.
//   - continuation is last. A client gets permission to send its body only when everything before
//     the handler has passed.
//
// After them a handler may still refuse: what its query, its body and the engine say comes last.
func middlewares() []middleware {
	return []middleware{
		accounting,     // requests in flight, metrics, the debug log
		auditing,       // the audit log of changes and refusals
		rendering,      // security headers; errors and panics become problem documents
		admission,      // not at shutdown, not beyond the limits of connections
		wellFormedness, // HTTP/1, one value for each header that must have one
		protection,     // against pages of other origins: Host, Origin, Sec-Fetch-*
		authentication, // who the caller is, and whether its scopes suffice
		limits,         // length, framing and media type of the body
		forwarding,     // in a cluster: another node may have to answer
		continuation,   // a client that waits for permission sends its body first
	}
}

// handlerOf wraps a route's handler in the middlewares of a chain, of which the first is the outermost. It
// panics for a route without a scope: the zero value must not open a route to every caller.
func (s *Server) handlerOf(rt route, chain []middleware) fasthttp.RequestHandler {
	switch {
	case rt.scope == 0:
		panic("http: the route " + rt.method + " " + rt.path + " has no scope")
	case rt.servedBy == 0:
		panic("http: the route " + rt.method + " " + rt.path + " does not say which node of a cluster serves it")
	}
	h := handler(func(ctx *fasthttp.RequestCtx) error { return rt.handle(s, ctx) })
	for _, wrap := range slices.Backward(chain) {
		h = wrap(s, &rt, h)
	}
	return func(ctx *fasthttp.RequestCtx) { _ = h(ctx) } // rendering has answered the error
}

// accounting counts the request as work that Shutdown waits for, and measures it. For a stream the time
// ends with the head of the answer, and the rest counts as work of its own (Server.stream).
//
// A client that waits for permission to send its body passes here twice, first with the header and then
// with the body. Only the second time is measured.
func accounting(s *Server, rt *route, next handler) handler {
	m := s.metrics.route(rt.path)
	return func(ctx *fasthttp.RequestCtx) error {
		began := time.Now()
		s.beginWork()
		defer s.endWork()
		if c := connOf(ctx); c != nil {
			c.beginRequest()
			c.chunks.start(&ctx.Request.Header) // before the first read of the body
		}
		if err := next(ctx); err != nil || isOnlyPermitted(ctx) {
			return err
		}
		took, status := time.Since(began), ctx.Response.StatusCode()
		m.observe(status, took)
		if s.log.Enabled(ctx, slog.LevelDebug) {
			s.log.Debug("http: request", "method", string(ctx.Method()), "path", string(ctx.URI().PathOriginal()),
				"status", status, "took", took, "from", ctx.RemoteAddr().String())
		}
		return nil
	}
}

// auditing records changes and refused requests. It takes part only where there is an audit log, and
// never waits for its disk (access.Audit.Record).
func auditing(s *Server, rt *route, next handler) handler {
	if s.cfg.Access.Audit == nil {
		return next
	}
	return func(ctx *fasthttp.RequestCtx) error {
		err := next(ctx)
		if !isOnlyPermitted(ctx) {
			s.recordAudit(ctx, rt)
		}
		return err
	}
}

// rendering answers with the error of the request, and for a handler that panics. It is the only place
// that turns errors into answers, so every refusal inside of it has the same form. It returns nil: the
// middlewares outside of it read the outcome from the response.
func rendering(s *Server, _ *route, next handler) handler {
	return func(ctx *fasthttp.RequestCtx) error {
		defer func() {
			if p := recover(); p != nil {
				s.answerPanic(ctx, p)
			}
		}()
		s.setSecurityHeaders(ctx)
		if err := next(ctx); err != nil {
			s.writeError(ctx, err)
		}
		return nil
	}
}

// admission refuses requests that the server cannot serve now, whatever they ask for. Their connections
// are closed. From here on the connection is occupied: it cannot be evicted before its request is
// answered (conn.occupy).
//
//	evicted in favour of another connection   503, which does not reach the client
//	the server shuts down                     503
//	too many connections                      503
//	too many connections of this client       429
func admission(s *Server, _ *route, next handler) handler {
	return func(ctx *fasthttp.RequestCtx) error {
		c := connOf(ctx)
		var err *refusal
		switch {
		case c != nil && !c.occupy(): // it was evicted, so the client does not get this answer
			err = &refusal{fasthttp.StatusServiceUnavailable, tooManyConns}
		case s.draining.Load():
			err = &refusal{fasthttp.StatusServiceUnavailable, "the server is shutting down"}
		case c != nil && c.refusal == serverFull:
			err = &refusal{fasthttp.StatusServiceUnavailable, tooManyConns}
		case c != nil && c.refusal == clientFull:
			err = &refusal{fasthttp.StatusTooManyRequests, tooManyConnsOfClient}
		default:
			return next(ctx)
		}
		ctx.SetConnectionClose()
		return err
	}
}

// wellFormedness refuses requests that a proxy in front of this server may read differently. After a
// repeated header the connection closes: the two may disagree on where the request ends, and its next
// bytes could be another request that the proxy never saw (request smuggling).
func wellFormedness(_ *Server, _ *route, next handler) handler {
	return func(ctx *fasthttp.RequestCtx) error {
		h := &ctx.Request.Header
		switch {
		case !isHTTP1(h.Protocol()):
			ctx.SetConnectionClose()
			return &refusal{fasthttp.StatusHTTPVersionNotSupported, "HTTP version " + quoteInput(h.Protocol()) + " is not supported"}
		case bytes.IndexByte(h.RequestURI(), '#') >= 0:
			return &refusal{fasthttp.StatusBadRequest, "the request target has a fragment"}
		}
		if err := checkRepeatedHeaders(h); err != nil {
			ctx.SetConnectionClose()
			return err
		}
		return next(ctx)
	}
}

// protection refuses requests that pages of other origins cause. The host is checked before the origin,
// because the origin is compared with the host. Host names belong to the entrance: a loopback listener
// has others than a public one.
func protection(s *Server, rt *route, next handler) handler {
	isBulk := rt.isBulk()
	return func(ctx *fasthttp.RequestCtx) error {
		h, hosts := &ctx.Request.Header, s.cfg.Access.Hosts
		if c := connOf(ctx); c != nil {
			hosts = c.entrance.Hosts
		}
		if err := checkHost(hosts, h); err != nil {
			return err
		}
		if err := s.checkOrigin(h, isBulk); err != nil {
			return err
		}
		return next(ctx)
	}
}

// authentication refuses callers that may not use the route: 401 for an unknown caller, 403 for a known
// one without the scope. It sets the principal of the request, also of one that is refused: the audit
// log names it.
func authentication(s *Server, rt *route, next handler) handler {
	return func(ctx *fasthttp.RequestCtx) error {
		if err := s.authorize(ctx, rt); err != nil {
			return err
		}
		return next(ctx)
	}
}

// limits refuses bodies by their length, framing and media type. It only sees the announced length: a
// body in chunks is counted while it is read (readBody, chunkMeter).
func limits(s *Server, rt *route, next handler) handler {
	return func(ctx *fasthttp.RequestCtx) error {
		h := &ctx.Request.Header
		switch {
		case int64(h.ContentLength()) > s.bodyLimit(h):
			return s.bodyTooLarge(ctx)
		case h.ConnectionClose() && hasTwoFramings(h.RawHeaders()):
			return &refusal{fasthttp.StatusBadRequest, "the request has both Content-Length and Transfer-Encoding"}
		case hasNoFraming(h) && hasHeaderLine(h.RawHeaders(), fasthttp.HeaderTransferEncoding):
			// fasthttp takes "identity" for a request without a body. A proxy may see a
			// body where this server sees the next request (RFC 9112, section 6.3).
			ctx.SetConnectionClose()
			return &refusal{fasthttp.StatusBadRequest, "Transfer-Encoding must be chunked"}
		}
		if rt.method != "" { // else the client has to learn that there is no such route
			if err := checkType(h, rt.body); err != nil {
				return err
			}
		}
		return next(ctx)
	}
}

// continuation ends here for a client that waits for permission to send its body: the request
// comes again with the body. A path or method that does not exist is refused at once.
func continuation(_ *Server, rt *route, next handler) handler {
	if rt.method == "" {
		return next
	}
	return func(ctx *fasthttp.RequestCtx) error {
		if awaitsPermission(ctx) {
			return nil
		}
		return next(ctx)
	}
}

// expectKey marks a request whose client waits for permission to send the body.
type expectKey struct{}

// awaitsPermission tells whether the request passes the middlewares without its body.
func awaitsPermission(ctx *fasthttp.RequestCtx) bool {
	waits, _ := ctx.UserValue(expectKey{}).(bool)
	return waits
}

// isOnlyPermitted tells whether the request is still to come: its client gets permission to
// send the body.
func isOnlyPermitted(ctx *fasthttp.RequestCtx) bool {
	return ctx.Response.StatusCode() < 400 && awaitsPermission(ctx)
}

// answerExpect answers `Expect: 100-continue`. A request with a wrong header gets its answer now, and
// the client need not send the body: fasthttp sends the response that is left here and closes the
// connection. It returns the status of that answer, or 100. dispatch is the entrance's router.
//
// requestLimits adds the header to requests that will be refused, so that they come here, too: a client
// that announces a body gets the refusal although it has not sent the first byte.
func (s *Server) answerExpect(ctx *fasthttp.RequestCtx, dispatch fasthttp.RequestHandler) int {
	ctx.SetUserValue(expectKey{}, true)
	dispatch(ctx)
	ctx.RemoveUserValue(expectKey{})
	if status := ctx.Response.StatusCode(); status >= 400 {
		drainOnClose(ctx)
		return status
	}
	ctx.Response.Reset()
	return fasthttp.StatusContinue
}

// answerPanic answers 500 for a handler that panicked, and logs the stack. The answer begins again from
// an empty response, with the security headers. The connection closes, because parts of the body may be
// unread. A panic of a producer is later than this: streamBody.Read recovers from it.
func (s *Server) answerPanic(ctx *fasthttp.RequestCtx, p any) {
	s.log.Error("http: panic", "method", string(ctx.Method()), "path", string(ctx.URI().PathOriginal()),
		"panic", p, "stack", string(debug.Stack()))
	ctx.Response.Reset()
	s.setSecurityHeaders(ctx)
	ctx.SetConnectionClose()
	writeProblem(ctx, internalProblem)
}

// recordAudit records a change, whatever its result, or a request that was refused with 401, 403, 421
// or 429. access.Audit bounds how many refusals it writes. The run of an accepted submission is taken
// from its Location.
func (s *Server) recordAudit(ctx *fasthttp.RequestCtx, rt *route) {
	status := ctx.Response.StatusCode()
	if c := connOf(ctx); status == fasthttp.StatusMisdirectedRequest && c != nil && c.entrance.CheckNode != nil {
		return // not of its caller: the entry node looks for the leader
	}
	isRecorded := rt.isChange() && status != fasthttp.StatusUnauthorized
	switch status {
	case fasthttp.StatusUnauthorized, fasthttp.StatusForbidden, fasthttp.StatusMisdirectedRequest, fasthttp.StatusTooManyRequests:
		isRecorded = true
	}
	if !isRecorded || rt.body == linesBody && status == fasthttp.StatusOK {
		return // a batch has its own entry: see submitBatch
	}
	e := s.newAuditEntry(ctx, rt.path)
	e.Status = status
	if status != fasthttp.StatusUnauthorized && status >= 400 && e.Token == "" && s.cfg.Access.Keys != nil {
		// The request was refused before its caller was identified.
		if found, _, ok := s.credentials(&ctx.Request.Header, connOf(ctx)); ok {
			e.Token, e.Session = found.Token, found.Session
		}
	}
	if run, err := runParameter(ctx); err == nil {
		e.Run = (*uint64)(&run)
	} else if at := ctx.Response.Header.Peek(fasthttp.HeaderLocation); rt.body == jsonBody && len(at) > len(runPathPrefix) {
		if run, err := strconv.ParseUint(string(at[len(runPathPrefix):]), 10, 64); err == nil {
			e.Run = &run
		}
	}
	if task, err := pathParameter(ctx, "task"); err == nil {
		e.Task = string([]byte(task))
	}
	s.cfg.Access.Audit.Record(*e)
}

// maxAuditedPath bounds the path in the audit log.
const maxAuditedPath = 1 << 10

// newAuditEntry returns the audit entry of a request, without its result. The entry outlives the
// request, so it holds copies: fasthttp reuses the memory of path and headers. The path is without its
// query, which may hold secrets of a client's own.
func (s *Server) newAuditEntry(ctx *fasthttp.RequestCtx, routePath string) *access.Entry {
	path, who := ctx.URI().PathOriginal(), messages.Principal{UID: -1}
	c := connOf(ctx)
	if c != nil {
		who = c.request.Load().principal
		if who.Certificate == "" { // it was refused before its caller was identified
			if cert := c.clientCertificate(); cert != nil {
				who.Certificate = cert.Subject.String()
			}
		}
	}
	e := &access.Entry{
		Time: time.Now().UTC(), Method: string(ctx.Method()), Route: routePath, Path: string(path[:min(len(path), maxAuditedPath)]),
		Token: who.Token, Session: who.Session, Certificate: who.Certificate, Address: who.Address,
	}
	if who.UID >= 0 {
		e.UID = &who.UID
	}
	if c != nil {
		e.Node = c.request.Load().forwarded.node
	}
	return e
}
