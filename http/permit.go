package http

import (
	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/http/access"
)

// permit is the right of a caller to the rest of a long answer. A stream may outlive
// the token or session that it was begun with, so each piece asks again. A nil permit
// always holds.
type permit struct {
	s       *Server
	header  fasthttp.RequestHeader // its credentials
	conn    *conn
	scope   access.Scopes
	checked *access.Tokens // the token file that the caller was last checked with
	session bool           // the caller is a browser, whose session may end by itself
}

// permitKey is where a request has its route, for a long answer to check again.
type permitKey struct{}

// permitOf returns the permit of a request that was let in; nil where the route or the
// server asks for no token.
func (s *Server) permitOf(ctx *fasthttp.RequestCtx) *permit {
	rt, ok := ctx.UserValue(permitKey{}).(*route)
	if !ok {
		return nil
	}
	// Check everything the first time: the file may have changed since the caller was let in.
	p := &permit{s: s, conn: connOf(ctx), scope: rt.scope}
	ctx.Request.Header.CopyTo(&p.header)
	return p
}

// holds tells whether the caller may still use the route. As long as the token file is
// the same, only sessions are looked up again.
func (p *permit) holds() bool {
	if p == nil {
		return true
	}
	inForce := p.s.cfg.Access.Keys.InForce()
	if inForce == p.checked && !p.session {
		return true
	}
	who, err := p.s.identify(&p.header, p.conn)
	if err != nil || who.Scopes&p.scope == 0 {
		return false
	}
	p.checked, p.session = inForce, who.Session
	return true
}
