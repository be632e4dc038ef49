package http

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/messages"
)

// One document on its way from the connection to the engine:
//
//	submit → document → readBody   into memory, up to 4 MiB, or into an unnamed file (long_body.go)
//	                  → decompress in memory, if its result is not long
//	       → plan                  decode strictly, collect every problem, count the tasks
//	       → recheckPermit         the body may have taken long to arrive
//	       → engine.Submit         waits for the commit
//
// A body takes memory of the budget (bodyBudget) from its first 16 KiB until the handler returns. The
// engine owns the document after Submit and may keep it longer; that part is not counted.

// submit is POST /v1/dagrun. The run is durable when this answers. The warnings of an accepted document
// are in the answer, and lost with it: a repeat with the same idempotency key has them again, because
// it is planned again.
func (s *Server) submit(ctx *fasthttp.RequestCtx) error {
	key, err := idempotencyKey(&ctx.Request.Header)
	if err != nil {
		return err
	}
	strict, err := strictParameter(ctx)
	if err != nil {
		return err
	}
	var warnings dag.Problems
	held := s.newBudgetShare(ctx)
	defer held.release()
	doc, long, err := s.document(ctx, &held)
	if err != nil {
		return err
	}
	sub := &messages.Submission{Body: doc, IdempotencyKey: key}
	if long != nil {
		defer long.release()
		plan, longWarnings, done, err := s.planLong(ctx, long, key != "", strict)
		if err != nil {
			return err
		}
		defer done() // after Submit: the turn includes storing
		sub.Plan, sub.Long, sub.BodyHash = plan, long, long.sum
		warnings = longWarnings
	} else {
		if sub.Plan, warnings, err = s.plan(doc, strict); err != nil {
			return err
		}
		if key != "" {
			sub.BodyHash = sha256.Sum256(doc)
		}
	}
	if err := s.recheckPermit(ctx); err != nil {
		return err
	}
	sub.At = time.Now().UnixNano()
	run, err := s.engine.Submit(contextOf(ctx), sub)
	if err != nil {
		return err
	}
	ctx.Response.Header.Set(fasthttp.HeaderLocation, "/v1/dagrun/"+strconv.FormatUint(uint64(run), 10))
	answerJSON(ctx, append(appendWarnings(appendRunID(make([]byte, 0, 64), run), warnings), '}'))
	return nil
}

// strictParameter tells whether ?strict makes warnings errors. Other parameters are ignored.
func strictParameter(ctx *fasthttp.RequestCtx) (strict bool, err error) {
	err = eachParameter(ctx, func(name, value string) (err error) {
		if name == "strict" {
			strict, err = parseSwitch(name, value)
		}
		return err
	})
	return strict, err
}

// appendRunID begins the answer to a submission, {"runID":7, without its closing brace.
func appendRunID(dst []byte, run messages.RunID) []byte {
	return strconv.AppendUint(append(dst, `{"runID":`...), uint64(run), 10)
}

// appendWarnings appends the member of an answer with the warnings, if there are any, after a member
// before it: ,"warnings":[{"pointer":"/tasks/a/job/timeout","message":"…"}]. specjson bounds their
// number (specjson.MaxWarnings).
func appendWarnings(dst []byte, warnings dag.Problems) []byte {
	for i, w := range warnings {
		if i == 0 {
			dst = append(dst, `,"warnings":[`...)
		} else {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"pointer":`...)
		dst = appendString(dst, w.Pointer)
		dst = append(dst, `,"message":`...)
		dst = appendString(dst, w.Message)
		dst = append(dst, '}')
	}
	if len(warnings) > 0 {
		dst = append(dst, ']')
	}
	return dst
}

// validate is POST /v1/dagrun/validate: the answer of a submission, without a run.
func (s *Server) validate(ctx *fasthttp.RequestCtx) error {
	strict, err := strictParameter(ctx)
	if err != nil {
		return err
	}
	held := s.newBudgetShare(ctx)
	defer held.release()
	doc, long, err := s.document(ctx, &held)
	if err != nil {
		return err
	}
	var warnings dag.Problems
	if long != nil {
		defer long.release()
		_, longWarnings, done, err := s.planLong(ctx, long, false, strict)
		if err != nil {
			return err
		}
		done()
		warnings = longWarnings
	} else if _, warnings, err = s.plan(doc, strict); err != nil {
		return err
	}
	answerJSON(ctx, append(appendWarnings([]byte(`{"valid":true`), warnings), '}'))
	return nil
}

// plan decodes and plans a document. An error is a *messages.Error with all problems of the document.
func (s *Server) plan(doc []byte, strict bool) (plan *dag.Plan, warnings dag.Problems, err error) {
	return planResult(specjson.Check(doc, s.limits()), strict)
}

// planResult returns the plan and warnings of a checked document, or its problems as an error.
func planResult(c specjson.CheckResult, strict bool) (plan *dag.Plan, warnings dag.Problems, err error) {
	if strict {
		c.Strict()
	}
	if len(c.Problems) > 0 {
		return nil, nil, invalidSpec(c.Problems)
	}
	return c.Plan, c.Warnings, nil
}

// document reads the body as JSON text, which the caller owns: it outlives the request. A long
// body is returned as a longBody instead, which the caller releases.
//
// A short body that decompresses to a long document is a longBody, too, with the packed bytes in
// memory: it is then decompressed again while it is planned, and once more while it is stored, and is
// never held as a whole. The coding of a long body is checked when it is read first (decompressor).
func (s *Server) document(ctx *fasthttp.RequestCtx, held *budgetShare) (doc []byte, long *longBody, err error) {
	h := &ctx.Request.Header
	coding := ""
	switch codings := h.PeekAll(fasthttp.HeaderContentEncoding); {
	case len(codings) == 0 || len(codings) == 1 && strings.EqualFold(string(codings[0]), "identity"):
	case len(codings) > 1:
		return nil, nil, &refusal{fasthttp.StatusUnsupportedMediaType, "more than one Content-Encoding"}
	default:
		coding = string(codings[0])
	}
	if doc, long, err = s.readBody(ctx, held); err != nil {
		return nil, nil, err
	}
	switch {
	case long != nil:
		long.coding = coding
		return nil, long, nil
	case coding != "":
		packed := doc
		if doc, err = s.decompress(coding, packed, min(longBodyBytes, s.cfg.MaxBody)); err == errTooLong && s.cfg.MaxBody > longBodyBytes {
			return nil, &longBody{coding: coding, inMemory: packed, references: 1}, nil
		} else if err != nil {
			return nil, nil, decompressionError(coding, err, s.cfg.MaxBody)
		}
	}
	if err := held.resize(memoryPerByte * int64(len(doc))); err != nil {
		return nil, nil, s.overBudget(err)
	}
	if len(doc) == 0 {
		text := "the body is empty: want a spec as JSON"
		return nil, nil, &messages.Error{Code: messages.Invalid, Text: text, Problems: []messages.Problem{{Message: text}}}
	}
	return doc, nil, nil
}

// readBody reads the body, either into memory, which grows with what has arrived and not with the
// announced length, or into a file if the body is long. It may be called once.
//
// It counts what it reads: fasthttp does not apply a limit to the body of a stream. After a refusal or
// an error the connection closes, because the rest of the body would be taken for the next request.
func (s *Server) readBody(ctx *fasthttp.RequestCtx, held *budgetShare) ([]byte, *longBody, error) {
	stream := bodyStream(ctx)
	if stream == nil {
		return bytes.Clone(ctx.Request.Body()), nil, nil
	}
	announced := ctx.Request.Header.ContentLength()
	first := 4 << 10
	if announced >= 0 {
		first = min(announced, maxOtherBody)
	}
	// Before the bytes arrive: a client that only announces a body takes the buffer, too.
	if err := held.resize(int64(first)); err != nil {
		drainOnClose(ctx)
		ctx.SetConnectionClose()
		return nil, nil, s.overBudget(err)
	}
	deadline := newChunkDeadline(ctx, announced, s.cfg.ReadTimeout)
	doc := make([]byte, 0, first+1) // one byte more, to find the end without growing
	for {
		n, err := stream.Read(doc[len(doc):cap(doc)])
		doc = doc[:len(doc)+n]
		deadline.extend(n)
		switch {
		case int64(len(doc)) > s.cfg.MaxBody:
			return nil, nil, s.bodyTooLarge(ctx)
		case err == io.EOF && announced >= 0 && len(doc) < announced:
			err = io.ErrUnexpectedEOF
		case err == io.EOF:
			return doc, nil, nil
		}
		if err := bodyReadError(ctx, err); err != nil {
			ctx.SetConnectionClose()
			return nil, nil, err
		}
		if len(doc) > longBodyBytes || len(doc) == cap(doc) && announced > longBodyBytes {
			long, err := s.receiveLongBody(ctx, doc, stream, announced, deadline)
			return nil, long, err
		}
		if len(doc) == cap(doc) {
			if err := held.resize(2 * int64(cap(doc))); err != nil {
				drainOnClose(ctx)
				ctx.SetConnectionClose()
				return nil, nil, s.overBudget(err)
			}
			doc = append(doc, 0)[:len(doc)]
		}
	}
}

// unsupportedCoding refuses a Content-Encoding with 415.
func unsupportedCoding(coding string) error {
	return &refusal{fasthttp.StatusUnsupportedMediaType,
		"Content-Encoding " + quoteInput(coding) + " is not supported: use gzip, zstd or identity"}
}

// memoryPerByte is how many bytes of memory a byte of a document takes while it is planned and
// stored.
const memoryPerByte = 3

// decompress undoes a Content-Encoding in memory, to at most limit bytes: a longer document is
// errTooLong. decompressSlots bounds how many bodies are decompressed at a time, each with its window.
// A request that waits for a slot waits only for processors: the body is complete by then.
func (s *Server) decompress(coding string, body []byte, limit int64) ([]byte, error) {
	s.decompressSlots <- struct{}{}
	defer func() { <-s.decompressSlots }()
	r, end, err := decompressor(coding, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer end()
	doc, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(doc)) > limit {
		err = errTooLong
	}
	return doc, err
}

// decompressionError returns why a body could not be decompressed: 413 beyond limit or for a window of
// zstd that is too large, 415 for an unknown coding, else 400. Without a coding the error is not about
// compression, and is returned as it is.
func decompressionError(coding string, err error, limit int64) error {
	var known *refusal
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, errTooLong):
		return &refusal{fasthttp.StatusRequestEntityTooLarge,
			"the body is too large: at most " + strconv.FormatInt(limit, 10) + " bytes when decompressed"}
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return &refusal{fasthttp.StatusRequestEntityTooLarge, "the body's zstd window is too large: at most 8 MiB"}
	case coding == "":
		return err
	}
	return invalid("the body is not valid " + strings.ToLower(coding) + ": " + err.Error())
}

// idempotencyKey returns the request's Idempotency-Key; "" without one.
func idempotencyKey(h *fasthttp.RequestHeader) (string, error) {
	const name = idempotencyHeader
	if h.Peek(name) == nil {
		return "", nil
	}
	keys := h.PeekAll(name)
	if len(keys) != 1 {
		return "", invalid("more than one " + name + " header")
	}
	key := string(keys[0])
	return key, checkIdempotencyKey(name, key, maxKeyLength)
}

// maxKeyLength is how many characters an idempotency key of a client has at most.
const maxKeyLength = 255

// checkIdempotencyKey returns what is wrong with an idempotency key. what is its place, for the error:
// the name of the header or of the member. Visible ASCII has one spelling in every client and log.
func checkIdempotencyKey(what, key string, most int) error {
	if len(key) == 0 || len(key) > most {
		return invalid(what + ": must have 1 to " + strconv.Itoa(maxKeyLength) + " characters")
	}
	for _, c := range []byte(key) {
		if c < '!' || c > '~' {
			return invalid(what + " " + quoteInput(key) + ": must be visible ASCII characters")
		}
	}
	return nil
}

// bodyBudget bounds the memory that bodies take over all connections, while they are received,
// decompressed, decoded and stored. A body beyond it is refused: with 429 when its client has used
// its part, else with 503. It is never waited for: a request that holds a share and waits for more
// could wait for others that do the same.
//
// Shares are estimates: the length of a document or line times memoryPerByte, and before that twice the
// buffer of a body that still grows, because the old and the new one exist at the same time.
type bodyBudget struct {
	limit     int64 // bytes for all bodies
	perClient int64 // of limit: for the bodies of one client

	mu      sync.Mutex
	used    int64
	clients map[clientKey]int64 // of used: by clients that have some
}

const (
	totalBodyBytes = 256 << 20 // for all bodies together
	// uncountedBytes is the share up to which a body is free: usual submissions do not take the lock of
	// the budget. The bound on connections bounds their sum.
	uncountedBytes = 16 << 10
	// largeBodyBytes is the size from which a body may not take the last quarter of the budget.
	// That is left for small bodies, so that a few large ones that arrive slowly do not block all
	// others.
	largeBodyBytes = 1 << 20
)

// newBodyBudget gives each client half of the budget, or more where one client may have more than
// half of the connections: then all clients may use the same proxy.
func newBodyBudget(limit int64, conns, ofClient int) *bodyBudget {
	return &bodyBudget{limit: limit, perClient: max(limit/2, limit/int64(conns)*int64(ofClient)), clients: map[clientKey]int64{}}
}

// Reasons why a body does not fit the budget.
var (
	errBudgetSpent       = errors.New("the memory for bodies is in use")
	errClientBudgetSpent = errors.New("the memory for bodies of this client is in use")
)

// budgetShare is the part of the budget that one request has. Only its goroutine may use it.
type budgetShare struct {
	budget *bodyBudget
	client clientKey
	bytes  int64
}

// resize changes the share to n bytes. It returns errBudgetSpent or errClientBudgetSpent, without a
// change, if the budget does not have them. The client's own part is checked first, so that a client
// which has used it up learns that, and not that the server is busy. Shrinking always succeeds.
func (h *budgetShare) resize(n int64) error {
	b := h.budget
	limit := b.limit
	if n > largeBodyBytes {
		limit -= limit / 4
	}
	if n <= uncountedBytes {
		n = 0
	}
	more := n - h.bytes
	if more == 0 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case more > 0 && b.clients[h.client]+more > b.perClient:
		return errClientBudgetSpent
	case more > 0 && b.used+more > limit:
		return errBudgetSpent
	}
	b.used += more
	if b.clients[h.client] += more; b.clients[h.client] == 0 {
		delete(b.clients, h.client)
	}
	h.bytes = n
	return nil
}

// release gives the share back.
func (h *budgetShare) release() { _ = h.resize(0) } // shrinking cannot fail

// inUse returns how many bytes are in use.
func (b *bodyBudget) inUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// newBudgetShare returns the empty share of a request.
func (s *Server) newBudgetShare(ctx *fasthttp.RequestCtx) budgetShare {
	return budgetShare{budget: s.bodies, client: clientOf(ctx)}
}

// overBudget refuses a body that does not fit the budget: 429 where its client has used its part, else
// 503. The caller closes the connection if a part of the body is unread.
func (s *Server) overBudget(why error) *refusal {
	s.metrics.bodiesRefused.Inc()
	if errors.Is(why, errClientBudgetSpent) {
		return &refusal{fasthttp.StatusTooManyRequests, "requests of this client have too many bytes in progress: try again later"}
	}
	return &refusal{fasthttp.StatusServiceUnavailable, "requests have too many bytes in progress: try again later"}
}

// limits returns the limits of runs at present.
func (s *Server) limits() dag.Limits {
	limits := s.cfg.Limits
	if s.cfg.LargestTask != nil {
		limits.MaxCPUMillis, limits.MaxMemoryBytes = s.cfg.LargestTask()
	}
	return limits
}
