//go:build slurm

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// The tests of this file need the cluster of executor/slurm/cluster.sh.

// startSlurm starts a server with one core, whose tasks may run on Slurm.
func startSlurm(t *testing.T) *e2etest.Server {
	conf := os.Getenv("SLURM_CONF")
	if conf == "" {
		t.Fatal("no cluster: run this by executor/slurm/cluster.sh")
	}
	return e2etest.Start(t, func(c *testenv.Config) {
		c.Args = []string{"--cores", "1", "--memory-mb", "500", "--kill-grace", "1s", "--slurm", "--slurm-jobs", "16"}
	})
}

// far is a task for the cluster.
func far(script string) e2etest.Task {
	return e2etest.Sh(script).Job("executor", "slurm").Job("memoryMB", 10)
}

// started waits until n tasks have written their numbers into a file and returns them: the node has
// 8 cores, and any tasks may come first.
func started(t *testing.T, dir string, n int) (numbers []string) {
	t.Helper()
	e2etest.Eventually(t, fmt.Sprint(n, " tasks to start"), func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "starts"))
		numbers = strings.Fields(string(text))
		return err == nil && len(numbers) >= n
	})
	return numbers
}

// TestSlurmFanOut: more tasks than the node has cores and the server's window has places, between two
// tasks of this machine.
func TestSlurmFanOut(t *testing.T) {
	s := startSlurm(t)
	run := s.Complete(e2etest.Graph(map[string]e2etest.Task{
		"first": e2etest.Sh("echo first"),
		"each":  far("echo {{N}} on $SLURMD_NODENAME as $CARAVAN_TASK; echo $CARAVAN_RUN_ID >&2").After("first"),
		"last":  e2etest.Sh("echo last").After("each"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(20)}))
	host, _ := os.Hostname()
	for i := range 20 {
		name := fmt.Sprintf("each_%d", i)
		attempts := run.TaskAttempts[name]
		if len(attempts) != 1 {
			t.Errorf("%s: %d attempts", name, len(attempts))
			continue
		}
		a := attempts[0]
		if out := fmt.Sprintf("%d on %s as %s\n", i, host, name); a.OutputLog != out || a.ErrorLog != fmt.Sprintf("%d\n", run.RunID) || a.Node != host {
			t.Errorf("%s on %q printed %q and %q", name, a.Node, a.OutputLog, a.ErrorLog)
		}
	}
}

// TestSlurmEnds: exit codes, signals, timeouts, retries, and a job that is larger than the machine of
// the server.
func TestSlurmEnds(t *testing.T) {
	s := startSlurm(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"code":    far("exit 7").With("maxRetries", 1),
		"signal":  far("kill -SEGV $$"),
		"timeout": far("sleep 1000").Job("timeoutSeconds", 1),
		"second":  far("[ $CARAVAN_ATTEMPT = 2 ]").With("maxRetries", 3),
		"large":   far("echo $SLURM_CPUS_ON_NODE $SLURM_JOB_PARTITION").Job("cores", 4).Job("memoryMB", 1000).Job("partition", "other"),
		"nowhere": far("true").Job("partition", "no-such"),
	}))
	s.Await(run, "ERRORED")
	got := s.Get(run)
	for name, want := range map[string]struct {
		rcs []int
		log string
	}{
		"code": {[]int{7, 7}, ""}, "signal": {[]int{139}, "signal 11"}, "timeout": {[]int{143}, "timed out after 1s"},
		"second": {[]int{1, 0}, ""}, "large": {[]int{0}, ""}, "nowhere": {[]int{-1}, "invalid partition"},
	} {
		var rcs []int
		log := ""
		for _, a := range got.TaskAttempts[name] {
			rcs = append(rcs, a.RC)
			log = a.ExecutorLog
		}
		if fmt.Sprint(rcs) != fmt.Sprint(want.rcs) || !strings.Contains(log, want.log) {
			t.Errorf("%s: codes %v, %q; want %v, %q", name, rcs, log, want.rcs, want.log)
		}
	}
	if out := got.TaskAttempts["large"][0].OutputLog; out != "4 other\n" {
		t.Errorf("the large one ran with %q", out)
	}
}

// TestSlurmKill: a kill of the run ends its running and its pending jobs. The output of a task can be
// read while it runs.
func TestSlurmKill(t *testing.T) {
	s := startSlurm(t)
	dir := t.TempDir()
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"a": far("echo here {{N}}; echo {{N}} >> " + dir + "/starts; sleep 1000"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(20)}))
	one := started(t, dir, 8)[0]
	s.AwaitTask(run, "a_"+one, "RUNNING")
	e2etest.Eventually(t, "output of a running task", func() bool {
		r := s.Do("GET", e2etest.Path(run, "/task/a_"+one+"/log"), "")
		return r.Status == http.StatusOK && string(r.Body) == "here "+one+"\n"
	})
	s.Want(http.StatusOK, "DELETE", e2etest.Path(run, ""), "")
	s.Await(run, "KILLED")
	for name, attempts := range s.Get(run).TaskAttempts {
		for _, a := range attempts {
			if a.RC != 143 && a.RC != 137 {
				t.Errorf("%s: %+v", name, a)
			}
		}
	}
}

// TestSlurmRestart: a server is killed, and another one stopped, while jobs run and wait. The next
// server continues with them: each job is started exactly once.
func TestSlurmRestart(t *testing.T) {
	s := startSlurm(t)
	dir := t.TempDir()
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"a": far("echo {{N}} >> " + dir + "/starts; while [ ! -e " + dir + "/go ]; do sleep 0.1; done; echo {{N}} done"),
		"z": far("cat " + dir + "/starts | wc -l").After("a"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(20)}))
	one := started(t, dir, 8)[0]
	s.AwaitTask(run, "a_"+one, "RUNNING")
	s = s.Crash()
	s.AwaitTask(run, "a_"+one, "RUNNING")
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	s = s.Restart()
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Await(run, "COMPLETED")
	got := s.Get(run)
	for i := range 20 {
		name := fmt.Sprintf("a_%d", i)
		if a := got.TaskAttempts[name]; len(a) != 1 || a[0].OutputLog != fmt.Sprintf("%d done\n", i) {
			t.Errorf("%s: %+v", name, a)
		}
	}
	if out := got.TaskAttempts["z"][0].OutputLog; strings.TrimSpace(out) != "20" {
		t.Errorf("%s starts of 20 tasks", out)
	}
	left, err := os.ReadDir(filepath.Join(s.Config().Data, "slurm"))
	if err != nil {
		t.Fatal(err)
	}
	e2etest.Eventually(t, "the attempts' folders to go", func() bool {
		for _, e := range left {
			if e.Name() == fmt.Sprint(run) {
				left, err = os.ReadDir(filepath.Join(s.Config().Data, "slurm"))
				return false
			}
		}
		return true
	})
}
