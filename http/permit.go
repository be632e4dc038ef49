package http

import (
	"errors"
	"sync"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/http/access"
)

// permit is the right of a caller to the rest of a long answer. An answer may outlive the
// token or session that it was begun with, so each piece asks again, and what waits is
// asked when the token file changes. A nil permit always holds.
type permit struct {
	s     *Server
	conn  *conn
	scope access.Scopes

	mu      sync.Mutex             // of what follows
	header  fasthttp.RequestHeader // the request's credentials, and nothing else of it
	checked *access.Tokens         // the token file that the caller was last checked with
	session bool                   // the caller is a browser, whose session may end by itself
}

// permitKey is where a request has its route, and once it was asked for its permit.
type permitKey struct{}

// permitOf returns the permit of a request that was let in; nil where the route or the
// server asks for no token.
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
	// Check everything the first time: the file may have changed since the caller was let in.
	p := &permit{s: s, conn: connOf(ctx), scope: rt.scope}
	h := &ctx.Request.Header
	if value := h.Peek(fasthttp.HeaderAuthorization); value != nil {
		p.header.SetBytesV(fasthttp.HeaderAuthorization, value)
	}
	for _, name := range [...]string{secureCookie, plainCookie} {
		if value := h.Cookie(name); len(value) > 0 {
			p.header.SetCookie(name, string(value))
		}
	}
	ctx.SetUserValue(permitKey{}, p)
	return p
}

// check tells why the caller may no longer use the route; nil when it may. As long as the
// token file is the same, only sessions are looked up again.
func (p *permit) check() error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	inForce := p.s.cfg.Access.Keys.InForce()
	if inForce == p.checked && !p.session {
		return nil
	}
	who, err := p.s.identify(&p.header, p.conn)
	if err == nil {
		err = inScope(who, p.scope)
	}
	if err != nil {
		return err
	}
	p.checked, p.session = inForce, who.Session
	return nil
}

// holds tells whether the caller may still use the route.
func (p *permit) holds() bool { return p.check() == nil }

// permitSet is the permits of requests that wait, with what ends the wait.
type permitSet struct {
	mu   sync.Mutex
	open map[*permit]func()
}

// add has end called, from another goroutine, when the permit is found not to hold any
// more, until remove is called; at once when it does not hold now. One request has one
// wait at a time.
func (ps *permitSet) add(p *permit, end func()) (remove func()) {
	if p == nil {
		return func() {}
	}
	ps.mu.Lock()
	if ps.open == nil {
		ps.open = make(map[*permit]func())
	}
	ps.open[p] = end
	ps.mu.Unlock()
	if !p.holds() { // the file changed before this one was in the set
		end()
	}
	return func() {
		ps.mu.Lock()
		defer ps.mu.Unlock()
		delete(ps.open, p)
	}
}

// errRevoked is the cause that a wait ends with when its caller has lost the right to it.
var errRevoked = errors.New("the token or session of this request is no longer good")

// revoke ends the waits of those who may wait no longer: a token, a scope or a session
// has gone.
func (s *Server) revoke() {
	ps := &s.permits
	ps.mu.Lock()
	open := make(map[*permit]func(), len(ps.open))
	for p, end := range ps.open {
		open[p] = end
	}
	ps.mu.Unlock()
	for p, end := range open {
		if !p.holds() {
			end()
		}
	}
}

// allowedStill tells whether the caller of a request that took a while to come may still
// do what it asks for. before is the token file when the request began.
func (s *Server) allowedStill(ctx *fasthttp.RequestCtx, before *access.Tokens) error {
	if s.inForce() == before {
		return nil
	}
	return s.permitOf(ctx).check()
}

// inForce is the token file; nil without tokens.
func (s *Server) inForce() *access.Tokens {
	if s.cfg.Access.Keys == nil {
		return nil
	}
	return s.cfg.Access.Keys.InForce()
}
