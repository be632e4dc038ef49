package http

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/messages"
)

// One request to another node, and its answer. Both are copied: fasthttp reuses the memory of a request
// when its connection goes on, while the Transport's goroutines may still hold theirs.

// hopHeaders belong to one connection (RFC 9110, section 7.6.1), or are set anew for each.
var hopHeaders = [...]string{
	fasthttp.HeaderConnection, "Proxy-Connection", fasthttp.HeaderKeepAlive, fasthttp.HeaderProxyAuthenticate, fasthttp.HeaderProxyAuthorization,
	fasthttp.HeaderTE, fasthttp.HeaderTrailer, fasthttp.HeaderTransferEncoding, fasthttp.HeaderUpgrade,
	fasthttp.HeaderContentLength, fasthttp.HeaderHost, fasthttp.HeaderExpect, fasthttp.HeaderDate,
}

// isPassedOn tells whether a header of a client's request goes on to the node that answers. Credentials
// stay: the entry node has checked them. Headers that only nodes may set are those of the entry node.
//
// A header that the Connection header names is passed on. The nodes are one server for the client, and a
// node that serves the request itself reads it, too.
//
// The Transport sends a request a second time by itself when a kept connection breaks and the request has
// one of two headers, X-Idempotency-Key or Idempotency-Key. No handler knows the first one, and the second
// one makes a submission alone safe to repeat. The Transport also refuses names with a blank, which
// fasthttp takes.
func isPassedOn(method, name string) bool {
	for _, hop := range hopHeaders {
		if strings.EqualFold(name, hop) {
			return false
		}
	}
	switch {
	case strings.EqualFold(name, fasthttp.HeaderAuthorization), strings.EqualFold(name, fasthttp.HeaderCookie),
		strings.EqualFold(name, "X-Idempotency-Key"), strings.ContainsAny(name, " \t"):
		return false
	case strings.EqualFold(name, idempotencyHeader):
		return method == fasthttp.MethodPost
	}
	return len(name) < len(nodeHeaderPrefix) || !strings.EqualFold(name[:len(nodeHeaderPrefix)], nodeHeaderPrefix)
}

// isReturned tells whether a header of another node's answer goes on to the client. The headers that
// protect users of browsers are those of the entry node, which the browser knows.
func isReturned(name string) bool {
	for _, hop := range hopHeaders {
		if name == hop {
			return false
		}
	}
	switch name {
	case string(nosniffHeader), string(frameHeader), string(resourceHeader):
		return false
	}
	return !strings.HasPrefix(name, "Access-Control-") && !strings.HasPrefix(name, nodeHeaderPrefix)
}

// send has a node answer the request. It returns nil when the response is set. A *misdirectedError, an
// *unsentError and a *lostAnswerError leave the response as it was; any other error is the answer. leader is
// whom this node takes for the leader, also when the request goes to another node.
//
// A caller that loses its right ends what may take long. A change is answered soon, and it would be
// carried out all the same; a body that still arrives has a check of its own (attemptBody).
func (f *forwarder) send(ctx *fasthttp.RequestCtx, rt *route, body *forwardedBody, node, leader string, partition uint64, hops int) error {
	within, cancel := context.WithCancelCause(contextOf(ctx))
	r := &forwardedRequest{f: f, node: node, leader: leader, partition: partition, conn: connOf(ctx), cancel: cancel,
		isSafe: ctx.IsGet() || ctx.IsHead(), isBatch: rt.body == linesBody, allowed: func() {}}
	if r.isSafe || r.isBatch {
		r.allowed = f.s.permits.add(f.s.permitOf(ctx), func() { cancel(errRevoked) })
	}
	r.begin()
	isSent := false
	req, err := f.newRequest(httptrace.WithClientTrace(within, &httptrace.ClientTrace{
		GotConn: func(c httptrace.GotConnInfo) {
			isSent = true
			if body.isStream() {
				r.to, _ = c.Conn.(*nodeConn) // the Transport has no others
				r.to.whenClosed(body.cut)
			}
		},
	}), ctx, body, r, hops)
	var resp *http.Response
	if err == nil {
		r.waitFor(func() { resp, err = f.transport.RoundTrip(req) })
	}
	if err == nil && resp.StatusCode >= fasthttp.StatusBadRequest && body.hasFailed() {
		// The node has refused a body that it got in part. Why it is not whole is the answer.
		resp.Body.Close()
		err, isSent = errBodyDetached, true
	}
	if err == nil {
		err = f.receive(ctx, rt, r, resp, body, within)
		if err == nil {
			return nil
		}
		isSent = true
	}
	r.end()
	if !body.detach() {
		ctx.SetConnectionClose() // the rest of the body is not read
	}
	var refused *misdirectedError
	if errors.As(err, &refused) {
		return err
	}
	if failure := f.failureOf(ctx, r, body, context.Cause(within)); failure != nil {
		if body.mayHaveLines(isSent) && !isUnfinished(failure) {
			return linesUnanswered(failure)
		}
		return failure
	}
	// A document of which the node lacks a part is not carried out. Lines of a batch are.
	if !isSent || body.isStream() && (!body.isSpent() || !body.isLines && !body.isComplete()) {
		return &unsentError{err}
	}
	return &lostAnswerError{cause: err}
}

// failureOf returns why a request ended that is not the other node's doing; nil when it is. cause is that
// of the end of the request's context.
func (f *forwarder) failureOf(ctx *fasthttp.RequestCtx, r *forwardedRequest, body *forwardedBody, cause error) error {
	err := body.readFailure()
	switch {
	case cause == errRevoked || errors.Is(err, errRevoked):
		if err := f.s.permitOf(ctx).check(); err != nil {
			return err
		}
		return &refusal{fasthttp.StatusUnauthorized, errRevoked.Error()}
	case errors.Is(err, errTooLong):
		return f.s.bodyTooLarge(ctx)
	case f.s.draining.Load() && (err != nil || r.isSafe && cause == errShuttingDown):
		return &refusal{fasthttp.StatusServiceUnavailable, "the server is shutting down"}
	case err != nil:
		return bodyReadError(ctx, err)
	case cause != nil && isUnfinished(cause):
		return cause
	}
	return nil
}

// linesUnanswered is the answer to a batch that ended for a reason of its client or of this node, before the
// other one has answered the first line.
func linesUnanswered(failure error) error {
	return &messages.Error{Code: messages.OutcomeUnknown,
		Text: failure.Error() + ": lines that had arrived may have taken effect. Look for their runs, or repeat the batch with the same keys"}
}

// newRequest returns the request to a node. Its target is the client's, byte by byte, except that bytes
// are escaped which the Transport refuses: a handler sees the same path.
func (f *forwarder) newRequest(ctx context.Context, from *fasthttp.RequestCtx, body *forwardedBody, r *forwardedRequest, hops int) (*http.Request, error) {
	caller, err := callerOf(from, f.cluster.Self()).encode()
	if err != nil {
		return nil, err
	}
	h := &from.Request.Header
	req := requestTo(ctx, r, string(from.Method()), string(from.URI().PathOriginal()), string(from.URI().QueryString()), caller, hops)
	for name, value := range h.All() {
		if name := string(name); isPassedOn(req.Method, name) {
			req.Header.Add(name, string(value))
		}
	}
	if _, ok := req.Header[fasthttp.HeaderUserAgent]; !ok {
		req.Header[fasthttp.HeaderUserAgent] = nil // else the Transport sends its own
	}
	body.attach(req)
	return req, nil
}

// requestTo returns a request to a node, without a body.
func requestTo(ctx context.Context, r *forwardedRequest, method, path, query, caller string, hops int) *http.Request {
	req := (&http.Request{
		Method: method,
		URL:    &url.URL{Scheme: "http", Host: r.node, Opaque: escapeControls(path), RawQuery: escapeControls(query)},
		Proto:  "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header, 8),
		Host:   r.node,
	}).WithContext(ctx)
	req.Header.Set(callerHeader, caller)
	req.Header.Set(hopsHeader, strconv.Itoa(hops))
	req.Header.Set(partitionHeader, strconv.FormatUint(r.partition, 10))
	return req
}

// escapeControls escapes the bytes that may not stand in a request line.
func escapeControls(target string) string {
	if !strings.ContainsFunc(target, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return target
	}
	var out strings.Builder
	for _, c := range []byte(target) {
		if c <= ' ' || c == 0x7f {
			const digits = "0123456789ABCDEF"
			out.WriteString("%" + digits[c>>4:c>>4+1] + digits[c&15:c&15+1])
		} else {
			out.WriteByte(c)
		}
	}
	return out.String()
}

// receive sets the response to another node's answer:
//
//	short, or a HEAD        read, then set with its length
//	longer, or in chunks    streamed by a forwardedAnswer, with its length or in chunks
//	421 with a leader       *misdirectedError: the request goes elsewhere
//
// A short answer is read before the response is set, so that one that breaks off can be asked for again.
// After nil, the answer or its stream ends the request r.
func (f *forwarder) receive(ctx *fasthttp.RequestCtx, rt *route, r *forwardedRequest, resp *http.Response, body *forwardedBody, within context.Context) error {
	if leader, ok := resp.Header[leaderHeader]; ok && resp.StatusCode == http.StatusMisdirectedRequest {
		_ = resp.Body.Close()
		return &misdirectedError{leader[0]}
	}
	hasBody := !ctx.IsHead() && resp.ContentLength != 0
	if hasBody && (resp.ContentLength < 0 || resp.ContentLength > pieceBytes) {
		f.outcomes.WithLabelValues("answered").Inc()
		setAnswer(ctx, resp)
		body.handOver()
		// The pieces of an event stream and of a followed log leave as they come, and so does the header.
		ctx.Response.ImmediateHeaderFlush = resp.ContentLength < 0
		f.s.stream(ctx, resp.Header.Get(fasthttp.HeaderContentType), &forwardedAnswer{r: r, resp: resp, body: body, within: within,
			isEndless: resp.ContentLength < 0 && (rt.path == logRoute || resp.Header.Get(fasthttp.HeaderContentType) == eventStream)}, nil, int(resp.ContentLength))
		return nil
	}
	var text []byte
	var err error
	if hasBody {
		r.waitFor(func() { text, err = io.ReadAll(resp.Body) })
	}
	_ = resp.Body.Close()
	if err != nil {
		return err
	}
	r.end()
	if !body.detach() {
		// As after a refusal of this node's own: the rest of the body is not read.
		drainOnClose(ctx)
		ctx.SetConnectionClose()
	}
	f.outcomes.WithLabelValues("answered").Inc()
	setAnswer(ctx, resp)
	ctx.Response.SetBodyRaw(text)
	if ctx.IsHead() {
		ctx.Response.Header.SetContentLength(int(resp.ContentLength)) // -1: the document is sent in chunks
	}
	return nil
}

// setAnswer sets the status and the headers of the response. They are set in the order of their names:
// net/http does not keep that of the other node.
func setAnswer(ctx *fasthttp.RequestCtx, resp *http.Response) {
	ctx.SetStatusCode(resp.StatusCode)
	h := &ctx.Response.Header
	for _, name := range slices.Sorted(maps.Keys(resp.Header)) {
		if !isReturned(name) {
			continue
		}
		for i, value := range resp.Header[name] {
			switch {
			case name == fasthttp.HeaderVary:
				// The answers of both nodes vary, each by its own configuration.
				if own := string(h.Peek(name)); own != "" && !strings.HasPrefix(value, own) {
					value = own + ", " + value
				}
				h.Set(name, value)
			case name == fasthttp.HeaderCacheControl && value != "no-store" && h.Peek(name) != nil:
				// The authentication of this node has made the answer private. The other one does not know.
			case i == 0:
				h.Set(name, value)
			default:
				h.Add(name, value)
			}
		}
	}
}

// forwardedAnswer streams another node's answer to the client. How it ends tells the client whether it is
// complete, as with a stream of this node's own; when this node shuts down, a stream of events is complete.
type forwardedAnswer struct {
	r      *forwardedRequest
	resp   *http.Response
	body   *forwardedBody
	within context.Context
	// isEndless says that the answer is a stream of events or a followed log.
	isEndless bool
}

// next waits for the next bytes of the answer. At the shutdown of this node a stream that has no end of its
// own ends here if it is never silent for long, and else by watchRequests.
func (a *forwardedAnswer) next(dst []byte) (_ []byte, more bool, err error) {
	if a.isEndless && a.r.f.s.draining.Load() {
		a.r.cancel(errShuttingDown)
	}
	dst = slices.Grow(dst, pieceBytes)
	n := 0
	a.r.waitFor(func() { n, err = a.resp.Body.Read(dst[len(dst) : len(dst)+pieceBytes]) })
	dst = dst[:len(dst)+n]
	switch {
	case err == io.EOF:
		return dst, false, nil
	case err == nil || n > 0:
		return dst, true, nil // an error comes again
	}
	switch cause := context.Cause(a.within); {
	case cause == errShuttingDown && a.resp.Header.Get(fasthttp.HeaderContentType) == eventStream:
		return dst, false, nil
	case cause == nil:
		a.r.f.s.log.Info("http: the answer of another node broke off", "node", a.r.node, "err", err)
	}
	return dst, true, errStreamBroken
}

// Close ends the request, if it has not ended, and waits until the client's body is no longer read.
func (a *forwardedAnswer) Close() error {
	a.r.end()
	_ = a.resp.Body.Close()
	a.body.detach()
	a.body.close()
	return nil
}
