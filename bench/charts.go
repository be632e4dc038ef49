package main

import (
	"bytes"
	"fmt"
	"html"
	"image/color"
	"math"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// reportChart is a chart of the report.
type reportChart struct {
	file    string // its name in the folder of the report, with .svg
	caption string // one or two sentences above the chart, in Markdown; also its alternative text
	svg     string
}

// buildCharts draws the charts for which the results, by name of workload, have figures. It does not
// compute: each bar and point is a median of the table or of figures.json, except that the time of make
// becomes a rate, and the growth curves show whole runs. So a chart can be checked against the table.
func buildCharts(results map[string]*result) (list []reportChart) {
	add := func(file, caption, svg string) { list = append(list, reportChart{file, caption, svg}) }
	if r := results["w1"]; r != nil {
		b := r.measuredBars([2]string{"Caravan", "tasks/s"}, [2]string{riverPostgres, riverPostgres}, [2]string{riverSQLite, riverSQLite}, [2]string{dask, dask})
		// measureFan scales the time of make to the whole graph, which has 10,002 tasks.
		if took := r.medians[makeTrue]; took > 0 {
			b = append(b, bar{label: makeTrue, value: 10_002 / took})
		}
		add("no-ops.svg", "A fan-out of 10,000 no-op tasks. Caravan makes every transition durable. River does not make its fan-in durable; Dask and make keep no durable state.",
			barChart{title: "1 → 10,000 → 1 no-op tasks", axis: "tasks/s (higher is better)", bars: b}.drawSVG())
	}
	if r := results["w2"]; r != nil {
		add("processes.svg", "The same graph of processes: `/bin/true`, two at a time, with the same program and environment for each system.",
			barChart{title: "1 → 10,000 → 1 /bin/true, 2 slots", axis: "tasks/s (higher is better)", bars: r.measuredBars(
				[2]string{"Caravan", "tasks/s"}, [2]string{cLoop, cLoop}, [2]string{makeJ2, makeJ2}, [2]string{xargsP2, xargsP2},
				[2]string{ninjaJ2, ninjaJ2}, [2]string{riverPostgres, riverPostgres}, [2]string{riverSQLite, riverSQLite}, [2]string{dask, dask})}.drawSVG())
		add("cpu.svg", "The processor time of that graph, of all processes involved: for Caravan the server, its worker and the tasks.",
			barChart{title: "Processor time per /bin/true", axis: "µs per task (lower is better)", bars: r.measuredBars(
				[2]string{"Caravan", taskCPU}, [2]string{cLoop, cLoopCPU}, [2]string{makeJ2, makeCPU}, [2]string{xargsP2, xargsCPU}, [2]string{ninjaJ2, ninjaCPU})}.drawSVG())
	}
	if r := results["metg"]; r != nil {
		c := lineChart{title: "Share of useful time by length of task, 2 slots", xAxis: "length of a task, ms (log scale)", yAxis: "share of useful time", half: true}
		for _, name := range []string{caravan, makeJ2, ninjaJ2, dask, riverPostgres, riverSQLite} {
			s := chartLine{name: name}
			for _, d := range taskLengths() {
				if v, ok := r.medians[efficiencyAt(name, d)]; ok {
					s.points = append(s.points, plotter.XY{X: millis(d), Y: v})
				}
			}
			if len(s.points) > 1 {
				c.series = append(c.series, s)
			}
		}
		if len(c.series) > 0 {
			add("metg.svg", "METG: half of the time is useful work where a curve crosses the dashed line. A curve further left means that shorter tasks are worthwhile.", c.drawSVG())
		}
	}
	if r := results["w3"]; r != nil {
		add("submissions.svg", "Durable submissions over 64 connections. River inserts a job where Caravan accepts a graph of two tasks.",
			barChart{title: "Durable submissions, 64 connections", axis: "submissions/s (higher is better)", bars: r.measuredBars(
				[2]string{"Caravan, 1 per request", submissionRate}, [2]string{"Caravan, 100 per request", batchRate}, [2]string{"GET /ready", "GET /ready"},
				[2]string{riverPostgres, riverPostgres}, [2]string{riverSQLite, riverSQLite})}.drawSVG())
	}
	if r := results["w4"]; r != nil {
		add("chain.svg", "A chain of 1,000 no-ops. Caravan and River make each hop durable.",
			barChart{title: "One hop of a chain", axis: "ms (lower is better)", bars: r.measuredBars(
				[2]string{"Caravan", "a hop"}, [2]string{makeTrue, makeTrue}, [2]string{riverPostgres, riverPostgres}, [2]string{riverSQLite, riverSQLite}, [2]string{dask, dask})}.drawSVG())
	}
	if r := results["empty"]; r != nil {
		add("empty.svg", "One no-op task, from its submission until the client knows its end.",
			barChart{title: "One no-op task, submission to end, median", axis: "ms (lower is better)", bars: r.measuredBars(
				[2]string{"Caravan", "p50"}, [2]string{riverPostgres, riverPostgres + ", p50"}, [2]string{riverSQLite, riverSQLite + ", p50"}, [2]string{dask, dask + ", p50"})}.drawSVG())
	}
	if r := results["views"]; r != nil {
		var pairs [][2]string
		for _, l := range viewRequests(0) {
			pairs = append(pairs, [2]string{strings.TrimSuffix(l.name, ", p99"), l.name})
		}
		list := r.measuredBars(pairs...)
		for i := range list {
			list[i].own = true
		}
		add("views.svg", "Response times for a run of 1,000,000 tasks while it executes.",
			barChart{title: "Reads while 1,000,000 tasks run", axis: "ms, 99th percentile (lower is better)", limit: 20, limitName: "target: 20 ms", bars: list}.drawSVG())
	}
	if r := results["growth"]; r != nil {
		list = append(list, growthCharts(r)...)
	}
	return list
}

// measuredBars returns the bars of those metrics that were measured, in the order of the pairs. A
// missing reference leaves a chart without its bar; the table gives the reason. Each pair is a label and
// a metric. A label that begins with "Caravan" marks a bar as our own.
func (r *result) measuredBars(pairs ...[2]string) (list []bar) {
	for _, p := range pairs {
		if v, ok := r.medians[p[1]]; ok {
			list = append(list, bar{label: p[0], value: v, own: strings.HasPrefix(p[0], caravan)})
		}
	}
	return list
}

// growthCharts shows whole runs by their size, and a straight line through the run of 10,000 tasks. The
// metrics are per task or per transition, so they are multiplied by the tasks of a run, n+2, and its
// transitions, twice as many. A reader sees a cost that grows faster than the run as a curve that leaves
// the line upwards. Memory does not have a line: most of it is a fixed cost.
func growthCharts(r *result) (list []reportChart) {
	const base = 10_000
	for _, g := range []struct {
		file, title, axis, metric string
		whole                     func(v float64, n int) float64
		straight                  bool
	}{
		{"growth-time.svg", "Time of a run by its size", "s (log scale)", grownTime, func(v float64, n int) float64 { return v * float64(n+2) / 1e6 }, true},
		{"growth-bytes.svg", "Bytes written to the disk by size of run", "MB (log scale)", grownDevice, func(v float64, n int) float64 { return v * 2 * float64(n+2) / 1e6 }, true},
		{"growth-memory.svg", "Peak memory by size of run", "peak RSS, MiB", grownRSS, func(v float64, _ int) float64 { return v }, false},
	} {
		measured, straight := chartLine{name: caravan}, chartLine{name: "proportional", reference: true}
		through := g.whole(r.medians[metricAtSize(g.metric, base)], base) / base
		for n := 1000; n <= 10_000_000; n *= 10 {
			if v, ok := r.medians[metricAtSize(g.metric, n)]; ok && v > 0 {
				measured.points = append(measured.points, plotter.XY{X: float64(n), Y: g.whole(v, n)})
				straight.points = append(straight.points, plotter.XY{X: float64(n), Y: through * float64(n)})
			}
		}
		if len(measured.points) < 2 {
			continue
		}
		c := lineChart{title: g.title, xAxis: "tasks (log scale)", yAxis: g.axis, logY: g.straight, series: []chartLine{measured}}
		caption := fmt.Sprintf("%s: 1 → N → 1 no-ops.", g.title)
		if g.straight {
			c.series = append(c.series, straight)
			caption = fmt.Sprintf("%s: 1 → N → 1 no-ops, with the straight line through N = 10,000.", g.title)
		}
		list = append(list, reportChart{g.file, caption, c.drawSVG()})
	}
	return list
}

// The charts are SVG, drawn by gonum/plot. They do not depend on colours alone: bars carry their
// names and figures, and lines have markers and dashes. The same figures give the same bytes, so the
// diff of a report shows the charts that have changed.

// Sizes in points. A reader scales SVG, so only the proportions count.
const (
	chartWidth  = 570
	barPitch    = 23 // from one bar to the next
	barWidth    = 15
	curveHeight = 300

	bold = 3 // WeightBold of golang.org/x/image/font
)

// chartColors are those of lines, in their order: distinct in print and to most colour-blind eyes.
func chartColors() []color.Color {
	return []color.Color{
		color.RGBA{0x0b, 0x5c, 0xad, 0xff}, color.RGBA{0xb3, 0x59, 0x00, 0xff}, color.RGBA{0x1a, 0x7f, 0x37, 0xff},
		color.RGBA{0x82, 0x50, 0xdf, 0xff}, color.RGBA{0xa4, 0x0e, 0x26, 0xff}, color.RGBA{0x59, 0x63, 0x6e, 0xff},
	}
}

// lineDashes has the lengths of dashes and gaps, in points, of the lines in their order; nil is a solid
// line.
func lineDashes() [][]vg.Length {
	return [][]vg.Length{nil, {6, 3}, {2, 2}, {8, 3, 2, 3}, {10, 3}, {4, 2}}
}

// lineMarkers has the shapes of the points of the lines in their order. They differ in print, too.
func lineMarkers() []draw.GlyphDrawer {
	return []draw.GlyphDrawer{draw.CircleGlyph{}, draw.BoxGlyph{}, draw.TriangleGlyph{}, draw.PyramidGlyph{}, draw.CrossGlyph{}, draw.PlusGlyph{}}
}

var (
	ownColor   = color.RGBA{0x0b, 0x5c, 0xad, 0xff} // Caravan's bars
	otherColor = color.RGBA{0x8c, 0x95, 0x9f, 0xff}
	gridColor  = color.RGBA{0xd1, 0xd9, 0xe0, 0xff}
	quietColor = color.RGBA{0x59, 0x63, 0x6e, 0xff} // axes and their labels
	limitColor = color.RGBA{0xb3, 0x26, 0x1e, 0xff}
)

// newPlot returns an empty chart with the style that all have.
func newPlot(title, xAxis, yAxis string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, xAxis, yAxis
	p.Title.TextStyle.Font = chartFont(12)
	p.Title.TextStyle.Font.Weight = bold
	p.Title.Padding = 8
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.TextStyle.Font, axis.Label.TextStyle.Color = chartFont(10), quietColor
		axis.Tick.Label.Font, axis.Tick.Label.Color = chartFont(9), quietColor
		axis.LineStyle.Color, axis.Tick.LineStyle.Color = quietColor, quietColor
		axis.Padding = 0
	}
	p.Legend.TextStyle.Font = chartFont(10)
	return p
}

// chartFont is the font of all texts. gonum measures it with its own copy; renderSVG names others for
// viewers that lack it.
func chartFont(size vg.Length) font.Font {
	return font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
}

// renderSVG draws a chart of a height in points. The description is for readers who cannot see it: with
// role="img" a screen reader says the title and the description instead of each text in the chart.
//
// gonum does not write these elements, nor the width of a text, so they are put into its output: the
// n-th "<text " of the SVG is the n-th call of FillString.
func renderSVG(p *plot.Plot, height vg.Length, description string) string {
	canvas := &measuredText{Canvas: vgsvg.New(chartWidth, height)}
	area := draw.NewCanvas(canvas, chartWidth, height)
	area.SetColor(color.White)
	area.Fill(area.Rectangle.Path())
	p.Draw(draw.Crop(area, 10, -16, 10, -10))
	var out bytes.Buffer
	// A bytes.Buffer does not fail.
	if _, err := canvas.WriteTo(&out); err != nil {
		panic(fmt.Sprintf("write SVG into memory: %v", err))
	}
	parts := strings.Split(out.String(), "<text ")
	svg := parts[0]
	for i, part := range parts[1:] {
		svg += fmt.Sprintf(`<text textLength="%.1f" lengthAdjust="spacingAndGlyphs" %s`, canvas.widths[i].Points(), part)
	}
	svg = strings.ReplaceAll(svg, "font-family:Liberation Sans;", "font-family:Liberation Sans,Arial,Helvetica,sans-serif;")
	head, body, _ := strings.Cut(svg, `xlink">`)
	return head + `xlink" role="img">` + "\n<title>" + html.EscapeString(p.Title.Text) + "</title><desc>" + html.EscapeString(description) + "</desc>" + body
}

// measuredText is an SVG canvas that records the width of each text. The fonts are not embedded, so
// a viewer without them uses another font. The recorded width makes that font fit.
type measuredText struct {
	*vgsvg.Canvas
	widths []vg.Length
}

// FillString is part of vg.Canvas. gonum calls it once for each text, in the order of the SVG.
func (c *measuredText) FillString(face font.Face, at vg.Point, text string) {
	c.widths = append(c.widths, face.Width(text))
	c.Canvas.FillString(face, at, text)
}

// bar is one bar of a chart.
type bar struct {
	label string
	value float64
	own   bool // of Caravan
}

// barChart has horizontal bars from 0, the first one at the top. axis names the unit. A limit above
// 0 is drawn as a line with its name. The axis is linear and begins at 0, so lengths compare as figures
// do: a bar that is too short to see is that much smaller.
type barChart struct {
	title, axis string
	limit       float64
	limitName   string
	bars        []bar
}

// drawSVG draws our own bars and the others as two charts of the same places, because gonum gives a
// chart of bars one colour. Each has zeros where the other has its bars.
func (c barChart) drawSVG() string {
	p := newPlot(c.title, c.axis, "")
	greatest := c.limit
	var names, described []string
	own, other := make(plotter.Values, len(c.bars)), make(plotter.Values, len(c.bars))
	figures := plotter.XYLabels{}
	for i := range c.bars {
		b := c.bars[len(c.bars)-1-i] // the axis goes upwards
		names = append(names, b.label)
		if b.own {
			own[i] = b.value
		} else {
			other[i] = b.value
		}
		greatest = max(greatest, b.value)
		figures.XYs = append(figures.XYs, plotter.XY{X: b.value, Y: float64(i)})
		figures.Labels = append(figures.Labels, formatNumber(b.value))
	}
	for _, b := range c.bars {
		described = append(described, fmt.Sprintf("%s: %s", b.label, formatNumber(b.value)))
	}
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = gridColor, color.Transparent
	p.Add(grid)
	for _, group := range []struct {
		values plotter.Values
		color  color.Color
	}{{own, ownColor}, {other, otherColor}} {
		chart := must(plotter.NewBarChart(group.values, barWidth))
		chart.Horizontal, chart.Color, chart.LineStyle.Width = true, group.color, 0
		p.Add(chart)
	}
	labels := must(plotter.NewLabels(figures))
	labels.Offset = vg.Point{X: 4}
	for i := range labels.TextStyle {
		labels.TextStyle[i].Font, labels.TextStyle[i].YAlign = chartFont(10), text.YCenter
		if c.bars[len(c.bars)-1-i].own {
			labels.TextStyle[i].Font.Weight = bold
		}
	}
	p.Add(labels)
	if c.limit > 0 {
		p.Add(limitLine(plotter.XYs{{X: c.limit, Y: -0.6}, {X: c.limit, Y: float64(len(c.bars)) - 0.4}}))
		name := must(plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: c.limit, Y: float64(len(c.bars)) - 0.4}}, Labels: []string{c.limitName}}))
		name.TextStyle[0].Font, name.TextStyle[0].Color = chartFont(10), limitColor
		name.TextStyle[0].XAlign, name.Offset = text.XRight, vg.Point{X: -4, Y: -8}
		p.Add(name)
	}
	p.NominalY(names...)
	p.Y.Tick.Label.Font, p.Y.Tick.Label.Color = chartFont(10), color.Black
	p.Y.Min, p.Y.Max = -0.6, float64(len(c.bars))-0.4
	p.X.Min, p.X.Max = 0, greatest*1.12 // room for the figures
	p.X.Tick.Marker = tickText(plot.DefaultTicks{})
	return renderSVG(p, vg.Length(barPitch*len(c.bars)+80), c.axis+". "+strings.Join(described, "; "))
}

// chartLine is one line of a chart. A reference line is thin and without markers.
type chartLine struct {
	name      string
	points    plotter.XYs
	reference bool
}

// lineChart has a logarithmic x axis, and a logarithmic y axis if logY is set. On two logarithmic axes a
// cost in proportion to x is a straight line. A point must be above 0 on a logarithmic axis: gonum
// panics otherwise, so growthCharts leaves such points out.
type lineChart struct {
	title, xAxis, yAxis string
	logY                bool
	half                bool // y goes from 0 to 1, with a line at one half
	series              []chartLine
}

// drawSVG draws the lines in their order, which decides on colour, marker and dashes. It has six of each.
func (c lineChart) drawSVG() string {
	p := newPlot(c.title, c.xAxis, c.yAxis)
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = gridColor, gridColor
	p.Add(grid)
	lowX, highX, highY := math.Inf(1), 0.0, 0.0
	for _, s := range c.series {
		for _, point := range s.points {
			lowX, highX, highY = min(lowX, point.X), max(highX, point.X), max(highY, point.Y)
		}
	}
	if c.half {
		p.Add(limitLine(plotter.XYs{{X: lowX, Y: 0.5}, {X: highX, Y: 0.5}}))
	}
	for i, s := range c.series {
		line, points := must(plotter.NewLine(s.points)), must(plotter.NewScatter(s.points))
		line.Color, line.Width, line.Dashes = chartColors()[i%6], 1.5, lineDashes()[i%6]
		points.Color, points.Shape, points.Radius = chartColors()[i%6], lineMarkers()[i%6], 3
		if s.reference {
			line.Color, line.Width, line.Dashes = quietColor, 1, []vg.Length{2, 3}
			p.Add(line)
			p.Legend.Add(s.name, line)
			continue
		}
		p.Add(line, points)
		p.Legend.Add(s.name, line, points)
	}
	p.Legend.ThumbnailWidth, p.Legend.Padding = 28, 3
	// Where the lines are not: growth ends in the upper right corner, shares in the upper part.
	p.Legend.Top, p.Legend.Left = true, !c.half
	if c.half {
		p.Legend.Top = false
	}
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, tickText(factorTicks(lowX, highX))
	p.X.Min, p.X.Max = lowX, highX*1.05
	p.Y.Tick.Marker = tickText(plot.DefaultTicks{})
	switch {
	case c.half:
		p.Y.Min, p.Y.Max = 0, 1
		p.Y.Tick.Marker = tickText(plot.ConstantTicks{{Value: 0, Label: "0"}, {Value: 0.25, Label: "0.25"}, {Value: 0.5, Label: "0.5"}, {Value: 0.75, Label: "0.75"}, {Value: 1, Label: "1"}})
	case c.logY:
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, tickText(plot.LogTicks{})
	default:
		p.Y.Min, p.Y.Max = 0, highY*1.1
	}
	return renderSVG(p, curveHeight, c.yAxis+" against "+c.xAxis)
}

// limitLine is the dashed line of a limit.
func limitLine(points plotter.XYs) *plotter.Line {
	line := must(plotter.NewLine(points))
	line.Color, line.Width, line.Dashes = limitColor, 1.5, []vg.Length{5, 3}
	return line
}

// factorTicks are powers of ten from low to high, or powers of two over a short range. They begin at low,
// which is a tested size or length. tickText replaces the label.
func factorTicks(low, high float64) plot.ConstantTicks {
	factor := 10.0
	if high/low < 1000 {
		factor = 2
	}
	var ticks plot.ConstantTicks
	for v := low; v <= high*1.001; v *= factor {
		ticks = append(ticks, plot.Tick{Value: v, Label: "x"})
	}
	return ticks
}

// tickText shortens the labels of ticks (0.25, 10, 1,000, 1M), and labels the minor ticks, too, if
// there is room.
func tickText(ticker plot.Ticker) plot.Ticker {
	return plot.TickerFunc(func(low, high float64) []plot.Tick {
		ticks := ticker.Ticks(low, high)
		for i := range ticks {
			if ticks[i].Label != "" || len(ticks) <= 7 {
				ticks[i].Label = shortNumber(ticks[i].Value)
			}
		}
		return ticks
	})
}

// shortNumber writes a number for an axis: 0.25, 10, 1,000, 2.5M.
func shortNumber(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", v/1e6)
	case v >= 1000:
		return groupThousands(int64(v + 0.5))
	}
	return fmt.Sprintf("%.3g", v)
}

// must returns a value that only invalid data prevents, such as a point at infinity.
func must[T any](v T, err error) T {
	if err != nil {
		panic(fmt.Sprintf("draw a chart: %v", err))
	}
	return v
}
