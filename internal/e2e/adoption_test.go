package e2e

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/servertest"
)

// TestSIGTERM: the server ends within 10 s though tasks run, which go on; the next
// server adopts them: it shows, follows and kills them.
func TestSIGTERM(t *testing.T) {
	t.Parallel()
	s, dir := e2etest.Start(t), t.TempDir()
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"deaf": e2etest.Sh("trap '' TERM; echo begin $$; while ! test -e go; do sleep 0.02; done; echo end $$").Job("workDir", dir),
		"next": e2etest.Sh("true").After("deaf"),
	}))
	other := s.Submit(e2etest.Graph(map[string]e2etest.Task{"long": e2etest.Sh("exec sleep 300").Job("workDir", dir)}))
	s.AwaitTask(run, "deaf", "RUNNING")
	s.AwaitTask(other, "long", "RUNNING")
	before := s.Get(run)
	code, took, err := s.Stop(10 * time.Second)
	if err != nil || code != 0 {
		t.Fatalf("exit code %d, %v:\n%s", code, err, s.Log())
	}
	t.Logf("stopped after %v", took)
	if n := len(inFolder(dir)); n < 2 {
		t.Errorf("%d processes go on, want those of two tasks", n)
	}

	s = s.Restart()
	s.AwaitTask(run, "deaf", "RUNNING")
	s.AwaitTask(other, "long", "RUNNING")
	if a, b := before.TaskAttempts["deaf"], s.Get(run).TaskAttempts["deaf"]; len(a) != 1 || len(b) != 1 || a[0].StartTime != b[0].StartTime {
		t.Errorf("attempts before %+v, and after %+v", a, b)
	}
	// Both slots are taken: nothing else starts.
	third := s.Submit(e2etest.Graph(map[string]e2etest.Task{"third": e2etest.Sh("true")}))
	follower := follow(t, s, run, "deaf")
	if l := follower(); !strings.HasPrefix(l, "begin ") {
		t.Errorf("the log begins with %q", l)
	}
	if state := s.State(third); state != "QUEUED" {
		t.Errorf("with both slots taken by adopted tasks a third one is %s", state)
	}
	s.Want(200, "DELETE", e2etest.Path(other, ""), "")
	s.Await(other, "KILLED")
	s.Await(third, "COMPLETED")
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if l := follower(); !strings.HasPrefix(l, "end ") {
		t.Errorf("the log goes on with %q", l)
	}
	s.Await(run, "COMPLETED")
	if a := s.Get(run).TaskAttempts["deaf"]; len(a) != 1 || a[0].RC != 0 || strings.Count(a[0].OutputLog, "\n") != 2 {
		t.Errorf("attempts: %+v", a)
	}
	settled(t, s, dir)
}

// follow follows the output of a task, line by line.
func follow(t *testing.T, s *e2etest.Server, run uint64, task string) func() string {
	t.Helper()
	c := &http.Client{Timeout: e2etest.Patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(s.URL + e2etest.Path(run, "/task/"+task+"/log?follow=true"))
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("log: %v, %v", resp, err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	lines := bufio.NewScanner(resp.Body)
	return func() string {
		t.Helper()
		if !lines.Scan() {
			t.Errorf("the log ends: %v", lines.Err())
		}
		return lines.Text()
	}
}

// TestAdoptedTasksObey: what was asked for before a crash and after it holds for the
// tasks that lived through it.
func TestAdoptedTasksObey(t *testing.T) {
	t.Parallel()
	s, dir := e2etest.Start(t, e2etest.Args("--kill-grace", "100ms")), t.TempDir()
	waits := "while ! test -e go; do sleep 0.02; done"
	paused := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"a": e2etest.Sh(waits).Job("workDir", dir).Job("cores", "0.1"), "b": e2etest.Sh("true").After("a"),
	}))
	one := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"victim": e2etest.Sh(waits).Job("workDir", dir).Job("cores", "0.1"), "other": e2etest.Sh(waits).Job("workDir", dir).Job("cores", "0.1"),
	}))
	late := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"slow": e2etest.Sh("exec sleep 300").Job("workDir", dir).Job("timeoutSeconds", 3).Job("cores", "0.1"),
	}))
	for run, tasks := range map[uint64][]string{paused: {"a"}, one: {"victim", "other"}, late: {"slow"}} {
		for _, task := range tasks {
			s.AwaitTask(run, task, "RUNNING")
		}
	}
	s.Want(200, "PATCH", e2etest.Path(paused, "/state/PAUSED"), "")
	s = s.Crash()
	s.Want(200, "DELETE", e2etest.Path(one, "/task/victim"), "") // perhaps before the worker has been heard
	s.AwaitTask(one, "victim", "KILLED")
	s.AwaitTask(one, "other", "RUNNING")
	s.AwaitTask(paused, "a", "RUNNING")
	s = s.Crash()
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Await(one, "KILLED")
	s.AwaitTask(paused, "a", "COMPLETED")
	if doc := s.Get(paused); doc.TaskStates["b"] != "QUEUED" || s.State(paused) != "PAUSED" {
		t.Errorf("the paused run is %s: %v", s.State(paused), doc.TaskStates)
	}
	s.Want(200, "PATCH", e2etest.Path(paused, "/state/RUNNING"), "")
	s.Await(paused, "COMPLETED")
	s.Await(late, "ERRORED") // by its timeout
	for run, task := range map[uint64]string{paused: "a", one: "victim", late: "slow"} {
		if a := s.Get(run).TaskAttempts[task]; len(a) != 1 {
			t.Errorf("%s: attempts %+v", task, a)
		}
	}
	settled(t, s, dir)
}

// TestUpgrade: another build of the binary takes over in the middle of a run. What
// runs goes on in the worker of the old one, which then ends.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	bin, err := servertest.BuildAs(t.TempDir(), e2etest.Race, "upgraded")
	if err != nil {
		t.Fatal(err)
	}
	s, dir := e2etest.Start(t), t.TempDir()
	data := s.Config().Data
	const tasks = 60
	run := s.Submit(fan(dir, tasks, "0.1"))
	e2etest.Eventually(t, "some tasks have ended", func() bool { return ended(readLines(t, dir)) >= tasks/4 })
	old := servertest.Workers(data)
	if _, _, err := s.Stop(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	s = e2etest.Start(t, e2etest.Program(bin), e2etest.Data(data))
	var version struct{ Version string }
	s.Want(200, "GET", "/version", "").Decode(t, &version)
	if version.Version != "upgraded" {
		t.Errorf("version %q", version.Version)
	}
	s.Await(run, "COMPLETED")
	checkAttempts(t, 0, s.Get(run), readLines(t, dir), tasks, 0)
	e2etest.Eventually(t, "the old worker is gone, the new one there", func() bool {
		now := servertest.Workers(data)
		return len(old) == 1 && len(now) == 1 && now[0] != old[0]
	})
	settled(t, s, dir)
}

// TestGrandchildInASessionOfItsOwn: a task that leaves one behind has ended when it
// ends: its slot is free, its output complete, and nobody waits for the grandchild.
func TestGrandchildInASessionOfItsOwn(t *testing.T) {
	t.Parallel()
	s, dir := e2etest.Start(t), t.TempDir()
	t.Cleanup(func() {
		for _, p := range inFolder(dir) {
			_ = exec.Command("kill", "-9", strings.Fields(p)[0]).Run()
		}
	})
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"parent": e2etest.Sh("echo before; setsid sleep 300 & echo after").Job("workDir", dir).Job("cores", 2),
	}))
	s.Await(run, "COMPLETED")
	if a := s.Get(run).TaskAttempts["parent"]; len(a) != 1 || a[0].OutputLog != "before\nafter\n" {
		t.Errorf("attempts: %+v", a)
	}
	if body := s.Want(200, "GET", e2etest.Path(run, "/task/parent/log?follow=true"), "").Body; string(body) != "before\nafter\n" {
		t.Errorf("log: %q", body)
	}
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"x": e2etest.Sh("true").Job("cores", 2)}))
	if n, err := s.Metric("caravan_slots_cores"); err != nil || n != 0 {
		t.Errorf("%v cores are taken (%v)", n, err)
	}
}

// TestNothingIsLeftBehind: by a server that stops when nothing runs, and by a run with
// a server of its own, whether it ends or is interrupted.
func TestNothingIsLeftBehind(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"x": e2etest.Sh("true")}))
	data := s.Config().Data
	if len(servertest.Workers(data)) != 1 {
		t.Errorf("workers: %v", servertest.Workers(data))
	}
	if _, _, err := s.Stop(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	e2etest.Eventually(t, "the worker has ended", func() bool { return len(servertest.Workers(data)) == 0 })

	for name, script := range map[string]string{"ends": "exit 3", "interrupted": "touch there; exec sleep 300"} {
		t.Run(name, func(t *testing.T) {
			tmp, dir := t.TempDir(), t.TempDir()
			file := filepath.Join(dir, "graph.json")
			doc := e2etest.Graph(map[string]e2etest.Task{"x": e2etest.Sh(script).Job("workDir", dir)})
			if err := os.WriteFile(file, []byte(e2etest.Body(t, doc)), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(e2etest.Binary(), "run", "--server", "http://127.0.0.1:1", "--kill-grace", "100ms", file)
			cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if name == "interrupted" {
				e2etest.Eventually(t, "the task runs", func() bool { _, err := os.Stat(filepath.Join(dir, "there")); return err == nil })
				_ = cmd.Process.Signal(os.Interrupt)
			}
			if err := cmd.Wait(); err == nil {
				t.Error("exit 0")
			}
			if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			left := inFolder(dir)
			for _, link := range globs("/proc/[0-9]*/cmdline") {
				if text, err := os.ReadFile(link); err == nil && strings.Contains(string(text), tmp) {
					left = append(left, fmt.Sprintf("%s %q", link, text))
				}
			}
			if len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func globs(pattern string) []string {
	list, _ := filepath.Glob(pattern)
	return list
}
