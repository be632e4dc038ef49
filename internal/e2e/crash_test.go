package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// The run of the crash test: 1 + 300 + 1 generator + 99 generated + 1 + 98 = 500
// tasks. Every attempt appends "start NAME ATTEMPT" and, at its end, "end NAME
// ATTEMPT" to one file (lines that short are appended whole).
//
//	first -> work_0..299 (every 6th fails once) -> join -> tail_0..97
//	first -> gen -> (made_0..98) -> join
const (
	works, mades, tails = 300, 99, 98
	crashTasks          = 1 + works + 1 + mades + 1 + tails
)

func crashDoc(t *testing.T, dir string) e2etest.Doc {
	t.Helper()
	step := func(work string) e2etest.Task {
		return e2etest.Sh(`echo "start $CARAVAN_TASK $CARAVAN_ATTEMPT" >> ` + dir + `/lines; ` + work +
			` && echo "end $CARAVAN_TASK $CARAVAN_ATTEMPT" >> ` + dir + `/lines; code=$?; echo out-$CARAVAN_TASK; exit $code`)
	}
	set := e2etest.Body(t, map[string]e2etest.Task{"made": step("test -n x{{MADE}} && sleep 0.03")})
	// The set goes through a file: its tokens are not the generator's own.
	if err := os.WriteFile(filepath.Join(dir, "set"), []byte(set), 0o600); err != nil {
		t.Fatal(err)
	}
	gen := e2etest.Sh(`echo "start $CARAVAN_TASK $CARAVAN_ATTEMPT" >> ` + dir + `/lines; sleep 0.05; cat ` + dir + `/set; echo "end $CARAVAN_TASK $CARAVAN_ATTEMPT" >> ` + dir + `/lines`)
	flaky := `{ [ $(( {{WORK}} % 6 )) -ne 0 ] || [ -e ` + dir + `/mark-{{WORK}} ] || { : > ` + dir + `/mark-{{WORK}}; false; }; } && sleep 0.03`
	return e2etest.Graph(map[string]e2etest.Task{
		"first": step("sleep 0.01"),
		"work":  step(flaky).After("first").With("maxRetries", 1).With("retryIntervalSeconds", 0),
		"gen":   gen.After("first").With("isGenerator", true),
		"join":  step("true").After("work", "gen"),
		"tail":  step("test -n x{{TAIL}} && sleep 0.03").After("join"),
	}).With("parameters", map[string]any{
		"WORK": e2etest.Numbers(works), "MADE": e2etest.Numbers(mades), "TAIL": e2etest.Numbers(tails),
	}).With("tag", "crash")
}

// line is one line of the tasks' file.
type line struct {
	what, task string
	attempt    int
}

func readLines(t *testing.T, dir string) []line {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "lines"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var lines []line
	for l := range strings.Lines(string(text)) {
		f := strings.Fields(l)
		if len(f) != 3 || !strings.HasSuffix(l, "\n") {
			continue // a line whose writer was killed in the midst of it
		}
		attempt, err := strconv.Atoi(f[2])
		if err != nil {
			t.Fatalf("line %q: %v", l, err)
		}
		lines = append(lines, line{f[0], f[1], attempt})
	}
	return lines
}

// TestKillNineAtRandomMoments kills the server while a run of 500 tasks with
// retries and a generator goes on. The moments are spread over the run: each is a
// random number of ended tasks and then a random part of 20 ms.
func TestKillNineAtRandomMoments(t *testing.T) {
	rng := random(t)
	// One run lasts for some forty kills.
	for left := scaled(*killsFlag); left > 0; left -= 20 {
		killAtRandomMoments(t, rng, min(left, 20))
	}
}

func killAtRandomMoments(t *testing.T, rng *rand.Rand, kills int) {
	dir := t.TempDir()
	s := e2etest.Start(t, e2etest.Args("--cores", "4"))
	run := s.Submit(crashDoc(t, dir))

	seen := map[string]int{} // COMPLETED tasks and the attempt that completed them
	killed := 0
	for killed < kills && s.State(run) != "COMPLETED" {
		// What is left of the run, but for its very end, is shared among the kills that
		// are left.
		done := ended(readLines(t, dir))
		step := max(1, (crashTasks-150-done)/(kills-killed)) // tasks go on while the server is away
		target := done + rng.IntN(step)
		e2etest.Poll(e2etest.Patience, func() bool {
			return ended(readLines(t, dir)) >= target || s.State(run) == "COMPLETED"
		})
		note(t, s.Get(run), seen)
		pauseFor(time.Duration(rng.IntN(20_000)) * time.Microsecond)
		s = s.Crash()
		killed++
		note(t, s.Get(run), seen)
		if next := s.Submit(e2etest.Graph(map[string]e2etest.Task{"x": e2etest.Noop("")})); next != run+uint64(killed) {
			t.Fatalf("after kill %d the next run is %d, want %d", killed, next, run+uint64(killed))
		}
	}
	s.Await(run, "COMPLETED")
	s = s.Crash() // the record of a finished run is durable too
	doc := s.Get(run)
	note(t, doc, seen)
	t.Logf("%d kills; %d tasks; %d lines", killed, len(doc.TaskStates), len(readLines(t, dir)))
	if killed < kills {
		t.Errorf("the run was over after %d kills of %d", killed, kills)
	}
	checkLines(t, readLines(t, dir), seen)
	checkRecord(t, doc)
	s.Stop(e2etest.Patience)
}

// ended counts the tasks that have ended.
func ended(lines []line) int {
	tasks := map[string]bool{}
	for _, l := range lines {
		if l.what == "end" {
			tasks[l.task] = true
		}
	}
	return len(tasks)
}

// pauseFor lets a random part of the time go by; nothing is awaited here.
func pauseFor(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
}

// note remembers the tasks that the document shows as COMPLETED, and checks that
// none that was COMPLETED before is anything else now.
func note(t *testing.T, doc *e2etest.Run, seen map[string]int) {
	t.Helper()
	for task := range seen {
		if doc.TaskStates[task] != "COMPLETED" {
			t.Errorf("%s was COMPLETED and is %s", task, doc.TaskStates[task])
		}
	}
	for task, state := range doc.TaskStates {
		if state != "COMPLETED" {
			continue
		}
		a := doc.TaskAttempts[task]
		if len(a) == 0 {
			t.Errorf("%s is COMPLETED without an attempt", task)
			continue
		}
		last := a[len(a)-1].Attempt
		if before, ok := seen[task]; ok && before != last {
			t.Errorf("%s was COMPLETED by attempt %d and now by attempt %d", task, before, last)
		}
		seen[task] = last
	}
}

// checkLines: no attempt after the one that completed a task, no attempt twice, and
// no task before all its parents had ended.
func checkLines(t *testing.T, lines []line, completed map[string]int) {
	t.Helper()
	if len(completed) != crashTasks {
		t.Errorf("%d tasks are COMPLETED, want %d", len(completed), crashTasks)
	}
	starts := map[line]int{}
	ended := map[string]int{}   // tasks that ended, per template
	byTask := map[string]bool{} // that ended
	for _, l := range lines {
		template, _, _ := strings.Cut(l.task, "_")
		if l.what == "end" {
			if !byTask[l.task] {
				byTask[l.task] = true
				ended[template]++
			}
			continue
		}
		starts[l]++
		if starts[l] > 1 {
			t.Errorf("%s: attempt %d was started %d times", l.task, l.attempt, starts[l])
		}
		if l.attempt > completed[l.task] {
			t.Errorf("%s: attempt %d was started, attempt %d had completed it", l.task, l.attempt, completed[l.task])
		}
		want := map[string]map[string]int{
			"work": {"first": 1}, "gen": {"first": 1}, "made": {"gen": 1},
			"join": {"work": works, "gen": 1, "made": mades}, "tail": {"join": 1},
		}[template]
		for parent, n := range want {
			if ended[parent] < n {
				t.Errorf("%s started when %d of %d tasks of %s had ended", l.task, ended[parent], n, parent)
			}
		}
	}
}

// checkRecord: every task with all its attempts, numbered, in order, with output.
func checkRecord(t *testing.T, doc *e2etest.Run) {
	t.Helper()
	if len(doc.Tasks) != crashTasks || len(doc.TaskStates) != crashTasks || len(doc.TaskAttempts) != crashTasks {
		t.Errorf("the record has %d tasks, %d states, attempts of %d; want %d of each",
			len(doc.Tasks), len(doc.TaskStates), len(doc.TaskAttempts), crashTasks)
	}
	for task, attempts := range doc.TaskAttempts {
		for i, a := range attempts {
			last := i == len(attempts)-1
			switch {
			case a.Attempt != i+1:
				t.Errorf("%s: attempt number %d at place %d", task, a.Attempt, i)
			case (a.RC == 0) != last:
				t.Errorf("%s: attempt %d of %d ended with rc %d (%s)", task, a.Attempt, len(attempts), a.RC, a.ExecutorLog)
			case last && (a.StartTime == 0 || a.StopTime < a.StartTime):
				t.Errorf("%s: attempt %d from %d to %d", task, a.Attempt, a.StartTime, a.StopTime)
			case last && task != "gen" && a.OutputLog != "out-"+task+"\n":
				t.Errorf("%s: output %q", task, a.OutputLog)
			}
		}
	}
	var last e2etest.Nanos
	var states []string
	for _, c := range doc.DagStateChanges {
		if c.Time < last {
			t.Errorf("dagStateChanges goes back in time: %+v", doc.DagStateChanges)
		}
		last = c.Time
		states = append(states, c.State)
	}
	if got := strings.Join(states, " "); got != "QUEUED RUNNING COMPLETED" {
		t.Errorf("dagStateChanges: %s", got)
	}
}

// TestKillNineAfterAnAcknowledgement: rounds of 64 submitters that start together,
// each with one submission on a connection of its own. A random number of answers
// is awaited, then SIGKILL is sent at once. What counts is every 200 that was read
// within the millisecond before the signal or after it, until there are -acked of
// them; all acknowledged runs, counted or not, must be there after the restart, and
// no id may have been given twice.
func TestKillNineAfterAnAcknowledgement(t *testing.T) {
	const submitters = 64
	want := scaled(*ackedFlag)
	rng := random(t)
	s := e2etest.Start(t)
	tags := map[uint64]string{} // every acknowledged run
	counted, rounds := 0, 0
	for ; counted < want && rounds < 10+want; rounds++ {
		acks := killDuringSubmissions(t, s, rng, submitters, fmt.Sprintf("round-%d", rounds))
		s = s.Restart()
		for _, a := range acks {
			if other, ok := tags[a.run]; ok {
				t.Fatalf("run %d was given to %s and to %s", a.run, other, a.tag)
			}
			tags[a.run] = a.tag
			if a.before <= time.Millisecond {
				counted++
			}
			if got := s.Get(a.run).Tag; got != a.tag {
				t.Fatalf("run %d was acknowledged as %q, after the restart it is %q", a.run, a.tag, got)
			}
		}
	}
	t.Logf("%d kills; %d submissions acknowledged, %d of them less than 1 ms before the kill", rounds, len(tags), counted)
	if counted < want {
		t.Errorf("only %d submissions were acknowledged within 1 ms before a kill, want %d", counted, want)
	}
	for run, tag := range tags { // none of them is lost by a later crash either
		s.Await(run, "COMPLETED")
		if got := s.Get(run).Tag; got != tag {
			t.Fatalf("run %d is %q, want %q", run, got, tag)
		}
	}
}

// ack is an answer 200 to a submission.
type ack struct {
	run    uint64
	tag    string
	at     time.Time
	before time.Duration // that it was read before the kill; negative after it
}

// killDuringSubmissions kills the server among the answers to n submissions and
// returns those that were acknowledged.
func killDuringSubmissions(t *testing.T, s *e2etest.Server, rng *rand.Rand, n int, round string) []ack {
	t.Helper()
	start := make(chan struct{})
	answers := make(chan *ack, n)
	for i := range n {
		c, err := dialSubmitter(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		tag := fmt.Sprintf("%s-%d", round, i)
		go func() {
			defer c.Close()
			<-start
			run, err := c.submit(`{"tag":"` + tag + `","tasks":{"a":{"job":{"executor":"noop"}}}}`)
			if err != nil {
				answers <- nil // the server was killed before it answered
				return
			}
			answers <- &ack{run: run, tag: tag, at: time.Now()}
		}()
	}
	close(start)
	var acks []ack
	for kill := 1 + rng.IntN(n); kill > 0; kill-- {
		if a := <-answers; a != nil {
			acks = append(acks, *a)
		}
		n--
	}
	killed := time.Now()
	s.Kill()
	for ; n > 0; n-- {
		if a := <-answers; a != nil {
			acks = append(acks, *a)
		}
	}
	for i := range acks {
		acks[i].before = killed.Sub(acks[i].at)
	}
	return acks
}
