package http

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"strconv"
	"strings"
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
	strict, err := strictQuery(ctx)
	if err != nil {
		return err
	}
	var warnings dag.Problems
	tokens := s.inForce()
	held := s.shareOf(ctx)
	defer held.free()
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
	if err := s.allowedStill(ctx, tokens); err != nil {
		return err
	}
	sub.At = time.Now().UnixNano()
	run, err := s.engine.Submit(contextOf(ctx), sub)
	if err != nil {
		return err
	}
	ctx.Response.Header.Set(fasthttp.HeaderLocation, "/v1/dagrun/"+strconv.FormatUint(uint64(run), 10))
	answer(ctx, append(appendWarnings(appendRunID(make([]byte, 0, 64), run), warnings), '}'))
	return nil
}

// strictQuery tells whether ?strict makes warnings errors. What else the query holds
// has no meaning here.
func strictQuery(ctx *fasthttp.RequestCtx) (strict bool, err error) {
	err = query(ctx, func(name, value string) (err error) {
		if name == "strict" {
			strict, err = switchOf(name, value)
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
		dst = appendText(dst, w.Pointer)
		dst = append(dst, `,"message":`...)
		dst = appendText(dst, w.Message)
		dst = append(dst, '}')
	}
	if len(warnings) > 0 {
		dst = append(dst, ']')
	}
	return dst
}

// validate is POST /v1/dagrun/validate: what submit would say, and nothing runs.
func (s *Server) validate(ctx *fasthttp.RequestCtx) error {
	strict, err := strictQuery(ctx)
	if err != nil {
		return err
	}
	held := s.shareOf(ctx)
	defer held.free()
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
	answer(ctx, append(appendWarnings([]byte(`{"valid":true`), warnings), '}'))
	return nil
}

// plan decodes and plans a document.
func (s *Server) plan(doc []byte, strict bool) (plan *dag.Plan, warnings dag.Problems, err error) {
	return planned(specjson.Check(doc, s.cfg.Limits), strict)
}

// planned is what came of a document.
func planned(c specjson.Checked, strict bool) (plan *dag.Plan, warnings dag.Problems, err error) {
	if strict {
		c.Strict()
	}
	if len(c.Problems) > 0 {
		return nil, nil, refused(c.Problems)
	}
	return c.Plan, c.Warnings, nil
}

// document is the body as JSON text, owned by the caller: it outlives the request. A
// long one is no text: it is the caller's to release.
func (s *Server) document(ctx *fasthttp.RequestCtx, held *share) (doc []byte, long *longBody, err error) {
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
		if doc, err = s.decompress(coding, packed, min(longFrom, s.cfg.MaxBody)); err == errLong && s.cfg.MaxBody > longFrom {
			return nil, &longBody{coding: coding, packed: packed, uses: 1}, nil
		} else if err != nil {
			return nil, nil, undecompressed(coding, err, s.cfg.MaxBody)
		}
	}
	if err := held.set(planBytes * int64(len(doc))); err != nil {
		return nil, nil, s.noRoom(err)
	}
	if len(doc) == 0 {
		text := "the body is empty: want a spec as JSON"
		return nil, nil, &messages.Error{Code: messages.Invalid, Text: text, Problems: []messages.Problem{{Message: text}}}
	}
	return doc, nil, nil
}

// readBody reads the body, into memory that grows with what has come and not with
// what was announced, or into a file when it is long. It may be called once.
func (s *Server) readBody(ctx *fasthttp.RequestCtx, held *share) ([]byte, *longBody, error) {
	stream := bodyOf(ctx)
	if stream == nil {
		return bytes.Clone(ctx.Request.Body()), nil, nil
	}
	announced := ctx.Request.Header.ContentLength()
	first := 4 << 10
	if announced >= 0 {
		first = min(announced, smallBody)
	}
	doc := make([]byte, 0, first+1) // one more, to find the end without growing
	for {
		n, err := stream.Read(doc[len(doc):cap(doc)])
		doc = doc[:len(doc)+n]
		switch {
		case int64(len(doc)) > s.cfg.MaxBody:
			return nil, nil, s.tooLarge(ctx)
		case err == io.EOF && announced >= 0 && len(doc) < announced:
			err = io.ErrUnexpectedEOF
		case err == io.EOF:
			return doc, nil, nil
		}
		if err != nil {
			p := unread(err)
			ctx.SetConnectionClose()
			return nil, nil, &refusal{p.status, p.text}
		}
		if len(doc) > longFrom || len(doc) == cap(doc) && announced > longFrom {
			long, err := s.spool(ctx, doc, stream, announced)
			return nil, long, err
		}
		if len(doc) == cap(doc) {
			if err := held.set(2 * int64(cap(doc))); err != nil {
				linger(ctx)
				ctx.SetConnectionClose()
				return nil, nil, s.noRoom(err)
			}
			doc = append(doc, 0)[:len(doc)]
		}
	}
}

func unsupportedCoding(coding string) error {
	return &refusal{fasthttp.StatusUnsupportedMediaType,
		"Content-Encoding " + quote(coding) + " is not supported: use gzip, zstd or none"}
}

// planBytes is how much memory a document takes while it is planned and stored, of its
// length.
const planBytes = 3

// decompress undoes a Content-Encoding in memory, to at most limit bytes: beyond is
// errLong. A few are at it at a time, each with its window.
func (s *Server) decompress(coding string, body []byte, limit int64) ([]byte, error) {
	s.unpack <- struct{}{}
	defer func() { <-s.unpack }()
	r, end, err := decompressor(coding, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer end()
	doc, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(doc)) > limit {
		err = errLong
	}
	return doc, err
}

// undecompressed says why a body could not be decompressed.
func undecompressed(coding string, err error, limit int64) error {
	var known *refusal
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, errLong):
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
	return key, checkKey(name, key)
}

// checkKey wants what an idempotency key may be.
func checkKey(what, key string) error {
	if len(key) == 0 || len(key) > 255 {
		return invalid(what + ": want 1 to 255 characters")
	}
	for _, c := range []byte(key) {
		if c < '!' || c > '~' {
			return invalid(what + " " + quote(key) + ": want visible ASCII only")
		}
	}
	return nil
}
