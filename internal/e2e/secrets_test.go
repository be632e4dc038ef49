package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/servertest"
)

// TestTasksSeeNothingOfTheServer: neither the environment of a task's parent, nor its
// command line and working folder, nor what it has open holds anything of the server's.
func TestTasksSeeNothingOfTheServer(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t, e2etest.Env("CARAVAN_TOKEN=secret-token", "AWS_SECRET_ACCESS_KEY=secret-key", "GOFLAGS=secret-flag"))
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"look": e2etest.Sh(
		`tr '\0' '\n' </proc/$PPID/environ; tr '\0' ' ' </proc/$PPID/cmdline; ls -l /proc/$PPID/fd /proc/$PPID/cwd; env`)}))
	s.Await(run, "COMPLETED")
	out := s.Get(run).TaskAttempts["look"][0].OutputLog
	if strings.Contains(out, "secret") {
		t.Errorf("a task sees the server's secrets:\n%s", out)
	}
	allowed := []string{"PATH=", "HOME=", "LANG=", "TMPDIR=", "USER=", "GOGC=", "GOMAXPROCS=", "CARAVAN_WORKER="}
	pids := servertest.Workers(s.Config().Data)
	if len(pids) != 1 {
		t.Fatalf("workers: %v", pids)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00") {
		known := false
		for _, a := range allowed {
			known = known || strings.HasPrefix(entry, a)
		}
		if !known {
			t.Errorf("the worker's environment holds %q", entry)
		}
	}
	// A process that cannot be dumped belongs to root in /proc: tasks of the same user
	// cannot read its environment and memory.
	if os.Getuid() != 0 {
		if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.PID())); !os.IsPermission(err) {
			t.Errorf("a process of the same user can read the server's environment: %v", err)
		}
		return
	}
	t.Log("run as root, who can read everything: the server's environment is not tried")
}
