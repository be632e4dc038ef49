package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// TestCopyBesideItsOriginal starts servers on copies of a data folder whose own server
// runs tasks. Those tasks are not disturbed, the copies start nothing until they are
// resumed, and then each ends its runs with attempts of its own.
func TestCopyBesideItsOriginal(t *testing.T) {
	t.Parallel()
	const tasks = 4
	dir := t.TempDir()
	s := e2etest.Start(t, e2etest.Args("--cores", fmt.Sprint(tasks)))
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"t": e2etest.Sh(`echo $CARAVAN_ATTEMPT >> $CARAVAN_TASK; trap 'echo TERM >> '$CARAVAN_TASK TERM; test -n x{{N}}
while ! test -e go; do sleep 0.02; done; echo done`).Job("workDir", dir),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(tasks)}))
	printed := func() (text string) {
		for i := range tasks {
			b, _ := os.ReadFile(filepath.Join(dir, fmt.Sprintf("t_%d", i)))
			text += string(b)
		}
		return text
	}
	began := strings.Repeat("1\n", tasks)
	e2etest.Eventually(t, "all tasks run", func() bool { return printed() == began })
	s.Want(200, "GET", e2etest.Path(run, "/state"), "")

	copies := make([]*e2etest.Server, *copiesFlag)
	for i := range copies {
		to := filepath.Join(t.TempDir(), "copy")
		if out, err := exec.Command("cp", "-a", s.Config().Data, to).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
		copies[i] = e2etest.Start(t, e2etest.Data(to), e2etest.Args("--cores", fmt.Sprint(tasks)))
	}
	for i, c := range copies {
		var state struct{ State, Reason string }
		c.Want(200, "GET", "/v1/server/state", "").Decode(t, &state)
		if state.State != "PAUSED" || !strings.HasPrefix(state.Reason, "copied from data folder ") {
			t.Errorf("copy %d: %+v", i, state)
		}
		e2etest.Eventually(t, "the copy counts its attempts as lost", func() bool { return c.TaskState(run, "t_0") == "QUEUED" })
		if i%2 == 1 { // a restart changes nothing
			if copies[i] = c.Crash(); !strings.Contains(string(copies[i].Want(200, "GET", "/healthz", "").Body), "copied from") {
				t.Errorf("copy %d: not paused after a restart", i)
			}
		}
	}
	if got := printed(); got != began {
		t.Errorf("beside the copies the tasks printed %q, want %q", got, began)
	}
	if got := s.State(run); got != "RUNNING" {
		t.Errorf("the original's run is %s", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Await(run, "COMPLETED")
	for task, a := range s.Get(run).TaskAttempts {
		if len(a) != 1 || a[0].RC != 0 || a[0].OutputLog != "done\n" {
			t.Errorf("the original's %s: %+v", task, a)
		}
	}
	if got := printed(); got != began {
		t.Errorf("until they ended the tasks printed %q, want %q", got, began)
	}
	for i, c := range copies {
		c.Want(200, "PATCH", "/v1/server/state/RUNNING", "")
		c.Await(run, "COMPLETED")
		for task, a := range c.Get(run).TaskAttempts {
			if len(a) != 2 || !strings.HasPrefix(a[0].ExecutorLog, "lost: ") || a[1].Attempt != 2 || a[1].RC != 0 {
				t.Errorf("copy %d: %s: %+v", i, task, a)
			}
		}
	}
}
