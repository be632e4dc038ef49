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

// handler answers a request, or returns the error to answer it with.
type handler func(ctx *fasthttp.RequestCtx) error

// middleware wraps the handler of a route in one concern. It is called once for each route,
// when the server is made, so lookups there are not repeated for each request.
type middleware func(s *Server, rt *route, next handler) handler

// middlewares are around the handler of every route, the outermost first. Everything up to
// authentication decides from the header alone, before any of the body is read.
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
		continuation,   // a client that waits for permission sends its body first
	}
}

// handlerOf wraps a route's handler in the middlewares.
func (s *Server) handlerOf(rt route) fasthttp.RequestHandler {
	if rt.scope == 0 {
		panic("http: the route " + rt.method + " " + rt.path + " has no scope")
	}
	h := handler(func(ctx *fasthttp.RequestCtx) error { return rt.handle(s, ctx) })
	for _, wrap := range slices.Backward(middlewares()) {
		h = wrap(s, &rt, h)
	}
	return func(ctx *fasthttp.RequestCtx) { _ = h(ctx) } // rendering has answered the error
}

// accounting counts the request as work that Shutdown waits for, and measures it.
func accounting(s *Server, rt *route, next handler) handler {
	m := s.metrics.route(rt.path)
	return func(ctx *fasthttp.RequestCtx) error {
		began := time.Now()
		s.beginWork()
		defer s.endWork()
		if c := connOf(ctx); c != nil {
			c.beginRequest()
			c.chunks.start(&ctx.Request.Header)
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

// auditing records changes and refused requests.
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

// rendering answers with the error of the request, and for a handler that panics.
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

// admission refuses requests that the server cannot serve now, whatever they ask for. Their
// connections are closed.
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

// wellFormedness refuses requests that a proxy in front of this server may read differently.
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

// protection refuses requests that pages of other origins cause.
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

// authentication refuses callers that may not use the route. It sets the principal of the
// request, also of one that is refused: the audit log names it.
func authentication(s *Server, rt *route, next handler) handler {
	return func(ctx *fasthttp.RequestCtx) error {
		if err := s.authorize(ctx, rt); err != nil {
			return err
		}
		return next(ctx)
	}
}

// limits refuses bodies by their length, framing and media type.
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

func awaitsPermission(ctx *fasthttp.RequestCtx) bool {
	waits, _ := ctx.UserValue(expectKey{}).(bool)
	return waits
}

// isOnlyPermitted tells whether the request is still to come: its client gets permission to
// send the body.
func isOnlyPermitted(ctx *fasthttp.RequestCtx) bool {
	return ctx.Response.StatusCode() < 400 && awaitsPermission(ctx)
}

// answerExpect answers `Expect: 100-continue`. A request with a wrong header gets its answer
// now, and the client need not send the body: fasthttp sends the response that is left here
// and closes the connection.
func (s *Server) answerExpect(ctx *fasthttp.RequestCtx) int {
	ctx.SetUserValue(expectKey{}, true)
	s.dispatch(ctx)
	ctx.RemoveUserValue(expectKey{})
	if status := ctx.Response.StatusCode(); status >= 400 {
		drainOnClose(ctx)
		return status
	}
	ctx.Response.Reset()
	return fasthttp.StatusContinue
}

// answerPanic answers for a handler that panicked.
func (s *Server) answerPanic(ctx *fasthttp.RequestCtx, p any) {
	s.log.Error("http: panic", "method", string(ctx.Method()), "path", string(ctx.URI().PathOriginal()),
		"panic", p, "stack", string(debug.Stack()))
	ctx.Response.Reset()
	s.setSecurityHeaders(ctx)
	ctx.SetConnectionClose()
	writeProblem(ctx, internalProblem)
}

// recordAudit records a change, or a request that was refused.
func (s *Server) recordAudit(ctx *fasthttp.RequestCtx, rt *route) {
	status := ctx.Response.StatusCode()
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
// request.
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
	return e
}
