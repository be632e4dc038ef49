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
	"github.com/caravan-dag/caravan/internal/testenv"
)

// The run of the crash test: 1 + 180 + 1 generator + 59 generated + 1 + 58 = 300
// tasks. Every attempt appends "start NAME ATTEMPT" and, at its end, "end NAME
// ATTEMPT" to one file (lines that short are appended whole).
//
//	first -> work_0..179 (every 6th fails once) -> join -> tail_0..57
//	first -> gen -> (made_0..58) -> join
const (
	works, mades, tails = 180, 59, 58
	crashTasks          = 1 + works + 1 + mades + 1 + tails
)

func crashDoc(t *testing.T, dir string) e2etest.Doc {
	t.Helper()
	step := func(work string) e2etest.Task {
		return e2etest.Sh(`echo "start $CARAVAN_TASK $CARAVAN_ATTEMPT" >> ` + dir + `/lines; ` + work +
			` && echo "end $CARAVAN_TASK $CARAVAN_ATTEMPT" >> ` + dir + `/lines; code=$?; echo out-$CARAVAN_TASK; exit $code`)
	}
	set := e2etest.Body(t, map[string]e2etest.Task{"made": step("test -n x{{MADE}} && sleep 0.03")})
	// The set is in a file, so that its tokens do not expand the generator.
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

// taskLine is one line of the tasks' file.
type taskLine struct {
	what, task string
	attempt    int
}

func readLines(t *testing.T, dir string) []taskLine {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "lines"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var lines []taskLine
	for l := range strings.Lines(string(text)) {
		f := strings.Fields(l)
		if len(f) != 3 || !strings.HasSuffix(l, "\n") {
			continue // its writer was killed in the middle of the line
		}
		attempt, err := strconv.Atoi(f[2])
		if err != nil {
			t.Fatalf("line %q: %v", l, err)
		}
		lines = append(lines, taskLine{f[0], f[1], attempt})
	}
	return lines
}

// TestKillNineAtRandomMoments kills the server during a run of 300 tasks with retries and a
// generator. The moments are spread over the run: each is a random number of ended tasks and then a
// random part of 20 ms.
func TestKillNineAtRandomMoments(t *testing.T) {
	rng := seededRandom(t)
	// One run is long enough for some thirty kills. On a busy machine it may be over sooner.
	for left := scaled(*killsFlag); left > 0; {
		left -= killAtRandomMoments(t, rng, min(left, 20))
	}
}

// killAtRandomMoments kills the server of one run, if the run lasts long enough as often as kills says,
// and returns how often.
func killAtRandomMoments(t *testing.T, rng *rand.Rand, kills int) (killed int) {
	dir := t.TempDir()
	s := e2etest.Start(t, e2etest.Args("--cores", "4"))
	run := s.Submit(crashDoc(t, dir))

	seen := map[string]int{} // COMPLETED tasks and the attempt that completed them
	for killed < kills && s.State(run) != "COMPLETED" {
		// The rest of the run, except its very end, is divided among the remaining kills.
		done := countEnded(readLines(t, dir))
		step := max(1, (crashTasks*7/10-done)/(kills-killed)) // tasks go on while the server is down
		target := done + rng.IntN(step)
		testenv.Poll(e2etest.Patience, func() bool {
			return countEnded(readLines(t, dir)) >= target || s.State(run) == "COMPLETED"
		})
		checkCompletedStays(t, s.Get(run), seen)
		waitRandomly(time.Duration(rng.IntN(20_000)) * time.Microsecond)
		s = s.Crash()
		killed++
		checkCompletedStays(t, s.Get(run), seen)
		if next := s.Submit(e2etest.Graph(map[string]e2etest.Task{"x": e2etest.Noop("")})); next != run+uint64(killed) {
			t.Fatalf("after kill %d the next run is %d, want %d", killed, next, run+uint64(killed))
		}
	}
	s.Await(run, "COMPLETED")
	s = s.Crash() // the record of a finished run is durable too
	doc := s.Get(run)
	checkCompletedStays(t, doc, seen)
	t.Logf("%d kills; %d tasks; %d lines", killed, len(doc.TaskStates), len(readLines(t, dir)))
	if killed == 0 {
		t.Fatal("the run was over before the first kill")
	}
	checkLines(t, readLines(t, dir), seen)
	checkRecord(t, doc)
	s.Stop(e2etest.Patience)
	return killed
}

// countEnded counts the ended tasks.
func countEnded(lines []taskLine) int {
	tasks := map[string]bool{}
	for _, l := range lines {
		if l.what == "end" {
			tasks[l.task] = true
		}
	}
	return len(tasks)
}

// waitRandomly waits for a random part of the time. It is a delay, not a wait for an event.
func waitRandomly(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
}

// checkCompletedStays remembers the tasks that the document shows as COMPLETED, and checks that
// former ones still are.
func checkCompletedStays(t *testing.T, doc *e2etest.Run, seen map[string]int) {
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

// checkLines: the attempt that completes a task is its last, attempts are unique, and a task starts
// after all its parents have ended.
func checkLines(t *testing.T, lines []taskLine, completed map[string]int) {
	t.Helper()
	if len(completed) != crashTasks {
		t.Errorf("%d tasks are COMPLETED, want %d", len(completed), crashTasks)
	}
	starts := map[taskLine]int{}
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

// checkRecord: every task has all its attempts, numbered, in order, with output.
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

// TestKillNineAfterAcknowledgement: rounds of 64 submitters that start together, each with one
// submission on its own connection. The server gets SIGKILL right after a random number of answers.
// Every 200 that was read within the millisecond before the signal or after it counts, until there
// are -acked of them. All acknowledged runs, counted or not, must be there after the restart, and
// ids must be unique.
func TestKillNineAfterAcknowledgement(t *testing.T) {
	const submitters = 64
	want := scaled(*ackedFlag)
	rng := seededRandom(t)
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
	for run, tag := range tags { // later crashes do not lose them either
		s.Await(run, "COMPLETED")
		if got := s.Get(run).Tag; got != tag {
			t.Fatalf("run %d is %q, want %q", run, got, tag)
		}
	}
}

// acknowledgement is an answer 200 to a submission.
type acknowledgement struct {
	run    uint64
	tag    string
	at     time.Time
	before time.Duration // time from the read to the kill; negative if it was read after it
}

// killDuringSubmissions kills the server among the answers to n submissions and returns the
// acknowledged ones.
func killDuringSubmissions(t *testing.T, s *e2etest.Server, rng *rand.Rand, n int, round string) []acknowledgement {
	t.Helper()
	start := make(chan struct{})
	answers := make(chan *acknowledgement, n)
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
			answers <- &acknowledgement{run: run, tag: tag, at: time.Now()}
		}()
	}
	close(start)
	var acks []acknowledgement
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

// TestMillionTaskRunRecovers kills the server of a run of 1,000,000 no-op tasks when a quarter, half
// and three quarters of it are done. The next server is ready, and new tasks of the run have ended,
// within a second of its start (the best of the three), not counting what the disk takes for commits. The run is
// complete at its end.
func TestMillionTaskRunRecovers(t *testing.T) {
	width := 1000
	if e2etest.Race {
		width = 50
	}
	s := e2etest.Start(t)
	limit := limitHere(s, time.Second) + 20*syncTime(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"first": e2etest.Noop(""), "last": e2etest.Noop("").After("mid"),
		"mid": e2etest.Task{"job": map[string]any{"executor": "noop", "command": []string{"noop", "{{M}}", "{{N}}"}}}.After("first"),
	}).With("parameters", map[string]any{"M": e2etest.Numbers(1000), "N": e2etest.Numbers(width)}))
	all := 1000*width + 2
	completed := func() int {
		for _, r := range s.List("?all=1") {
			if r.RunID == run {
				return r.TaskCounts["COMPLETED"]
			}
		}
		return 0
	}
	best := time.Hour
	for quarter := 1; quarter <= 3; quarter++ {
		seen := 0
		testenv.EventuallyWithin(t, 4*e2etest.Patience, "the run makes progress", func() bool {
			seen = completed()
			return seen >= all*quarter/4
		})
		begin := time.Now()
		s = s.Crash()
		ready := time.Since(begin)
		// The ends that were not seen yet are fewer than a window of no-op tasks.
		testenv.EventuallyWithin(t, 4*e2etest.Patience, "new tasks of the run end", func() bool { return completed() >= min(seen+2*1024, all) })
		took := time.Since(begin)
		t.Logf("%d of %d tasks were seen: ready after %v, new ones ended after %v", seen, all, ready, took)
		best = min(best, took)
	}
	if best > limit && !e2etest.Race {
		t.Errorf("the quickest recovery took %v, more than %v", best, limit)
	}
	s.Await(run, "COMPLETED")
	if n := completed(); n != all {
		t.Errorf("%d of %d tasks are COMPLETED", n, all)
	}
}

// TestBacklogRecovers: runs that wait for their first slot stay queued across a kill of the server,
// can be queried, and run once when their turn comes.
func TestBacklogRecovers(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t, e2etest.Args("--cores", "1"))
	holder := s.Submit(e2etest.Graph(map[string]e2etest.Task{"hold": e2etest.Sh("exec sleep 300")}))
	s.AwaitTask(holder, "hold", "RUNNING")
	var waiting []uint64
	for range max(scaled(60), 20) {
		waiting = append(waiting, s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true"), "b": e2etest.Sh("true").After("a")})))
	}
	killed, paused := waiting[0], waiting[1]
	for range 2 {
		s = s.Crash()
		if n := len(s.List("")); n != len(waiting)+1 {
			t.Fatalf("%d runs are unfinished, want %d", n, len(waiting)+1)
		}
	}
	s.Want(200, "DELETE", e2etest.Path(killed, ""), "")
	s.Want(200, "PATCH", e2etest.Path(paused, "/state/PAUSED"), "")
	if state := s.TaskState(waiting[2], "b"); state != "QUEUED" {
		t.Errorf("task b of a run that waits is %s", state)
	}
	s.Want(200, "DELETE", e2etest.Path(holder, ""), "")
	s.Await(killed, "KILLED")
	for _, run := range waiting[2:] {
		s.Await(run, "COMPLETED")
		for task, attempts := range s.Get(run).TaskAttempts {
			if len(attempts) != 1 {
				t.Errorf("run %d: task %s had %d attempts", run, task, len(attempts))
			}
		}
	}
	if state := s.State(paused); state != "PAUSED" {
		t.Errorf("the paused run is %s", state)
	}
	s.Want(200, "PATCH", e2etest.Path(paused, "/state/RUNNING"), "")
	s.Await(paused, "COMPLETED")
}

// TestKillNineDuringRetention kills the server repeatedly while it deletes finished runs. Retained
// runs stay, and so does an old unfinished run. Lists show each run once, in order, and ids are not
// reused.
func TestKillNineDuringRetention(t *testing.T) {
	t.Parallel()
	const retained = 100
	runs := max(scaled(2000), 1000)
	rng := seededRandom(t)
	s := e2etest.Start(t, e2etest.Args("--retain-runs", "100"))
	old := s.Submit(`{"tasks":{"a":{"job":{"command":["/bin/sleep","600"]}}}}`)
	doc := `{"tag":"many","jobDefaults":{"executor":"noop"},"tasks":{"a":{"job":{}}}}` + "\n"
	s.Want(200, "POST", "/v1/dagruns", strings.Repeat(doc, runs), "Content-Type", "application/x-ndjson")
	ended := func() bool { return len(s.List("?limit=2")) == 1 }
	if !testenv.Poll(e2etest.Patience, ended) {
		t.Fatal("the runs do not end")
	}
	last, left := old+uint64(runs), runs
	kills := 0
	for ; left > retained; kills++ {
		if kills == 200 {
			t.Fatalf("%d runs are left after %d kills", left, kills)
		}
		s = s.Crash() // a start begins a sweep at once
		waitRandomly(time.Duration(rng.IntN(20)+2*kills) * time.Millisecond)
		left = checkRetained(t, s, rng, old, last, retained)
	}
	t.Logf("%d kills", kills)
	s = s.Crash()
	if left = checkRetained(t, s, rng, old, last, retained); left != retained {
		t.Errorf("%d runs are left, want %d", left, retained)
	}
	if next := s.Submit(doc); next != last+1 {
		t.Errorf("the next run is %d, want %d", next, last+1)
	}
}

// checkRetained lists the runs in every way and returns how many have ended.
func checkRetained(t *testing.T, s *e2etest.Server, rng *rand.Rand, old, last uint64, retained int) int {
	t.Helper()
	list := s.List("?all=1")
	if len(list) == 0 || list[0].RunID != old || list[len(list)-1].RunID != last {
		t.Fatalf("%d runs are listed, not from the old one to the last one", len(list))
	}
	for i := range list[1:] {
		if list[i].RunID >= list[i+1].RunID {
			t.Fatalf("run %d is listed behind run %d", list[i+1].RunID, list[i].RunID)
		}
	}
	for i, run := range s.List("?tag=many&all=1&order=desc&limit=100") {
		if want := last - uint64(i); run.RunID != want || run.State != "COMPLETED" {
			t.Fatalf("the %d-th newest is run %d, %s; want run %d", i, run.RunID, run.State, want)
		}
	}
	run := last - uint64(rng.IntN(retained))
	if doc := s.Get(run); doc.TaskStates["a"] != "COMPLETED" {
		t.Errorf("run %d, which is retained: %v", run, doc.TaskStates)
	}
	return len(list) - 1
}
