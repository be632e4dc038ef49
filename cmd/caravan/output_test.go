package main

import (
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/client"
)

func summary(state string, completed, queued int) *client.Summary {
	return &client.Summary{RunID: 3, State: state, TaskCounts: map[string]int{client.Completed: completed, client.Queued: queued}}
}

// There is a line per change of state, otherwise at most one a second.
func TestProgressLinesWithoutATerminal(t *testing.T) {
	p := newProgram("")
	at := time.Unix(0, 0)
	bar := p.newProgress(3)
	bar.now = func() time.Time { return at }
	for _, step := range []struct {
		after time.Duration
		s     *client.Summary
	}{
		{0, summary(client.Queued, 0, 9)},
		{time.Millisecond, summary(client.Running, 0, 9)},
		{time.Millisecond, summary(client.Running, 1, 8)},
		{time.Second, summary(client.Running, 4, 5)},
		{time.Second, summary(client.Running, 4, 5)},
		{time.Millisecond, summary(client.Completed, 9, 0)},
	} {
		at = at.Add(step.after)
		bar.show(step.s)
	}
	bar.close()
	same(t, "progress", p.errs.String(), ""+
		"run 3 QUEUED: 0 of 9 tasks ended (9 QUEUED)\n"+
		"run 3 RUNNING: 0 of 9 tasks ended (9 QUEUED)\n"+
		"run 3 RUNNING: 4 of 9 tasks ended (4 COMPLETED, 5 QUEUED), 4.0 tasks/s\n"+
		"run 3 COMPLETED: 9 of 9 tasks ended (9 COMPLETED), 4.5 tasks/s\n")
}

func TestProgressBarOnATerminal(t *testing.T) {
	p := newProgram("")
	p.Terminal = func(any) bool { return true }
	at := time.Unix(0, 0)
	bar := p.newProgress(3)
	bar.now = func() time.Time { return at }
	bar.show(summary(client.Running, 0, 9))
	at = at.Add(2 * time.Second)
	bar.show(summary(client.Running, 6, 3))
	bar.close()
	for _, part := range []string{"run 3 ", "6/9", "RUNNING: 6 COMPLETED, 3 QUEUED, 3.0 tasks/s"} {
		if !strings.Contains(p.errs.String(), part) {
			t.Errorf("%q is not in %q", part, p.errs)
		}
	}
	// A run without a summary has no bar.
	p.newProgress(4).close()
}

// A generator that ends adds tasks: the bar goes on, although all tasks of the first summary have
// ended.
func TestProgressBarGrowsWithTheRun(t *testing.T) {
	p := newProgram("")
	p.Terminal = func(any) bool { return true }
	bar := p.newProgress(3)
	bar.show(summary(client.Running, 0, 1))
	p.errs.await(t, "0/1")
	bar.show(summary(client.Running, 1, 4))
	p.errs.await(t, "1/5")
	bar.show(summary(client.Running, 4, 1))
	p.errs.await(t, "4/5")
	bar.show(summary(client.Completed, 5, 0))
	bar.close()
	if !strings.Contains(p.errs.String(), "5/5") {
		t.Errorf("it ends with %q", p.errs)
	}
}

func TestFormatDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-1: "-", 0: "0us", 1500 * time.Microsecond: "1ms", 61500 * time.Millisecond: "1m01s", 9990 * time.Millisecond: "9.9s",
		3*time.Hour + 5*time.Minute: "3h05m", 50 * time.Hour: "2d02h",
	} {
		if got := formatDuration(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
	if newProgram("").formatTime(0) != "-" {
		t.Error("the zero time is shown")
	}
}

func TestPrintableEscapesControlCharacters(t *testing.T) {
	for s, want := range map[string]string{
		"plain ä 日本": "plain ä 日本", "a\x1b[0m": `a\x1b[0m`, "\xff": `\xff`, "\uFFFD": "\uFFFD", "a\nb\u202e": `a\nb\u202e`,
	} {
		if got := printable(s); got != want {
			t.Errorf("%q: got %q, want %q", s, got, want)
		}
	}
}

func TestTableColumnsGrowBetweenBatches(t *testing.T) {
	b := newBuffer()
	tab := newTable(b, func(s string) string { return s }, "A", "B")
	for range batchRows {
		if err := tab.add("x", "y"); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(b.String(), "\n"); n != batchRows {
		t.Errorf("%d lines before the end", n)
	}
	if err := tab.add("longer", "y"); err != nil || tab.flush() != nil || !strings.HasSuffix(b.String(), "x  y\nx       y\nlonger  y\n") {
		t.Errorf("%v: …%q", err, b.String()[len(b.String())-40:])
	}
}

// Columns are aligned as a terminal shows them.
func TestTablesAlignWideCharacters(t *testing.T) {
	b := newBuffer()
	tab := newTable(b, func(s string) string { return s }, "TASK", "STATE")
	for _, name := range []string{"任务", "naïve", "nai\u0308ve", "x"} {
		if err := tab.add(name, "QUEUED"); err != nil {
			t.Fatal(err)
		}
	}
	if err := tab.flush(); err != nil {
		t.Fatal(err)
	}
	same(t, "table", b.String(), "TASK   STATE\n任务   QUEUED\nnaïve  QUEUED\nnai\u0308ve  QUEUED\nx      QUEUED\n")
}
