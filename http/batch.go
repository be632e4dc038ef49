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
	"sync"
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
	// Some editors put a byte order mark at the start of a line of UTF-8.
	byteOrderMark = "\xEF\xBB\xBF"
)

// A batch is read and answered at the same time, on the connection's goroutine: the answer is a stream
// whose producer reads the body.
//
//	fasthttp ← streamBody.Read ← batch.next ← lineReader.next ← (decompressor) ← bodyReader ← connection
//	                               ↓
//	                  plan each line, then SubmitAll: one wait for the commits of all
//
// Each turn takes the lines that have arrived, at least one and at most maxLinesAtOnce. While their
// commit is awaited the next ones arrive in the buffers of the kernel. A client that sends without
// reading stops when those of both directions are full, until WriteTimeout cuts it off.
//
// A batch ends in one of these ways:
//
//	the body ends                  the answer is complete
//	a line is too long, the memory for bodies is in use, or too many lines were refused
//	                               one more line says so, and the answer is complete; the rest of the
//	                               body is not read
//	the body breaks off or stalls, the server shuts down, the caller lost its right
//	                               before the first answer an error; after it the answer breaks off

// submitBatch is POST /v1/dagruns: a spec per line, and an answer per line in the same order.
// Lines are submitted as they arrive. Lines that arrive together share their commits. Each line is
// durable, or refused, when its answer is sent.
//
// It answers with an error only before the first line was taken. The engine is asked for readiness
// first: a server that is starting should not answer each of a million lines with 503.
func (s *Server) submitBatch(ctx *fasthttp.RequestCtx) error {
	h := &ctx.Request.Header
	key, err := idempotencyKey(h)
	if err != nil {
		return err
	}
	strict, err := strictParameter(ctx)
	if err != nil {
		return err
	}
	if err := s.engine.Ready(contextOf(ctx)); err != nil {
		return notReady(err)
	}
	b := &batch{ctx: contextOf(ctx), s: s, key: key, strict: strict, permit: s.permitOf(ctx), lineBudget: s.newBudgetShare(ctx), windowBudget: s.newBudgetShare(ctx)}
	if b.maxKey = maxKeyLength; hopsOf(ctx) > 0 && s.cfg.Cluster.Partitions() > 1 {
		b.maxKey += len("#18446744073709551615") // the key of a line may be that of a request and a number
	}
	if s.cfg.Access.Audit != nil {
		b.auditEntry = s.newAuditEntry(ctx, batchPath)
		b.auditEntry.Status = fasthttp.StatusOK
	}
	if err := b.openBody(ctx); err != nil {
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
		if b.lines.readErr != io.EOF {
			ctx.SetConnectionClose() // the rest of the body was not read
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

// maxRefusedLines is how many lines of a request may be refused before reading stops. An accepted
// line costs a run. A refused line only costs an answer, which may be longer than the line, and
// the line takes a few bits when it is compressed.
const maxRefusedLines = 10_000

// errTooManyRefused takes the place of further lines, so that the rest of the body counts as unread.
var errTooManyRefused = errors.New("too many lines were refused")

// lineLimit bounds a line, in bytes: a line is in memory as a whole.
func (s *Server) lineLimit() int64 { return min(s.cfg.MaxBody, maxLineBytes) }

// openBody begins to read the body. A short body (up to 1 MiB) with a known length is read at once: its
// lines then share one commit. On an error everything that it opened is closed, except the body itself,
// which fasthttp drains or closes with the connection.
func (b *batch) openBody(ctx *fasthttp.RequestCtx) error {
	stream, announced := bodyStream(ctx), ctx.Request.Header.ContentLength()
	if stream == nil {
		body := ctx.Request.Body()
		stream, announced = bytes.NewReader(body), len(body)
	}
	r := &bodyReader{source: stream, conn: connOf(ctx), timeout: b.s.cfg.ReadTimeout, serviceContext: b.s.serviceContext, unreadBytes: announced}
	// A read may wait for the client for long. Two events from other goroutines end it: a revoked
	// token, and the shutdown.
	allowed, stop := b.s.permits.add(b.permit, r.revoke), context.AfterFunc(b.s.serviceContext, r.interrupt)
	r.stop = func() { allowed(); stop() }
	b.body, b.lines = r, &lineReader{source: r, close: r.Close, limit: b.s.lineLimit(), reserve: b.lineBudget.resize}
	codings := ctx.Request.Header.PeekAll(fasthttp.HeaderContentEncoding)
	b.coding = strings.ToLower(string(bytes.Join(codings, []byte(", "))))
	var err error
	switch b.coding {
	case "", "identity":
		if announced <= maxOtherBody {
			b.lines.wholeBody = max(announced, 0)
		}
		return nil
	case "gzip", "x-gzip":
		b.lines.source, err = gzip.NewReader(r)
	case "zstd":
		if err := b.windowBudget.resize(maxZstdWindow); err != nil {
			r.Close()
			return b.s.overBudget(err)
		}
		var d *zstd.Decoder
		if d, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20)); err == nil {
			b.lines.source, b.lines.close = d, func() { d.Close(); r.Close() }
		}
	default:
		r.Close()
		return unsupportedCoding(b.coding)
	}
	if err != nil {
		r.Close()
		return b.readError(err)
	}
	return nil
}

// batch produces the answers to the lines of a request while they arrive. Only the connection's
// goroutine uses it, also after submitBatch has returned: it holds nothing of the request but the body
// stream, which fasthttp keeps until the answer is written.
type batch struct {
	ctx          context.Context // of the engine's calls
	s            *Server
	key          string                                // of the request; with the number of a line it is the line's key
	coding       string                                // of the body
	strict       bool                                  // warnings are errors
	maxKey       int                                   // length of the key of a line
	warnings     map[*messages.Submission]dag.Problems // of the present lines
	body         *bodyReader
	lines        *lineReader
	linesRead    int           // in total
	linesRefused int           // of linesRead
	lineBudget   budgetShare   // for lines
	windowBudget budgetShare   // for the decompression window
	auditEntry   *access.Entry // nil = no audit log
	permit       *permit       // checked again before lines are submitted
}

// next answers the lines that have arrived. It waits for at least one. Lines that came before an error
// of reading are submitted and answered first; the error comes with them, or in the next call.
//
// An answer goes to each line, in the order of the lines: results has one place for each, and those of
// the valid lines are filled from SubmitAll by at. An error of SubmitAll as a whole becomes the answer
// of each of these lines, because the ones before them have been answered already.
func (b *batch) next(dst []byte) ([]byte, bool, error) {
	b.body.beginLine()
	clear(b.warnings)
	lines, err := b.lines.next()
	if err := b.permit.check(); err != nil { // the wait for these lines may have been long
		if b.linesRead > 0 {
			return dst, true, errStreamBroken
		}
		return dst, true, err
	}
	all := make([]messages.Submission, len(lines))
	results := make([]messages.Result[messages.RunID], len(lines))
	subs, at := make([]*messages.Submission, 0, len(lines)), make([]int, 0, len(lines)) // the valid ones, and their places in lines
	now := time.Now().UnixNano()
	for i, line := range lines {
		b.linesRead++
		all[i].At = now
		if results[i].Err = b.parseLine(&all[i], line); results[i].Err == nil {
			subs, at = append(subs, &all[i]), append(at, i)
		}
	}
	if len(subs) > 0 {
		answers, err := b.s.submitAll(b.ctx, subs)
		for i := range subs {
			if err != nil {
				results[at[i]].Err = err
			} else {
				results[at[i]] = answers[i]
			}
		}
	}
	for i := range results {
		b.auditEntry.CountRun((*uint64)(&results[i].Value), results[i].Err == nil)
		if err := results[i].Err; err != nil {
			b.linesRefused++
			dst = appendProblem(dst, b.s.problemOf(err, []byte("POST"), []byte(batchPath)))
		} else {
			dst = append(appendWarnings(appendRunID(dst, results[i].Value), b.warnings[&all[i]]), '}')
		}
		dst = append(dst, '\n')
	}
	// fasthttp may close the connection with unread bytes in it. Without the drain the kernel sends a
	// reset then, and the client may lose the last answers.
	if (err != nil && err != io.EOF || b.linesRefused >= maxRefusedLines) && b.body.conn != nil {
		b.body.conn.drainOnClose.Store(true)
	}
	full := errors.Is(err, errBudgetSpent) || errors.Is(err, errClientBudgetSpent)
	switch {
	case err == nil && b.linesRefused >= maxRefusedLines:
		b.lines.readErr = errTooManyRefused
		dst = appendProblem(dst, problem{status: fasthttp.StatusBadRequest,
			detail: strconv.Itoa(b.linesRefused) + " lines were refused: the lines after line " + strconv.Itoa(b.linesRead) + " are not read"})
		return append(dst, '\n'), false, nil
	case err == nil:
		return dst, true, nil
	case full && b.linesRead == 0:
		return dst, true, b.s.overBudget(err)
	case full:
		p := b.s.overBudget(err)
		dst = appendProblem(dst, problem{status: p.status, detail: "line " + strconv.Itoa(b.linesRead+1) + ": " + p.detail + "; reading stops before it"})
		return append(dst, '\n'), false, nil
	case err == io.EOF:
		return dst, false, nil
	case errors.Is(err, errLongLine):
		dst = appendProblem(dst, problem{status: fasthttp.StatusRequestEntityTooLarge,
			detail: "line " + strconv.Itoa(b.linesRead+1) + " is too long: at most " + strconv.FormatInt(b.s.lineLimit(), 10) + " bytes; reading stops before it"})
		return append(dst, '\n'), false, nil
	case len(lines) > 0:
		b.lines.readErr = err // after the answers
		return dst, true, nil
	default:
		return dst, true, b.readError(err)
	}
}

// readError returns why a body could not be read completely. After the first answer, the stream can
// only break off. Without an error of the connection (body.err) the decompressor failed: 400.
func (b *batch) readError(err error) error {
	if b.linesRead > 0 {
		return errStreamBroken
	}
	if b.s.serviceContext.Err() != nil {
		return &refusal{fasthttp.StatusServiceUnavailable, "the server is shutting down"}
	}
	if b.body.err == nil {
		return invalid("the body is not valid " + b.coding + ": " + err.Error())
	}
	p := readProblem(err)
	return &refusal{p.status, p.detail}
}

// parseLine makes a submission of a line. The engine owns the line from here on: it stores doc as it
// is, so doc is a part of the line and not a copy. Line number n of a request with the key K has the
// key "K#n", counted from 1 over all lines, also refused and empty ones, so that a repeat of the whole
// request gives each line its former key. The number is linesRead, which next has raised.
func (b *batch) parseLine(sub *messages.Submission, line []byte) error {
	// Without blanks at both ends the document, and its hash, is the same when another node of a cluster has
	// wrapped it (appendLine).
	doc, key := bytes.Trim(bytes.TrimPrefix(line, []byte(byteOrderMark)), " \t\r"), ""
	if len(doc) == 0 {
		return &messages.Error{Code: messages.Invalid, Text: "the line is empty: want a spec as JSON"}
	}
	if isWrappedLine(doc) {
		var err error
		if doc, key, err = unwrapLine(doc, b.maxKey); err != nil {
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
		key = b.key + "#" + strconv.Itoa(b.linesRead)
	}
	sub.Plan, sub.Body, sub.IdempotencyKey = plan, doc, key
	if key != "" {
		sub.BodyHash = sha256.Sum256(doc)
	}
	return nil
}

// Close gives the memory back and writes the entry of the audit log, with the counts of all lines.
func (b *batch) Close() error {
	b.lines.close()
	b.lineBudget.release()
	b.windowBudget.release()
	if b.auditEntry != nil && b.linesRead > 0 {
		b.s.cfg.Access.Audit.Record(*b.auditEntry)
	}
	return nil
}

// isWrappedLine tells whether a line is {"idempotencyKey": …, "spec": …}. A spec does not have such
// members. It looks only at the first one, so that a line is not parsed twice.
func isWrappedLine(line []byte) bool {
	const space = " \t\r\n"
	rest, ok := bytes.CutPrefix(bytes.TrimLeft(line, space), []byte{'{'})
	rest = bytes.TrimLeft(rest, space)
	return ok && (bytes.HasPrefix(rest, []byte(`"idempotencyKey"`)) || bytes.HasPrefix(rest, []byte(`"spec"`)))
}

// unwrapLine returns the two members of a wrapped line, in either order; key is "" where it is left
// out. doc is a copy. An unknown member, a second value after the object and a missing spec are errors
// with the code Invalid; jsontext also refuses a member that occurs twice.
func unwrapLine(line []byte, maxKey int) (doc []byte, key string, err error) {
	d := jsontext.NewDecoder(bytes.NewReader(line))
	bad := func(err error) ([]byte, string, error) {
		return nil, "", invalid("the line is not an object of idempotencyKey and spec: " + err.Error())
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
				return nil, "", invalid("idempotencyKey: must be a string")
			}
			key = value.String()
			if err := checkIdempotencyKey("idempotencyKey", key, maxKey); err != nil {
				return nil, "", err
			}
		default:
			return nil, "", invalid("unknown member " + quoteInput(member) + ": the members are idempotencyKey and spec")
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return bad(err)
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return bad(errors.Join(err, errors.New("text follows the object")))
	}
	if doc == nil {
		return nil, "", invalid("spec is missing")
	}
	return doc, key, nil
}

const (
	lineBuffer     = 64 << 10 // read at a time while lines are short
	maxLinesAtOnce = 1024     // returned at a time
)

// errLongLine: a line is longer than the limit.
var errLongLine = errors.New("the line is too long")

// lineReader splits what it reads into lines, and returns them as they arrive. It hands out parts of
// its buffer and then takes a new one (fill), because the engine keeps the lines.
type lineReader struct {
	source    io.Reader
	close     func()
	limit     int64               // of a line, in bytes
	wholeBody int                 // length of the body if it is read at once, before the first line is returned; else 0
	reserve   func(n int64) error // reserves memory for n bytes, or returns why that is refused
	unread    []byte              // read, and not returned yet
	readErr   error               // comes after unread
}

// next returns the lines that have arrived, without their ends: at least one, and at most
// maxLinesAtOnce. The caller owns them. io.EOF comes with the last of them; any other error may come
// with lines, too, and means that reading has ended: errLongLine, why memory was refused, or the error
// of the source. A last line needs no line feed.
//
// It never waits while it has a complete line. Bytes that were searched for a line feed are not
// searched again, so a line of 64 MiB that arrives in small parts is searched once.
func (l *lineReader) next() (lines [][]byte, err error) {
	searched := 0 // bytes of unread without the end of a line
	for {
		for len(lines) < maxLinesAtOnce {
			i := bytes.IndexByte(l.unread[searched:], '\n')
			if i < 0 {
				searched = len(l.unread)
				break
			}
			end := searched + i
			if int64(end) > l.limit {
				return lines, errLongLine
			}
			lines = append(lines, l.unread[:end:end])
			l.unread, searched = l.unread[end+1:], 0
		}
		switch {
		case int64(searched) > l.limit:
			return lines, errLongLine
		case l.readErr == io.EOF && searched == len(l.unread) && len(lines) < maxLinesAtOnce:
			if len(l.unread) > 0 {
				lines = append(lines, l.unread)
				l.unread = nil
			}
			return lines, io.EOF
		case len(lines) > 0:
			return lines, nil
		case l.readErr != nil:
			return nil, l.readErr
		}
		l.fill()
	}
}

// fill reads some more into new memory: the caller owns the memory of lines that were returned. A line
// grows by doubling. The reservation comes before the memory is taken; a refused one becomes readErr.
func (l *lineReader) fill() {
	if l.wholeBody > 0 {
		if err := l.reserve(memoryPerByte * int64(l.wholeBody)); err != nil {
			l.wholeBody, l.readErr = 0, err
			return
		}
		l.unread = make([]byte, l.wholeBody)
		n, err := io.ReadFull(l.source, l.unread)
		if l.unread, l.wholeBody, l.readErr = l.unread[:n], 0, err; err == nil {
			l.readErr = io.EOF
		}
		return
	}
	if cap(l.unread)-len(l.unread) < lineBuffer/16 {
		size := max(2*len(l.unread), lineBuffer)
		if most := l.limit + lineBuffer; int64(size)+lineBuffer >= l.limit && int64(len(l.unread)) < l.limit {
			size = int(most) // the longest line fits: a longer one is refused before this grows again
		}
		// The buffer counts before its bytes arrive, the line with all that is made of it.
		if err := l.reserve(max(memoryPerByte*int64(len(l.unread)), int64(size))); err != nil {
			l.readErr = err
			return
		}
		l.unread = append(make([]byte, 0, size), l.unread...)
	}
	n, err := l.source.Read(l.unread[len(l.unread):cap(l.unread)])
	l.unread, l.readErr = l.unread[:len(l.unread)+n], err
}

// bodyReader reads a body as long as some of it arrives. Each read has its own deadline. Reading
// ends at shutdown.
type bodyReader struct {
	source         io.Reader
	conn           *conn
	timeout        time.Duration
	serviceContext context.Context
	stop           func()
	unreadBytes    int   // announced and not read; negative for a chunked body
	err            error // the error that ended reading, except io.EOF

	// The present line: a line that arrives in tiny parts must not hold its memory for ever.
	lineBegan time.Time // when its first bytes arrived; zero before
	lineBytes int       // bytes since lineBegan

	mu      sync.Mutex // of the connection's deadline, and of
	revoked bool       // reading has ended for good
}

// Read is as in io.Reader. A body that is shorter than announced ends with io.ErrUnexpectedEOF.
func (p *bodyReader) Read(b []byte) (int, error) {
	if err := p.renewDeadline(); err != nil {
		p.err = err
		return 0, err
	}
	n, err := p.source.Read(b)
	if p.lineBytes += n; n > 0 && p.lineBegan.IsZero() {
		p.lineBegan = time.Now()
	}
	if p.unreadBytes >= 0 {
		if p.unreadBytes -= n; err == io.EOF && p.unreadBytes > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	if err != nil && err != io.EOF {
		p.err = err
	}
	return n, err
}

// renewDeadline gives the next read the full timeout, but not more than the present line has left: a
// line may take timeout, and a second more for each 64 KiB of it. The time starts with the first byte
// of a line, so a client may pause between lines for as long as timeout.
//
// The lock makes the order of renewDeadline and interrupt safe: a deadline that interrupt has set into
// the past is never replaced, because the reason for it was set before.
func (p *bodyReader) renewDeadline() error {
	if p.conn == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.serviceContext.Err(); err != nil {
		return err
	}
	if p.revoked {
		return errRevoked
	}
	deadline := time.Now().Add(p.timeout)
	if !p.lineBegan.IsZero() {
		if whole := p.lineBegan.Add(p.timeout + time.Duration(p.lineBytes/minBodyRate)*time.Second); whole.Before(deadline) {
			deadline = whole
		}
	}
	return p.conn.SetReadDeadline(deadline)
}

// beginLine is called after a complete line: the next line has the full time.
func (p *bodyReader) beginLine() { p.lineBegan, p.lineBytes = time.Time{}, 0 }

// revoke ends reading for good: the caller's token or session is no longer valid.
func (p *bodyReader) revoke() {
	p.mu.Lock()
	p.revoked = true
	p.mu.Unlock()
	p.interrupt()
}

// interrupt ends a read that waits, from another goroutine: its deadline has passed. The read returns
// os.ErrDeadlineExceeded; readError and next find the true reason.
func (p *bodyReader) interrupt() {
	if p.conn == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.conn.SetReadDeadline(time.Unix(1, 0)) // an error means that the connection is closed
}

// Close ends the reader. The body still belongs to the request.
func (p *bodyReader) Close() { p.stop() }
