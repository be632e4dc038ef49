package http

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"time"

	"github.com/valyala/fasthttp"
)

// producer renders a document piece by piece.
type producer interface {
	// next appends some more to dst; more tells whether there is any left. An
	// error breaks the answer off.
	next(dst []byte) (out []byte, more bool, err error)
}

// pieceBytes is what a producer appends at a time, roughly.
const pieceBytes = 32 << 10

// send answers with what p produces: whole when it is short, else as a stream
// that is rendered as fast as the client reads, in little memory. An error of the
// first piece is returned and leaves the response alone.
func (s *Server) send(ctx *fasthttp.RequestCtx, contentType string, p producer) error {
	buf := make([]byte, 0, 4<<10)
	for {
		var more bool
		var err error
		if buf, more, err = p.next(buf); err != nil {
			closeProducer(p)
			return err
		}
		if !more {
			closeProducer(p)
			ctx.Response.SetBodyRaw(buf)
			ctx.Response.Header.SetContentType(contentType)
			return nil
		}
		if len(buf) >= pieceBytes {
			break
		}
	}
	s.stream(ctx, contentType, p, buf, -1)
	return nil
}

// stream answers with what p produces, behind buf. Size is the length of it all,
// -1 when that is not known. The stream counts as in flight until it is closed.
func (s *Server) stream(ctx *fasthttp.RequestCtx, contentType string, p producer, buf []byte, size int) {
	s.beginWork()
	if c := connOf(ctx); c != nil {
		c.waitingSince.Store(isStreaming)
	}
	b := &streamBody{s: s, producer: p, permit: s.permitOf(ctx), buf: buf, more: true, path: string(ctx.URI().PathOriginal())}
	ctx.Response.Header.SetContentType(contentType)
	if size < 0 && !ctx.Request.Header.IsHTTP11() {
		s.streamUntilClose(ctx, b)
		return
	}
	ctx.Response.SetBodyStream(b, size)
}

// streamUntilClose answers a client of HTTP/1.0, which does not know chunks: the body ends
// with the connection. One that breaks off ends with a reset, so that a client can
// tell. fasthttp knows no such answers, so the connection is taken from it.
func (s *Server) streamUntilClose(ctx *fasthttp.RequestCtx, b *streamBody) {
	ctx.HijackSetNoResponse(true)
	ctx.Hijack(func(nc net.Conn) {
		defer b.Close()
		c := connOf(ctx)
		if c != nil {
			nc, c.deadlineSetAt = c, time.Time{} // fasthttp has taken the deadlines away
		}
		// The context is this function's until it returns.
		h := &ctx.Response.Header
		h.SetContentLength(-2) // neither a length nor chunks: Connection: close
		if _, err := nc.Write(h.Header()); err != nil || ctx.IsHead() {
			return
		}
		buf := make([]byte, pieceBytes)
		for {
			n, err := b.Read(buf)
			if n > 0 {
				if _, err := nc.Write(buf[:n]); err != nil {
					return
				}
			}
			switch {
			case err == io.EOF:
				return
			case err != nil:
				if c != nil {
					c.resetOnClose()
				}
				return
			}
		}
	})
}

// streamBody is a producer as the reader that fasthttp wants. It is read in the
// connection's goroutine, each Read followed by a flush. An error ends the
// connection without the end of the body, so that a client can tell.
type streamBody struct {
	s        *Server
	producer producer
	permit   *permit // asked again for each piece
	buf      []byte  // produced
	read     int     // of it, read
	more     bool
	closed   bool
	path     string
}

func (b *streamBody) Read(p []byte) (n int, err error) {
	defer func() {
		if r := recover(); r != nil {
			b.s.log.Error("http: panic", "path", b.path, "panic", r, "stack", string(debug.Stack()))
			n, err = 0, fmt.Errorf("panic: %v", r)
		}
	}()
	for b.read == len(b.buf) {
		if !b.more {
			return 0, io.EOF
		}
		b.read = 0
		if b.buf, b.more, err = b.producer.next(b.buf[:0]); err != nil {
			b.buf = b.buf[:0]
			if err != errStreamBroken && !isDeparture(err) {
				b.s.log.Error("http: a stream broke off", "path", b.path, "error", err)
			}
			return 0, err
		}
		if !b.permit.isValid() {
			b.buf = b.buf[:0]
			return 0, errStreamBroken
		}
	}
	n = copy(p, b.buf[b.read:])
	b.read += n
	return n, nil
}

// Close is called once the answer was sent or given up, possibly twice.
func (b *streamBody) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	b.s.endWork()
	closeProducer(b.producer)
	return nil
}

// closeProducer lets go of what p has open. What it read has been read.
func closeProducer(p producer) {
	if c, ok := p.(io.Closer); ok {
		_ = c.Close()
	}
}

// errStreamBroken ends a stream that has no more reader, or at shutdown.
var errStreamBroken = errors.New("broken off")
