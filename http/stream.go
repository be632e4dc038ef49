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

// producer renders a document piece by piece. Calls come one at a time, from the connection's
// goroutine, and a slow client may take any time between two of them. So a producer holds no lock and
// no transaction of the engine between two calls. One that has something open is an io.Closer, which
// is closed when the answer is complete or given up.
type producer interface {
	// next appends the next piece to dst; more tells whether others follow. An error breaks the
	// answer off.
	next(dst []byte) (out []byte, more bool, err error)
}

// pieceBytes is the approximate size of a piece.
const pieceBytes = 32 << 10

// send answers with the document of p. A short document is sent whole. A longer one is a stream
// that is rendered as fast as the client reads, in little memory. An error of the first piece is
// returned, and leaves the response alone: the status is still to be sent. After that an error can
// only break the answer off.
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

// stream answers with buf and then the pieces of p. size is the total length; -1 = unknown. The
// stream counts as in flight until it is closed.
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

// streamUntilClose answers an HTTP/1.0 client, which does not know chunks: the body ends with the
// connection. A broken body ends with a reset, so that the client can tell. fasthttp does not have
// such answers, so the connection is hijacked.
func (s *Server) streamUntilClose(ctx *fasthttp.RequestCtx, b *streamBody) {
	ctx.HijackSetNoResponse(true)
	ctx.Hijack(func(nc net.Conn) {
		defer b.Close()
		c := connOf(ctx)
		if c != nil {
			nc, c.deadlineSetAt = c, time.Time{} // fasthttp has cleared the deadlines
		}
		// The context belongs to this function until it returns.
		h := &ctx.Response.Header
		h.SetContentLength(-2) // neither Content-Length nor chunks: Connection: close
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

// streamBody is the io.Reader that fasthttp reads a producer from. It is read in the connection's
// goroutine, and flushed after each Read. An error ends the connection without the end of the
// body, so that the client can tell.
type streamBody struct {
	s        *Server
	producer producer
	permit   *permit // checked again for each piece
	buf      []byte  // the present piece
	read     int     // bytes of buf that were read
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
				b.s.log.Error("http: a stream broke off", "path", b.path, "err", err)
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

// Close is called when the answer is complete or given up, possibly twice.
func (b *streamBody) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	b.s.endWork()
	closeProducer(b.producer)
	return nil
}

// closeProducer releases what p has open. p was only read from, so an error does not matter.
func closeProducer(p producer) {
	if c, ok := p.(io.Closer); ok {
		_ = c.Close()
	}
}

// errStreamBroken ends a stream without a reader, or at shutdown.
var errStreamBroken = errors.New("the stream is broken off")
