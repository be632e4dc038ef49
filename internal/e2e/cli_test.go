package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// command is the command line of the binary against a server.
func command(s *e2etest.Server, args ...string) *exec.Cmd {
	cmd := exec.Command(e2etest.Binary(), args...)
	cmd.Env = append(os.Environ(), "CARAVAN_SERVER="+s.URL)
	return cmd
}

// caravan runs a command to its end.
func caravan(t *testing.T, s *e2etest.Server, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := command(s, args...)
	var out, diag strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &diag
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), diag.String()
}

// documentFile writes a graph to a file and returns its path.
func documentFile(t *testing.T, doc any) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "graph.json")
	if err := os.WriteFile(name, []byte(e2etest.Body(t, doc)), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestExitCodes checks exit code and output of the commands.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	e2etest.OneByOne(t)
	s := e2etest.Start(t)
	good := documentFile(t, seedDAG)
	failing := documentFile(t, e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("exit 3")}))
	slow := documentFile(t, e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("sleep 300")}))
	broken := documentFile(t, `{"tasks":{"a":{"job":{"commandString":"x"},"parents":["nobody"]}}}`)

	for _, c := range []struct {
		code int
		out  string // part of stdout, or of stderr when the code is not 0
		args []string
	}{
		{0, "", []string{"version"}},
		{0, "", []string{"validate", good}},
		{0, "0\n", []string{"submit", good}},
		{0, "COMPLETED", []string{"wait", "0"}},
		{0, "COMPLETED", []string{"submit", "--wait", good}},
		{0, "simple_1", []string{"get", "0"}},
		{0, "mediumtest", []string{"ls", "--all"}},
		{0, "script.py 2\n", []string{"logs", "0", "simple_1"}},
		{3, "", []string{"submit", "--wait", failing}},
		{3, "", []string{"wait", "2"}},
		{0, "3\n", []string{"submit", slow}},
		{8, "", []string{"wait", "3", "--timeout", "200ms"}},
		{0, "", []string{"kill", "3"}},
		{4, "", []string{"wait", "3"}},
		{5, "nobody", []string{"submit", broken}},
		{5, "nobody", []string{"validate", broken}},
		{6, "99", []string{"get", "99"}},
		{6, "99", []string{"kill", "99"}},
		{2, "", []string{"get", "zero"}},
		{2, "", []string{"no-such-command"}},
		{2, "", []string{"ls", "--no-such-flag"}},
		{2, "", []string{"submit", filepath.Join(t.TempDir(), "absent.json")}},
		{7, "", []string{"ls", "--server", "http://127.0.0.1:1"}},
	} {
		code, stdout, stderr := caravan(t, s, c.args...)
		text := stdout
		if c.code != 0 {
			text = stdout + stderr
		}
		if code != c.code || !strings.Contains(text, c.out) {
			t.Errorf("caravan %s: exit code %d, want %d and %q\n%s%s", strings.Join(c.args, " "), code, c.code, c.out, stdout, stderr)
		}
	}

	t.Run("the run's record", func(t *testing.T) {
		code, stdout, _ := caravan(t, s, "get", "0", "-o", "json")
		var run e2etest.Run
		if err := json.Unmarshal([]byte(stdout), &run); code != 0 || err != nil || len(run.TaskAttempts) != 2 {
			t.Errorf("exit code %d, %v:\n%s", code, err, stdout)
		}
	})
	t.Run("restart, pause, resume", func(t *testing.T) {
		for _, step := range [][2]string{{"restart", "RUNNING"}, {"pause", "PAUSED"}, {"resume", "RUNNING"}, {"kill", "KILLED"}} {
			if code, _, stderr := caravan(t, s, step[0], "3"); code != 0 {
				t.Fatalf("caravan %s 3: exit code %d: %s", step[0], code, stderr)
			}
			e2etest.Eventually(t, "run 3 is "+step[1], func() bool { return s.State(3) == step[1] })
		}
	})
	t.Run("address in use", func(t *testing.T) {
		cmd := exec.Command(e2etest.Binary(), "serve", "--data", t.TempDir(), "--listen", strings.TrimPrefix(s.URL, "http://"))
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "in use") {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("data folder in use", func(t *testing.T) {
		cmd := exec.Command(e2etest.Binary(), "serve", "--data", s.Config().Data, "--listen", "127.0.0.1:0")
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("two servers on one data folder: %v\n%s", err, out)
		}
		s.Want(200, "GET", "/ready", "")
	})
}

// TestLogsFollow: each line is printed while the task runs, and the command ends with the attempt.
func TestLogsFollow(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	dir := t.TempDir()
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"talk": e2etest.Sh(`for n in 1 2 3; do echo line $n; while ! test -e ` + dir + `/$n; do sleep 0.01; done; done; echo end`),
	}))
	s.AwaitTask(run, "talk", "RUNNING")
	cmd := command(s, "logs", "-f", "0", "talk")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.AfterFunc(e2etest.Patience, func() {
		// Its end also ends the reads below.
		_ = cmd.Process.Kill()
	})
	defer deadline.Stop()
	lines := bufio.NewScanner(pipe)
	for _, n := range []string{"1", "2", "3"} {
		if !lines.Scan() || lines.Text() != "line "+n {
			t.Fatalf("got %q, want line %s while the task waits", lines.Text(), n)
		}
		if state := s.TaskState(run, "talk"); state != "RUNNING" {
			t.Errorf("at line %s the task is %s", n, state)
		}
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if !lines.Scan() || lines.Text() != "end" || lines.Scan() {
		t.Errorf("after the last line: %q", lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestInterruptedWait: ^C ends the wait with 130, and the run goes on.
func TestInterruptedWait(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("sleep 300")}))
	s.AwaitTask(run, "a", "RUNNING")
	cmd := command(s, "wait", "0")
	diag, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Its first line of progress shows that it waits.
	first, err := bufio.NewReader(diag).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // only its exit code matters
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d after %q, want 130", code, first)
	}
	if state := s.State(run); state != "RUNNING" {
		t.Errorf("the run is %s", state)
	}
	s.Want(200, "DELETE", e2etest.Path(run, ""), "")
	s.Await(run, "KILLED")
}
