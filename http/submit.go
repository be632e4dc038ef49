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

// submit is POST /v1/dagrun. The run is durable when this answers.
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
	tokens := s.tokensInForce()
	held := s.newBudgetShare(ctx)
	defer held.release()
	doc, long, err := s.document(ctx, &held)
	if err != nil {
		return err
	}
	sub := &messages.Submission{Body: doc, IdempotencyKey: key}
	if long != nil {
		defer long.release()
		plan, told, done, err := s.planLong(ctx, long, key != "", strict)
		if err != nil {
			return err
		}
		defer done()
		sub.Plan, sub.Long, sub.BodyHash = plan, long, long.sum
		warnings = told
	} else {
		if sub.Plan, warnings, err = s.plan(doc, strict); err != nil {
			return err
		}
		if key != "" {
			sub.BodyHash = sha256.Sum256(doc)
		}
	}
	if err := s.recheckPermit(ctx, tokens); err != nil {
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

// strictParameter tells whether ?strict makes warnings errors. What else the query holds
// has no meaning here.
func strictParameter(ctx *fasthttp.RequestCtx) (strict bool, err error) {
	err = eachParameter(ctx, func(name, value string) (err error) {
		if name == "strict" {
			strict, err = parseSwitch(name, value)
		}
		return err
	})
	return strict, err
}

// appendRunID begins the answer to a submission.
func appendRunID(dst []byte, run messages.RunID) []byte {
	return strconv.AppendUint(append(dst, `{"runID":`...), uint64(run), 10)
}

// appendWarnings appends the member of an answer that holds warnings, if there are any.
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

// validate is POST /v1/dagrun/validate: what submit would say, and nothing runs.
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
		_, told, done, err := s.planLong(ctx, long, false, strict)
		if err != nil {
			return err
		}
		done()
		warnings = told
	} else if _, warnings, err = s.plan(doc, strict); err != nil {
		return err
	}
	answerJSON(ctx, append(appendWarnings([]byte(`{"valid":true`), warnings), '}'))
	return nil
}

// plan decodes and plans a document.
func (s *Server) plan(doc []byte, strict bool) (plan *dag.Plan, warnings dag.Problems, err error) {
	return planResult(specjson.Check(doc, s.cfg.Limits), strict)
}

// planResult is what came of a document.
func planResult(c specjson.Checked, strict bool) (plan *dag.Plan, warnings dag.Problems, err error) {
	if strict {
		c.Strict()
	}
	if len(c.Problems) > 0 {
		return nil, nil, invalidSpec(c.Problems)
	}
	return c.Plan, c.Warnings, nil
}

// document is the body as JSON text, owned by the caller: it outlives the request. A
// long one is no text: it is the caller's to release.
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

// readBody reads the body, into memory that grows with what has come and not with
// what was announced, or into a file when it is long. It may be called once.
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
	doc := make([]byte, 0, first+1) // one more, to find the end without growing
	for {
		n, err := stream.Read(doc[len(doc):cap(doc)])
		doc = doc[:len(doc)+n]
		switch {
		case int64(len(doc)) > s.cfg.MaxBody:
			return nil, nil, s.bodyTooLarge(ctx)
		case err == io.EOF && announced >= 0 && len(doc) < announced:
			err = io.ErrUnexpectedEOF
		case err == io.EOF:
			return doc, nil, nil
		}
		if err != nil {
			p := readProblem(err)
			ctx.SetConnectionClose()
			return nil, nil, &refusal{p.status, p.detail}
		}
		if len(doc) > longBodyBytes || len(doc) == cap(doc) && announced > longBodyBytes {
			long, err := s.receiveLongBody(ctx, doc, stream, announced)
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

func unsupportedCoding(coding string) error {
	return &refusal{fasthttp.StatusUnsupportedMediaType,
		"Content-Encoding " + quoteInput(coding) + " is not supported: use gzip, zstd or none"}
}

// memoryPerByte is how much memory a document takes while it is planned and stored, of its
// length.
const memoryPerByte = 3

// decompress undoes a Content-Encoding in memory, to at most limit bytes: beyond is
// errLong. A few are at it at a time, each with its window.
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

// decompressionError says why a body could not be decompressed.
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
	return invalid("the body is no " + strings.ToLower(coding) + ": " + err.Error())
}

// idempotencyKey is the request's Idempotency-Key, "" when it has none.
func idempotencyKey(h *fasthttp.RequestHeader) (string, error) {
	const name = "Idempotency-Key"
	if h.Peek(name) == nil {
		return "", nil
	}
	keys := h.PeekAll(name)
	if len(keys) != 1 {
		return "", invalid(name + ": want one")
	}
	key := string(keys[0])
	return key, checkIdempotencyKey(name, key)
}

// checkIdempotencyKey wants what an idempotency key may be.
func checkIdempotencyKey(what, key string) error {
	if len(key) == 0 || len(key) > 255 {
		return invalid(what + ": want 1 to 255 characters")
	}
	for _, c := range []byte(key) {
		if c < '!' || c > '~' {
			return invalid(what + " " + quoteInput(key) + ": want visible ASCII only")
		}
	}
	return nil
}

// bodyBudget bounds what bodies take in memory over all connections, while they are
// received, decompressed, decoded and stored. A body beyond it is refused: with 429 when
// its client has enough under way already, else with 503.
type bodyBudget struct {
	limit     int64
	perClient int64 // of it, the bodies of one client

	mu      sync.Mutex
	used    int64
	clients map[clientKey]int64 // those that have some of it
}

const (
	totalBodyBytes = 256 << 20 // of all bodies together
	uncountedBytes = 16 << 10  // of each body is not counted: the connections are bounded
	// largeBodyBytes is from where on a body may not take the last quarter: that is left for
	// small ones, so that a few large ones which come slowly do not keep everybody out.
	largeBodyBytes = 1 << 20
)

// newBodyBudget gives each client a half, and more where a client may have more than half of
// the connections: then all come by way of one.
func newBodyBudget(limit int64, conns, ofClient int) *bodyBudget {
	return &bodyBudget{limit: limit, perClient: max(limit/2, limit/int64(conns)*int64(ofClient)), clients: map[clientKey]int64{}}
}

// Why there is no room for a body.
var (
	errBudgetSpent       = errors.New("no room for a body")
	errClientBudgetSpent = errors.New("no room for a further body of this client")
)

// budgetShare is what one request has of the budget. It is for one goroutine.
type budgetShare struct {
	budget *bodyBudget
	client clientKey
	bytes  int64
}

// resize makes the share n bytes. The error is errNoRoom or errOwnRoom, and nothing has
// changed, when there is no room for them.
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
func (h *budgetShare) release() { _ = h.resize(0) } // giving back is never refused

// inUse is how many bytes are taken.
func (b *bodyBudget) inUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// newBudgetShare is the share of a request, which has nothing yet.
func (s *Server) newBudgetShare(ctx *fasthttp.RequestCtx) budgetShare {
	h := budgetShare{budget: s.bodies}
	if c := connOf(ctx); c != nil {
		h.client = c.client
	}
	return h
}

// overBudget refuses a body for which the budget has no room.
func (s *Server) overBudget(why error) *refusal {
	s.metrics.bodiesRefused.Inc()
	if errors.Is(why, errClientBudgetSpent) {
		return &refusal{fasthttp.StatusTooManyRequests, "too many bytes of this client's requests are under way: send it again later"}
	}
	return &refusal{fasthttp.StatusServiceUnavailable, "too many bytes of requests are under way: send it again later"}
}
