package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/caravan-dag/caravan/client"
)

// table prints rows in aligned columns. It prints in batches, so that a long list appears as it
// arrives, and its memory stays bounded. The columns grow from batch to batch: text/tabwriter would
// align the whole list, and so hold it until its end. It counts bytes or runes, too, where a
// terminal has columns.
type table struct {
	w      io.Writer
	paint  func(word string) string // adds colour to a state; keeps its text
	widths []int                    // of the columns so far, in columns of a terminal
	rows   [][]string               // not printed yet; escaped by printable
}

// batchRows is the number of rows that are aligned together: a page of the server's lists.
const batchRows = 1000

// newTable returns a table with its first row, the heads. It prints them with the first batch.
func newTable(w io.Writer, paint func(string) string, heads ...string) *table {
	t := &table{w: w, paint: paint, widths: make([]int, len(heads))}
	_ = t.add(heads...)
	return t
}

// add adds a row with as many cells as there are heads, and changes cells. It prints when a batch
// is full; the error is that of w.
func (t *table) add(cells ...string) error {
	for i, c := range cells {
		cells[i] = printable(c)
		t.widths[i] = max(t.widths[i], displayWidth(cells[i]))
	}
	t.rows = append(t.rows, cells)
	if len(t.rows) >= batchRows {
		return t.flush()
	}
	return nil
}

// flush prints the rows that are left. Columns are two blanks apart, and lines end without blanks.
// Widths are counted without colours, which take no columns.
func (t *table) flush() error {
	w := bufio.NewWriter(t.w)
	for _, row := range t.rows {
		var line strings.Builder
		for i, c := range row {
			line.WriteString(t.paint(c))
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", t.widths[i]-displayWidth(c)+2))
			}
		}
		w.WriteString(strings.TrimRight(line.String(), " "))
		w.WriteByte('\n')
	}
	t.rows = t.rows[:0]
	return w.Flush()
}

// displayWidth returns the number of terminal columns that s takes: "構築" takes 4, and a combining
// accent 0.
func displayWidth(s string) int {
	width := runewidth.Condition{StrictEmojiNeutral: true} // independent of the locale
	return width.StringWidth(s)
}

// statePainter returns a function that colours states on stream if that is a terminal, unless
// NO_COLOR is set (no-color.org) or TERM is dumb. It colours only a text that is a state as a
// whole; a task with the name "RUNNING" is coloured, too, and still readable.
func (m *Main) statePainter(stream io.Writer) func(string) string {
	plain := func(s string) string { return s }
	if v, _ := m.LookupEnv("NO_COLOR"); v != "" || !m.Terminal(stream) {
		return plain
	}
	if v, _ := m.LookupEnv("TERM"); v == "dumb" {
		return plain
	}
	colours := map[string]string{ // parameters of SGR (ECMA-48): green, red, magenta, cyan, yellow
		client.Completed: "32", client.Errored: "31", client.Killed: "35",
		client.Running: "36", client.Retry: "33", client.Paused: "33",
	}
	return func(s string) string {
		if c := colours[s]; c != "" {
			return "\x1b[" + c + "m" + s + "\x1b[0m"
		}
		return s
	}
}

// printJSON prints v on standard output as an indented document with a line break. "<" and "&" stay
// as they are: commands hold many of them, and the reader is not a web page.
func (m *Main) printJSON(v any) error {
	e := json.NewEncoder(m.Stdout)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printable escapes control characters and broken UTF-8. Names and tags come from users and must
// not control the terminal. The result is one line, and other letters stay as they are:
//
//	"a\nb"    a\nb
//	"\x1b[2J" \x1b[2J
//	"\xff"    \xff
//	"\u202e"  \u202e      the override of the writing direction
//	"über"    über
func printable(s string) string {
	clean := func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }
	if strings.IndexFunc(s, clean) < 0 {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		// A byte that is not UTF-8 also gives RuneError; a U+FFFD in the text is a letter like
		// others.
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD"):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			q := fmt.Sprintf("%+q", r) // '\u202e', in quotes
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}

// formatPointer returns a JSON pointer for printing, "/" for the whole document.
func formatPointer(p string) string {
	if p == "" {
		return "/"
	}
	return printable(p)
}

// formatTime formats a time to the second, in the user's time zone: "2026-11-30 08:00:02". 0 is "-".
func (m *Main) formatTime(n client.Nanos) string {
	if n == 0 {
		return "-"
	}
	return n.Time().In(m.Zone).Format("2006-01-02 15:04:05")
}

// formatDuration formats a duration with about three digits, cut and not rounded, so that 59.96 s
// is not shown as 60.0s:
//
//	950us  12ms  2.5s  3m07s  3h45m  5d03h
//
// A negative one, which stands for an unknown time, is "-".
func formatDuration(d time.Duration) string {
	switch {
	case d < 0:
		return "-"
	case d < time.Millisecond:
		return fmt.Sprintf("%dus", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Truncate(100*time.Millisecond).Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}

// taskStatesInOrder lists the states in the order in which counts are shown: progress first,
// failures last.
func taskStatesInOrder() []string {
	return []string{client.Completed, client.Running, client.Retry, client.Queued, client.Errored, client.Killed}
}

// formatStateCounts formats the numbers of tasks by state: "11 COMPLETED, 14 RUNNING". States
// without tasks are left out.
func formatStateCounts(by map[string]int) string {
	var parts []string
	for _, s := range taskStatesInOrder() {
		if n := by[s]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s))
		}
	}
	return strings.Join(parts, ", ")
}

// pluralize formats a count: "1 task", "2 tasks".
func pluralize(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

// progress shows a run on Stderr while it goes on: a bar on a terminal, otherwise a line per change
// of state and at most one a second. So the log of a build stays short, and still shows that the
// run moves.
//
//	run 7 12/25 [=============>--------------]  RUNNING: 12 COMPLETED, 13 QUEUED, 3.5 tasks/s
//	run 7 RUNNING: 12 of 25 tasks ended (11 COMPLETED, 13 QUEUED, 1 ERRORED), 3.5 tasks/s
//
// One goroutine uses it: show for each summary, close at the end. The goroutine of mpb draws the bar.
type progress struct {
	w    io.Writer
	run  uint64
	now  func() time.Time // replaced in tests
	bars *mpb.Progress    // nil without a terminal
	bar  *mpb.Bar         // nil until the first summary

	state        string                 // of the last printed line
	lastLine     string                 // the last printed line, without the rate
	lastPrinted  time.Time              // when it was printed
	firstSeen    time.Time              // the first summary: the rate counts from there
	endedAtFirst int                    // tasks that had ended when the display started
	barText      atomic.Pointer[string] // text after the bar, for the goroutine of mpb
}

// newProgress starts the display of a run. The caller closes it before it prints anything else.
func (m *Main) newProgress(run uint64) *progress {
	p := &progress{w: m.Stderr, run: run, now: time.Now}
	if v, _ := m.LookupEnv("TERM"); v != "dumb" && m.Terminal(m.Stderr) {
		p.bars = mpb.New(mpb.WithOutput(m.Stderr), mpb.WithAutoRefresh(), mpb.WithRefreshRate(100*time.Millisecond))
	}
	return p
}

// pollInterval returns how often the display needs a new summary: as often as the bar is drawn, or
// a few times as often as a line may be printed.
func (p *progress) pollInterval() time.Duration {
	if p.bars != nil {
		return 100 * time.Millisecond
	}
	return 250 * time.Millisecond
}

// show displays a new summary. The rate is that of the tasks that have ended since the first
// summary, and appears after a second: a command that joins late does not count what ended before
// it. It is not safe for concurrent use.
func (p *progress) show(s *client.Summary) {
	now := p.now()
	if p.firstSeen.IsZero() {
		p.firstSeen, p.endedAtFirst = now, s.Ended()
	}
	rate := ""
	if d := now.Sub(p.firstSeen); d >= time.Second {
		rate = perSecond(float64(s.Ended()-p.endedAtFirst) / d.Seconds())
	}
	if p.bars != nil {
		p.drawBar(s, rate)
		return
	}
	line := fmt.Sprintf("run %d %s: %d of %d tasks ended (%s)", p.run, s.State, s.Ended(), s.Total(), formatStateCounts(s.TaskCounts))
	if s.State == p.state && (line == p.lastLine || now.Sub(p.lastPrinted) < time.Second) {
		return
	}
	p.state, p.lastLine, p.lastPrinted = s.State, line, now
	if rate != "" {
		line += ", " + rate
	}
	fmt.Fprintln(p.w, line)
}

// perSecond formats a rate. A slow rate gets a decimal, because it is seldom zero.
func perSecond(rate float64) string {
	if rate > 0 && rate < 9.95 {
		return fmt.Sprintf("%.1f tasks/s", rate)
	}
	return fmt.Sprintf("%.0f tasks/s", rate)
}

// drawBar updates the bar. Its decorator runs on another goroutine and gets the text through an
// atomic pointer.
func (p *progress) drawBar(s *client.Summary, rate string) {
	text := " " + s.State
	if c := formatStateCounts(s.TaskCounts); c != "" {
		text += ": " + c
	}
	if rate != "" {
		text += ", " + rate
	}
	p.barText.Store(&text)
	if p.bar == nil {
		// Made with a total, a bar would end for good when that many tasks have ended, although a
		// generator among them has added more. This one ends with close.
		p.bar = p.bars.New(0, mpb.BarStyle(), mpb.BarWidth(30),
			mpb.PrependDecorators(decor.Name(fmt.Sprintf("run %d ", p.run)), decor.CountersNoUnit("%d/%d")),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return *p.barText.Load() })))
	}
	// The total grows when a generator ends. false: the bar does not end when it is full, close
	// ends it.
	p.bar.SetTotal(int64(s.Total()), false)
	p.bar.SetCurrent(int64(s.Ended()))
}

// close leaves the last state of the bar on the screen, and returns when the goroutine of mpb has
// drawn it. Abort ends the bar, which does not end by itself.
func (p *progress) close() {
	if p.bars == nil {
		return
	}
	if p.bar != nil {
		p.bar.Abort(false)
	}
	p.bars.Wait()
}
