package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// invoke runs a command of the binary against a server and returns its output.
func invoke(t *testing.T, s *e2etest.Server, args ...string) (out string, code int) {
	t.Helper()
	cmd := exec.Command(e2etest.Binary(), args...)
	if s != nil {
		cmd.Env = append(os.Environ(), "CARAVAN_SERVER="+s.URL)
	}
	text, _ := cmd.CombinedOutput()
	return string(text), cmd.ProcessState.ExitCode()
}

// runDocuments returns the documents of runs, which a restore must reproduce.
func runDocuments(s *e2etest.Server, runs ...uint64) (docs []string) {
	for _, run := range runs {
		docs = append(docs, string(s.Want(200, "GET", e2etest.Path(run, ""), "").Body))
	}
	return docs
}

// TestBackupOfRunningServer takes backups while runs are submitted, execute and are deleted. Each
// backup shows one moment: it is restored whole, with the output of each of its attempts.
func TestBackupOfRunningServer(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t, e2etest.Args("--retain-runs", "20"))
	long := e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh(`head -c 100000 /dev/zero | tr '\0' "$CARAVAN_RUN_ID"; echo`)})
	first := s.Submit(long)
	s.Await(first, "COMPLETED")
	stop := make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				s.Await(s.Submit(long), "COMPLETED")
			}
		}
	})
	for round := range scaled(3) {
		file, data := filepath.Join(t.TempDir(), "b"), filepath.Join(t.TempDir(), "restored")
		if out, code := invoke(t, s, "backup", file); code != 0 {
			t.Fatalf("backup: %d %s", code, out)
		}
		if out, code := invoke(t, nil, "restore", file, data); code != 0 {
			t.Fatalf("restore: %d %s", code, out)
		}
		r := e2etest.Start(t, e2etest.Data(data))
		if body := string(r.Want(200, "GET", "/v1/server/state", "").Body); !strings.Contains(body, "restored from a backup") {
			t.Errorf("round %d: state %s", round, body)
		}
		runs, checked := r.List("?all=true"), 0
		for _, sum := range runs {
			if sum.State != "COMPLETED" {
				continue
			}
			log := r.Want(200, "GET", e2etest.Path(uint64(sum.RunID), "/task/a/log"), "").Body
			if want := bytes.Repeat([]byte(fmt.Sprint(sum.RunID)[:1]), 100000); !bytes.Equal(log, append(want, '\n')) {
				t.Errorf("round %d: run %d: output of %d bytes is not what was printed", round, sum.RunID, len(log))
			}
			checked++
		}
		if checked == 0 {
			t.Errorf("round %d: no finished run among %d", round, len(runs))
		}
	}
	close(stop)
	busy.Wait()
}

// TestBackupDrill runs the commands in docs/operations.md, in their order.
func TestBackupDrill(t *testing.T) {
	t.Parallel()
	e2etest.OneByOne(t)
	doc, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, drill, found := strings.Cut(string(doc), "<!-- drill -->\n```sh\n")
	drill, _, ended := strings.Cut(drill, "```\n")
	if !found || !ended {
		t.Fatal("docs/operations.md has no drill")
	}
	s := e2etest.Start(t)
	run := s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("head -c 50000 /dev/zero; echo done")})).RunID
	waiting := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("sleep 300"), "b": e2etest.Sh("true").After("a")}))
	s.AwaitTask(waiting, "a", "RUNNING")
	want := runDocuments(s, uint64(run))
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(e2etest.Binary(), filepath.Join(bin, "caravan")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-eux", "-c", drill)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CARAVAN_SERVER="+s.URL, "PATH="+bin+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the drill: %v\n%s", err, out)
	}
	r := e2etest.Start(t, e2etest.Data(filepath.Join(dir, "restored")))
	if got := runDocuments(r, uint64(run)); got[0] != want[0] {
		t.Errorf("restored: %s\nwas: %s", got[0], want[0])
	}
	e2etest.Eventually(t, "what ran is queued again", func() bool { return r.TaskState(waiting, "a") == "QUEUED" })
	if out, code := invoke(t, r, "kill", fmt.Sprint(waiting)); code != 0 {
		t.Errorf("kill: %d %s", code, out)
	}
	if out, code := invoke(t, r, "resume", "--all"); code != 0 {
		t.Errorf("resume: %d %s", code, out)
	}
	r.Await(r.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true")})), "COMPLETED")
	if got := s.State(waiting); got != "RUNNING" {
		t.Errorf("the original's run is %s", got)
	}
	s.Want(200, "DELETE", e2etest.Path(waiting, ""), "")
}

// TestDamagedBackupIsRefused: a backup that was cut or changed is refused, and leaves no folder.
func TestDamagedBackupIsRefused(t *testing.T) {
	t.Parallel()
	e2etest.OneByOne(t)
	s := e2etest.Start(t)
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("head -c 50000 /dev/zero")}))
	file := filepath.Join(t.TempDir(), "b")
	if out, code := invoke(t, s, "backup", file); code != 0 {
		t.Fatalf("backup: %d %s", code, out)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rng := seededRandom(t)
	for i := range 10 {
		bad := bytes.Clone(whole)
		if i%2 == 0 {
			bad = bad[:rng.IntN(len(bad))]
		} else {
			bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
		}
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, code := invoke(t, nil, "restore", "--verify-only", file); code != 1 || !strings.Contains(out, "not a complete backup") {
			t.Errorf("verified: %d %s", code, out)
		}
		data := filepath.Join(t.TempDir(), "restored")
		if out, code := invoke(t, nil, "restore", file, data); code != 1 || !strings.Contains(out, "not a complete backup") {
			t.Errorf("restored: %d %s", code, out)
		}
		if list, err := os.ReadDir(data); err == nil && len(list) > 0 {
			t.Errorf("left behind: %v", list)
		}
	}
	if err := os.WriteFile(file, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := invoke(t, nil, "restore", file, s.Config().Data); code != 1 || !strings.Contains(out, "in use") {
		t.Errorf("over a running server: %d %s", code, out)
	}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "thesis"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := invoke(t, nil, "restore", file, full); code != 1 || !strings.Contains(out, `it is not empty: it holds "thesis"`) {
		t.Errorf("into a folder with other things: %d %s", code, out)
	}
}

// TestBackupOfStoppedServer reads the folder alone, and pipes the backup.
func TestBackupOfStoppedServer(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	run := uint64(s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("echo hello")})).RunID)
	want := runDocuments(s, run)
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(t.TempDir(), "restored")
	script := `"$0" backup --data "$1" - | "$0" restore --resume - "$2"`
	if out, err := exec.Command("/bin/sh", "-c", script, e2etest.Binary(), s.Config().Data, data).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r := e2etest.Start(t, e2etest.Data(data))
	if got := runDocuments(r, run); got[0] != want[0] {
		t.Errorf("restored: %s\nwas: %s", got[0], want[0])
	}
	var state struct{ State string }
	if err := json.Unmarshal(r.Want(200, "GET", "/v1/server/state", "").Body, &state); err != nil || state.State != "RUNNING" {
		t.Errorf("state %+v, %v", state, err)
	}
	r.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true")}))
}

// TestCopyNextToItsOriginal starts servers on copies of a data folder whose own server runs tasks.
// Those tasks are not disturbed. The copies start tasks only when they are resumed, and then each
// completes its runs with its own attempts.
func TestCopyNextToItsOriginal(t *testing.T) {
	e2etest.OneByOne(t)
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
		if i%2 == 1 { // a restart does not change the tasks
			if copies[i] = c.Crash(); !strings.Contains(string(copies[i].Want(200, "GET", "/healthz", "").Body), "copied from") {
				t.Errorf("copy %d: not paused after a restart", i)
			}
		}
	}
	if got := printed(); got != began {
		t.Errorf("next to the copies the tasks printed %q, want %q", got, began)
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
