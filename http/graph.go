package http

import (
	"math"
	"strconv"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// runGraph is GET /v1/dagrun/{run}/graph: templates and edges, and how far each
// template is. It grows with what was submitted, not with what that expands to.
func (s *Server) runGraph(ctx *fasthttp.RequestCtx) error {
	run, err := runOf(ctx)
	if err != nil {
		return err
	}
	view, err := s.engine.View(contextOf(ctx), run, 0, math.MaxUint32)
	if err != nil {
		return err
	}
	return s.send(ctx, jsonType, &graph{view: view})
}

// graph renders a run's templates, then its edges.
type graph struct {
	view   *messages.View
	opened bool
	edges  bool // the templates are done
	begun  bool // there was an edge
	at     int  // template
}

func (g *graph) next(dst []byte) ([]byte, bool, error) {
	plan := g.view.Plan
	if !g.opened {
		g.opened = true
		dst = appendSummary(dst, &g.view.Summary)
		dst = append(dst, `,"tasks":`...)
		dst = strconv.AppendUint(dst, uint64(g.view.Tasks), 10)
		dst = append(dst, `,"templates":[`...)
	}
	for ; !g.edges; g.at++ {
		if g.at == len(plan.Templates) {
			g.edges, g.at = true, 0
			dst = append(dst, `],"edges":[`...)
			break
		}
		if len(dst) >= piece {
			return dst, true, nil
		}
		if g.at > 0 {
			dst = append(dst, ',')
		}
		dst = g.template(dst, plan.Templates[g.at])
	}
	for ; g.at < len(plan.Templates); g.at++ {
		if len(dst) >= piece {
			return dst, true, nil
		}
		dst = g.parents(dst, plan.Templates[g.at])
	}
	return append(dst, `]}`...), false, nil
}

func (g *graph) template(dst []byte, t *dag.Template) []byte {
	plan := g.view.Plan
	dst = append(dst, `{"name":`...)
	dst = appendText(dst, t.Name)
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
		dst = appendText(dst, p.Name)
		dst = append(dst, `,"values":`...)
		dst = strconv.AppendInt(dst, int64(len(p.Values)), 10)
		dst = append(dst, '}')
	}
	dst = append(dst, `],"executor":`...)
	dst = appendText(dst, plan.Classes[t.Class].Executor)
	dst = append(dst, `,"isGenerator":`...)
	dst = strconv.AppendBool(dst, t.Generator)
	if t.Origin >= 0 {
		dst = append(dst, `,"generatedBy":`...)
		dst = appendText(dst, plan.Templates[t.Origin].Name)
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

// parents appends the edges that end at t.
func (g *graph) parents(dst []byte, t *dag.Template) []byte {
	for _, e := range t.Parents {
		if g.begun {
			dst = append(dst, ',')
		}
		g.begun = true
		dst = append(dst, `{"parent":`...)
		dst = appendText(dst, g.view.Plan.Templates[e.Template].Name)
		dst = append(dst, `,"child":`...)
		dst = appendText(dst, t.Name)
		if e.Match != nil {
			dst = append(dst, `,"match":`...)
			dst = appendTexts(dst, e.Match.Names)
		}
		dst = append(dst, '}')
	}
	return dst
}
