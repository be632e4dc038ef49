package http

import (
	"bytes"
	"compress/gzip"
	"hash/crc32"
	"math"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
)

// stateLetters are the bytes of a state vector. They are part of the API; a task
// that has been granted a slot is QUEUED to users.
var stateLetters = [dag.NumTaskStates]byte{
	dag.TaskQueued: 'Q', dag.TaskGranted: 'Q', dag.TaskRunning: 'R', dag.TaskRetry: 'T',
	dag.TaskCompleted: 'C', dag.TaskErrored: 'E', dag.TaskKilled: 'K',
}

// taskStates is GET /v1/dagrun/{run}/states: a byte per task, in the order of the
// plan, all of one durable moment.
func (s *Server) taskStates(ctx *fasthttp.RequestCtx) error {
	run, err := runOf(ctx)
	if err != nil {
		return err
	}
	view, err := s.engine.View(contextOf(ctx), run, 0, math.MaxUint32)
	if err != nil {
		return err
	}
	vector := make([]byte, len(view.States))
	for i, state := range view.States {
		vector[i] = stateLetters[state]
	}
	// Starts change states, but not the time of the last update: the sum tells.
	tag := `W/"` + strconv.FormatInt(view.LastUpdate, 36) + "-" +
		strconv.FormatUint(uint64(crc32.Checksum(vector, crc32.MakeTable(crc32.Castagnoli))), 36) + `"`
	h := &ctx.Response.Header
	h.Set(fasthttp.HeaderETag, tag)
	h.Set(fasthttp.HeaderCacheControl, "no-cache")
	h.Set(fasthttp.HeaderVary, fasthttp.HeaderAcceptEncoding)
	h.Set("X-State", view.State.String())
	h.Set("X-Tasks", strconv.FormatUint(uint64(view.Tasks), 10))
	if known(ctx.Request.Header.Peek(fasthttp.HeaderIfNoneMatch), tag) {
		ctx.SetStatusCode(fasthttp.StatusNotModified)
		return nil
	}
	h.SetContentType(octets)
	h.Set(fasthttp.HeaderXContentTypeOptions, "nosniff")
	if len(vector) >= packFrom && takesGzip(ctx.Request.Header.Peek(fasthttp.HeaderAcceptEncoding)) {
		var packed bytes.Buffer
		w, _ := gzip.NewWriterLevel(&packed, gzip.BestSpeed) // the level is known
		if _, err := w.Write(vector); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		vector = packed.Bytes()
		h.SetContentEncoding("gzip")
	}
	ctx.Response.SetBodyRaw(vector)
	return nil
}

// packFrom is the length from which a state vector is compressed.
const packFrom = 1 << 10

// known tells whether an If-None-Match header holds a tag, weakly compared.
func known(header []byte, tag string) bool {
	for member := range strings.SplitSeq(string(header), ",") {
		member = strings.TrimSpace(member)
		if member == "*" || strings.TrimPrefix(member, "W/") == strings.TrimPrefix(tag, "W/") {
			return true
		}
	}
	return false
}

// takesGzip tells whether an Accept-Encoding header admits gzip.
func takesGzip(header []byte) bool {
	takes := false
	for member := range strings.SplitSeq(string(header), ",") {
		coding, params, _ := strings.Cut(member, ";")
		coding = strings.ToLower(strings.TrimSpace(coding))
		named := coding == "gzip" || coding == "x-gzip"
		if !named && coding != "*" {
			continue
		}
		quality, given := strings.CutPrefix(strings.ReplaceAll(params, " ", ""), "q=")
		q, err := strconv.ParseFloat(quality, 64)
		takes = !given || err == nil && q > 0
		if named {
			return takes // what * says does not count
		}
	}
	return takes
}
