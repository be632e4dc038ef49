package http

import (
	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
)

// ready is GET /ready: may requests be sent here?
func (s *Server) ready(ctx *fasthttp.RequestCtx) error {
	if err := s.engine.Ready(contextOf(ctx)); err != nil {
		return &refusal{fasthttp.StatusServiceUnavailable, "not ready: " + err.Error()}
	}
	ctx.Response.Header.SetContentType(jsonType)
	ctx.Response.AppendBodyString(`{ "msg": "Ya like DAGs?"}`)
	return nil
}

// healthz is GET /healthz: is anything wrong?
func (s *Server) healthz(ctx *fasthttp.RequestCtx) error {
	if err := s.engine.Healthy(contextOf(ctx)); err != nil {
		return &refusal{fasthttp.StatusServiceUnavailable, "not healthy: " + err.Error()}
	}
	if err := s.engine.Damaged(contextOf(ctx)); err != nil {
		return &refusal{fasthttp.StatusServiceUnavailable, "not healthy: " + err.Error()}
	}
	dst := append([]byte(nil), `{"status":"ok"`...)
	if reason := s.engine.Paused(contextOf(ctx)); reason != "" {
		dst = appendText(append(dst, `,"paused":`...), reason)
	}
	answer(ctx, append(dst, '}'))
	return nil
}

// serverState is GET /v1/server/state: do tasks start?
func (s *Server) serverState(ctx *fasthttp.RequestCtx) error {
	if err := s.engine.Ready(contextOf(ctx)); err != nil {
		return &refusal{fasthttp.StatusServiceUnavailable, "not ready: " + err.Error()}
	}
	dst := append([]byte(nil), `{"state":"RUNNING"`...)
	if reason := s.engine.Paused(contextOf(ctx)); reason != "" {
		dst = appendText(append(dst[:0], `{"state":"PAUSED","reason":`...), reason)
	}
	answer(ctx, append(dst, '}'))
	return nil
}

// setServerState is PATCH /v1/server/state/{state}.
func (s *Server) setServerState(ctx *fasthttp.RequestCtx) error {
	var reason string
	word, err := param(ctx, "state")
	if err != nil {
		return err
	}
	switch word {
	case dag.RunRunning.String():
	case dag.RunPaused.String():
		reason = "a request has paused the server"
	default:
		return &refusal{fasthttp.StatusBadRequest, quote([]byte(word)) + " is no state of the server: use PAUSED or RUNNING"}
	}
	if err := s.engine.SetPaused(contextOf(ctx), reason); err != nil {
		return err
	}
	return s.serverState(ctx)
}

// version is GET /version.
func (s *Server) version(ctx *fasthttp.RequestCtx) error {
	v := s.cfg.Version
	dst := append([]byte(nil), `{"version":`...)
	dst = appendText(dst, v.Version)
	for _, m := range [...]struct{ name, value string }{{"commit", v.Commit}, {"date", v.Date}, {"go", v.Go}} {
		if m.value != "" {
			dst = append(dst, ',', '"')
			dst = append(dst, m.name...)
			dst = append(dst, '"', ':')
			dst = appendText(dst, m.value)
		}
	}
	answer(ctx, append(dst, '}'))
	return nil
}
