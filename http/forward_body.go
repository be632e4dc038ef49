package http

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/valyala/fasthttp"
)

// The body of a forwarded request. A short one is read before it is sent. It can be sent again, or be
// handled here if this node becomes the leader meanwhile. A longer one is passed on while it arrives, when
// the other node has asked for it:
//
//	client → conn → bodyReader → forwardedBody ← attemptBody ← Transport → other node
//
// So the connection is read on one of the Transport's goroutines, and written on its own. detach ends
// that before the connection goes on.

const (
	// maxRepeatedBody is the length up to which a body is read before it is sent.
	maxRepeatedBody   = 256 << 10
	idempotencyHeader = "Idempotency-Key"
)

// forwardedBody is the body of a forwarded request; nil for a request without a body. Its methods are called
// from the goroutine of the client's connection.
type forwardedBody struct {
	whole  []byte      // a short body
	held   budgetShare // of whole
	stream *bodyReader // else: the body as it arrives
	length int         // announced; -1 = in chunks

	permit       *permit // checked for each part of stream
	limit        int64   // of stream, in bytes
	isLines      bool
	isEncoded    bool // compressed: a line cannot be seen in it
	isHandedOver bool // the stream of the answer closes stream

	// turn is held while stream is read, by the goroutine that reads, and for what follows.
	turn     chan struct{}
	attempt  int   // the present attempt to send the body: others may not read stream
	isBegun  bool  // stream was read from
	received int64 // bytes from stream
	hasLine  bool  // a line of a batch may have left
	readErr  error // why stream cannot be read on; io.EOF at its end

	isCut atomic.Bool // reading was ended for the other node's sake
}

// errBodyDetached ends the reading of a body for an attempt that is over.
var errBodyDetached = errors.New("the request is over")

// openBody prepares the body of a request. The caller releases it.
func (f *forwarder) openBody(ctx *fasthttp.RequestCtx, rt *route) (*forwardedBody, error) {
	h := &ctx.Request.Header
	if rt.body == noBody || hasNoFraming(h) {
		return nil, nil
	}
	s := f.s
	b := &forwardedBody{length: h.ContentLength(), held: s.newBudgetShare(ctx), permit: s.permitOf(ctx), limit: s.bodyLimit(h),
		isLines: rt.body == linesBody, isEncoded: len(h.Peek(fasthttp.HeaderContentEncoding)) > 0}
	if b.length >= 0 && b.length <= maxRepeatedBody {
		var err error
		if b.whole, _, err = s.readBody(ctx, &b.held); err == nil {
			err = s.recheckPermit(ctx)
		}
		if err != nil {
			b.held.release()
			return nil, err
		}
		return b, nil
	}
	b.turn = make(chan struct{}, 1)
	// A batch is read as long as its client may wait for it, and any other body until the last moment of
	// a shutdown.
	until := contextOf(ctx)
	if b.isLines {
		until = s.serviceContext
	}
	b.stream = &bodyReader{source: bodyStream(ctx), conn: connOf(ctx), timeout: s.cfg.ReadTimeout, serviceContext: until, unreadBytes: b.length}
	stop := context.AfterFunc(until, b.stream.interrupt)
	b.stream.stop = func() { stop() }
	return b, nil
}

// attach makes the body that of a request to a node. A request that announces itself (Expect) is refused
// by the node before a part of the body is taken.
func (b *forwardedBody) attach(req *http.Request) {
	switch {
	case b == nil:
		req.Body = http.NoBody
	case b.stream == nil:
		req.ContentLength = int64(len(b.whole))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.whole)), nil }
		req.Body, _ = req.GetBody() // never fails
	default:
		b.turn <- struct{}{}
		defer func() { <-b.turn }()
		req.ContentLength, req.Body = int64(b.length), &attemptBody{b, b.attempt}
		req.Header.Set(fasthttp.HeaderExpect, "100-continue")
	}
}

// attemptBody is the stream of a body for one attempt to send it. The Transport may still use it when the
// attempt is over.
type attemptBody struct {
	body    *forwardedBody
	attempt int
}

// Read passes on what has arrived. The permit is checked before the bytes leave: the body may have taken
// long, and with its last bytes the request is carried out.
func (a *attemptBody) Read(p []byte) (int, error) {
	b := a.body
	b.turn <- struct{}{}
	defer func() { <-b.turn }()
	if a.attempt != b.attempt {
		return 0, errBodyDetached
	}
	if b.readErr != nil {
		return 0, b.readErr
	}
	b.isBegun = true
	n, err := b.stream.Read(p)
	b.received += int64(n)
	isLineEnd := bytes.IndexByte(p[:n], '\n') >= 0
	if b.isLines && isLineEnd {
		b.stream.beginLine()
	}
	switch {
	case !b.permit.isValid():
		n, err = 0, errRevoked
	case b.received > b.limit:
		n, err = 0, errTooLong
	case err != nil && err != io.EOF && b.isCut.Load():
		err = errBodyDetached // the read's own error is a deadline
	}
	b.readErr = err
	b.hasLine = b.hasLine || n > 0 && (isLineEnd || b.isEncoded) || err == io.EOF && b.received > 0
	return n, err
}

// Close leaves the body open: it belongs to the client's request.
func (a *attemptBody) Close() error { return nil }

// isStream tells whether the body is passed on as it arrives.
func (b *forwardedBody) isStream() bool { return b != nil && b.stream != nil }

// isSpent tells whether a part of the body was taken, so that it cannot be sent again.
func (b *forwardedBody) isSpent() bool {
	if !b.isStream() {
		return false
	}
	b.turn <- struct{}{}
	defer func() { <-b.turn }()
	return b.isBegun
}

// readFailure returns why the body cannot be read to its end; nil while no such reason is known, or if
// detach is that reason.
func (b *forwardedBody) readFailure() error {
	if !b.isStream() {
		return nil
	}
	b.turn <- struct{}{}
	defer func() { <-b.turn }()
	if b.readErr == io.EOF || b.readErr == errBodyDetached {
		return nil
	}
	return b.readErr
}

// hasFailed tells whether there is a readFailure. It never waits: a read that waits for the client has not failed.
func (b *forwardedBody) hasFailed() bool {
	if !b.isStream() {
		return false
	}
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
		return b.readErr != nil && b.readErr != io.EOF && b.readErr != errBodyDetached
	default:
		return false
	}
}

// isComplete tells whether the other node may have all of the body. The Transport reads an announced body up
// to its length, and asks for the end when the last bytes may have left.
func (b *forwardedBody) isComplete() bool {
	if !b.isStream() {
		return true
	}
	b.turn <- struct{}{}
	defer func() { <-b.turn }()
	return b.readErr == io.EOF || b.length >= 0 && b.received >= int64(b.length)
}

// mayHaveLines tells whether the other node may have a line of a batch, which it carries out before it has
// the rest. isSent says that the request has left.
func (b *forwardedBody) mayHaveLines(isSent bool) bool {
	switch {
	case b == nil || !b.isLines || !isSent:
		return false
	case b.stream == nil:
		return true
	}
	b.turn <- struct{}{}
	defer func() { <-b.turn }()
	return b.hasLine
}

// isRepeatable tells whether the request may be sent again although it may have been carried out.
func (b *forwardedBody) isRepeatable(ctx *fasthttp.RequestCtx) bool {
	return ctx.IsGet() || ctx.IsHead() ||
		ctx.IsPost() && ctx.Request.Header.Peek(idempotencyHeader) != nil && !b.isSpent()
}

// detach ends an attempt: from here on the Transport does not read from the client's connection. It tells
// whether the body was read to its end.
func (b *forwardedBody) detach() (isComplete bool) {
	if !b.isStream() {
		return true
	}
	select {
	case b.turn <- struct{}{}:
	default: // a read waits for the client. It ends, and the connection can only be closed
		b.isCut.Store(true)
		b.stream.revoke()
		b.turn <- struct{}{}
	}
	defer func() { <-b.turn }()
	b.attempt++
	return b.readErr == io.EOF
}

// cut ends the reading of a stream whose connection to the other node has ended. A body of which nothing was
// taken stays whole. It may be called from any goroutine.
func (b *forwardedBody) cut() {
	select {
	case b.turn <- struct{}{}:
		isBegun := b.isBegun
		<-b.turn
		if !isBegun {
			return
		}
	default: // a read waits for the client
	}
	b.isCut.Store(true)
	b.stream.revoke()
}

// giveBack leaves a body that is not spent to a handler of this node.
func (b *forwardedBody) giveBack(ctx *fasthttp.RequestCtx) {
	if b != nil && b.stream == nil {
		ctx.Request.SetBodyRaw(b.whole)
	}
}

// handOver leaves the stream to that of the answer, which closes it: the body of a batch arrives while its
// answers are sent.
func (b *forwardedBody) handOver() {
	if b != nil {
		b.isHandedOver = true
	}
}

// close ends the use of the stream.
func (b *forwardedBody) close() {
	if b.isStream() {
		b.stream.Close()
	}
}

// release frees what openBody has taken.
func (b *forwardedBody) release() {
	if b == nil {
		return
	}
	b.held.release()
	if !b.isHandedOver {
		b.close()
	}
}
