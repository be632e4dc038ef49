package http

import "github.com/valyala/fasthttp"

// ready is GET /ready: may requests be sent here?
func (s *Server) ready(ctx *fasthttp.RequestCtx) error {
	if err := s.engine.Ready(); err != nil {
		return &refusal{fasthttp.StatusServiceUnavailable, "not ready: " + err.Error()}
	}
	ctx.Response.Header.SetContentType(jsonType)
	ctx.Response.AppendBodyString(`{ "msg": "Ya like DAGs?"}`)
	return nil
}

// healthz is GET /healthz: is anything wrong?
func (s *Server) healthz(ctx *fasthttp.RequestCtx) error {
	if err := s.engine.Healthy(); err != nil {
		return &refusal{fasthttp.StatusServiceUnavailable, "not healthy: " + err.Error()}
	}
	if err := s.engine.Damaged(); err != nil {
		return &refusal{fasthttp.StatusServiceUnavailable, "not healthy: " + err.Error()}
	}
	answer(ctx, []byte(`{"status":"ok"}`))
	return nil
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
