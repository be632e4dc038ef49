package http

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"io"
	"mime"
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
	doc, plan, err := s.plan(ctx)
	if err != nil {
		return err
	}
	sub := &messages.Submission{Plan: plan, Body: doc, At: time.Now().UnixNano(), IdempotencyKey: key}
	if key != "" {
		sub.BodyHash = sha256.Sum256(doc)
	}
	run, err := s.engine.Submit(sub)
	if err != nil {
		return err
	}
	ctx.Response.Header.Set(fasthttp.HeaderLocation, "/v1/dagrun/"+strconv.FormatUint(uint64(run), 10))
	answerRun(ctx, run, "")
	return nil
}

// validate is POST /v1/dagrun/validate: what submit would say, and nothing runs.
func (s *Server) validate(ctx *fasthttp.RequestCtx) error {
	if _, _, err := s.plan(ctx); err != nil {
		return err
	}
	answer(ctx, []byte(`{"valid":true}`))
	return nil
}

// plan decodes and plans the body. The document is the server's own copy.
func (s *Server) plan(ctx *fasthttp.RequestCtx) ([]byte, *dag.Plan, error) {
	doc, err := s.document(ctx)
	if err != nil {
		return nil, nil, err
	}
	plan, problems := specjson.Plan(doc, s.cfg.Limits)
	if len(problems) > 0 {
		return nil, nil, refused(problems)
	}
	return doc, plan, nil
}

// document is the body as JSON text, owned by the caller: it outlives the request.
func (s *Server) document(ctx *fasthttp.RequestCtx) ([]byte, error) {
	h := &ctx.Request.Header
	if err := checkType(h.ContentType(), jsonType); err != nil {
		return nil, err
	}
	codings := h.PeekAll(fasthttp.HeaderContentEncoding)
	var doc []byte
	switch {
	case len(codings) == 0 || len(codings) == 1 && strings.EqualFold(string(codings[0]), "identity"):
		var err error
		if doc, err = s.readBody(ctx); err != nil {
			return nil, err
		}
	case len(codings) > 1:
		return nil, &refusal{fasthttp.StatusUnsupportedMediaType, "more than one Content-Encoding"}
	default:
		coding := string(codings[0])
		packed, err := s.readBody(ctx)
		if err != nil {
			return nil, err
		}
		if doc, err = decompress(coding, packed, s.cfg.MaxBody); err != nil {
			return nil, err
		}
	}
	if len(doc) == 0 {
		text := "the body is empty: want a spec as JSON"
		return nil, &messages.Error{Code: messages.Invalid, Text: text, Problems: []messages.Problem{{Message: text}}}
	}
	return doc, nil
}

// readBody reads the body, into memory that grows with what has come and not with
// what was announced. It may be called once.
func (s *Server) readBody(ctx *fasthttp.RequestCtx) ([]byte, error) {
	stream := ctx.RequestBodyStream()
	if stream == nil {
		return bytes.Clone(ctx.Request.Body()), nil
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
			return nil, s.tooLarge(ctx)
		case err == io.EOF && announced >= 0 && len(doc) < announced:
			err = io.ErrUnexpectedEOF
		case err == io.EOF:
			return doc, nil
		}
		if err != nil {
			p := unread(err)
			ctx.SetConnectionClose()
			return nil, &refusal{p.status, p.text}
		}
		if len(doc) == cap(doc) {
			doc = append(doc, 0)[:len(doc)]
		}
	}
}

// checkType wants a media type, in UTF-8 when it says so, or nothing said.
func checkType(header []byte, want string) error {
	if len(header) == 0 || string(header) == want {
		return nil
	}
	kind, params, err := mime.ParseMediaType(string(header))
	charset, given := params["charset"]
	if err != nil || kind != want || given && !strings.EqualFold(charset, "utf-8") {
		return &refusal{fasthttp.StatusUnsupportedMediaType, "Content-Type " + quote(header) + " is not supported: send " + want + " (curl: -H 'Content-Type: " + want + "')"}
	}
	return nil
}

func unsupportedCoding(coding string) error {
	return &refusal{fasthttp.StatusUnsupportedMediaType,
		"Content-Encoding " + quote(coding) + " is not supported: use gzip, zstd or none"}
}

// decompress undoes a Content-Encoding, to at most limit bytes.
func decompress(coding string, body []byte, limit int64) ([]byte, error) {
	var r io.Reader
	var err error
	switch strings.ToLower(coding) {
	case "gzip", "x-gzip":
		r, err = gzip.NewReader(bytes.NewReader(body))
	case "zstd":
		var d *zstd.Decoder
		d, err = zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
		if err == nil {
			defer d.Close()
			r = d
		}
	default:
		return nil, unsupportedCoding(coding)
	}
	if err == nil {
		var doc []byte
		if doc, err = io.ReadAll(io.LimitReader(r, limit+1)); err == nil {
			if int64(len(doc)) > limit {
				return nil, &refusal{fasthttp.StatusRequestEntityTooLarge,
					"the body is too large: at most " + strconv.FormatInt(limit, 10) + " bytes when decompressed"}
			}
			return doc, nil
		}
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return nil, &refusal{fasthttp.StatusRequestEntityTooLarge, "the body's zstd window is too large: at most 8 MiB"}
	}
	return nil, invalid("the body is no " + strings.ToLower(coding) + ": " + err.Error())
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
