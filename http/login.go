package http

import (
	"html"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/http/access"
)

// Names of the session's cookie. Browsers take the first one by TLS only, and for the
// whole host only.
const (
	secureCookie = "__Host-caravan_session"
	plainCookie  = "caravan_session"
)

const (
	loginPath  = "/login"
	logoutPath = "/logout"
	formType   = "application/x-www-form-urlencoded"
	loginForm  = 4 << 10 // bytes of a form, at most
)

// Logins of one address: so many at once, then one per interval.
const (
	loginBurst    = 5
	loginInterval = 2 * time.Second
)

const (
	loginPolicy = "default-src 'none'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
	loginHead   = `<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Caravan</title></head><body><h1>Caravan</h1>`
	loginFields = `<form method="post" action="/login" autocomplete="off"><label>Token <input type="password" name="token" required autofocus></label> <button>Log in</button></form>`
	logoutField = `<form method="post" action="/logout"><button>Log out</button></form>`
	loginTail   = `</body></html>`
)

// loginPage is GET /login: a form for the token, or who is logged in.
func (s *Server) loginPage(ctx *fasthttp.RequestCtx) error {
	if s.sessions == nil {
		return noTokens()
	}
	who, _, ok := s.credentials(&ctx.Request.Header, connOf(ctx))
	if !ok || !who.Session {
		return s.showLogin(ctx, fasthttp.StatusOK, "", loginFields)
	}
	return s.showLogin(ctx, fasthttp.StatusOK, "Logged in with the token "+who.Token+" ("+who.Scopes.String()+").", logoutField)
}

func noTokens() error {
	return &refusal{fasthttp.StatusNotFound, "this server has no tokens to log in with: --token-file names a file of them"}
}

func (s *Server) showLogin(ctx *fasthttp.RequestCtx, status int, text, form string) error {
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

// login is POST /login: it begins a session. Only this server's own page may send the
// form: another one could log the browser in as somebody else.
func (s *Server) login(ctx *fasthttp.RequestCtx) error {
	switch {
	case s.sessions == nil:
		return noTokens()
	case !ownPage(&ctx.Request.Header):
		return &refusal{fasthttp.StatusForbidden, "the login form must come from a page of this server; programs send `Authorization: Bearer …`"}
	case !s.logins.Allow(addressOf(ctx), time.Now()):
		ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, "2")
		return &refusal{fasthttp.StatusTooManyRequests, "too many logins from this address: wait a moment"}
	}
	form, err := readForm(ctx)
	if err != nil {
		return err
	}
	cookie, _, ok := s.sessions.Begin([]byte(strings.TrimSpace(form.Get("token"))), time.Now())
	if !ok {
		ctx.Response.Header.Set(fasthttp.HeaderWWWAuthenticate, challenge)
		return s.showLogin(ctx, fasthttp.StatusUnauthorized, "This token is not one of this server's.", loginFields)
	}
	s.setCookie(ctx, cookie, int(access.SessionTime/time.Second))
	ctx.Response.Header.Set(fasthttp.HeaderLocation, loginPath)
	ctx.SetStatusCode(fasthttp.StatusSeeOther)
	return nil
}

// logout is POST /logout: it ends the session.
func (s *Server) logout(ctx *fasthttp.RequestCtx) error {
	if s.sessions == nil {
		return noTokens()
	}
	if !ownPage(&ctx.Request.Header) {
		return &refusal{fasthttp.StatusForbidden, "the form must come from a page of this server"}
	}
	for _, name := range []string{secureCookie, plainCookie} {
		if cookie := ctx.Request.Header.Cookie(name); len(cookie) > 0 {
			s.sessions.End(cookie)
		}
	}
	s.revoke() // what the session's pages wait for
	s.setCookie(ctx, "", -1)
	ctx.Response.Header.Set(fasthttp.HeaderLocation, loginPath)
	ctx.SetStatusCode(fasthttp.StatusSeeOther)
	return nil
}

// setCookie gives the browser the session's cookie, or has it forget that.
func (s *Server) setCookie(ctx *fasthttp.RequestCtx, value string, seconds int) {
	c := fasthttp.AcquireCookie()
	defer fasthttp.ReleaseCookie(c)
	c.SetKey(plainCookie)
	if secureOrigin(ctx) {
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

// secureOrigin tells whether the browser came by TLS, to this server or to a proxy in
// front of it.
func secureOrigin(ctx *fasthttp.RequestCtx) bool {
	if c := connOf(ctx); c != nil && c.entrance.TLS != nil {
		return true
	}
	return strings.HasPrefix(string(ctx.Request.Header.Peek(fasthttp.HeaderOrigin)), "https://")
}

// readForm reads a short form.
func readForm(ctx *fasthttp.RequestCtx) (url.Values, error) {
	var text []byte
	if stream := bodyOf(ctx); stream != nil {
		var err error
		if text, err = io.ReadAll(io.LimitReader(stream, loginForm+1)); err != nil {
			p := unread(err)
			ctx.SetConnectionClose()
			return nil, &refusal{p.status, p.text}
		}
	} else {
		text = ctx.Request.Body()
	}
	if len(text) > loginForm {
		linger(ctx)
		ctx.SetConnectionClose()
		return nil, &refusal{fasthttp.StatusRequestEntityTooLarge, "the form is too large"}
	}
	form, err := url.ParseQuery(string(text))
	if err != nil {
		return nil, invalid("the form is not well-formed")
	}
	return form, nil
}
