package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/servertest"
)

// TestDamagedWorkerFiles kills server and worker while six tasks run, damages one of the worker's
// files and starts the server again, -damages/4 times. No attempt starts twice, no attempt starts
// beside a living one of the same task, and the run completes, unless the server refuses to start
// and names the file.
func TestDamagedWorkerFiles(t *testing.T) {
	t.Parallel()
	rng := random(t)
	outcomes := map[string]int{}
	for range max(1, scaled(*damagesFlag)/4) {
		dir := t.TempDir()
		s := e2etest.Start(t, e2etest.Args("--cores", "6"))
		data := s.Config().Data
		run := s.Submit(aloneDoc(dir, 6))
		e2etest.Eventually(t, "six tasks run", func() bool { return strings.Count(linesOf(t, dir), "start ") == 6 })
		killed := "server"
		workers := servertest.Workers(data)
		s.Kill()
		if rng.IntN(3) > 0 {
			killed = "both"
			for _, pid := range workers {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			e2etest.Eventually(t, "the worker is gone", func() bool { return len(servertest.Workers(data)) == 0 })
		}
		var files []string
		err := filepath.WalkDir(filepath.Join(data, "worker"), func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		what := damage{kind: "delete all", file: "worker"}
		if i := rng.IntN(len(files) + 1); i < len(files) {
			what = damageFile(t, rng, data, files[i])
		} else if err := os.RemoveAll(filepath.Join(data, "worker")); err != nil {
			t.Fatal(err)
		}
		outcome := "completed"
		s2, err := e2etest.TryStart(t, e2etest.Data(data), e2etest.Args("--cores", "6"))
		switch {
		case err == nil:
			s2.Await(run, "COMPLETED")
		case !strings.Contains(err.Error(), filepath.Base(what.file)):
			t.Errorf("the refusal does not name %s: %v", what.file, err)
		default:
			outcome = "refused"
		}
		checkAlone(t, linesOf(t, dir))
		outcomes[fmt.Sprintf("%s of %s, killed %s: %s", what.kind, filepath.Base(what.file), killed, outcome)]++
		if t.Failed() {
			t.Fatalf("%s, killed %s", what, killed)
		}
		endRunning(t, s2, dir)
	}
	for _, k := range slices.Sorted(mapKeys(outcomes)) {
		t.Logf("%3d %s", outcomes[k], k)
	}
}

// aloneDoc is a run of n tasks of a second each. An attempt appends "start TASK ATTEMPT" to
// dir/lines, and "beside TASK ATTEMPT" when the process of an earlier attempt is still alive.
func aloneDoc(dir string, n int) e2etest.Doc {
	return e2etest.Graph(map[string]e2etest.Task{
		"t": e2etest.Sh(`echo "start $CARAVAN_TASK $CARAVAN_ATTEMPT" >> lines; test -n x{{N}}
for p in pid-$CARAVAN_TASK-*; do
	[ -e "$p" ] || continue
	case $(sed -n 's/^State:.//p' /proc/$(cat $p)/status 2>/dev/null) in
	''|Z*|X*) ;; # it is gone, or dead and nobody has waited for it yet
	*) echo "beside $CARAVAN_TASK $CARAVAN_ATTEMPT" >> lines;;
	esac
done
echo $$ > pid-$CARAVAN_TASK-$CARAVAN_ATTEMPT
sleep 1
rm -f pid-$CARAVAN_TASK-$CARAVAN_ATTEMPT`).Job("workDir", dir),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(n)})
}

func linesOf(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "lines"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}

func checkAlone(t *testing.T, lines string) {
	t.Helper()
	seen := map[string]bool{}
	for l := range strings.Lines(lines) {
		if seen[l] {
			t.Errorf("twice: %q", l)
		}
		seen[l] = true
		if strings.HasPrefix(l, "beside ") {
			t.Errorf("two attempts of a task were alive at once: %q", l)
		}
	}
}

// endRunning stops the server and waits until no process of a task is left.
func endRunning(t *testing.T, s *e2etest.Server, dir string) {
	t.Helper()
	if s == nil {
		for _, pid := range pidsIn(dir) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return
	}
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
		t.Error(err)
	}
	if err := servertest.EndWorkers(s.Config().Data, e2etest.Patience); err != nil {
		t.Error(err)
	}
	e2etest.Eventually(t, "no process of a task is left", func() bool { return len(inFolder(dir)) == 0 })
}

// pidsIn lists the processes whose working folder is dir.
func pidsIn(dir string) (pids []int) {
	for _, p := range inFolder(dir) {
		var pid int
		if _, err := fmt.Sscan(p, &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
