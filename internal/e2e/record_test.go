package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// TestWhereAJobRuns: by /bin/sh, in the server's folder when it names none, with
// an empty standard input; jobDefaults hold for it, and an object of variables.
func TestWhereAJobRuns(t *testing.T) {
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

// TestWhatAnAttemptTook: node and usage are in the record of a command that used
// something; memory is known from an amount on.
func TestWhatAnAttemptTook(t *testing.T) {
	s := e2etest.Start(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		// tail keeps a line that never ends in memory: 256 MiB.
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

// TestAttemptsThatAreCutShort: a timeout uses up a retry; a generator that prints
// too much fails, and so does one that prints no tasks.
func TestAttemptsThatAreCutShort(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t, e2etest.Args("--kill-grace", "200ms"))
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"slow": e2etest.Sh("exec sleep 300").Job("timeoutSeconds", 0.2).With("maxRetries", 1),
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

// TestKillSurvivesACrash: the server is killed as soon as it has answered a kill.
// When it is back, what was to be killed is, and nothing of it is started anew.
func TestKillSurvivesACrash(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t, e2etest.Args("--kill-grace", "200ms"))
	dir := t.TempDir()
	endLeftovers(t, dir)
	stubborn := func(name string) e2etest.Task {
		return e2etest.Sh(`trap '' TERM; echo x >> `+dir+`/`+name+`; echo $$ > `+dir+`/pid-`+name+`; while :; do sleep 0.05; done`).With("maxRetries", 3)
	}
	whole := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": stubborn("a"), "after": e2etest.Sh("true").After("a")}))
	part := s.Submit(e2etest.Graph(map[string]e2etest.Task{"b": stubborn("b"), "after": e2etest.Sh("true").After("b")}))
	e2etest.Eventually(t, "both tasks have written their pid", func() bool { return len(pids(t, dir)) == 2 })
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
		// To kill it once more is no error, and changes nothing.
		before := s.Want(200, "GET", e2etest.Path(run, ""), "").Body
		s.Want(200, "DELETE", e2etest.Path(run, ""), "")
		s.Want(200, "PATCH", e2etest.Path(run, "/state/KILLED"), "")
		s.Want(200, "DELETE", e2etest.Path(run, "/task/"+name), "")
		if after := s.Want(200, "GET", e2etest.Path(run, ""), "").Body; string(after) != string(before) {
			t.Errorf("run %d was\n%s, is\n%s", run, before, after)
		}
	}
}

// TestDescriptorsOfTheServer: what whoever started the server had open (`flock FILE
// caravan serve`) does not reach its tasks, which may outlive it.
func TestDescriptorsOfTheServer(t *testing.T) {
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

// TestErrorsNameTheThing: one sentence each, by the engine behind the real server.
func TestErrorsNameTheThing(t *testing.T) {
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
		{400, "PATCH", "/v1/dagrun/0/state/ASLEEP", "", `unknown state "ASLEEP": a run's is QUEUED, RUNNING, PAUSED, COMPLETED, ERRORED or KILLED`, nil},
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
