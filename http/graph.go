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
	"github.com/caravan-dag/caravan/messages"
)

// The two compact forms of a large run: its graph before expansion, and a byte for each task. A display
// reads the graph once and the states again and again; a template's `first` and `count` tell which
// bytes belong to it.

// runGraph is GET /v1/dagrun/{run}/graph: templates and edges, with the progress of each template. Its
// size is that of the submitted spec, not of its expansion. The time also grows with the tasks: the
// view has a byte for each, and taskCounts counts them.
func (s *Server) runGraph(ctx *fasthttp.RequestCtx) error {
	run, err := runParameter(ctx)
	if err != nil {
		return err
	}
	view, err := s.engine.View(contextOf(ctx), run, 0, math.MaxUint32)
	if err != nil {
		return err
	}
	return s.send(ctx, jsonType, &graphDocument{view: view})
}

// graphDocument renders a run's templates, then its edges. It begins with the members of the summary,
// and all of it is of the view's moment. It stops at the first template that fills a piece.
type graphDocument struct {
	view          *messages.View // of all tasks
	opened        bool           // the members of the summary are rendered
	templatesDone bool           // all templates are rendered
	anyEdge       bool           // an edge was rendered
	nextTemplate  int            // the next template of the present list
}

func (g *graphDocument) next(dst []byte) ([]byte, bool, error) {
	plan := g.view.Plan
	if !g.opened {
		g.opened = true
		dst = appendSummary(dst, &g.view.Summary)
		dst = append(dst, `,"tasks":`...)
		dst = strconv.AppendUint(dst, uint64(g.view.Tasks), 10)
		dst = append(dst, `,"templates":[`...)
	}
	for ; !g.templatesDone; g.nextTemplate++ {
		if g.nextTemplate == len(plan.Templates) {
			g.templatesDone, g.nextTemplate = true, 0
			dst = append(dst, `],"edges":[`...)
			break
		}
		if len(dst) >= pieceBytes {
			return dst, true, nil
		}
		if g.nextTemplate > 0 {
			dst = append(dst, ',')
		}
		dst = g.appendTemplate(dst, plan.Templates[g.nextTemplate])
	}
	for ; g.nextTemplate < len(plan.Templates); g.nextTemplate++ {
		if len(dst) >= pieceBytes {
			return dst, true, nil
		}
		dst = g.appendEdgesTo(dst, plan.Templates[g.nextTemplate])
	}
	return append(dst, `]}`...), false, nil
}

// appendTemplate appends a template: its tasks [first, first+count), the lists that it expands over,
// the origin of a generated one, and its progress. Times that are not known yet are left out.
func (g *graphDocument) appendTemplate(dst []byte, t *dag.Template) []byte {
	plan := g.view.Plan
	dst = append(dst, `{"name":`...)
	dst = appendString(dst, t.Name)
	dst = append(dst, `,"first":`...)
	dst = strconv.AppendUint(dst, uint64(t.Base), 10)
	dst = append(dst, `,"count":`...)
	dst = strconv.AppendUint(dst, uint64(t.Count), 10)
	dst = append(dst, `,"parameters":[`...)
	for i, axis := range t.Axes {
		if i > 0 {
			dst = append(dst, ',')
		}
		p := &plan.Parameters[axis]
		dst = append(dst, `{"name":`...)
		dst = appendString(dst, p.Name)
		dst = append(dst, `,"values":`...)
		dst = strconv.AppendInt(dst, int64(len(p.Values)), 10)
		dst = append(dst, '}')
	}
	dst = append(dst, `],"executor":`...)
	dst = appendString(dst, plan.Classes[t.Class].Executor)
	dst = append(dst, `,"isGenerator":`...)
	dst = strconv.AppendBool(dst, t.Generator)
	if t.Origin >= 0 {
		dst = append(dst, `,"generatedBy":`...)
		dst = appendString(dst, plan.Templates[t.Origin].Name)
		dst = append(dst, `,"set":`...)
		dst = strconv.AppendInt(dst, int64(t.Set), 10)
	}
	var counts messages.Counts
	for _, state := range g.view.States[t.Base : t.Base+t.Count] {
		counts[state]++
	}
	dst = append(dst, `,"taskCounts":`...)
	dst = appendCounts(dst, &counts)
	times := g.view.Times[t.Index]
	if times.First != 0 {
		dst = appendNanos(append(dst, `,"firstStartTime":`...), times.First)
	}
	if times.Last != 0 {
		dst = appendNanos(append(dst, `,"lastStopTime":`...), times.Last)
	}
	return append(dst, '}')
}

// appendEdgesTo appends the edges that end at t. Each edge of a plan is in the parents of its child, so
// all calls together append each edge once.
func (g *graphDocument) appendEdgesTo(dst []byte, t *dag.Template) []byte {
	for _, e := range t.Parents {
		if g.anyEdge {
			dst = append(dst, ',')
		}
		g.anyEdge = true
		dst = append(dst, `{"parent":`...)
		dst = appendString(dst, g.view.Plan.Templates[e.Template].Name)
		dst = append(dst, `,"child":`...)
		dst = appendString(dst, t.Name)
		if e.Match != nil {
			dst = append(dst, `,"match":`...)
			dst = appendStrings(dst, e.Match.Names)
		}
		dst = append(dst, '}')
	}
	return dst
}

// stateLetters are the bytes of a state vector, which are part of the API. A task that was granted
// a slot is QUEUED to users.
var stateLetters = [dag.NumTaskStates]byte{
	dag.TaskQueued: 'Q', dag.TaskGranted: 'Q', dag.TaskRunning: 'R', dag.TaskRetry: 'T',
	dag.TaskCompleted: 'C', dag.TaskErrored: 'E', dag.TaskKilled: 'K',
}

// taskStates is GET /v1/dagrun/{run}/states: a byte per task, in the order of the plan, all of one
// durable moment. The vector is in memory as a whole, up to 10 MB for the largest run.
//
// The tag is weak: the compressed and the plain form of a vector have the same one. X-State and X-Tasks
// come with a 304, too, so that a client which polls sees the state of the run in any case.
func (s *Server) taskStates(ctx *fasthttp.RequestCtx) error {
	run, err := runParameter(ctx)
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
	// A start changes a state but not the time of the last update, so the tag has a checksum, too.
	tag := `W/"` + strconv.FormatInt(view.LastUpdate, 36) + "-" +
		strconv.FormatUint(uint64(crc32.Checksum(vector, crc32.MakeTable(crc32.Castagnoli))), 36) + `"`
	h := &ctx.Response.Header
	h.Set(fasthttp.HeaderETag, tag)
	// Two middlewares may have set these: authentication makes the answer private, rendering varies it.
	if h.Peek(fasthttp.HeaderCacheControl) == nil {
		h.Set(fasthttp.HeaderCacheControl, "no-cache")
	}
	vary := fasthttp.HeaderAcceptEncoding
	if before := h.Peek(fasthttp.HeaderVary); before != nil {
		vary = string(before) + ", " + vary
	}
	h.Set(fasthttp.HeaderVary, vary)
	h.Set("X-State", view.State.String())
	h.Set("X-Tasks", strconv.FormatUint(uint64(view.Tasks), 10))
	if etagMatches(ctx.Request.Header.Peek(fasthttp.HeaderIfNoneMatch), tag) {
		ctx.SetStatusCode(fasthttp.StatusNotModified)
		return nil
	}
	h.SetContentType(octetStream)
	h.Set(fasthttp.HeaderXContentTypeOptions, "nosniff")
	if len(vector) >= minGzipBytes && acceptsGzip(ctx.Request.Header.Peek(fasthttp.HeaderAcceptEncoding)) {
		var packed bytes.Buffer
		w, _ := gzip.NewWriterLevel(&packed, gzip.BestSpeed) // only an invalid level is an error
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

// minGzipBytes is the length from which a state vector is compressed. A shorter one fits a packet.
const minGzipBytes = 1 << 10

// etagMatches tells whether an If-None-Match header has a tag, by weak comparison (RFC 9110, section
// 8.8.3.2): W/"a" matches "a". A tag of this server does not contain a comma, so the list is split
// there.
func etagMatches(header []byte, tag string) bool {
	for member := range strings.SplitSeq(string(header), ",") {
		member = strings.TrimSpace(member)
		if member == "*" || strings.TrimPrefix(member, "W/") == strings.TrimPrefix(tag, "W/") {
			return true
		}
	}
	return false
}

// acceptsGzip tells whether an Accept-Encoding header allows gzip: "gzip", "gzip;q=0.5" or "*", but not
// "gzip;q=0" or "*, gzip;q=0" (RFC 9110, section 12.5.3). Without the header it is false: a client that
// does not ask for it may not be able to read it.
func acceptsGzip(header []byte) bool {
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
			return takes // a named coding prevails over *
		}
	}
	return takes
}
