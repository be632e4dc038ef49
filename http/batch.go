package http

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/klauspost/compress/zstd"
	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/messages"
)

const (
	batchPath = "/v1/dagruns"
	linesType = "application/x-ndjson"
	// A line may begin with what some editors put in front of UTF-8.
	byteOrderMark = "\xEF\xBB\xBF"
)

// submitBatch is POST /v1/dagruns: a spec per line, an answer per line in the same
// order. Lines are submitted as they come, those that came together share what they
// wait for; each is durable, or refused, when its answer is sent.
func (s *Server) submitBatch(ctx *fasthttp.RequestCtx) error {
	h := &ctx.Request.Header
	key, err := idempotencyKey(h)
	if err != nil {
		return err
	}
	strict, err := strictQuery(ctx)
	if err != nil {
		return err
	}
	if err := s.engine.Ready(contextOf(ctx)); err != nil {
		return &refusal{fasthttp.StatusServiceUnavailable, "not ready: " + err.Error()}
	}
	b := &batch{ctx: contextOf(ctx), s: s, key: key, strict: strict, permit: s.permitOf(ctx), held: s.shareOf(ctx), window: s.shareOf(ctx)}
	b.entry, _ = ctx.UserValue(auditKey{}).(*access.Entry)
	if err := b.open(ctx); err != nil {
		ctx.SetConnectionClose()
		return err
	}
	dst, more, err := b.next(make([]byte, 0, 4<<10))
	switch {
	case err != nil:
		closeProducer(b)
		ctx.SetConnectionClose()
		return err
	case !more:
		closeProducer(b)
		if b.lines.failed != io.EOF {
			ctx.SetConnectionClose() // what follows was not read
		}
		if len(dst) == 0 {
			return invalid("the body is empty: want a spec as JSON per line")
		}
		ctx.Response.Header.SetContentType(linesType)
		ctx.Response.SetBodyRaw(dst)
		return nil
	}
	ctx.Response.ImmediateHeaderFlush = true
	s.stream(ctx, linesType, b, dst, -1)
	return nil
}

// maxBadLines is how many lines of a request may be refused: then nothing more is read.
// A sound line costs its run; one that is refused costs an answer that may be longer
// than the line, and compressed a few bits.
const maxBadLines = 10_000

var errTooMuch = errors.New("too many lines are refused")

// lineLimit bounds a line, in bytes: lines are in memory as a whole.
func (s *Server) lineLimit() int64 { return min(s.cfg.MaxBody, maxLine) }

// open begins to read the body. What is announced and short is read at once.
func (b *batch) open(ctx *fasthttp.RequestCtx) error {
	stream, announced := bodyOf(ctx), ctx.Request.Header.ContentLength()
	if stream == nil {
		body := ctx.Request.Body()
		stream, announced = bytes.NewReader(body), len(body)
	}
	r := &patientReader{r: stream, conn: connOf(ctx), timeout: b.s.cfg.ReadTimeout, serving: b.s.serving, left: announced}
	allowed, stop := b.s.permits.add(b.permit, r.revoke), context.AfterFunc(b.s.serving, r.giveUp)
	r.stop = func() { allowed(); stop() }
	b.wire, b.lines = r, &lineReader{r: r, close: r.Close, limit: b.s.lineLimit(), room: b.held.set}
	codings := ctx.Request.Header.PeekAll(fasthttp.HeaderContentEncoding)
	b.coding = strings.ToLower(string(bytes.Join(codings, []byte(", "))))
	var err error
	switch b.coding {
	case "", "identity":
		if announced <= smallBody {
			b.lines.whole = max(announced, 0)
		}
		return nil
	case "gzip", "x-gzip":
		b.lines.r, err = gzip.NewReader(r)
	case "zstd":
		if err := b.window.set(maxZstd); err != nil {
			r.Close()
			return b.s.noRoom(err)
		}
		var d *zstd.Decoder
		if d, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20)); err == nil {
			b.lines.r, b.lines.close = d, func() { d.Close(); r.Close() }
		}
	default:
		r.Close()
		return unsupportedCoding(b.coding)
	}
	if err != nil {
		r.Close()
		return b.unread(err)
	}
	return nil
}

// batch produces the answers to the lines of a request, while these come.
type batch struct {
	ctx      context.Context // of the engine's calls
	s        *Server
	key      string                                // of the request: with a line's number it is that line's
	coding   string                                // of the body
	strict   bool                                  // warnings are errors
	warnings map[*messages.Submission]dag.Problems // of the lines at hand
	wire     *patientReader
	lines    *lineReader
	line     int           // how many were read
	bad      int           // how many of them were refused
	held     share         // of the budget, for lines
	window   share         // and for what they are decompressed by
	entry    *access.Entry // for the audit log; nil = not kept
	permit   *permit       // asked again before lines are submitted
}

// next answers the lines that have come, waiting for one at least.
func (b *batch) next(dst []byte) ([]byte, bool, error) {
	b.wire.restart()
	clear(b.warnings)
	lines, err := b.lines.next()
	if !b.permit.holds() { // it may have taken long until these lines came
		if b.line > 0 {
			return dst, true, errBreakOff
		}
		return dst, true, &refusal{fasthttp.StatusUnauthorized, "the token is no longer one of this server's"}
	}
	all := make([]messages.Submission, len(lines))
	results := make([]messages.Result[messages.RunID], len(lines))
	subs, at := make([]*messages.Submission, 0, len(lines)), make([]int, 0, len(lines)) // those that are sound; where in lines
	now := time.Now().UnixNano()
	for i, line := range lines {
		b.line++
		all[i].At = now
		if results[i].Err = b.submission(&all[i], line); results[i].Err == nil {
			subs, at = append(subs, &all[i]), append(at, i)
		}
	}
	if len(subs) > 0 {
		answers, err := b.s.engine.SubmitAll(b.ctx, subs)
		for i := range subs {
			if err != nil {
				results[at[i]].Err = err
			} else {
				results[at[i]] = answers[i]
			}
		}
	}
	for i := range results {
		b.entry.Count((*uint64)(&results[i].Value), results[i].Err == nil)
		if err := results[i].Err; err != nil {
			b.bad++
			dst = appendProblem(dst, b.s.problemOf(err, []byte("POST"), []byte(batchPath)))
		} else {
			dst = append(appendWarnings(appendRunID(dst, results[i].Value), b.warnings[&all[i]]), '}')
		}
		dst = append(dst, '\n')
	}
	if (err != nil && err != io.EOF || b.bad >= maxBadLines) && b.wire.conn != nil {
		b.wire.conn.linger = true // the client is still sending, and has to see the answers
	}
	full := errors.Is(err, errNoRoom) || errors.Is(err, errOwnRoom)
	switch {
	case err == nil && b.bad >= maxBadLines:
		b.lines.failed = errTooMuch
		dst = appendProblem(dst, problem{status: fasthttp.StatusBadRequest,
			text: strconv.Itoa(b.bad) + " lines were refused: what is behind line " + strconv.Itoa(b.line) + " is not read"})
		return append(dst, '\n'), false, nil
	case err == nil:
		return dst, true, nil
	case full && b.line == 0:
		return dst, true, b.s.noRoom(err)
	case full:
		p := b.s.noRoom(err)
		dst = appendProblem(dst, problem{status: p.status, text: "line " + strconv.Itoa(b.line+1) + ": " + p.text + "; it and what is behind it is not read"})
		return append(dst, '\n'), false, nil
	case err == io.EOF:
		return dst, false, nil
	case errors.Is(err, errLongLine):
		dst = appendProblem(dst, problem{status: fasthttp.StatusRequestEntityTooLarge,
			text: "line " + strconv.Itoa(b.line+1) + " is too long: at most " + strconv.FormatInt(b.s.lineLimit(), 10) + " bytes; it and what is behind it is not read"})
		return append(dst, '\n'), false, nil
	case len(lines) > 0:
		b.lines.failed = err // behind the answers
		return dst, true, nil
	default:
		return dst, true, b.unread(err)
	}
}

// unread is why a body could not be read to its end. A stream of answers can only
// break off then.
func (b *batch) unread(err error) error {
	if b.line > 0 {
		return errBreakOff
	}
	if b.s.serving.Err() != nil {
		return &refusal{fasthttp.StatusServiceUnavailable, "the server is shutting down"}
	}
	if b.wire.err == nil {
		return invalid("the body is no " + b.coding + ": " + err.Error())
	}
	p := unread(err)
	return &refusal{p.status, p.text}
}

// submission makes one of a line. The line is the engine's from here on.
func (b *batch) submission(sub *messages.Submission, line []byte) error {
	doc, key := bytes.TrimRight(bytes.TrimPrefix(line, []byte(byteOrderMark)), " \t\r"), ""
	if len(doc) == 0 {
		return &messages.Error{Code: messages.Invalid, Text: "the line is empty: want a spec as JSON"}
	}
	if wrapped(doc) {
		var err error
		if doc, key, err = unwrap(doc); err != nil {
			return err
		}
	}
	plan, warnings, err := b.s.plan(doc, b.strict)
	if err != nil {
		return err
	}
	if len(warnings) > 0 {
		if b.warnings == nil {
			b.warnings = make(map[*messages.Submission]dag.Problems)
		}
		b.warnings[sub] = warnings
	}
	if key == "" && b.key != "" {
		key = b.key + "#" + strconv.Itoa(b.line)
	}
	sub.Plan, sub.Body, sub.IdempotencyKey = plan, doc, key
	if key != "" {
		sub.BodyHash = sha256.Sum256(doc)
	}
	return nil
}

func (b *batch) Close() error {
	b.lines.close()
	b.held.free()
	b.window.free()
	if b.entry != nil && b.line > 0 {
		b.s.cfg.Access.Audit.Record(*b.entry)
	}
	return nil
}

// wrapped tells whether a line is {"idempotencyKey": …, "spec": …}: a spec has no
// such members.
func wrapped(line []byte) bool {
	const space = " \t\r\n"
	rest, ok := bytes.CutPrefix(bytes.TrimLeft(line, space), []byte{'{'})
	rest = bytes.TrimLeft(rest, space)
	return ok && (bytes.HasPrefix(rest, []byte(`"idempotencyKey"`)) || bytes.HasPrefix(rest, []byte(`"spec"`)))
}

// unwrap takes a wrapped line apart.
func unwrap(line []byte) (doc []byte, key string, err error) {
	d := jsontext.NewDecoder(bytes.NewReader(line))
	bad := func(err error) ([]byte, string, error) {
		return nil, "", invalid("the line is no object of idempotencyKey and spec: " + err.Error())
	}
	if _, err := d.ReadToken(); err != nil {
		return bad(err)
	}
	for d.PeekKind() == '"' {
		name, err := d.ReadToken()
		if err != nil {
			return bad(err)
		}
		switch member := name.String(); member {
		case "spec":
			value, err := d.ReadValue()
			if err != nil {
				return bad(err)
			}
			doc = bytes.Clone(value)
		case "idempotencyKey":
			value, err := d.ReadToken()
			switch {
			case err != nil:
				return bad(err)
			case value.Kind() != '"':
				return nil, "", invalid("idempotencyKey: want a string")
			}
			key = value.String()
			if err := checkKey("idempotencyKey", key); err != nil {
				return nil, "", err
			}
		default:
			return nil, "", invalid("unknown member " + quote(member) + " beside idempotencyKey and spec")
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return bad(err)
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return bad(errors.Join(err, errors.New("something follows it")))
	}
	if doc == nil {
		return nil, "", invalid("spec is missing")
	}
	return doc, key, nil
}
