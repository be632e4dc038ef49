package http

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"math"
	"net"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// Every error becomes an answer of one form (problem). Three kinds of errors reach writeError:
//
//	*refusal          of this package: its status and sentence are the answer
//	*messages.Error   of the engine and the decoders: statusOf, and its sentence
//	any other         500 with a fixed sentence; the log has the error under the key err
//
// A sentence names the thing (`unknown run 7`) and what to do about it (`use PAUSED or RUNNING`). 503
// and 429 ask to come back after a second, unless the handler has set another Retry-After.

// statusOf is the one place where the domain's codes become HTTP statuses. Damaged and Internal are 500.
func statusOf(c messages.ErrorCode) int {
	switch c {
	case messages.Invalid:
		return fasthttp.StatusBadRequest
	case messages.NotFound:
		return fasthttp.StatusNotFound
	case messages.Conflict:
		return fasthttp.StatusConflict
	case messages.TooLarge, messages.KeyReused:
		return fasthttp.StatusUnprocessableEntity
	case messages.Unavailable, messages.OutcomeUnknown, messages.NotLeader:
		return fasthttp.StatusServiceUnavailable
	default:
		return fasthttp.StatusInternalServerError
	}
}

// kindOf returns the type of a problem that a program must tell from others of the same status.
func kindOf(c messages.ErrorCode) string {
	if c == messages.OutcomeUnknown {
		return "outcome-unknown"
	}
	return ""
}

// refusal is an error of HTTP itself, unknown to the domain. detail is the sentence that the client
// sees.
type refusal struct {
	status int
	detail string
}

func (r *refusal) Error() string { return r.detail }

// problem is the body of an error: the members of RFC 9457, and `error` for clients that do not
// know them. The problem of a spec (isSpecProblem) also has `valid`, which is false, and `errors`,
// the list of its mistakes.
type problem struct {
	kind          string // the member `type`; "" stands for about:blank
	status        int
	detail        string             // one sentence
	isSpecProblem bool               // false = the two members below are left out
	errors        []messages.Problem // in the order in which they were found
}

// internalProblem hides the cause: the log has it.
var internalProblem = problem{status: fasthttp.StatusInternalServerError, detail: "internal error: see the server's log"}

// maxListedErrors bounds `errors`; the text of the problem has the full count.
const maxListedErrors = 1000

// writeError answers with an error. If fasthttp closes the connection after the answer with a part of
// the body unread, the client may still be sending then, so the connection reads on for a while
// (conn.Close). fasthttp closes it if the request or the answer says so, which the request of an HTTP/1.0
// client does unless it says keep-alive, or if more is unread than it drains.
func (s *Server) writeError(ctx *fasthttp.RequestCtx, err error) {
	p := s.problemOf(err, ctx.Method(), ctx.URI().PathOriginal())
	closes := ctx.Request.Header.ConnectionClose() || ctx.Response.ConnectionClose()
	if n := ctx.Request.Header.ContentLength(); ctx.RequestBodyStream() != nil &&
		(n < 0 || n > maxDrainedBody || n > readAheadBytes && closes) {
		drainOnClose(ctx)
	}
	writeProblem(ctx, p)
}

// problemOf returns what a client is shown of an error. It logs an error that the client must not see,
// and damage, which the client sees as well: it concerns whoever runs the server. method and path are
// for the log. A call that ended before the engine's answer is 503: a client that closed only its
// sending side, or that waited at the end of a shutdown, can still read that.
func (s *Server) problemOf(err error, method, path []byte) problem {
	var (
		r *refusal
		m *messages.Error
	)
	switch {
	case errors.As(err, &r):
		return problem{status: r.status, detail: r.detail}
	case isUnfinished(err):
		return problem{status: fasthttp.StatusServiceUnavailable, detail: err.Error() + " before the answer: the request may still take effect"}
	case errors.As(err, &m) && m.Code == messages.Damaged:
		s.log.Error("http: stored data is damaged", "method", string(method), "path", string(path), "err", err)
		return problem{status: fasthttp.StatusInternalServerError, detail: m.Text}
	case errors.As(err, &m) && m.Code != messages.Internal:
		return problem{kind: kindOf(m.Code), status: statusOf(m.Code), detail: m.Text, isSpecProblem: m.Problems != nil, errors: m.Problems}
	default:
		s.log.Error("http: internal error", "method", string(method), "path", string(path), "err", err)
		return internalProblem
	}
}

// writeProblem sets the response. Headers that were set before remain.
func writeProblem(ctx *fasthttp.RequestCtx, p problem) {
	ctx.Response.ResetBody()
	ctx.SetStatusCode(p.status)
	h := &ctx.Response.Header
	h.SetContentType("application/problem+json")
	switch p.status {
	case fasthttp.StatusServiceUnavailable, fasthttp.StatusTooManyRequests:
		// After a change whose outcome is unknown a client must look first: it may not repeat blindly.
		if h.Peek(fasthttp.HeaderRetryAfter) == nil && p.kind == "" {
			h.Set(fasthttp.HeaderRetryAfter, "1")
		}
	case fasthttp.StatusUnauthorized:
		h.Set(fasthttp.HeaderWWWAuthenticate, challenge)
	}
	ctx.Response.SetBodyRaw(appendProblem(nil, p))
}

// appendProblem appends a problem as JSON. In answers of lines it is a line, without its line feed.
func appendProblem(dst []byte, p problem) []byte {
	dst = append(dst, '{')
	if p.isSpecProblem {
		dst = append(dst, `"valid":false,`...)
	}
	dst = append(dst, `"type":`...)
	dst = appendString(dst, cmp.Or(p.kind, "about:blank"))
	dst = append(dst, `,"title":`...)
	dst = appendString(dst, fasthttp.StatusMessage(p.status))
	dst = append(dst, `,"status":`...)
	dst = strconv.AppendInt(dst, int64(p.status), 10)
	dst = append(dst, `,"detail":`...)
	dst = appendString(dst, p.detail)
	dst = append(dst, `,"error":`...)
	dst = appendString(dst, p.detail)
	if p.isSpecProblem {
		dst = append(dst, `,"errors":[`...)
		for i, e := range p.errors[:min(len(p.errors), maxListedErrors)] {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(dst, `{"pointer":`...)
			dst = appendString(dst, e.Pointer)
			dst = append(dst, `,"message":`...)
			dst = appendString(dst, e.Message)
			dst = append(dst, '}')
		}
		dst = append(dst, ']')
	}
	return append(dst, '}')
}

// invalidSpec is the error for a document with problems: TooLarge when all of them are exceeded
// limits, else Invalid.
func invalidSpec(ps dag.Problems) *messages.Error {
	e := &messages.Error{Code: messages.TooLarge, Text: ps.Error()}
	for _, p := range ps {
		if !p.Limit {
			e.Code = messages.Invalid
		}
		e.Problems = append(e.Problems, messages.Problem{Pointer: p.Pointer, Message: p.Message})
	}
	return e
}

// isHTTP1 tells whether a version of the request line is one that this server speaks.
func isHTTP1(v []byte) bool { return string(v) == "HTTP/1.1" || string(v) == "HTTP/1.0" }

// hasTwoFramings tells whether raw header lines have both a Content-Length and a
// Transfer-Encoding: a proxy in front of this server may use the other one. fasthttp has followed
// the encoding by now, and marked the connection to be closed.
func hasTwoFramings(raw []byte) bool {
	return hasHeaderLine(raw, fasthttp.HeaderContentLength) && hasHeaderLine(raw, fasthttp.HeaderTransferEncoding)
}

// hasNoFraming tells whether fasthttp takes a request for one without a body: its length is 0, or -2,
// which stands for neither Content-Length nor Transfer-Encoding. (-1 stands for chunks.)
func hasNoFraming(h *fasthttp.RequestHeader) bool {
	n := h.ContentLength()
	return n == 0 || n == -2
}

// hasHeaderLine tells whether raw header lines have a header. The raw lines show what the client sent;
// the parsed header shows what fasthttp made of it.
func hasHeaderLine(raw []byte, header string) bool {
	for line := range bytes.Lines(raw) {
		name, _, _ := bytes.Cut(line, []byte{':'})
		if strings.EqualFold(string(name), header) {
			return true
		}
	}
	return false
}

// answerMalformed answers input that is not a request. The connection closes. It is fasthttp's
// ErrorHandler, so neither the router nor a middleware sees such input: it has the headers for browsers
// and its own metrics, but it is not in the audit log, and Shutdown does not wait for it.
func (s *Server) answerMalformed(ctx *fasthttp.RequestCtx, err error) {
	drainOnClose(ctx)
	s.setSecurityHeaders(ctx)
	p := readProblem(err)
	s.metrics.malformed.observe(p.status, 0)
	writeProblem(ctx, p)
}

// readProblem is the problem of a request that could not be read completely: 431, 408, or 400 for all
// that remains. fasthttp's own texts are not shown: they may quote the input.
func readProblem(err error) problem {
	var (
		small  *fasthttp.ErrSmallBuffer
		netErr net.Error
	)
	switch {
	case errors.Is(err, errFraming):
		return problem{status: fasthttp.StatusBadRequest, detail: errFraming.Error()}
	case errors.As(err, &small):
		return problem{status: fasthttp.StatusRequestHeaderFieldsTooLarge,
			detail: "the request line and headers are too large: at most " + strconv.Itoa(maxHeader) + " bytes"}
	case errors.As(err, &netErr) && netErr.Timeout():
		return problem{status: fasthttp.StatusRequestTimeout, detail: "the request did not arrive in time"}
	default:
		return problem{status: fasthttp.StatusBadRequest, detail: "the request is not well-formed HTTP, or it is incomplete"}
	}
}

// bodyReadError returns why a body is not read on after a Read that returned err, or nil if it is. At the
// end of a shutdown that is 503, whatever err is: connSet.endCalls has ended the read, or a chunk that
// came then has set the deadline again (chunkDeadline). The caller closes the connection.
func bodyReadError(ctx *fasthttp.RequestCtx, err error) error {
	if context.Cause(contextOf(ctx)) == errShuttingDown {
		return &refusal{fasthttp.StatusServiceUnavailable, "the server is shutting down"}
	}
	if err == nil {
		return nil
	}
	p := readProblem(err)
	return &refusal{p.status, p.detail}
}

// bodyTooLarge refuses a body with 413 before it is read completely. The connection closes.
func (s *Server) bodyTooLarge(ctx *fasthttp.RequestCtx) error {
	drainOnClose(ctx)
	ctx.SetConnectionClose()
	return &refusal{fasthttp.StatusRequestEntityTooLarge,
		"the body is too large: at most " + strconv.FormatInt(s.bodyLimit(&ctx.Request.Header), 10) + " bytes"}
}

// drainOnClose has the connection read on for a while before it closes: see conn.Close.
func drainOnClose(ctx *fasthttp.RequestCtx) {
	if c := connOf(ctx); c != nil {
		c.drainOnClose.Store(true)
	}
}

// maxDrainedBody is the length from which fasthttp closes a connection instead of reading the rest
// of a body that the handler did not read.
const maxDrainedBody = 256 << 10

// readAheadBytes is how much of a body fasthttp reads before it calls the handler.
const readAheadBytes = 8 << 10

// bodyLimit returns how many bytes the body of a request may have: MaxBody for a POST, but for a batch
// each line has its own limit. It works on the raw target, because fasthttp asks for it before it has
// parsed that (requestLimits). A target in absolute form is not recognised as a batch, and has MaxBody.
func (s *Server) bodyLimit(h *fasthttp.RequestHeader) int64 {
	if !h.IsPost() {
		return maxOtherBody
	}
	if path, _, _ := bytes.Cut(h.RequestURI(), []byte{'?'}); string(path) == batchPath {
		return math.MaxInt64 // the limit is each line's
	}
	return s.cfg.MaxBody
}

// quoteInput quotes what a client sent, truncated, for an error text.
func quoteInput[T string | []byte](s T) string {
	const most = 200
	if len(s) > most {
		return strconv.Quote(string(s[:most])) + "…"
	}
	return strconv.Quote(string(s))
}
