package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

func TestExpansionNamesAndOrder(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	run := s.Complete(e2etest.Graph(map[string]e2etest.Task{
		"both":   e2etest.Sh("echo {{B}}-{{A}}-{{S}}"),
		"single": e2etest.Sh("echo {{ONE}}"),
		"plain":  e2etest.Sh("echo {{S}}"),
	}).With("parameters", map[string]any{"A": []string{"a0", "a1", "a2"}, "B": []string{"b0", "b1"}, "ONE": []string{"1"}, "S": "s"}))
	want := map[string]string{"single_0": "1\n", "plain": "s\n"}
	for i, a := range []string{"a0", "a1", "a2"} { // parameters in sorted order, the last one fastest
		for j, b := range []string{"b0", "b1"} {
			want[fmt.Sprintf("both_%d", i*2+j)] = b + "-" + a + "-s\n"
		}
	}
	if len(run.TaskStates) != len(want) {
		t.Errorf("tasks: %v", run.TaskStates)
	}
	for name, out := range want {
		if a := run.TaskAttempts[name]; len(a) != 1 || a[0].OutputLog != out {
			t.Errorf("%s: attempts %+v, want the output %q", name, a, out)
		}
	}
}

// TestParentsCompleteFirst: parents given from the child's end, from the parent's end and from both,
// and one to one by match. Each task checks the files of its parents.
func TestParentsCompleteFirst(t *testing.T) {
	t.Parallel()
	s, dir := e2etest.Start(t), t.TempDir()
	leave := func(name string) string { return "touch " + dir + "/" + name }
	need := func(name string) string { return "test -e " + dir + "/" + name + " && " }
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"first":  e2etest.Sh(leave("first")).With("children", []string{"second"}),
		"second": e2etest.Sh(need("first")+leave("second-{{N}}")).With("children", []string{"third"}).With("parents", []string{"first"}),
		"third": e2etest.Sh(need("second-{{N}}")+leave("third-{{N}}")).
			With("parents", []any{map[string]any{"task": "second", "match": []string{"N"}}}),
		"last": e2etest.Sh(`test "$(ls ` + dir + ` | wc -l)" -eq 41`).After("third"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(20)}))
	s.Await(run, "COMPLETED")
	doc := s.Get(run)
	var lastEnd e2etest.Nanos
	for i := range 20 {
		first, second := doc.TaskAttempts["first"][0], doc.TaskAttempts[fmt.Sprintf("second_%d", i)][0]
		if second.StartTime < first.StopTime {
			t.Errorf("second_%d started at %d, first stopped at %d", i, second.StartTime, first.StopTime)
		}
		lastEnd = max(lastEnd, doc.TaskAttempts[fmt.Sprintf("third_%d", i)][0].StopTime)
	}
	if a := doc.TaskAttempts["last"][0]; a.StartTime < lastEnd {
		t.Errorf("last started at %d, its parents stopped at %d", a.StartTime, lastEnd)
	}
}

func TestRetries(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"flaky": e2etest.Sh(`echo attempt $CARAVAN_ATTEMPT; test $CARAVAN_ATTEMPT -eq 3`).With("maxRetries", 5).With("retryIntervalSeconds", 1),
		"after": e2etest.Sh("true").After("flaky"),
	}))
	s.AwaitTask(run, "flaky", "RETRY")
	s.Await(run, "COMPLETED")
	a := s.Get(run).TaskAttempts["flaky"]
	if len(a) != 3 {
		t.Fatalf("attempts: %+v", a)
	}
	for i := range a {
		if a[i].Attempt != i+1 || a[i].OutputLog != fmt.Sprintf("attempt %d\n", i+1) || (a[i].RC == 0) != (i == 2) {
			t.Errorf("attempt %d: %+v", i+1, a[i])
		}
		if i > 0 {
			if gap := time.Duration(a[i].StartTime - a[i-1].StopTime); gap < time.Second {
				t.Errorf("attempt %d began %v after the one before, want at least 1s", i+1, gap)
			}
		}
	}
}

func TestErroredTaskLeavesOtherBranchesRunning(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"bad":    e2etest.Sh("exit 7").With("maxRetries", 1).With("retryIntervalSeconds", 0),
		"never":  e2etest.Sh("true").After("bad"),
		"branch": e2etest.Sh("true"), "leaf": e2etest.Sh("true").After("branch"),
		// The interval of an hour is never used: the last attempt ends the task at once.
		"once":   e2etest.Sh("exit 1").With("retryIntervalSeconds", 3600),
		"killed": e2etest.Sh("kill -9 $$"),
		"absent": e2etest.Task{"job": map[string]any{"command": []string{"/no/such/program"}}},
	}))
	s.Await(run, "ERRORED")
	doc := s.Get(run)
	for name, want := range map[string]string{
		"bad": "ERRORED", "never": "QUEUED", "branch": "COMPLETED", "leaf": "COMPLETED",
		"once": "ERRORED", "killed": "ERRORED", "absent": "ERRORED",
	} {
		if got := doc.TaskStates[name]; got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	for name, want := range map[string][]int{"bad": {7, 7}, "once": {1}, "killed": {137}, "absent": {-1}} {
		var got []int
		for _, a := range doc.TaskAttempts[name] {
			got = append(got, a.RC)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: rc %v, want %v", name, got, want)
		}
	}
	if log := doc.TaskAttempts["absent"][0].ExecutorLog; !strings.Contains(log, "/no/such/program") {
		t.Errorf("executorLog of a program that is not there: %q", log)
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t, e2etest.Args("--kill-grace", "200ms"))
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"slow": e2etest.Sh("sleep 300").Job("timeoutSeconds", 1)}))
	s.Await(run, "ERRORED")
	a := s.Get(run).TaskAttempts["slow"]
	if len(a) != 1 || a[0].RC == 0 || !strings.Contains(strings.ToLower(a[0].ExecutorLog), "time") {
		t.Errorf("attempts: %+v", a)
	}
	if took := time.Duration(a[0].StopTime - a[0].StartTime); took < time.Second || took > time.Minute {
		t.Errorf("ended after %v, want 1 s", took)
	}
}

func TestTaskEnvironment(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t, e2etest.Env("SECRET=of the server"))
	dir := t.TempDir()
	run := s.Complete(e2etest.Graph(map[string]e2etest.Task{
		"env": e2etest.Sh("env; pwd").Job("environment", []string{"OWN=1"}).Job("workDir", dir),
	}))
	out := run.TaskAttempts["env"][0].OutputLog
	for _, want := range []string{"OWN=1\n", fmt.Sprintf("CARAVAN_RUN_ID=%d\n", run.RunID), "CARAVAN_TASK=env\n", "CARAVAN_ATTEMPT=1\n", dir + "\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in the task's environment:\n%s", want, out)
		}
	}
	if strings.Contains(out, "SECRET") {
		t.Errorf("the server's environment leaks into a task:\n%s", out)
	}
}

func TestGenerator(t *testing.T) {
	t.Parallel()
	s, dir := e2etest.Start(t), t.TempDir()
	inner := `{"deep": {"job": {"commandString": "touch ` + dir + `/deep"}}}`
	set := `{
	  "a": {"job": {"commandString": "touch ` + dir + `/a-{{N}}"}},
	  "b": {"job": {"commandString": "test -e ` + dir + `/a-0 && touch ` + dir + `/b"}, "parents": ["a"]},
	  "nested": {"isGenerator": true, "job": {"commandString": "cat ` + dir + `/inner"}, "parents": ["b"]}
	}`
	for name, text := range map[string]string{"set": set, "inner": inner} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := s.Complete(e2etest.Graph(map[string]e2etest.Task{
		"gen":  e2etest.Sh("cat "+dir+"/set").With("isGenerator", true),
		"last": e2etest.Sh("ls " + dir).After("gen"),
	}).With("parameters", map[string]any{"N": []string{"0", "1"}}))
	if got := run.TaskAttempts["last"][0].OutputLog; got != "a-0\na-1\nb\ndeep\ninner\nset\n" {
		t.Errorf("what the generator's child saw: %q", got)
	}
	for _, name := range []string{"gen", "a_0", "a_1", "b", "nested", "deep", "last"} {
		if run.TaskStates[name] != "COMPLETED" {
			t.Errorf("%s is %q", name, run.TaskStates[name])
		}
	}

	t.Run("refused output", func(t *testing.T) {
		for name, out := range map[string]string{
			"no JSON":    `hello`,
			"clash":      `{"gen": {"job": {"commandString": "true"}}}`,
			"cycle":      `{"x": {"job": {"commandString": "true"}, "parents": ["y"]}, "y": {"job": {"commandString": "true"}, "parents": ["x"]}}`,
			"token":      `{"x": {"job": {"commandString": "{{NONE}}"}}}`,
			"unknown":    `{"x": {"job": {"commandString": "true"}, "parents": ["nobody"]}}`,
			"late edge":  `{"x": {"job": {"commandString": "true"}, "children": ["early"]}}`,
			"null":       `{"x": null}`,
			"not object": `["x"]`,
		} {
			file := filepath.Join(dir, "refused")
			if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
				t.Fatal(err)
			}
			run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
				"early": e2etest.Sh("true"), "gen": e2etest.Sh("cat "+file).With("isGenerator", true).After("early"),
			}))
			s.Await(run, "ERRORED")
			a := s.Get(run).TaskAttempts["gen"]
			if len(a) != 1 || a[0].ExecutorLog == "" {
				t.Errorf("%s: attempts %+v, want one with a reason", name, a)
			}
		}
	})
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	dir := t.TempDir()
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"a": e2etest.Sh("while ! test -e " + dir + "/go; do sleep 0.02; done"),
		"b": e2etest.Sh("true").After("a"),
		"r": e2etest.Sh("test $CARAVAN_ATTEMPT -gt 1").With("maxRetries", 1).With("retryIntervalSeconds", 5),
	}))
	s.AwaitTask(run, "a", "RUNNING")
	s.AwaitTask(run, "r", "RETRY")
	s.Want(200, "PATCH", e2etest.Path(run, "/state/PAUSED"), "")
	if got := s.State(run); got != "PAUSED" {
		t.Errorf("after PATCH the run is %s", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.AwaitTask(run, "a", "COMPLETED") // running tasks may finish
	s = s.Crash()                      // a pause survives a crash
	if got := s.State(run); got != "PAUSED" {
		t.Errorf("after a crash the paused run is %s", got)
	}
	// During the pause another run executes for longer than the five seconds of the retry.
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"x": e2etest.Sh("sleep 5.2")}))
	doc := s.Get(run)
	if doc.TaskStates["b"] != "QUEUED" || doc.TaskStates["r"] != "RETRY" {
		t.Errorf("in the paused run: %v", doc.TaskStates)
	}
	s.Want(200, "PATCH", e2etest.Path(run, "/state/RUNNING"), "")
	s.Await(run, "COMPLETED")
	var states []string
	for _, c := range s.Get(run).DagStateChanges {
		states = append(states, c.State)
	}
	if got := strings.Join(states, " "); got != "QUEUED RUNNING PAUSED RUNNING COMPLETED" {
		t.Errorf("dagStateChanges: %s", got)
	}
}

func TestRestartKeepsCompletedTasks(t *testing.T) {
	t.Parallel()
	s, dir := e2etest.Start(t), t.TempDir()
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"gen":  e2etest.Sh(`echo x >> `+dir+`/gen; echo '{"made": {"job": {"commandString": "echo x >> `+dir+`/made"}}}'`).With("isGenerator", true),
		"bad":  e2etest.Sh("test -e "+dir+"/go").With("maxRetries", 1).After("gen"),
		"last": e2etest.Sh("true").After("bad"),
	}))
	s.Await(run, "ERRORED")
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var got struct{ RunID uint64 }
	s.Want(200, "PATCH", e2etest.Path(run, "/state/QUEUED"), "").Decode(t, &got)
	if got.RunID != run {
		t.Errorf("PATCH answered run %d for run %d", got.RunID, run)
	}
	s.Await(run, "COMPLETED")
	for _, name := range []string{"gen", "made"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(text) != "x\n" {
			t.Errorf("%s ran %d times (%v), want once", name, strings.Count(string(text), "x"), err)
		}
	}
	if a := s.Get(run).TaskAttempts["bad"]; len(a) != 3 || a[2].Attempt != 3 || a[2].RC != 0 {
		t.Errorf("attempts of bad: %+v, want 1, 2 failed and 3 succeeded", a)
	}
	s.Want(409, "PATCH", e2etest.Path(run, "/state/QUEUED"), "")
}

func TestTooLargeTaskIsRefused(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	r := s.Want(400, "POST", "/v1/dagrun", e2etest.Body(t, e2etest.Graph(map[string]e2etest.Task{"big": e2etest.Sh("true").Job("cores", "3")})))
	for _, n := range []string{"3", "2"} {
		if !strings.Contains(string(r.Body), n) {
			t.Errorf("the refusal does not name %s: %s", n, r.Body)
		}
	}
	// Two cores: the two-core task waits for both other tasks and is not starved.
	s.Complete(e2etest.Graph(map[string]e2etest.Task{
		"small": e2etest.Sh("echo {{N}}").Job("cores", 1), "large": e2etest.Sh("true").Job("cores", 2).Job("memoryMB", 4000),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(50)}))
}

// TestWorkingFolderAndInput: a command runs by /bin/sh, in the server's folder unless it names
// another, with empty standard input. jobDefaults and an object of variables apply.
func TestWorkingFolderAndInput(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "below"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := e2etest.Start(t, e2etest.Dir(dir))
	run := s.Complete(e2etest.Graph(map[string]e2etest.Task{
		"plain": e2etest.Sh(`readlink /proc/$$/exe; pwd; wc -c; echo "$OWN $COMMON"`).Job("environment", map[string]string{"OWN": "a=b"}),
		"both":  e2etest.Sh(`echo "$OWN $COMMON"`),
		"below": e2etest.Sh(`pwd`).Job("workDir", "below"),
	}).With("jobDefaults", map[string]any{"environment": []string{"COMMON=c"}}))
	for name, want := range map[string]string{"plain": shell + "\n" + dir + "\n0\na=b \n", "both": " c\n", "below": dir + "/below\n"} {
		if got := run.TaskAttempts[name][0].OutputLog; got != want {
			t.Errorf("%s printed %q, want %q", name, got, want)
		}
	}
}

// TestAttemptResourceUsage: node and usage are in the record of a command. Memory is known above a
// minimum.
func TestAttemptResourceUsage(t *testing.T) {
	s := e2etest.Start(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		// tail keeps an endless line in memory: 256 MiB.
		"busy": e2etest.Sh("head -c 268435456 /dev/zero | tail -n 1 | wc -c; printf 'a\\377b' >&2"),
	}))
	s.Await(run, "COMPLETED")
	var doc struct {
		TaskAttempts map[string][]map[string]json.RawMessage
	}
	s.Want(200, "GET", e2etest.Path(run, ""), "").Decode(t, &doc)
	a := doc.TaskAttempts["busy"][0]
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	var node, text string
	var memory int64
	var user, system float64
	for name, into := range map[string]any{
		"node": &node, "maxRSSKB": &memory, "userCPUSeconds": &user, "systemCPUSeconds": &system, "errorLog": &text,
	} {
		if err := json.Unmarshal(a[name], into); err != nil {
			t.Errorf("%s: %v in %s", name, err, a[name])
		}
	}
	if node != host || memory < 200<<10 || user+system <= 0 || user+system > 600 {
		t.Errorf("node %q, %d KB, %v s of user and %v s of system time", node, memory, user, system)
	}
	if text != "a\uFFFDb" {
		t.Errorf("errorLog %q", text)
	}
	if raw := s.Want(200, "GET", e2etest.Path(run, "/task/busy/log?stream=stderr"), "").Body; string(raw) != "a\xffb" {
		t.Errorf("the log endpoint has %q", raw)
	}
}

// TestTimeoutAndGeneratorFailures: a timeout uses up a retry. A generator fails when it prints too
// much, or does not print tasks.
func TestTimeoutAndGeneratorFailures(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t, e2etest.Args("--kill-grace", "200ms"))
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"slow": e2etest.Sh("exec sleep 300").Job("timeoutSeconds", 1.5).With("maxRetries", 1), // longer than a start may take
		"much": e2etest.Sh(`echo '{}'; head -c 8388608 /dev/zero | tr '\0' ' '`).With("isGenerator", true),
		"just": e2etest.Sh(`echo '{}'; head -c 8388605 /dev/zero | tr '\0' ' '`).With("isGenerator", true),
	}))
	s.Await(run, "ERRORED")
	doc := s.Get(run)
	a := doc.TaskAttempts["slow"]
	if doc.TaskStates["slow"] != "ERRORED" || len(a) != 2 || a[0].RC != 143 || a[1].RC != 143 || !strings.Contains(a[1].ExecutorLog, "timed out") {
		t.Errorf("slow is %s: %+v", doc.TaskStates["slow"], a)
	}
	if log := doc.TaskAttempts["much"][0].ExecutorLog; doc.TaskStates["much"] != "ERRORED" || !strings.Contains(log, "8388608") {
		t.Errorf("much is %s: %q", doc.TaskStates["much"], log)
	}
	if got := doc.TaskStates["just"]; got != "COMPLETED" {
		t.Errorf("just is %s: %q", got, doc.TaskAttempts["just"][0].ExecutorLog)
	}
}

// TestKillSurvivesServerCrash: the server is killed as soon as it has answered a kill. When it is
// back, the kill takes effect and killed tasks are not started again.
func TestKillSurvivesServerCrash(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t, e2etest.Args("--kill-grace", "200ms"))
	dir := t.TempDir()
	endLeftovers(t, dir)
	stubborn := func(name string) e2etest.Task {
		return e2etest.Sh(`trap '' TERM; echo x >> `+dir+`/`+name+`; echo $$ > `+dir+`/pid-`+name+`; while :; do sleep 0.05; done`).With("maxRetries", 3)
	}
	whole := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": stubborn("a"), "after": e2etest.Sh("true").After("a")}))
	part := s.Submit(e2etest.Graph(map[string]e2etest.Task{"b": stubborn("b"), "after": e2etest.Sh("true").After("b")}))
	e2etest.Eventually(t, "both tasks have written their pid", func() bool { return len(readPIDs(t, dir)) == 2 })
	s.Want(200, "PATCH", e2etest.Path(whole, "/state/KILLED"), "")
	s.Want(200, "DELETE", e2etest.Path(part, "/task/b"), "")
	s = s.Crash()
	for name, run := range map[string]uint64{"a": whole, "b": part} {
		s.Await(run, "KILLED")
		if doc := s.Get(run); doc.TaskStates[name] != "KILLED" || doc.TaskStates["after"] != "QUEUED" || len(doc.TaskAttempts[name]) != 1 {
			t.Errorf("run %d: %v, attempts %+v", run, doc.TaskStates, doc.TaskAttempts[name])
		}
		if text, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(text) != "x\n" {
			t.Errorf("%s ran %d times (%v)", name, strings.Count(string(text), "x"), err)
		}
		// A repeated kill succeeds without an effect.
		before := s.Want(200, "GET", e2etest.Path(run, ""), "").Body
		s.Want(200, "DELETE", e2etest.Path(run, ""), "")
		s.Want(200, "PATCH", e2etest.Path(run, "/state/KILLED"), "")
		s.Want(200, "DELETE", e2etest.Path(run, "/task/"+name), "")
		if after := s.Want(200, "GET", e2etest.Path(run, ""), "").Body; string(after) != string(before) {
			t.Errorf("run %d was\n%s, is\n%s", run, before, after)
		}
	}
}

// TestTasksInheritNoDescriptors: files that the parent of the server left open (`flock FILE caravan
// serve`) do not reach its tasks, which may outlive it.
func TestTasksInheritNoDescriptors(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "locked")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexec 7>"+dir+"/lock\nexec "+e2etest.Binary()+" \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := e2etest.Start(t, e2etest.Program(script))
	run := s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh(`for f in /proc/$$/fd/*; do readlink $f; done; true`)}))
	if out := run.TaskAttempts["a"][0].OutputLog; strings.Contains(out, "/lock") {
		t.Errorf("a task has open:\n%s", out)
	}
}

// TestErrorTextsNameTheirSubject: one sentence each, by the engine of the real server.
func TestErrorTextsNameTheirSubject(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	s.Await(s.Submit(seedDAG, "Idempotency-Key", "k"), "COMPLETED")
	for _, c := range []struct {
		status                   int
		method, path, body, text string
		header                   []string
	}{
		{404, "GET", "/v1/dagrun/7", "", `unknown run 7`, nil},
		{404, "PATCH", "/v1/dagrun/7/state/PAUSED", "", `unknown run 7`, nil},
		{404, "GET", "/v1/dagrun/seven/state", "", `unknown run "seven"`, nil},
		{404, "DELETE", "/v1/dagrun/0/task/none", "", `run 0: unknown task "none"`, nil},
		{404, "GET", "/v1/dagrun/0/task/simple_0/log?attempt=2", "", `run 0: task "simple_0" has no attempt 2`, nil},
		{400, "PATCH", "/v1/dagrun/0/state/ASLEEP", "", `unknown state "ASLEEP": a run is QUEUED, RUNNING, PAUSED, COMPLETED, ERRORED or KILLED`, nil},
		{409, "PATCH", "/v1/dagrun/0/state/PAUSED", "", `run 0: a run that is COMPLETED cannot be set to PAUSED`, nil},
		{409, "PATCH", "/v1/dagrun/0/state/ERRORED", "", `run 0: a run that is COMPLETED cannot be set to ERRORED`, nil},
		{400, "POST", "/v1/dagrun", `{"tasks":{"a":{"job":{"command":["x"]},"parents":["b"]}}}`, `/tasks/a/parents/0: unknown task "b"`, nil},
		{400, "POST", "/v1/dagrun", `{"tasks":{"a":{"job":{"command":["x"],"cores":3}}}}`, `/tasks/a/job/cores: asks for 3 cores, the machine has 2`, nil},
		{422, "POST", "/v1/dagrun", hugeProduct(), `/tasks: the run has 1000000000000 tasks, the limit is 10000000`, nil},
		{422, "POST", "/v1/dagrun", strings.Replace(seedDAG, "mediumtest", "other", 1), `idempotency key "k" was used for run 0 with another body`,
			[]string{"Idempotency-Key", "k"}},
	} {
		var problem struct{ Error, Detail string }
		s.Want(c.status, c.method, c.path, c.body, c.header...).Decode(t, &problem)
		if problem.Error != c.text || problem.Detail != c.text {
			t.Errorf("%s %s: %q, want %q", c.method, c.path, problem.Error, c.text)
		}
	}
}
