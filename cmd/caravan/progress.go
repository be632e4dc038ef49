package main

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/caravan-dag/caravan/client"
)

// progress shows a run while it goes on, on Stderr: a bar on a terminal, else a
// line per change of state and at most one a second.
type progress struct {
	w    io.Writer
	run  uint64
	now  func() time.Time
	bars *mpb.Progress // nil without a terminal
	bar  *mpb.Bar

	state  string
	line   string // the last one, without the rate
	at     time.Time
	first  time.Time
	before int                    // tasks that had ended at the first look
	text   atomic.Pointer[string] // what stands behind the bar
}

func (m *Main) newProgress(run uint64) *progress {
	p := &progress{w: m.Stderr, run: run, now: time.Now}
	if v, _ := m.LookupEnv("TERM"); v != "dumb" && m.Terminal(m.Stderr) {
		p.bars = mpb.New(mpb.WithOutput(m.Stderr), mpb.WithAutoRefresh(), mpb.WithRefreshRate(100*time.Millisecond))
	}
	return p
}

// every is how often it is worth looking.
func (p *progress) every() time.Duration {
	if p.bars != nil {
		return 100 * time.Millisecond
	}
	return 250 * time.Millisecond
}

// show takes a new summary. It is not for concurrent use.
func (p *progress) show(s *client.Summary) {
	now := p.now()
	if p.first.IsZero() {
		p.first, p.before = now, s.Ended()
	}
	rate := ""
	if d := now.Sub(p.first); d >= time.Second {
		rate = perSecond(float64(s.Ended()-p.before) / d.Seconds())
	}
	if p.bars != nil {
		p.draw(s, rate)
		return
	}
	line := fmt.Sprintf("run %d %s: %d of %d tasks ended (%s)", p.run, s.State, s.Ended(), s.Total(), counts(s.TaskCounts))
	if s.State == p.state && (line == p.line || now.Sub(p.at) < time.Second) {
		return
	}
	p.state, p.line, p.at = s.State, line, now
	if rate != "" {
		line += ", " + rate
	}
	fmt.Fprintln(p.w, line)
}

// perSecond shows a rate; a slow one with a digit behind the point, for it is seldom 0.
func perSecond(rate float64) string {
	if rate > 0 && rate < 9.95 {
		return fmt.Sprintf("%.1f tasks/s", rate)
	}
	return fmt.Sprintf("%.0f tasks/s", rate)
}

// draw moves the bar. Its decorator runs on another goroutine and gets the text
// by an atomic pointer.
func (p *progress) draw(s *client.Summary, rate string) {
	text := " " + s.State
	if c := counts(s.TaskCounts); c != "" {
		text += ": " + c
	}
	if rate != "" {
		text += ", " + rate
	}
	p.text.Store(&text)
	if p.bar == nil {
		p.bar = p.bars.New(int64(s.Total()), mpb.BarStyle(), mpb.BarWidth(30),
			mpb.PrependDecorators(decor.Name(fmt.Sprintf("run %d ", p.run)), decor.CountersNoUnit("%d/%d")),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return *p.text.Load() })))
	}
	p.bar.SetTotal(int64(s.Total()), false)
	p.bar.SetCurrent(int64(s.Ended()))
}

// close leaves the last picture on the screen.
func (p *progress) close() {
	if p.bars == nil {
		return
	}
	if p.bar != nil {
		p.bar.Abort(false)
	}
	p.bars.Wait()
}
