package http

import (
	"bytes"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/messages"
)

// open marks a route that needs no token.
const open access.Scopes = 1 << 7

// identify finds out who sends a request, and refuses those who are not known
// where they have to be.
func (s *Server) identify(h *fasthttp.RequestHeader, c *conn) (access.Caller, error) {
	who := access.Caller{Principal: messages.Principal{UID: -1}, Scopes: access.All}
	common := ""
	if c != nil {
		who.Address, who.UID = c.address, c.uid
		if c.stranger() {
			return who, &refusal{fasthttp.StatusForbidden, "user " + strconv.Itoa(c.uid) + " may not use this socket: only the server's own user and root may"}
		}
		if cert := c.certificate(); cert != nil {
			who.Certificate, common = cert.Subject.String(), cert.Subject.CommonName
		}
	}
	keys := s.cfg.Access.Keys
	if keys == nil {
		return who, nil
	}
	found, given, ok := s.credentials(h, c)
	switch {
	case ok:
		who.Token, who.Session, who.Scopes = found.Token, found.Session, found.Scopes
		return who, nil
	case given:
		who.Scopes = 0
		return who, &refusal{fasthttp.StatusUnauthorized, "the token is not one of this server's"}
	case c != nil && c.entrance.Local:
		return who, nil
	}
	if who.Scopes, ok = keys.Certificate(common); ok && common != "" {
		return who, nil
	}
	who.Scopes = 0
	return who, &refusal{fasthttp.StatusUnauthorized, "a token is needed: send it as `Authorization: Bearer …`, or open /login in a browser"}
}

// credentials looks for a token or a session. An Authorization header prevails over a
// cookie; given tells that there was one. By TLS only the cookie that no other host and no
// unencrypted page can set is looked at. Without TLS it prevails: there may be a proxy that
// ends TLS.
func (s *Server) credentials(h *fasthttp.RequestHeader, c *conn) (who access.Caller, given, ok bool) {
	if value := h.Peek(fasthttp.HeaderAuthorization); value != nil {
		secret, bearer := bearerOf(value)
		if !bearer || len(h.PeekAll(fasthttp.HeaderAuthorization)) > 1 {
			return who, true, false
		}
		who, ok = s.cfg.Access.Keys.Secret(secret)
		return who, true, ok
	}
	cookie := h.Cookie(secureCookie)
	if len(cookie) == 0 && (c == nil || c.entrance.TLS == nil) {
		cookie = h.Cookie(plainCookie)
	}
	if len(cookie) > 0 {
		who, ok = s.sessions.Find(cookie, time.Now())
	}
	return who, false, ok
}

// bearerOf is the token of an Authorization header.
func bearerOf(value []byte) ([]byte, bool) {
	const scheme = "bearer "
	if len(value) <= len(scheme) || !bytes.EqualFold(value[:len(scheme)], []byte(scheme)) {
		return nil, false
	}
	return bytes.Trim(value[len(scheme):], " "), true
}

// authorize decides whether a caller may use a route.
func (s *Server) authorize(ctx *fasthttp.RequestCtx, rt *route) (access.Caller, error) {
	if rt.scope&open != 0 {
		c := connOf(ctx)
		if c != nil && c.stranger() {
			_, err := s.identify(&ctx.Request.Header, c)
			return access.Caller{}, err
		}
		return access.Caller{}, nil
	}
	who, err := s.identify(&ctx.Request.Header, connOf(ctx))
	switch {
	case err != nil:
		return who, err
	case who.Scopes&rt.scope == 0:
		return who, inScope(who, rt.scope)
	case who.Session && !fetchOf(&ctx.Request.Header).Safe && !ownPage(&ctx.Request.Header):
		return who, &refusal{fasthttp.StatusForbidden, "a change with a cookie must come from a page of this server"}
	}
	setPrincipal(ctx, &who.Principal)
	if s.cfg.Access.Keys != nil {
		ctx.SetUserValue(permitKey{}, rt)
		ctx.Response.Header.Set(fasthttp.HeaderCacheControl, "private, no-cache")
	}
	return who, nil
}

// inScope refuses a caller who has none of the scopes.
func inScope(who access.Caller, scope access.Scopes) error {
	if who.Scopes&scope != 0 {
		return nil
	}
	return &refusal{fasthttp.StatusForbidden, callerName(who) + " has the scopes " + strconv.Quote(who.Scopes.String()) + ", and this needs " + anyOf(scope)}
}

func callerName(who access.Caller) string {
	if who.Token != "" {
		return "token " + strconv.Quote(who.Token)
	}
	return "certificate " + strconv.Quote(who.Certificate)
}

// anyOf words the scopes of which one is enough.
func anyOf(scopes access.Scopes) string {
	return string(bytes.ReplaceAll([]byte(scopes.String()), []byte(","), []byte(" or ")))
}

// ownPage tells whether a browser says that one of this server's pages sent the
// request. Saying nothing is not enough here.
func ownPage(h *fasthttp.RequestHeader) bool {
	f := fetchOf(h)
	return f.SameOrigin() && (len(f.Origin) > 0 || string(f.Site) == "same-origin")
}

// addressOf is the client's IP address; the zero value by a unix socket.
func addressOf(ctx *fasthttp.RequestCtx) netip.Addr {
	if tcp, ok := ctx.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr()
	}
	return netip.Addr{}
}

// auditKey is where a request of many lines has its entry, for the batch to complete.
type auditKey struct{}

// audit records a change, or a request that was refused.
func (s *Server) audit(ctx *fasthttp.RequestCtx, rt *route, who *access.Caller) {
	status := ctx.Response.StatusCode()
	change := rt.changes() && status != fasthttp.StatusUnauthorized
	switch status {
	case fasthttp.StatusUnauthorized, fasthttp.StatusForbidden, fasthttp.StatusMisdirectedRequest, fasthttp.StatusTooManyRequests:
		change = true
	}
	if !change || rt.body == linesBody && status == fasthttp.StatusOK {
		return // a batch has its own line: see submitBatch
	}
	e := s.entry(ctx, rt, who)
	e.Status = status
	if status != fasthttp.StatusUnauthorized && status >= 400 && e.Token == "" && s.cfg.Access.Keys != nil {
		// It was refused before it was known who sends it.
		if found, _, ok := s.credentials(&ctx.Request.Header, connOf(ctx)); ok {
			e.Token, e.Session = found.Token, found.Session
		}
	}
	if run, err := runOf(ctx); err == nil {
		e.Run = (*uint64)(&run)
	} else if at := ctx.Response.Header.Peek(fasthttp.HeaderLocation); rt.body == jsonBody && len(at) > len(runPath) {
		if run, err := strconv.ParseUint(string(at[len(runPath):]), 10, 64); err == nil {
			e.Run = &run
		}
	}
	if task, err := param(ctx, "task"); err == nil {
		e.Task = string([]byte(task))
	}
	s.cfg.Access.Audit.Record(e)
}

const runPath = "/v1/dagrun/"

// longestAudited bounds the path in the audit log.
const longestAudited = 1 << 10

// entry is what the audit log says of a request, without its result. It keeps nothing
// of the request.
func (s *Server) entry(ctx *fasthttp.RequestCtx, rt *route, who *access.Caller) access.Entry {
	path := ctx.URI().PathOriginal()
	e := access.Entry{
		Time: time.Now().UTC(), Method: string(ctx.Method()), Route: rt.path, Path: string(path[:min(len(path), longestAudited)]),
		Token: who.Token, Session: who.Session, Address: ctx.RemoteAddr().String(),
	}
	if c := connOf(ctx); c != nil {
		if c.entrance.Local {
			e.Address = "unix"
		}
		if uid := c.uid; uid >= 0 {
			e.UID = &uid
		}
		if cert := c.certificate(); cert != nil {
			e.Certificate = cert.Subject.String()
		}
	}
	return e
}

// changes tells whether the route changes anything.
func (rt *route) changes() bool {
	switch rt.method {
	case "", fasthttp.MethodGet:
		return false
	}
	return rt.path != validatePath
}
