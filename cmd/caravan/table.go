package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"

	"github.com/caravan-dag/caravan/client"
)

// table prints rows in aligned columns. Rows come in batches: the widths of the
// columns grow from batch to batch, so that a long list is printed as it arrives.
type table struct {
	w      io.Writer
	paint  func(word string) string // colours a state; never changes its letters
	widths []int
	rows   [][]string
}

// batchRows is how many rows are aligned together.
const batchRows = 1000

func newTable(w io.Writer, paint func(string) string, heads ...string) *table {
	t := &table{w: w, paint: paint, widths: make([]int, len(heads))}
	_ = t.add(heads...)
	return t
}

func (t *table) add(cells ...string) error {
	for i, c := range cells {
		cells[i] = printable(c)
		t.widths[i] = max(t.widths[i], columns(cells[i]))
	}
	t.rows = append(t.rows, cells)
	if len(t.rows) >= batchRows {
		return t.flush()
	}
	return nil
}

func (t *table) flush() error {
	w := bufio.NewWriter(t.w)
	for _, row := range t.rows {
		var line strings.Builder
		for i, c := range row {
			line.WriteString(t.paint(c))
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", t.widths[i]-columns(c)+2))
			}
		}
		w.WriteString(strings.TrimRight(line.String(), " "))
		w.WriteByte('\n')
	}
	t.rows = t.rows[:0]
	return w.Flush()
}

// columns is how many columns of a terminal s takes: the letters of some scripts take
// two, accents that are written apart none.
func columns(s string) int {
	width := runewidth.Condition{StrictEmojiNeutral: true} // the same wherever it runs
	return width.StringWidth(s)
}

// painter colours states on a terminal, unless NO_COLOR is set or TERM is dumb.
func (m *Main) painter(stream io.Writer) func(string) string {
	plain := func(s string) string { return s }
	if v, _ := m.LookupEnv("NO_COLOR"); v != "" || !m.Terminal(stream) {
		return plain
	}
	if v, _ := m.LookupEnv("TERM"); v == "dumb" {
		return plain
	}
	colours := map[string]string{
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

// printJSON writes v as an indented document.
func (m *Main) printJSON(v any) error {
	e := json.NewEncoder(m.Stdout)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printable shows control characters and broken UTF-8 as escapes: names and tags
// are the users' own, and no business of the terminal's.
func printable(s string) string {
	clean := func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }
	if strings.IndexFunc(s, clean) < 0 {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD"):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			q := fmt.Sprintf("%+q", r)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}

// pointer shows a JSON pointer; the whole document has an empty one.
func pointer(p string) string {
	if p == "" {
		return "/"
	}
	return printable(p)
}

// moment shows a time to the second, in the user's zone.
func (m *Main) moment(n client.Nanos) string {
	if n == 0 {
		return "-"
	}
	return n.Time().In(m.Zone).Format("2006-01-02 15:04:05")
}

// span shows a duration with about three digits.
func span(d time.Duration) string {
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

// states in the order in which counts are shown.
func taskStates() []string {
	return []string{client.Completed, client.Running, client.Retry, client.Queued, client.Errored, client.Killed}
}

// counts shows tasks by state: "11 COMPLETED, 14 RUNNING".
func counts(by map[string]int) string {
	var parts []string
	for _, s := range taskStates() {
		if n := by[s]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s))
		}
	}
	return strings.Join(parts, ", ")
}

// plural is "1 task", "2 tasks".
func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
