package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// findInTables returns the table of a data folder that contains a text, and the offset.
func findInTables(t *testing.T, data, text string) (path string, at int64) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(data, "db", "*.sst"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.Index(b, []byte(text)); i >= 0 {
			return name, int64(i)
		}
	}
	t.Fatalf("%q is in none of %d tables", text, len(names))
	return "", 0
}

// flipBit changes one bit of a file.
func flipBit(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// submitPaused submits a run with a task and one after it, which is paused between the two.
func submitPaused(t *testing.T, s *e2etest.Server, next e2etest.Task) (run uint64) {
	t.Helper()
	gate := filepath.Join(t.TempDir(), "gate")
	run = s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"a": e2etest.Sh("until [ -e " + gate + " ]; do sleep 0.05; done"), "b": next.After("a"),
	}).With("tag", "kept"))
	s.AwaitTask(run, "a", "RUNNING")
	s.Want(200, "PATCH", e2etest.Path(run, "/state/PAUSED"), "")
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.AwaitTask(run, "a", "COMPLETED")
	return run
}

// stoppedFolder is a data folder, stopped cleanly, with a paused run whose command would create a
// file.
func stoppedFolder(t *testing.T, command string) (s *e2etest.Server, run uint64) {
	t.Helper()
	s = e2etest.Start(t)
	run = submitPaused(t, s, e2etest.Sh(command).With("retryIntervalSeconds", 1))
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	return s, run
}

// TestDamagedTableIsRefused flips one bit in the text of a command in a table. The server refuses to
// start and names the file, and the command does not run.
func TestDamagedTableIsRefused(t *testing.T) {
	t.Parallel()
	touched := filepath.Join(t.TempDir(), "touched")
	s, _ := stoppedFolder(t, "echo qzjxkvwpfbvmhg; touch "+touched)
	data := s.Config().Data
	path, at := findInTables(t, data, "qzjxkvwpfbvmhg")
	flipBit(t, path, at+3)
	_, err := e2etest.TryStart(t, e2etest.Data(data))
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "at offset") {
		t.Fatalf("start on a damaged table: %v", err)
	}
	flipBit(t, path, at+3)
	again := e2etest.Start(t, e2etest.Data(data))
	again.Want(200, "GET", "/healthz", "")
}

// TestMissingManifestIsRefused: without the check, Badger would delete all tables.
func TestMissingManifestIsRefused(t *testing.T) {
	e2etest.OneByOne(t)
	t.Parallel()
	s, run := stoppedFolder(t, "echo qzjxkvwpfbvmhg")
	data := s.Config().Data
	manifest := filepath.Join(data, "db", "MANIFEST")
	whole, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	for what, damage := range map[string]func() error{
		"removed":          func() error { return os.Remove(manifest) },
		"cut to 25 bytes":  func() error { return os.WriteFile(manifest, whole[:25], 0o600) },
		"cut behind a row": func() error { return os.WriteFile(manifest, whole[:16], 0o600) },
		"a longer length":  func() error { b := bytes.Clone(whole); b[18] ^= 4; return os.WriteFile(manifest, b, 0o600) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := e2etest.TryStart(t, e2etest.Data(data)); err == nil || !strings.Contains(err.Error(), manifest) {
			t.Errorf("%s: %v", what, err)
		}
		if err := os.WriteFile(manifest, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again := e2etest.Start(t, e2etest.Data(data))
	if state := again.State(run); state != "PAUSED" {
		t.Errorf("the run is %s", state)
	}
}

// TestVerifyOff starts without verifying the tables, and the log says so.
func TestVerifyOff(t *testing.T) {
	t.Parallel()
	s, _ := stoppedFolder(t, "true")
	again := e2etest.Start(t, e2etest.Data(s.Config().Data), e2etest.Args("--verify", "off"))
	if !strings.Contains(again.Log(), "not verified") {
		t.Error("no warning in the log")
	}
}

// TestDamageWhileRunning overwrites a command in a table while the server has it open. Its run
// becomes an error instead of another command; the server reports the damage and goes on.
func TestDamageWhileRunning(t *testing.T) {
	t.Parallel()
	touched := filepath.Join(t.TempDir(), "touched")
	first := e2etest.Start(t)
	graph := func(script string) e2etest.Doc {
		return e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh(script)})
	}
	var run uint64
	var others []uint64
	for i := range 100 { // so that its row is in a block that the start does not read
		if i == 50 {
			run = first.Submit(graph("touch " + touched + "; exit 3 # qzjxkvwpfbvmhg"))
			first.Await(run, "ERRORED")
		}
		others = append(others, first.Submit(graph(fmt.Sprintf("true %d %s", i, strings.Repeat(fmt.Sprint(i), 100)))))
	}
	for _, other := range others { // a start reads the definitions of unfinished runs, and keeps their blocks
		first.Await(other, "COMPLETED")
	}
	if _, _, err := first.Stop(e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(touched); err != nil {
		t.Fatal(err)
	}
	data := first.Config().Data
	s := e2etest.Start(t, e2etest.Data(data))
	path, at := findInTables(t, data, "qzjxkvwpfbvmhg")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("# rotten text"), at); err != nil {
		t.Fatal(err)
	}
	r := s.Do("PATCH", e2etest.Path(run, "/state/QUEUED"), "")
	if r.Status != 500 {
		t.Errorf("resumed: %d %s", r.Status, r.Body)
	}
	if r := s.Do("GET", e2etest.Path(run, ""), ""); r.Status != 500 || !strings.Contains(string(r.Body), "stored value is corrupt") {
		t.Errorf("the run: %d %s", r.Status, r.Body)
	}
	if r := s.Do("GET", "/healthz", ""); r.Status != 503 || !strings.Contains(string(r.Body), "not healthy") {
		t.Errorf("health: %d %s", r.Status, r.Body)
	}
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true")}))
	if _, err := os.Stat(touched); err == nil {
		t.Error("the command ran")
	}
}

// killedFolder is a data folder whose server was killed. One run has ended; another one is paused
// with a command that would mark a file.
func killedFolder(t *testing.T) (data string, ended, paused uint64, ran func() int) {
	t.Helper()
	lines := filepath.Join(t.TempDir(), "lines")
	s := e2etest.Start(t)
	ended = s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("echo ran >> " + lines)}))
	s.Await(ended, "COMPLETED")
	paused = submitPaused(t, s, e2etest.Sh("echo later >> "+lines))
	s.Kill()
	<-s.Ended()
	return s.Config().Data, ended, paused, func() int {
		text, _ := os.ReadFile(lines)
		return strings.Count(string(text), "ran")
	}
}

// TestDamagedBadgerLogIsIgnored: after a kill -9, a flipped bit in the middle of Badger's own log
// has no effect. All acknowledged runs are there, tasks run once, and ids continue.
func TestDamagedBadgerLogIsIgnored(t *testing.T) {
	t.Parallel()
	data, ended, paused, ran := killedFolder(t)
	names, err := filepath.Glob(filepath.Join(data, "db", "*.mem"))
	if err != nil || len(names) == 0 {
		t.Fatalf("log files of Badger's: %v, %v", names, err)
	}
	for _, name := range names {
		for _, at := range []int64{0, 30, 200, 700} {
			flipBit(t, name, at)
		}
	}
	s := e2etest.Start(t, e2etest.Data(data))
	if state := s.State(ended); state != "COMPLETED" {
		t.Errorf("the run that had ended is %s", state)
	}
	if state := s.State(paused); state != "PAUSED" {
		t.Errorf("the run that was paused is %s", state)
	}
	next := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true")}))
	if next != paused+1 {
		t.Errorf("the next run is %d behind %d", next, paused)
	}
	s.Await(next, "COMPLETED")
	if n := ran(); n != 1 {
		t.Errorf("the command ran %d times", n)
	}
}

// TestDamagedCommitLogIsRefused flips a bit in the newest acknowledged record. The server refuses to
// start and names file and place. It starts again when the bit is restored.
func TestDamagedCommitLogIsRefused(t *testing.T) {
	data, ended, paused, ran := killedFolder(t)
	segment := filepath.Join(data, "db", "log", "0000000001.log")
	content, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	end := len(strings.TrimRight(string(content), "\x00"))
	for what, at := range map[string]int{"the header": 17, "the first record": 4100, "the middle": (4096 + end) / 2, "the last record": end - 3} {
		flipBit(t, segment, int64(at))
		_, err := e2etest.TryStart(t, e2etest.Data(data))
		if err == nil || !strings.Contains(err.Error(), segment) || !strings.Contains(err.Error(), "damaged at offset") {
			t.Errorf("%s: %v", what, err)
		}
		flipBit(t, segment, int64(at))
	}
	s := e2etest.Start(t, e2etest.Data(data))
	if a, b := s.State(ended), s.State(paused); a != "COMPLETED" || b != "PAUSED" || ran() != 1 {
		t.Errorf("%s, %s, ran %d times", a, b, ran())
	}
}

// TestDamagedSummaryOfUnfinishedRun: tables are intact, and the summary of a paused run is damaged.
// The server refuses to start, names the folder and the run, and recommends steps that help.
func TestDamagedSummaryOfUnfinishedRun(t *testing.T) {
	t.Parallel()
	s, run := stoppedFolder(t, "true")
	data := s.Config().Data
	db := filepath.Join(data, "db")
	damageSummary(t, db, run)
	_, errs, code := runBinary(t, nil, "serve", "--listen", "127.0.0.1:0", "--data", data)
	for _, want := range []string{"data folder " + db, fmt.Sprintf("run %d: summary: stored value is corrupt", run), "`caravan check`", "`caravan salvage`"} {
		if code != 1 || !strings.Contains(errs, want) {
			t.Errorf("exit %d, without %q: %s", code, want, errs)
		}
	}
	if r, code, text := runOffline(t, "check", data); code != 1 || !slices.Equal(r.Damaged, []uint64{run}) {
		t.Errorf("check: %d, %s", code, text)
	}
	into := filepath.Join(t.TempDir(), "into")
	if r, code, text := runOffline(t, "salvage", data, into); code != 0 || !slices.Equal(r.LeftOut, []uint64{run}) {
		t.Errorf("salvage: %d, %s", code, text)
	}
	if r, code, text := runOffline(t, "check", into); code != 0 || !r.Whole {
		t.Errorf("check of what was salvaged: %d, %s", code, text)
	}
}

// damageSummary changes a bit in the summary of an unfinished run, in a table with correct
// checksums.
func damageSummary(t *testing.T, dir string, run uint64) {
	t.Helper()
	db, err := badger.OpenManaged(badger.DefaultOptions(dir).WithLogger(nil).WithMemTableSize(1 << 20).WithValueLogFileSize(1 << 20).WithValueThreshold(1 << 10))
	if err != nil {
		t.Fatal(err)
	}
	txn := db.NewTransactionAt(math.MaxUint64, true)
	defer txn.Discard()
	key := binary.BigEndian.AppendUint64([]byte{'u'}, run)
	item, err := txn.Get(key)
	if err != nil {
		t.Fatal(err)
	}
	value, err := item.ValueCopy(nil)
	if err != nil {
		t.Fatal(err)
	}
	value[1] ^= 4
	if err := txn.Set(key, value); err != nil {
		t.Fatal(err)
	}
	if err := txn.CommitAt(db.MaxVersion(), nil); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedWorkerFiles kills server and worker while six tasks run, damages one of the worker's
// files and starts the server again, -damages/4 times. Attempts start at most once, an attempt never
// starts while another one of its task is alive, and the run completes, unless the server refuses to
// start and names the file.
func TestDamagedWorkerFiles(t *testing.T) {
	e2etest.OneByOne(t)
	t.Parallel()
	rng := seededRandom(t)
	outcomes := map[string]int{}
	for range max(1, scaled(*damagesFlag)/4) {
		dir := t.TempDir()
		s := e2etest.Start(t, e2etest.Args("--cores", "6"))
		data := s.Config().Data
		run := s.Submit(exclusiveDoc(dir, 6))
		e2etest.Eventually(t, "six tasks run", func() bool { return strings.Count(linesOf(t, dir), "start ") == 6 })
		killed := "server"
		workers := testenv.Workers(data)
		s.Kill()
		if rng.IntN(3) > 0 {
			killed = "both"
			for _, pid := range workers {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			e2etest.Eventually(t, "the worker is gone", func() bool { return len(testenv.Workers(data)) == 0 })
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
		checkExclusive(t, linesOf(t, dir))
		outcomes[fmt.Sprintf("%s of %s, killed %s: %s", what.kind, filepath.Base(what.file), killed, outcome)]++
		if t.Failed() {
			t.Fatalf("%s, killed %s", what, killed)
		}
		stopServerAndTasks(t, s2, dir)
	}
	for _, k := range slices.Sorted(mapKeys(outcomes)) {
		t.Logf("%3d %s", outcomes[k], k)
	}
}

// exclusiveDoc is a run of n tasks of a second each. An attempt appends "start TASK ATTEMPT" to
// dir/lines, and "beside TASK ATTEMPT" when the process of an earlier attempt is still alive.
func exclusiveDoc(dir string, n int) e2etest.Doc {
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

func checkExclusive(t *testing.T, lines string) {
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

// stopServerAndTasks stops the server and waits until all processes of tasks have ended.
func stopServerAndTasks(t *testing.T, s *e2etest.Server, dir string) {
	t.Helper()
	if s == nil {
		for _, pid := range pidsInFolder(dir) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return
	}
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
		t.Error(err)
	}
	if err := testenv.EndWorkers(s.Config().Data, e2etest.Patience); err != nil {
		t.Error(err)
	}
	e2etest.Eventually(t, "no process of a task is left", func() bool { return len(processesIn(dir)) == 0 })
}

// pidsInFolder lists the processes whose working folder is dir.
func pidsInFolder(dir string) (pids []int) {
	for _, p := range processesIn(dir) {
		var pid int
		if _, err := fmt.Sscan(p, &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
