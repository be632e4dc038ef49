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

// The body of a long answer is rendered while it is written: fasthttp takes the header of the response
// when the handler has returned, and then reads the body from a streamBody until io.EOF.
//
//	handler → send     renders the first piece; a short document is complete then
//	        → stream   the response gets a streamBody
//	fasthttp → streamBody.Read → producer.next → a chunk, flushed
//	        → streamBody.Close → the producer's Close
//
// All of it runs on the connection's goroutine, so a producer needs no lock of its own. How an answer
// ends tells the client whether it is complete:
//
//	the document is complete   the last chunk (or the announced length)
//	events at shutdown         the last chunk: the client connects again with its last id
//	anything else              the connection closes without the last chunk: an error of a piece, a
//	                           panic, a token that was revoked, a followed log or a batch at shutdown

// producer renders a document piece by piece. Calls come one at a time, from the connection's
// goroutine, and a slow client may take any time between two of them. So a producer holds no lock and
// no transaction of the engine between two calls. One that has something open is an io.Closer, which
// is closed when the answer is complete or given up.
type producer interface {
	// next appends the next piece to dst; more tells whether others follow. An error breaks the
	// answer off.
	next(dst []byte) (out []byte, more bool, err error)
}

// pieceBytes is the approximate size of a piece: a producer stops at the first entry that reaches it.
// One entry may be longer, such as an attempt with 128 KiB of each output.
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

// stream answers with buf and then the pieces of p. size is the total length; -1 = unknown. The stream
// counts as in flight until it is closed, so Shutdown waits for it. Calls of the engine by p no longer
// have the client watched (isStreaming): a failed write shows that it left.
//
// The caller has nothing to close: fasthttp closes the streamBody, and that closes p, also for HEAD, of
// which only the header is sent, and after a failed write.
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
					c.closeWithReset()
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
	more     bool    // the producer has further pieces
	closed   bool
	path     string // for the log: the request may be over when the body is read
}

// Read copies from the present piece, and renders the next one when that is used up. A piece without
// bytes is skipped: fasthttp would read again at once. An error is returned instead of the piece that
// it came with, so half an entry is never sent.
//
// The permit is checked after next and before its bytes leave: a piece may have been awaited for long.
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
			if err != errStreamBroken && !isUnfinished(err) {
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

// Close is called when the answer is complete or given up, possibly twice: by fasthttp, and by
// streamUntilClose. Only the first call ends the work that stream began.
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

// errStreamBroken ends a stream without its end for a reason that is not a failure: the reader has
// left, the caller lost its right, or the server shuts down. It is not logged.
var errStreamBroken = errors.New("the stream is broken off")
