package http

import (
	"bytes"
	"errors"
	"mime"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/http/access"
)

// Protection of users with a browser. A page of any origin can have the browser send requests to this
// server, loopback addresses included, with the session's cookie where SameSite permits. Browsers mark
// such requests, or can be made to ask first; package access decides by these marks, and this file
// reads them from fasthttp's header and words the refusals. docs/security.md lists the attacks.
//
//	Host              checkHost, 421: DNS rebinding
//	Origin, Sec-Fetch-*   checkOrigin, 403: requests that other origins cause
//	Content-Type      checkType, 415: what a page can send without asking first
//	answers           setSecurityHeaders: no sniffing, frames or embedding
//	preflights        preflight: the origins that may

// challenge is the WWW-Authenticate of every 401.
const challenge = `Bearer realm="caravan"`

// Access says which requests are served. The zero value only refuses requests that pages of
// other origins cause: that protects users with a browser.
type Access struct {
	// Hosts are the host names that a request may have on a listener that is not an
	// *Entrance; nil = any.
	Hosts *access.Hosts
	// Origins are the origins of web pages that may use the API, in addition to the server's
	// own origin.
	Origins *access.Origins
	// Keys are the tokens; nil: everyone who reaches a listener may do everything.
	Keys *access.Keys
	// Audit records changes and refusals; nil = no audit log.
	Audit *access.Audit
}

// bodyKind is the kind of body that a route accepts.
type bodyKind int

const (
	noBody    bodyKind = iota
	jsonBody           // one document
	linesBody          // one document per line
	formBody           // a form of this server's login page
)

// mediaType is the Content-Type that the body must have. Web pages cannot send JSON types to
// another origin without a preflight request.
func (k bodyKind) mediaType() string {
	switch k {
	case linesBody:
		return linesType
	case formBody:
		return formType
	}
	return jsonType
}

// checkHost refuses host names that are not this server's; nil hosts allow any. Without it a page could
// let its own name point to this server, and would then be a page of the same origin.
func checkHost(hosts *access.Hosts, h *fasthttp.RequestHeader) error {
	if hosts == nil {
		return nil
	}
	host := h.Host()
	if target := h.RequestURI(); len(target) > 0 && target[0] != '/' && target[0] != '*' {
		// The host of the absolute form replaces the Host header (RFC 9112, section
		// 3.2.2). Both must be allowed.
		authority := target
		if _, after, ok := bytes.Cut(target, []byte("://")); ok {
			authority = after
		}
		if end := bytes.IndexAny(authority, "/?#"); end >= 0 {
			authority = authority[:end]
		}
		if !hosts.Allows(authority) {
			return wrongHost(authority)
		}
	}
	// Only HTTP/1.0 requests may lack a Host, and browsers do not send HTTP/1.0.
	if len(host) == 0 && !h.IsHTTP11() || hosts.Allows(host) {
		return nil
	}
	return wrongHost(host)
}

// wrongHost refuses a host name with 421 (Misdirected Request).
func wrongHost(host []byte) error {
	return &refusal{fasthttp.StatusMisdirectedRequest,
		"host " + quoteInput(host) + " is not a name of this server; caravan serve --allow-host adds names"}
}

// checkOrigin refuses requests that web pages of other origins cause. isBulk is access.Fetch.Bulk.
// Programs send neither of the two headers, and pages cannot take them away, so a request without them
// is not checked.
func (s *Server) checkOrigin(h *fasthttp.RequestHeader, isBulk bool) error {
	if h.Peek(fasthttp.HeaderOrigin) == nil && h.Peek("Sec-Fetch-Site") == nil {
		return nil // from a program, or from a browser without these headers
	}
	fetch := fetchMetadata(h)
	fetch.Bulk = isBulk
	err := s.cfg.Access.Origins.Check(fetch)
	if errors.Is(err, access.ErrCrossSite) {
		return &refusal{fasthttp.StatusForbidden, err.Error()}
	}
	return err
}

// fetchMetadata returns the headers by which a browser describes a request.
func fetchMetadata(h *fasthttp.RequestHeader) access.Fetch {
	return access.Fetch{
		Host: h.Host(), Origin: h.Peek(fasthttp.HeaderOrigin),
		Site: h.Peek("Sec-Fetch-Site"), Mode: h.Peek("Sec-Fetch-Mode"), Dest: h.Peek("Sec-Fetch-Dest"),
		Safe: h.IsGet() || h.IsHead() || h.IsOptions(),
	}
}

// checkType refuses bodies of another media type, or with a charset other than UTF-8. A page of another
// origin can send a POST without a preflight if it has the type of a form, or is without a type. noBody
// routes accept any type as long as the request is safe or without a body: DELETE and PATCH need a
// preflight anyway.
func checkType(h *fasthttp.RequestHeader, kind bodyKind) error {
	given, want := h.ContentType(), kind.mediaType()
	if string(given) == want {
		return nil
	}
	if kind == noBody && (h.IsGet() || h.IsHead() || h.IsOptions() || h.ContentLength() == 0 || h.ContentLength() == -2) {
		return nil // -2: neither Content-Length nor Transfer-Encoding
	}
	how := "send " + want + " (curl: -H 'Content-Type: " + want + "')"
	if len(given) == 0 {
		return &refusal{fasthttp.StatusUnsupportedMediaType, "Content-Type is missing: " + how}
	}
	media, params, err := mime.ParseMediaType(string(given))
	charset, named := params["charset"]
	if err != nil || media != want || named && !strings.EqualFold(charset, "utf-8") {
		return &refusal{fasthttp.StatusUnsupportedMediaType, "Content-Type " + quoteInput(given) + " is not supported: " + how}
	}
	return nil
}

// Headers of every answer. They tell browsers not to guess its type, and not to embed it in
// pages of other origins.
var (
	nosniffHeader  = []byte("X-Content-Type-Options")
	nosniff        = []byte("nosniff")
	resourceHeader = []byte("Cross-Origin-Resource-Policy")
	frameHeader    = []byte("X-Frame-Options")
	deny           = []byte("DENY")
	sameOrigin     = []byte("same-origin")
)

// setSecurityHeaders sets the headers that protect users with a browser, on every answer. Where origins
// are listed, answers depend on Origin, so Vary keeps caches from mixing them up; a handler
// that varies its answer by another header adds to it (taskStates).
func (s *Server) setSecurityHeaders(ctx *fasthttp.RequestCtx) {
	h := &ctx.Response.Header
	h.SetCanonical(nosniffHeader, nosniff)
	h.SetCanonical(frameHeader, deny)
	if origin := ctx.Request.Header.Peek(fasthttp.HeaderOrigin); s.cfg.Access.Origins != nil {
		h.SetCanonical([]byte(fasthttp.HeaderVary), []byte(fasthttp.HeaderOrigin))
		if s.cfg.Access.Origins.Has(origin) {
			h.SetBytesV(fasthttp.HeaderAccessControlAllowOrigin, origin)
			h.Set(fasthttp.HeaderAccessControlExposeHeaders, exposedHeaders)
			return // pages of this origin may embed the answer
		}
	}
	h.SetCanonical(resourceHeader, sameOrigin)
}

const (
	// exposedHeaders are the headers of answers that pages of listed origins may read.
	exposedHeaders = "Content-Range, ETag, Link, Location, Retry-After, X-Next-Cursor, X-State, X-Tasks"
	// allowedHeaders are the headers of requests that these pages may set.
	allowedHeaders = "Authorization, Content-Encoding, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, Range"
)

// preflight answers a browser that asks whether a page of a listed origin may send a request.
// The protection middleware has refused pages of other origins.
func (s *Server) preflight(ctx *fasthttp.RequestCtx) {
	h := &ctx.Request.Header
	if h.Peek(fasthttp.HeaderAccessControlRequestMethod) == nil || !s.cfg.Access.Origins.Has(h.Peek(fasthttp.HeaderOrigin)) {
		return
	}
	r := &ctx.Response.Header
	r.Set(fasthttp.HeaderAccessControlAllowMethods, allowedMethods(ctx))
	r.Set(fasthttp.HeaderAccessControlAllowHeaders, allowedHeaders)
	r.Set(fasthttp.HeaderAccessControlMaxAge, "600")
	r.Set(fasthttp.HeaderVary, "Origin, Access-Control-Request-Method, Access-Control-Request-Headers")
}

// willBeRefused tells from the header alone that a request with a body will be refused. A request that
// it misses is refused a few bytes of the body later. It repeats checks of the middlewares, which
// decide; the router has not run yet, so it does not know the route and its scope.
func (s *Server) willBeRefused(e *Entrance, h *fasthttp.RequestHeader) bool {
	if int64(h.ContentLength()) > s.bodyLimit(h) || checkRepeatedHeaders(h) != nil || checkHost(e.Hosts, h) != nil || s.checkOrigin(h, false) != nil {
		return true
	}
	if target := string(h.RequestURI()); target == loginPath || target == logoutPath {
		return false // they take forms, and need no token
	}
	if s.cfg.Access.Keys != nil && !e.Local && e.TLS == nil { // certificates are not in the header
		if _, _, ok := s.credentials(h, nil); !ok {
			return true
		}
	}
	return checkType(h, jsonBody) != nil && checkType(h, linesBody) != nil
}

// singleHeaders are the headers that may occur once: they decide about credentials, origin,
// host and framing of the request. With two lines of one of them, a proxy may use the first
// value and fasthttp the last.
var singleHeaders = [...]string{
	fasthttp.HeaderHost, fasthttp.HeaderContentType, fasthttp.HeaderContentLength, fasthttp.HeaderTransferEncoding,
	fasthttp.HeaderAuthorization, fasthttp.HeaderOrigin, "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest",
	fasthttp.HeaderExpect, fasthttp.HeaderRange, fasthttp.HeaderCookie, "Idempotency-Key", "Last-Event-ID",
	fasthttp.HeaderAccessControlRequestMethod,
}

// repeatedHeader returns the first of singleHeaders that occurs twice in raw header lines, even with
// the same value; "" when each occurs once at most. It runs for every request: one pass, without
// allocation. The set bits of seen are indexes of singleHeaders, of which there must be fewer than 64.
func repeatedHeader(raw []byte) string {
	seen := 0
	for len(raw) > 0 {
		line := raw
		if end := bytes.IndexByte(raw, '\n'); end >= 0 {
			line, raw = raw[:end], raw[end+1:]
		} else {
			raw = nil
		}
		colon := bytes.IndexByte(line, ':')
		if colon < 0 {
			continue
		}
		for i := range singleHeaders {
			name := singleHeaders[i]
			if len(name) != colon || line[0]|0x20 != name[0]|0x20 || !bytes.EqualFold(line[:colon], []byte(name)) {
				continue
			}
			if seen&(1<<i) != 0 {
				return name
			}
			seen |= 1 << i
			break
		}
	}
	return ""
}

// checkRepeatedHeaders refuses a request that repeats one of singleHeaders.
func checkRepeatedHeaders(h *fasthttp.RequestHeader) error {
	if name := repeatedHeader(h.RawHeaders()); name != "" {
		return &refusal{fasthttp.StatusBadRequest, "the request has more than one " + name + " header"}
	}
	return nil
}
