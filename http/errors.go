package http

import (
	"bytes"
	"errors"
	"math"
	"net"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/messages"
)

// statusOf is the one place where the domain's codes become HTTP statuses.
func statusOf(c messages.Code) int {
	switch c {
	case messages.Invalid:
		return fasthttp.StatusBadRequest
	case messages.NotFound:
		return fasthttp.StatusNotFound
	case messages.Conflict:
		return fasthttp.StatusConflict
	case messages.TooLarge, messages.KeyReused:
		return fasthttp.StatusUnprocessableEntity
	case messages.Unavailable:
		return fasthttp.StatusServiceUnavailable
	default:
		return fasthttp.StatusInternalServerError
	}
}

// refusal is an error of HTTP itself, of which the domain knows nothing.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

// problem is an error's body: the members of RFC 9457 and, for clients that do
// not know these, `error`. With document, it speaks of a spec: `valid` is false
// and `errors` lists what is wrong.
type problem struct {
	status   int
	text     string
	document bool
	errors   []messages.Problem
}

// internalProblem says nothing of the cause: the log does.
var internalProblem = problem{status: fasthttp.StatusInternalServerError, text: "internal error: see the server's log"}

// maxProblems bounds `errors`; the sentence counts them all.
const maxProblems = 1000

// fail answers with an error.
func (s *Server) fail(ctx *fasthttp.RequestCtx, err error) {
	p := s.problemOf(err, ctx.Method(), ctx.URI().PathOriginal())
	if n := ctx.Request.Header.ContentLength(); ctx.RequestBodyStream() != nil && (n < 0 || n > longUnread) {
		linger(ctx)
	}
	writeProblem(ctx, p)
}

// problemOf is what a client is shown of an error. One that it must not see is
// logged.
func (s *Server) problemOf(err error, method, path []byte) problem {
	var (
		r *refusal
		m *messages.Error
	)
	switch {
	case errors.As(err, &r):
		return problem{status: r.status, text: r.text}
	case isDeparture(err):
		return problem{status: fasthttp.StatusServiceUnavailable, text: err.Error() + " before the answer: the request may still take effect"}
	case errors.As(err, &m) && m.Code == messages.Damaged:
		s.log.Error("http: damaged", "method", string(method), "path", string(path), "err", err)
		return problem{status: fasthttp.StatusInternalServerError, text: m.Text}
	case errors.As(err, &m) && m.Code != messages.Internal:
		return problem{status: statusOf(m.Code), text: m.Text, document: m.Problems != nil, errors: m.Problems}
	default:
		s.log.Error("http: internal error", "method", string(method), "path", string(path), "error", err)
		return internalProblem
	}
}

// writeProblem sets the response; headers that were set before stay.
func writeProblem(ctx *fasthttp.RequestCtx, p problem) {
	ctx.Response.ResetBody()
	ctx.SetStatusCode(p.status)
	h := &ctx.Response.Header
	h.SetContentType("application/problem+json")
	switch p.status {
	case fasthttp.StatusServiceUnavailable, fasthttp.StatusTooManyRequests:
		h.Set(fasthttp.HeaderRetryAfter, "1")
	case fasthttp.StatusUnauthorized:
		h.Set(fasthttp.HeaderWWWAuthenticate, challenge)
	}
	ctx.Response.SetBodyRaw(appendProblem(nil, p))
}

func appendProblem(dst []byte, p problem) []byte {
	dst = append(dst, '{')
	if p.document {
		dst = append(dst, `"valid":false,`...)
	}
	dst = append(dst, `"type":"about:blank","title":`...)
	dst = appendText(dst, fasthttp.StatusMessage(p.status))
	dst = append(dst, `,"status":`...)
	dst = strconv.AppendInt(dst, int64(p.status), 10)
	dst = append(dst, `,"detail":`...)
	dst = appendText(dst, p.text)
	dst = append(dst, `,"error":`...)
	dst = appendText(dst, p.text)
	if p.document {
		dst = append(dst, `,"errors":[`...)
		for i, e := range p.errors[:min(len(p.errors), maxProblems)] {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(dst, `{"pointer":`...)
			dst = appendText(dst, e.Pointer)
			dst = append(dst, `,"message":`...)
			dst = appendText(dst, e.Message)
			dst = append(dst, '}')
		}
		dst = append(dst, ']')
	}
	return append(dst, '}')
}

// refused is the error for a document with problems: over a limit when that is
// all that is wrong, invalid otherwise.
func refused(ps dag.Problems) *messages.Error {
	e := &messages.Error{Code: messages.TooLarge, Text: ps.Error()}
	for _, p := range ps {
		if !p.Limit {
			e.Code = messages.Invalid
		}
		e.Problems = append(e.Problems, messages.Problem{Pointer: p.Pointer, Message: p.Message})
	}
	return e
}

// admit refuses what no route may see.
func (s *Server) admit(ctx *fasthttp.RequestCtx, rt *route, who *access.Caller) error {
	c := connOf(ctx)
	switch {
	case c != nil && !c.occupy():
		ctx.SetConnectionClose() // nobody reads the answer
		return &refusal{fasthttp.StatusServiceUnavailable, tooManyConns}
	case s.draining.Load():
		ctx.SetConnectionClose()
		return &refusal{fasthttp.StatusServiceUnavailable, "the server is shutting down"}
	case c != nil && c.crowded == crowdedServer:
		ctx.SetConnectionClose()
		return &refusal{fasthttp.StatusServiceUnavailable, tooManyConns}
	case c != nil && c.crowded == crowdedClient:
		ctx.SetConnectionClose()
		return &refusal{fasthttp.StatusTooManyRequests, tooManyOfClient}
	case !knownVersion(ctx.Request.Header.Protocol()):
		ctx.SetConnectionClose()
		return &refusal{fasthttp.StatusHTTPVersionNotSupported, "HTTP version " + quote(ctx.Request.Header.Protocol()) + " is not supported"}
	case bytes.IndexByte(ctx.Request.Header.RequestURI(), '#') >= 0:
		return &refusal{fasthttp.StatusBadRequest, "the request's target holds a fragment"}
	}
	if err := refuseRepeated(&ctx.Request.Header); err != nil {
		ctx.SetConnectionClose()
		return err
	}
	if err := s.knock(ctx, rt, who); err != nil {
		return err
	}
	switch {
	case int64(ctx.Request.Header.ContentLength()) > s.bodyLimit(&ctx.Request.Header):
		return s.tooLarge(ctx)
	case ctx.Request.Header.ConnectionClose() && framedTwice(ctx.Request.Header.RawHeaders()):
		return &refusal{fasthttp.StatusBadRequest, "the request has both Content-Length and Transfer-Encoding"}
	case unframed(&ctx.Request.Header) && hasLine(ctx.Request.Header.RawHeaders(), fasthttp.HeaderTransferEncoding):
		// fasthttp takes "identity" for a request without a body. Whoever is in front
		// may see a body where this server sees the next request (RFC 9112, section 6.3).
		ctx.SetConnectionClose()
		return &refusal{fasthttp.StatusBadRequest, "Transfer-Encoding must be chunked"}
	}
	if rt.method == "" {
		return nil // there is no route, which is what the client must be told
	}
	return checkType(&ctx.Request.Header, rt.body)
}

func knownVersion(v []byte) bool { return string(v) == "HTTP/1.1" || string(v) == "HTTP/1.0" }

// framedTwice tells whether raw header lines hold both a Content-Length and a
// Transfer-Encoding: who is in front of this server might believe the other one.
// By then fasthttp has followed the encoding and marked the connection to be closed.
func framedTwice(raw []byte) bool {
	return hasLine(raw, fasthttp.HeaderContentLength) && hasLine(raw, fasthttp.HeaderTransferEncoding)
}

// unframed tells whether fasthttp takes a request for one without a body.
func unframed(h *fasthttp.RequestHeader) bool {
	n := h.ContentLength()
	return n == 0 || n == -2
}

// hasLine tells whether raw header lines hold a header.
func hasLine(raw []byte, header string) bool {
	for line := range bytes.Lines(raw) {
		name, _, _ := bytes.Cut(line, []byte{':'})
		if strings.EqualFold(string(name), header) {
			return true
		}
	}
	return false
}

// malformed answers what could not be read as a request. The connection closes.
func (s *Server) malformed(ctx *fasthttp.RequestCtx, err error) {
	linger(ctx)
	s.protect(ctx)
	p := unread(err)
	s.metrics.malformed.observe(p.status, 0)
	writeProblem(ctx, p)
}

// unread is what is wrong with a request that could not be read to its end.
func unread(err error) problem {
	var (
		small  *fasthttp.ErrSmallBuffer
		netErr net.Error
	)
	switch {
	case errors.Is(err, errFraming):
		return problem{status: fasthttp.StatusBadRequest, text: errFraming.Error()}
	case errors.As(err, &small):
		return problem{status: fasthttp.StatusRequestHeaderFieldsTooLarge,
			text: "the request line and headers are too large: at most " + strconv.Itoa(headerLimit) + " bytes"}
	case errors.As(err, &netErr) && netErr.Timeout():
		return problem{status: fasthttp.StatusRequestTimeout, text: "the request did not arrive in time"}
	default:
		return problem{status: fasthttp.StatusBadRequest, text: "the request is not well-formed HTTP, or it is incomplete"}
	}
}

// tooLarge refuses a body that is not read to its end.
func (s *Server) tooLarge(ctx *fasthttp.RequestCtx) error {
	linger(ctx)
	ctx.SetConnectionClose()
	return &refusal{fasthttp.StatusRequestEntityTooLarge,
		"the body is too large: at most " + strconv.FormatInt(s.bodyLimit(&ctx.Request.Header), 10) + " bytes"}
}

// linger has the connection read on for a while before it closes.
func linger(ctx *fasthttp.RequestCtx) {
	if c := connOf(ctx); c != nil {
		c.linger = true
	}
}

// longUnread is the length from which fasthttp closes a connection rather than
// read the rest of a body that no handler wanted.
const longUnread = 256 << 10

func (s *Server) bodyLimit(h *fasthttp.RequestHeader) int64 {
	if !h.IsPost() {
		return smallBody
	}
	if path, _, _ := bytes.Cut(h.RequestURI(), []byte{'?'}); string(path) == batchPath {
		return math.MaxInt64 // the limit is each line's
	}
	return s.cfg.MaxBody
}

// quote shows what a client sent, bounded, in a sentence.
func quote[T string | []byte](s T) string {
	const most = 200
	if len(s) > most {
		return strconv.Quote(string(s[:most])) + "…"
	}
	return strconv.Quote(string(s))
}
