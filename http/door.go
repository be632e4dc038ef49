package http

import (
	"bytes"
	"errors"
	"mime"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/http/access"
)

// challenge is the WWW-Authenticate of every 401.
const challenge = `Bearer realm="caravan"`

// Access says who is let in. The zero value asks only what protects people with
// browsers: requests that pages of other origins cause are refused.
type Access struct {
	// Hosts are the names that a request may ask for by a listener that is not an
	// *Entrance, which has its own; nil = any.
	Hosts *access.Hosts
	// Origins are the origins of web pages, besides the server's own, that may use
	// the API.
	Origins *access.Origins
	// Keys are the tokens; nil: whoever reaches a listener may do everything.
	Keys *access.Keys
	// Audit records changes and refusals; nil = nothing.
	Audit *access.Audit
}

// bodyKind is what a route takes as its body.
type bodyKind int

const (
	noBody    bodyKind = iota
	jsonBody           // one document
	linesBody          // one document per line
	formBody           // what an HTML form of this server sends
)

// mediaType is the type that a body must be announced with. Web pages cannot
// send these types to another origin without asking for permission first.
func (k bodyKind) mediaType() string {
	switch k {
	case linesBody:
		return linesType
	case formBody:
		return formType
	}
	return jsonType
}

// knock decides, from the header alone, whether a request may come in. It runs
// before any of the body is read.
func (s *Server) knock(ctx *fasthttp.RequestCtx, rt *route, who *access.Caller) error {
	h := &ctx.Request.Header
	hosts := s.cfg.Access.Hosts
	if c := connOf(ctx); c != nil {
		hosts = c.entrance.Hosts
	}
	if err := checkHost(hosts, h); err != nil {
		return err
	}
	if err := s.checkOrigin(h, rt.bulk()); err != nil {
		return err
	}
	var err error
	*who, err = s.authorize(ctx, rt)
	if err == nil && s.cfg.Access.Audit != nil && rt.body == linesBody {
		e := s.entry(ctx, rt, who)
		e.Status = fasthttp.StatusOK
		ctx.SetUserValue(auditKey{}, &e)
	}
	return err
}

// checkHost refuses names that are not this server's.
func checkHost(hosts *access.Hosts, h *fasthttp.RequestHeader) error {
	if hosts == nil {
		return nil
	}
	host := h.Host()
	if target := h.RequestURI(); len(target) > 0 && target[0] != '/' && target[0] != '*' {
		// The absolute form has a name of its own, which counts in place of Host
		// (RFC 9112, section 3.2.2). Both must be right.
		authority := target
		if _, after, ok := bytes.Cut(target, []byte("://")); ok {
			authority = after
		}
		if end := bytes.IndexAny(authority, "/?#"); end >= 0 {
			authority = authority[:end]
		}
		if !hosts.Allows(authority) {
			return misdirected(authority)
		}
	}
	// Only HTTP/1.0 may leave Host out, and no browser speaks it.
	if len(host) == 0 && !h.IsHTTP11() || hosts.Allows(host) {
		return nil
	}
	return misdirected(host)
}

func misdirected(host []byte) error {
	return &refusal{fasthttp.StatusMisdirectedRequest,
		"host " + quote(host) + " is not a name of this server; caravan serve --allow-host adds names"}
}

// checkOrigin refuses requests that web pages of other origins cause. bulk is
// access.Fetch's.
func (s *Server) checkOrigin(h *fasthttp.RequestHeader, bulk bool) error {
	if h.Peek(fasthttp.HeaderOrigin) == nil && h.Peek("Sec-Fetch-Site") == nil {
		return nil // no browser sent it, or none that tells more
	}
	fetch := fetchOf(h)
	fetch.Bulk = bulk
	err := s.cfg.Access.Origins.Check(fetch)
	if errors.Is(err, access.ErrCrossSite) {
		return &refusal{fasthttp.StatusForbidden, err.Error()}
	}
	return err
}

// fetchOf is what a browser tells of a request.
func fetchOf(h *fasthttp.RequestHeader) access.Fetch {
	return access.Fetch{
		Host: h.Host(), Origin: h.Peek(fasthttp.HeaderOrigin),
		Site: h.Peek("Sec-Fetch-Site"), Mode: h.Peek("Sec-Fetch-Mode"), Dest: h.Peek("Sec-Fetch-Dest"),
		Safe: h.IsGet() || h.IsHead() || h.IsOptions(),
	}
}

// checkType wants a body's media type, in UTF-8 when it says so. A page of another
// origin can send a POST without asking first if it has no type, or one of forms.
func checkType(h *fasthttp.RequestHeader, kind bodyKind) error {
	given, want := h.ContentType(), kind.mediaType()
	if string(given) == want {
		return nil
	}
	if kind == noBody && (h.IsGet() || h.IsHead() || h.IsOptions() || h.ContentLength() == 0 || h.ContentLength() == -2) {
		return nil // -2 is fasthttp's for neither length nor encoding
	}
	how := "send " + want + " (curl: -H 'Content-Type: " + want + "')"
	if len(given) == 0 {
		return &refusal{fasthttp.StatusUnsupportedMediaType, "Content-Type is missing: " + how}
	}
	media, params, err := mime.ParseMediaType(string(given))
	charset, named := params["charset"]
	if err != nil || media != want || named && !strings.EqualFold(charset, "utf-8") {
		return &refusal{fasthttp.StatusUnsupportedMediaType, "Content-Type " + quote(given) + " is not supported: " + how}
	}
	return nil
}

// Headers that every answer has. They are for browsers: an answer is what its type
// says, and pages of other origins cannot embed it.
var (
	nosniffHeader  = []byte("X-Content-Type-Options")
	nosniff        = []byte("nosniff")
	resourceHeader = []byte("Cross-Origin-Resource-Policy")
	frameHeader    = []byte("X-Frame-Options")
	deny           = []byte("DENY")
	sameOrigin     = []byte("same-origin")
)

// protect sets them.
func (s *Server) protect(ctx *fasthttp.RequestCtx) {
	h := &ctx.Response.Header
	h.SetCanonical(nosniffHeader, nosniff)
	h.SetCanonical(frameHeader, deny)
	if origin := ctx.Request.Header.Peek(fasthttp.HeaderOrigin); s.cfg.Access.Origins != nil {
		h.SetCanonical([]byte(fasthttp.HeaderVary), []byte(fasthttp.HeaderOrigin))
		if s.cfg.Access.Origins.Has(origin) {
			h.SetBytesV(fasthttp.HeaderAccessControlAllowOrigin, origin)
			h.Set(fasthttp.HeaderAccessControlExposeHeaders, exposed)
			return // its pages may embed what they may read
		}
	}
	h.SetCanonical(resourceHeader, sameOrigin)
}

const (
	// exposed are the headers of answers that pages of listed origins may read.
	exposed = "Content-Range, ETag, Link, Location, Retry-After, X-Next-Cursor, X-State, X-Tasks"
	// asked are the headers of requests that they may set.
	asked = "Authorization, Content-Encoding, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, Range"
)

// preflight answers a browser that asks whether a page of a listed origin may send
// a request. Pages of other origins were refused before.
func (s *Server) preflight(ctx *fasthttp.RequestCtx) {
	h := &ctx.Request.Header
	if h.Peek(fasthttp.HeaderAccessControlRequestMethod) == nil || !s.cfg.Access.Origins.Has(h.Peek(fasthttp.HeaderOrigin)) {
		return
	}
	r := &ctx.Response.Header
	r.Set(fasthttp.HeaderAccessControlAllowMethods, allow(ctx))
	r.Set(fasthttp.HeaderAccessControlAllowHeaders, asked)
	r.Set(fasthttp.HeaderAccessControlMaxAge, "600")
	r.Set(fasthttp.HeaderVary, "Origin, Access-Control-Request-Method, Access-Control-Request-Headers")
}

// suspect tells, before there is more than the header, that a request with a body
// will be refused. What it misses is refused all the same, a few bytes of the body
// later.
func (s *Server) suspect(e *Entrance, h *fasthttp.RequestHeader) bool {
	if int64(h.ContentLength()) > s.bodyLimit(h) || refuseRepeated(h) != nil || checkHost(e.Hosts, h) != nil || s.checkOrigin(h, false) != nil {
		return true
	}
	if target := string(h.RequestURI()); target == loginPath || target == logoutPath {
		return false // they take other types, and no token
	}
	if s.cfg.Access.Keys != nil && !e.Local && e.TLS == nil { // a certificate is not in the header
		if _, _, ok := s.credentials(h, nil); !ok {
			return true
		}
	}
	return checkType(h, jsonBody) != nil && checkType(h, linesBody) != nil
}

// expecting marks a request whose client waits for permission to send the body.
type expecting struct{}

// expect answers `Expect: 100-continue`: a request that its header shows to be wrong
// gets its answer now, and the client need not send the body. fasthttp then sends
// the response as it was left here, and closes the connection.
func (s *Server) expect(ctx *fasthttp.RequestCtx) int {
	ctx.SetUserValue(expecting{}, true)
	s.route(ctx)
	ctx.RemoveUserValue(expecting{})
	if status := ctx.Response.StatusCode(); status >= 400 {
		linger(ctx)
		return status
	}
	ctx.Response.Reset()
	return fasthttp.StatusContinue
}
