package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// The charts are plain SVG: legible in light and in dark, in print, and without
// colours: bars carry their names and figures, lines have markers and dashes.

const (
	chartWidth = 760
)

// The colours of lines, on light and on dark paper.
var (
	light = [...]string{"#0b5cad", "#b35900", "#1a7f37", "#8250df", "#a40e26", "#59636e"}
	dark  = [...]string{"#58a6ff", "#f0883e", "#56d364", "#bc8cff", "#ff7b72", "#9198a1"}
)

// style is what all charts have; a viewer that prefers dark gets the second half.
func style() string {
	return `<style>
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:#1f2328}
.paper{fill:#ffffff}.title{font-size:16px;font-weight:600}.strong{font-weight:600}.quiet{fill:#59636e}
.grid{stroke:#d1d9e0;stroke-width:1}.axis{stroke:#59636e;stroke-width:1}
.own{fill:#0b5cad}.other{fill:#8c959f}.limit{stroke:#b3261e;stroke-width:2;stroke-dasharray:6 4}
.line{fill:none;stroke-width:2}.mark{stroke-width:2}
` + lineColours(light) + `
@media (prefers-color-scheme:dark){
text{fill:#f0f6fc}.paper{fill:#0d1117}.quiet{fill:#9198a1}.grid{stroke:#3d444d}.axis{stroke:#9198a1}
.own{fill:#58a6ff}.other{fill:#6e7681}.limit{stroke:#ff7b72}
` + lineColours(dark) + `
}</style>
`
}

func lineColours(colours [6]string) (css string) {
	for i, c := range colours {
		css += fmt.Sprintf(".s%d .line,.s%d .mark{stroke:%s}.s%d .mark{fill:%s}", i, i, c, i, c)
	}
	return css
}

// svg collects the elements of one picture.
type svg struct {
	strings.Builder
}

func (s *svg) add(format string, args ...any) { fmt.Fprintf(s, format+"\n", args...) }

// text writes at a point; anchor is start, middle or end.
func (s *svg) text(x, y float64, anchor, class, text string) {
	s.add(`<text x="%.1f" y="%.1f" text-anchor="%s" class="%s">%s</text>`, x, y, anchor, class, html.EscapeString(text))
}

func (s *svg) line(x1, y1, x2, y2 float64, class string) {
	s.add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" class="%s"/>`, x1, y1, x2, y2, class)
}

// picture wraps what draw draws; the description is for who cannot see it.
func picture(height int, title, description string, draw func(*svg)) string {
	var s svg
	s.add(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">`, chartWidth, height, chartWidth, height)
	s.add(`<title>%s</title><desc>%s</desc>`, html.EscapeString(title), html.EscapeString(description))
	s.WriteString(style())
	s.add(`<rect class="paper" width="%d" height="%d"/>`, chartWidth, height)
	s.text(16, 28, "start", "title", title)
	draw(&s)
	s.add(`</svg>`)
	return s.String()
}

// bar is one bar of a chart.
type bar struct {
	label string
	value float64
	own   bool // Caravan's
}

// bars is a chart of horizontal bars from 0. axis names the unit; a limit above 0 is
// drawn as a line and named.
type bars struct {
	title, axis string
	limit       float64
	limitText   string
	bars        []bar
}

func (c bars) svg() string {
	const row, labels, right, bottom = 30, 240, 90, 56
	top := 48
	if c.limit > 0 {
		top = 68 // the limit is named above
	}
	height := top + row*len(c.bars) + bottom
	var said []string
	greatest := c.limit
	for _, b := range c.bars {
		greatest = max(greatest, b.value)
		said = append(said, fmt.Sprintf("%s: %s", b.label, digits(b.value)))
	}
	ticks := linearTicks(greatest)
	end := max(greatest, ticks[len(ticks)-1])
	x := func(v float64) float64 { return labels + v/end*(chartWidth-labels-right) }
	return picture(height, c.title, c.axis+". "+strings.Join(said, "; "), func(s *svg) {
		base := float64(height - bottom)
		for _, t := range ticks {
			s.line(x(t), float64(top-6), x(t), base, "grid")
			s.text(x(t), base+18, "middle", "quiet", tickText(t))
		}
		s.text(x(end/2), base+40, "middle", "quiet", c.axis)
		for i, b := range c.bars {
			y, class, weight := float64(top+i*row), "other", ""
			if b.own {
				class, weight = "own", "strong"
			}
			s.text(labels-10, y+17, "end", weight, b.label)
			s.add(`<rect x="%d" y="%.1f" width="%.1f" height="%d" class="%s"/>`, labels, y+2, max(x(b.value)-labels, 1), row-10, class)
			s.text(x(b.value)+6, y+17, "start", weight, digits(b.value))
		}
		if c.limit > 0 {
			s.line(x(c.limit), float64(top-6), x(c.limit), base, "limit")
			s.text(x(c.limit), float64(top-12), "middle", "quiet", c.limitText)
		}
		s.line(labels, float64(top-6), labels, base, "axis")
	})
}

// point is one of a line.
type point struct{ x, y float64 }

// series is one line of a chart. A faint one has neither colour nor markers.
type series struct {
	name   string
	points []point
	faint  bool
}

// curves is a chart of lines; x is logarithmic, y is if logY says so.
type curves struct {
	title, xAxis, yAxis string
	logY                bool
	half                bool // y goes from 0 to 1, with a line at one half
	series              []series
}

// dashes and markers tell the lines apart without colour.
var dashes = [...]string{"", "7 4", "2 3", "9 3 2 3", "12 4", "4 2"}

// marker draws the k-th kind of marker at a point.
func (s *svg) marker(k int, x, y float64) {
	switch k % 6 {
	case 0:
		s.add(`<circle cx="%.1f" cy="%.1f" r="4" class="mark"/>`, x, y)
	case 1:
		s.add(`<rect x="%.1f" y="%.1f" width="8" height="8" class="mark"/>`, x-4, y-4)
	case 2:
		s.add(`<path d="M%.1f %.1fl5 9h-10z" class="mark"/>`, x, y-5)
	case 3:
		s.add(`<path d="M%.1f %.1fl5 5-5 5-5-5z" class="mark"/>`, x, y-5)
	case 4:
		s.add(`<path d="M%.1f %.1fl8 8m0-8l-8 8" class="line"/>`, x-4, y-4)
	case 5:
		s.add(`<path d="M%.1f %.1fv10m-5-5h10" class="line"/>`, x, y-5)
	}
}

func (c curves) svg() string {
	const top, left, right, bottom, height = 72, 76, 210, 60, 396
	lowX, highX, lowY, highY := math.Inf(1), 0.0, math.Inf(1), 0.0
	for _, ser := range c.series {
		for _, p := range ser.points {
			lowX, highX = min(lowX, p.x), max(highX, p.x)
			lowY, highY = min(lowY, p.y), max(highY, p.y)
		}
	}
	yTicks := linearTicks(highY)
	from, to := 0.0, max(highY, yTicks[len(yTicks)-1])
	scale := func(v float64) float64 { return v }
	switch {
	case c.half:
		yTicks, to = []float64{0, 0.25, 0.5, 0.75, 1}, 1
	case c.logY:
		yTicks = decades(lowY, highY)
		from, to, scale = math.Log10(yTicks[0]), math.Log10(yTicks[len(yTicks)-1]), math.Log10
	}
	x := func(v float64) float64 {
		return left + math.Log(v/lowX)/math.Log(highX/lowX)*(chartWidth-left-right)
	}
	y := func(v float64) float64 { return height - bottom - (scale(v)-from)/(to-from)*(height-top-bottom) }
	return picture(height, c.title, c.yAxis+" against "+c.xAxis, func(s *svg) {
		for _, t := range yTicks {
			s.line(left, y(t), chartWidth-right, y(t), "grid")
			s.text(left-8, y(t)+4, "end", "quiet", tickText(t))
		}
		for _, t := range xTicks(lowX, highX) {
			s.line(x(t), height-bottom, x(t), height-bottom+5, "axis")
			s.text(x(t), height-bottom+20, "middle", "quiet", tickText(t))
		}
		s.line(left, height-bottom, chartWidth-right, height-bottom, "axis")
		if c.half {
			s.line(left, y(0.5), chartWidth-right, y(0.5), "limit")
		}
		s.text((left+chartWidth-right)/2, height-bottom+44, "middle", "quiet", c.xAxis)
		s.text(16, top-20, "start", "quiet", c.yAxis)
		for i, ser := range c.series {
			class, dash := fmt.Sprintf("s%d", i%6), dashes[i%6]
			if ser.faint {
				class, dash = "s5", "2 4"
			}
			s.add(`<g class="%s">`, class)
			var path []string
			for _, p := range ser.points {
				path = append(path, fmt.Sprintf("%.1f,%.1f", x(p.x), y(p.y)))
			}
			s.add(`<polyline points="%s" class="line" stroke-dasharray="%s"/>`, strings.Join(path, " "), dash)
			legend := float64(top + 22*i + 8)
			const at = chartWidth - right + 20
			s.add(`<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" class="line" stroke-dasharray="%s"/>`, at, legend, at+30, legend, dash)
			if !ser.faint {
				for _, p := range ser.points {
					s.marker(i, x(p.x), y(p.y))
				}
				s.marker(i, at+15, legend)
			}
			s.add(`</g>`)
			s.text(at+38, legend+4, "start", "", ser.name)
		}
	})
}

// linearTicks are 3 to 6 round numbers from 0 up to at least v.
func linearTicks(v float64) []float64 {
	if v <= 0 {
		return []float64{0, 1}
	}
	step := math.Pow(10, math.Floor(math.Log10(v)))
	for _, part := range []float64{0.2, 0.5, 1} {
		if v/(step*part) <= 5 {
			step *= part
			break
		}
	}
	if v/step > 5 {
		step *= 2
	}
	ticks := []float64{0}
	for i := 1; ticks[len(ticks)-1] < v; i++ {
		ticks = append(ticks, float64(i)*step)
	}
	return ticks
}

// decades are the powers of ten around a range.
func decades(low, high float64) (ticks []float64) {
	for e := math.Floor(math.Log10(low)); ; e++ {
		ticks = append(ticks, math.Pow(10, e))
		if ticks[len(ticks)-1] >= high && len(ticks) > 1 {
			return ticks
		}
	}
}

// xTicks are powers of ten within a range, or of two where it is a short one.
func xTicks(low, high float64) (ticks []float64) {
	factor := 10.0
	if high/low < 1000 {
		factor = 2
	}
	for v := low; v <= high*1.001; v *= factor {
		ticks = append(ticks, v)
	}
	return ticks
}

// tickText is short: 0.25, 10, 1,000, 1M.
func tickText(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", v/1e6)
	case v >= 1000:
		return thousands(int64(v + 0.5))
	}
	return fmt.Sprintf("%.3g", v)
}
