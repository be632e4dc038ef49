package http

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/valyala/fasthttp"
)

// backup is GET /v1/backup: everything as of one moment, as one stream. An answer that
// breaks off has no trailer, which the reader of a backup demands.
func (s *Server) backup(ctx *fasthttp.RequestCtx) error {
	if s.cfg.Backup == nil {
		return &refusal{fasthttp.StatusNotFound, "this server makes no backups"}
	}
	if navigated(&ctx.Request.Header) {
		return &refusal{fasthttp.StatusForbidden, "cross-site request: a browser asks for a backup and does not say which page made it: use `caravan backup` or another program"}
	}
	if err := s.engine.Ready(contextOf(ctx)); err != nil {
		return &refusal{fasthttp.StatusServiceUnavailable, "not ready: " + err.Error()}
	}
	ctx.Response.Header.SetContentType("application/octet-stream")
	if ctx.IsHead() {
		return nil
	}
	if !s.backing.CompareAndSwap(false, true) {
		return &refusal{fasthttp.StatusServiceUnavailable, "a backup is being made: one at a time"}
	}
	r, w := io.Pipe()
	until, cancel := context.WithCancel(s.serving)
	context.AfterFunc(until, func() { w.CloseWithError(errStopping) })
	go func() {
		defer s.backing.Store(false)
		defer cancel()
		err := s.cfg.Backup(until, w)
		if err != nil && !errors.Is(err, io.ErrClosedPipe) {
			s.log.Error("backup", "err", err)
		}
		w.CloseWithError(err)
	}()
	s.stream(ctx, "application/octet-stream", &piped{r, cancel}, nil, -1)
	return nil
}

// navigated tells whether a request looks like a browser's that opens an address, and does
// not say which page made it do so: browsers leave that out for http: addresses of other
// machines. Programs do not ask for HTML here.
func navigated(h *fasthttp.RequestHeader) bool {
	return len(h.Peek("Sec-Fetch-Site")) == 0 && len(h.Peek(fasthttp.HeaderOrigin)) == 0 &&
		bytes.Contains(bytes.ToLower(h.Peek(fasthttp.HeaderAccept)), []byte("text/html"))
}

var errStopping = errors.New("the server is stopping")

// piped is a producer of what is written into a pipe.
type piped struct {
	r      *io.PipeReader
	cancel context.CancelFunc
}

func (p *piped) next(dst []byte) ([]byte, bool, error) {
	var part [piece]byte
	n, err := p.r.Read(part[:])
	dst = append(dst, part[:n]...)
	if err == io.EOF {
		return dst, false, nil
	}
	return dst, true, err
}

// Close ends the backup, when the client has gone.
func (p *piped) Close() error {
	p.cancel()
	return p.r.Close()
}
