package http

import (
	"bytes"
	"errors"
	"html"
	"io"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/messages"
)

// A caller is identified by the first of these that the request has:
//
//	a unix socket's user    checked first: another user than the server's and root is refused
//	Authorization           a token; with a wrong one nothing below counts, 401
//	a session cookie        stands for the token that it was begun with; a wrong one is ignored
//	a unix socket           allows everything
//	a client certificate    its line in the token file
//
// A request without any of them is refused with 401. Without a token file every caller who reaches the
// server may do everything; a certificate then only gives a name to the audit log.
//
// The right is checked when the request begins. It is checked again for whatever lasts longer: a body
// that took long to arrive (recheckPermit), each piece of a stream (streamBody), each turn of a batch,
// and everything that waits when the token file changes (permitSet).

// identify returns the caller of a request. It refuses unknown callers where a token is needed. The
// caller's principal is set in any case. c may be nil: then the request did not come from Serve.
func (s *Server) identify(h *fasthttp.RequestHeader, c *conn) (access.Caller, error) {
	who := access.Caller{Principal: messages.Principal{UID: -1}, Scopes: access.All}
	commonName := ""
	if c != nil {
		who.Address, who.UID = c.address, c.uid
		if c.isForeignUser() {
			return who, &refusal{fasthttp.StatusForbidden, "user " + strconv.Itoa(c.uid) + " may not use this socket: only the server's own user and root may"}
		}
		if cert := c.clientCertificate(); cert != nil {
			who.Certificate, commonName = cert.Subject.String(), cert.Subject.CommonName
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
		return who, &refusal{fasthttp.StatusUnauthorized, "unknown token: it is not in this server's token file"}
	case c != nil && c.entrance.Local:
		return who, nil
	}
	if who.Scopes, ok = keys.CertificateScopes(commonName); ok && commonName != "" {
		return who, nil
	}
	who.Scopes = 0
	return who, &refusal{fasthttp.StatusUnauthorized, "a token is needed: send it as `Authorization: Bearer …`, or open /login in a browser"}
}

// credentials looks for a token or a session; given tells whether there was an Authorization
// header, which prevails over cookies. With TLS only secureCookie counts, which other hosts
// and unencrypted pages cannot set. Without TLS it prevails over plainCookie: a proxy may
// have ended TLS.
func (s *Server) credentials(h *fasthttp.RequestHeader, c *conn) (who access.Caller, given, ok bool) {
	if value := h.Peek(fasthttp.HeaderAuthorization); value != nil {
		secret, isBearer := bearerToken(value)
		if !isBearer || len(h.PeekAll(fasthttp.HeaderAuthorization)) > 1 {
			return who, true, false
		}
		who, ok = s.cfg.Access.Keys.FindSecret(secret)
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

// bearerToken returns the token of an Authorization header: "Bearer caravan_…", in any case of the
// scheme (RFC 9110, section 11.1). Any other scheme is false.
func bearerToken(value []byte) ([]byte, bool) {
	const scheme = "bearer "
	if len(value) <= len(scheme) || !bytes.EqualFold(value[:len(scheme)], []byte(scheme)) {
		return nil, false
	}
	return bytes.Trim(value[len(scheme):], " "), true
}

// authorize decides whether the caller of a request may use a route, and sets the request's principal.
// A public route looks at the user of a unix socket alone.
//
// A change that a cookie authorizes must also come from a page of this server: SameSite keeps the
// cookie from pages of other sites, but not from those of other ports of the same host. On a server
// with tokens answers are private, so that a shared cache does not give them to others.
func (s *Server) authorize(ctx *fasthttp.RequestCtx, rt *route) error {
	h, c := &ctx.Request.Header, connOf(ctx)
	if rt.scope&publicRoute != 0 {
		if c != nil && c.isForeignUser() {
			_, err := s.identify(h, c)
			return err
		}
		return nil
	}
	if s.cfg.Access.Keys == nil && c != nil && c.entrance.TLS == nil && !c.entrance.Local {
		return nil // the address is all there is to know, and the connection has it
	}
	tokens := s.tokensInForce() // before the look-up: see recheckPermit
	who, err := s.identify(h, c)
	setCaller(ctx, &who)
	switch {
	case err != nil:
		return err
	case who.Scopes&rt.scope == 0:
		return checkScope(&who, rt.scope)
	case who.Session && !fetchMetadata(h).Safe && !isFromOwnPage(h):
		return &refusal{fasthttp.StatusForbidden, "a change with a cookie must come from a page of this server"}
	}
	if s.cfg.Access.Keys != nil {
		ctx.SetUserValue(permitKey{}, rt)
		ctx.SetUserValue(authorizedByKey{}, tokens)
		ctx.Response.Header.Set(fasthttp.HeaderCacheControl, "private, no-cache")
	}
	return nil
}

// checkScope refuses a caller without any of the scopes.
func checkScope(who *access.Caller, scope access.Scopes) error {
	if who.Scopes&scope != 0 {
		return nil
	}
	name := "certificate " + strconv.Quote(who.Certificate)
	if who.Token != "" {
		name = "token " + strconv.Quote(who.Token)
	}
	return &refusal{fasthttp.StatusForbidden, name + " has the scopes " + strconv.Quote(who.Scopes.String()) + ", and this needs " + scopeAlternatives(scope)}
}

// scopeAlternatives lists scopes of which one is enough: "read or submit".
func scopeAlternatives(scopes access.Scopes) string {
	return strings.ReplaceAll(scopes.String(), ",", " or ")
}

// isFromOwnPage tells whether a browser says that a page of this server sent the request. A
// request without any such header does not count.
func isFromOwnPage(h *fasthttp.RequestHeader) bool {
	f := fetchMetadata(h)
	return f.SameOrigin() && (len(f.Origin) > 0 || string(f.Site) == "same-origin")
}

// permit is a caller's right to the rest of a long answer. The answer may outlive the token or session
// of its request. So each piece checks the permit again, and requests that wait are checked when the
// token file changes. A nil permit is always valid. It is used by the connection's goroutine and by
// those that reload the token file or end a session.
type permit struct {
	s     *Server
	conn  *conn
	scope access.Scopes

	mu            sync.Mutex             // of what follows
	credentials   fasthttp.RequestHeader // only the headers of the request that hold credentials
	checkedTokens *access.Tokens         // the token file of the last check
	fromSession   bool                   // the session of a browser stands for the token; it expires by itself
}

// permitKey is the key of a request's route, and of its permit once that was needed.
type permitKey struct{}

// authorizedByKey is the key of the token file that a request was authorized by, or of an older one.
type authorizedByKey struct{}

// permitOf returns the permit of an authorized request; nil where the route or the server needs no
// token. It is made when it is first asked for, so that short requests do not pay for copies of their
// credentials. Only the connection's goroutine may call it, before the handler returns.
func (s *Server) permitOf(ctx *fasthttp.RequestCtx) *permit {
	var rt *route
	switch v := ctx.UserValue(permitKey{}).(type) {
	case *permit:
		return v
	case *route:
		rt = v
	default:
		return nil
	}
	// checkedTokens stays nil, so the first check is complete: the file may have changed since
	// the request was authorized.
	p := &permit{s: s, conn: connOf(ctx), scope: rt.scope}
	h := &ctx.Request.Header
	if value := h.Peek(fasthttp.HeaderAuthorization); value != nil {
		p.credentials.SetBytesV(fasthttp.HeaderAuthorization, value)
	}
	for _, name := range [...]string{secureCookie, plainCookie} {
		if value := h.Cookie(name); len(value) > 0 {
			p.credentials.SetCookie(name, string(value))
		}
	}
	ctx.SetUserValue(permitKey{}, p)
	return p
}

// check returns why the caller may no longer use the route; nil when it may. While the token file is
// the same, only sessions are looked up again: they end by a logout and by time. The comparison is of
// pointers (Keys.InForce), so checking a token costs little for each piece of a stream.
func (p *permit) check() error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	inForce := p.s.cfg.Access.Keys.InForce()
	if inForce == p.checkedTokens && !p.fromSession {
		return nil
	}
	who, err := p.s.identify(&p.credentials, p.conn)
	if err == nil {
		err = checkScope(&who, p.scope)
	}
	if err != nil {
		return err
	}
	p.checkedTokens, p.fromSession = inForce, who.Session
	return nil
}

// isValid is check for callers that can only break off.
func (p *permit) isValid() bool { return p.check() == nil }

// permitSet holds the permits of requests that wait, each with the function that ends the wait.
type permitSet struct {
	mu      sync.Mutex
	pending map[*permit]func()
}

// add has end called, from another goroutine, when the permit is no longer valid, until remove
// is called. It calls end at once when the permit is not valid now. A request has one wait at
// a time.
func (ps *permitSet) add(p *permit, end func()) (remove func()) {
	if p == nil {
		return func() {}
	}
	ps.mu.Lock()
	if ps.pending == nil {
		ps.pending = make(map[*permit]func())
	}
	ps.pending[p] = end
	ps.mu.Unlock()
	if !p.isValid() { // the file may have changed before the permit was in the set
		end()
	}
	return func() {
		ps.mu.Lock()
		defer ps.mu.Unlock()
		delete(ps.pending, p)
	}
}

// errRevoked is the cause of a wait that ended because its caller lost the right to it.
var errRevoked = errors.New("the token or session of this request is no longer valid")

// revokePermits ends the waits of callers whose token, scope or session is gone. It works on a copy:
// a check takes the permit's own lock and reads the token file in use, and an ended wait takes mu to
// remove itself.
func (s *Server) revokePermits() {
	ps := &s.permits
	ps.mu.Lock()
	pending := maps.Clone(ps.pending)
	ps.mu.Unlock()
	for p, end := range pending {
		if !p.isValid() {
			end()
		}
	}
}

// recheckPermit checks the caller of a request that took a while to arrive, before it changes anything.
// While the token file is the one that the request was authorized by, a token is still valid, and a
// submission does not make a permit. A session may have ended by a logout or by time, so a request with a
// cookie is always checked.
func (s *Server) recheckPermit(ctx *fasthttp.RequestCtx) error {
	before, _ := ctx.UserValue(authorizedByKey{}).(*access.Tokens)
	if s.tokensInForce() == before && ctx.Request.Header.Peek(fasthttp.HeaderCookie) == nil {
		return nil
	}
	return s.permitOf(ctx).check()
}

// tokensInForce returns the token file; nil on a server without one.
func (s *Server) tokensInForce() *access.Tokens {
	if s.cfg.Access.Keys == nil {
		return nil
	}
	return s.cfg.Access.Keys.InForce()
}

// Names of the session cookie. Browsers accept the first one only from a TLS connection, and
// only for the whole host.
const (
	secureCookie = "__Host-caravan_session"
	plainCookie  = "caravan_session"
)

const (
	loginPath    = "/login"
	logoutPath   = "/logout"
	formType     = "application/x-www-form-urlencoded"
	maxLoginForm = 4 << 10 // bytes
)

// Logins of one address: loginBurst at once, then one per interval.
const (
	loginBurst    = 5
	loginInterval = 2 * time.Second
)

const (
	loginPolicy = "default-src " + cspNone + "; form-action 'self'; frame-ancestors " + cspNone + "; base-uri " + cspNone
	cspNone     = "'none'"
	loginHead   = `<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Caravan</title></head><body><h1>Caravan</h1>`
	loginFields = `<form method="post" action="/login" autocomplete="off"><label>Token <input type="password" name="token" required autofocus></label> <button>Log in</button></form>`
	logoutField = `<form method="post" action="/logout"><button>Log out</button></form>`
	loginTail   = `</body></html>`
)

// loginPage is GET /login: a form for the token, or the token of the session. The policy of the page
// forbids scripts, resources of any kind, and frames.
func (s *Server) loginPage(ctx *fasthttp.RequestCtx) error {
	if s.sessions == nil {
		return noTokenFile()
	}
	who, _, ok := s.credentials(&ctx.Request.Header, connOf(ctx))
	if !ok || !who.Session {
		return s.writeLoginPage(ctx, fasthttp.StatusOK, "", loginFields)
	}
	return s.writeLoginPage(ctx, fasthttp.StatusOK, "Logged in with the token "+who.Token+" ("+who.Scopes.String()+").", logoutField)
}

// noTokenFile refuses the login routes of a server without tokens.
func noTokenFile() error {
	return &refusal{fasthttp.StatusNotFound, "this server has no tokens: start it with --token-file to log in with one"}
}

// writeLoginPage answers with the page: a sentence of plain text, and one of the two forms as HTML.
func (s *Server) writeLoginPage(ctx *fasthttp.RequestCtx, status int, text, form string) error {
	h := &ctx.Response.Header
	h.SetContentType("text/html; charset=utf-8")
	h.Set(fasthttp.HeaderContentSecurityPolicy, loginPolicy)
	h.Set(fasthttp.HeaderCacheControl, "no-store")
	h.Set(fasthttp.HeaderReferrerPolicy, "same-origin") // with no-referrer, browsers send the form with `Origin: null`
	ctx.SetStatusCode(status)
	if text != "" {
		text = "<p>" + html.EscapeString(text) + "</p>"
	}
	ctx.Response.SetBodyString(loginHead + text + form + loginTail)
	return nil
}

// login is POST /login: it begins a session. Only this server's own page may send the form. Another
// page could log the browser in under a different token. The bound on logins comes before the form is
// read, and counts all attempts of an address, successful ones as well.
func (s *Server) login(ctx *fasthttp.RequestCtx) error {
	switch {
	case s.sessions == nil:
		return noTokenFile()
	case !isFromOwnPage(&ctx.Request.Header):
		return &refusal{fasthttp.StatusForbidden, "the login form must come from a page of this server; programs send `Authorization: Bearer …`"}
	case !s.logins.Allow(clientIP(ctx), time.Now()):
		ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, "2") // loginInterval
		return &refusal{fasthttp.StatusTooManyRequests, "too many logins from this address: try again in 2 seconds"}
	}
	form, err := readForm(ctx)
	if err != nil {
		return err
	}
	cookie, _, ok := s.sessions.Begin([]byte(strings.TrimSpace(form.Get("token"))), time.Now())
	if !ok {
		ctx.Response.Header.Set(fasthttp.HeaderWWWAuthenticate, challenge)
		return s.writeLoginPage(ctx, fasthttp.StatusUnauthorized, "Unknown token.", loginFields)
	}
	s.setCookie(ctx, cookie, int(access.SessionTime/time.Second))
	ctx.Response.Header.Set(fasthttp.HeaderLocation, loginPath)
	ctx.SetStatusCode(fasthttp.StatusSeeOther)
	return nil
}

// logout is POST /logout: it ends the session, and its requests that wait or follow. Without a session
// the answer is the same.
func (s *Server) logout(ctx *fasthttp.RequestCtx) error {
	if s.sessions == nil {
		return noTokenFile()
	}
	if !isFromOwnPage(&ctx.Request.Header) {
		return &refusal{fasthttp.StatusForbidden, "the form must come from a page of this server"}
	}
	for _, name := range []string{secureCookie, plainCookie} {
		if cookie := ctx.Request.Header.Cookie(name); len(cookie) > 0 {
			s.sessions.End(cookie)
		}
	}
	s.revokePermits() // ends the waits of the session's pages
	s.setCookie(ctx, "", -1)
	ctx.Response.Header.Set(fasthttp.HeaderLocation, loginPath)
	ctx.SetStatusCode(fasthttp.StatusSeeOther)
	return nil
}

// setCookie sets the session cookie in the browser, for a number of seconds; a negative one deletes
// it. The cookie is invisible to scripts, and SameSite=Strict keeps it out of requests that other
// sites cause. Sites that differ only in the port are the same site for browsers, so handlers also
// compare the origin (isFromOwnPage).
func (s *Server) setCookie(ctx *fasthttp.RequestCtx, value string, seconds int) {
	c := fasthttp.AcquireCookie()
	defer fasthttp.ReleaseCookie(c)
	c.SetKey(plainCookie)
	if cameByTLS(ctx) {
		c.SetKey(secureCookie)
		c.SetSecure(true)
	}
	c.SetValue(value)
	c.SetPath("/")
	c.SetHTTPOnly(true)
	c.SetSameSite(fasthttp.CookieSameSiteStrictMode)
	if seconds < 0 {
		c.SetExpire(fasthttp.CookieExpireDelete)
	} else {
		c.SetMaxAge(seconds)
	}
	ctx.Response.Header.SetCookie(c)
}

// cameByTLS tells whether the browser uses TLS, to this server or to a proxy in front of it. Behind a
// proxy the scheme of Origin is the browser's word for it.
func cameByTLS(ctx *fasthttp.RequestCtx) bool {
	if c := connOf(ctx); c != nil && c.entrance.TLS != nil {
		return true
	}
	return strings.HasPrefix(string(ctx.Request.Header.Peek(fasthttp.HeaderOrigin)), "https://")
}

// readForm reads the body as an HTML form of at most maxLoginForm bytes.
func readForm(ctx *fasthttp.RequestCtx) (url.Values, error) {
	var text []byte
	if stream := bodyStream(ctx); stream != nil {
		var err error
		if text, err = io.ReadAll(io.LimitReader(stream, maxLoginForm+1)); err != nil {
			ctx.SetConnectionClose()
			return nil, bodyReadError(ctx, err)
		}
	} else {
		text = ctx.Request.Body()
	}
	if len(text) > maxLoginForm {
		drainOnClose(ctx)
		ctx.SetConnectionClose()
		return nil, &refusal{fasthttp.StatusRequestEntityTooLarge, "the login form is too large: at most " + strconv.Itoa(maxLoginForm) + " bytes"}
	}
	form, err := url.ParseQuery(string(text))
	if err != nil {
		return nil, invalid("the login form is not well-formed: want token=… as " + formType)
	}
	return form, nil
}

// clientIP returns the client's IP address; the zero value for a unix socket.
func clientIP(ctx *fasthttp.RequestCtx) netip.Addr {
	if tcp, ok := ctx.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr()
	}
	return netip.Addr{}
}
