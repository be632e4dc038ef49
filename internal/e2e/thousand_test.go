package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/servertest"
)

// thousand is a run of 1,000 processes. Each appends its name to dir/ran, which shows an
// attempt that runs twice, whatever its number, and prints so much that the worker's
// journal is compacted under way. script goes on after that.
func thousand(dir, script string) e2etest.Doc {
	return e2etest.Graph(map[string]e2etest.Task{
		"t": e2etest.Sh(`echo "$CARAVAN_TASK" >>ran; printf '%02000d\n' {{N}}; `+script).Job("workDir", dir).Job("cores", "0.25"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(scaled(1000))})
}

// checkThousand waits for the run's end: every task is COMPLETED after its first attempt,
// and each has run once.
func checkThousand(t *testing.T, s *e2etest.Server, run uint64, dir string) {
	t.Helper()
	tasks := scaled(1000)
	eachOnce(t, s, run, tasks)
	text, err := os.ReadFile(filepath.Join(dir, "ran"))
	if err != nil {
		t.Fatal(err)
	}
	times := map[string]int{}
	for name := range strings.Lines(string(text)) {
		times[name]++
	}
	for name, n := range times {
		if n != 1 {
			t.Errorf("%s ran %d times", strings.TrimSpace(name), n)
		}
	}
	if len(times) != tasks {
		t.Errorf("%d tasks ran, want %d", len(times), tasks)
	}
}

// hitsOf are the calls that the script of a data folder has failed; there must be some.
func hitsOf(t *testing.T, data string) []string {
	t.Helper()
	hits, err := faults.Hits(e2etest.Script(data))
	if err != nil {
		t.Fatal(err)
	}
	if len(hits) == 0 {
		t.Error("no call was failed: the test shows nothing")
	}
	return hits
}

// TestThousandWithFewDescriptors: server, worker and tasks have 256 descriptors each, and
// the slots would take 150 tasks at once.
func TestThousandWithFewDescriptors(t *testing.T) {
	s := e2etest.Start(t, behindShell(t, "ulimit -n 256"), e2etest.Args("--cores", "40"))
	for _, pid := range append(servertest.Workers(s.Config().Data), s.PID()) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		if err != nil {
			t.Fatal(err)
		}
		if f := strings.Fields(string(text[strings.Index(string(text), "Max open files"):])); f[3] != "256" || f[4] != "256" {
			t.Fatalf("process %d may have %v open files", pid, f[3:5])
		}
	}
	dir := t.TempDir()
	checkThousand(t, s, s.Submit(thousand(dir, "exec sleep 0.1")), dir)
}

// TestThousandWithFewProcesses: server, worker and tasks share a group of few processes.
// When the run is under way another program takes all that are left for three seconds, so
// that starts fail, and then gives them back. No task ends before that.
func TestThousandWithFewProcesses(t *testing.T) {
	group := pidsGroup(t, 160)
	s := e2etest.Start(t, behindShell(t, "echo $$ >"+group+"/cgroup.procs"), e2etest.Args("--cores", "10"))
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "gate"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := s.Submit(thousand(dir, "[ -e eaten ] || read line <gate; exec sleep 0.05")) // and no further process
	e2etest.Eventually(t, "the run is under way", func() bool { return ranIn(dir) > 20 })
	eater := eatProcesses(t, group)
	if err := os.WriteFile(filepath.Join(dir, "eaten"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	defer openGate(dir)()
	e2etest.Eventually(t, "starts are deferred for want of processes", func() bool {
		v, err := s.Metric("caravan_starts_deferred_total")
		return err == nil && v > 0
	})
	pauseFor(eatFor)
	before := ranIn(dir)
	if before >= scaled(1000) {
		t.Error("the run was over before the processes were given back: the test shows nothing")
	}
	eater()
	t.Logf("%d tasks had begun when the processes were given back", before)
	checkThousand(t, s, run, dir)
}

// openGate lets go whoever reads from dir/gate, and whoever comes to it later, until it
// is stopped.
func openGate(dir string) (stop func()) {
	over := make(chan struct{})
	var opener sync.WaitGroup
	opener.Go(func() {
		for !e2etest.Over(over) {
			// Without a reader it cannot be opened.
			if f, err := os.OpenFile(filepath.Join(dir, "gate"), os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
				f.Close()
			}
			pauseFor(10 * time.Millisecond)
		}
	})
	return func() { close(over); opener.Wait() }
}

// eatFor is how long nothing can be started.
const eatFor = 3 * time.Second

// ranIn is how many attempts have begun.
func ranIn(dir string) int {
	text, _ := os.ReadFile(filepath.Join(dir, "ran"))
	return strings.Count(string(text), "\n")
}

// pidsGroup makes a control group of at most so many processes and threads, or skips the test.
func pidsGroup(t *testing.T, most int) string {
	t.Helper()
	var why error
	for _, parent := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} { // version 1, version 2
		group := filepath.Join(parent, fmt.Sprint("caravan-test-", os.Getpid()))
		if why = os.Mkdir(group, 0o755); why != nil {
			continue
		}
		if why = os.WriteFile(filepath.Join(group, "pids.max"), []byte(strconv.Itoa(most)), 0); why != nil {
			_ = os.Remove(group)
			continue
		}
		t.Cleanup(func() { e2etest.Eventually(t, "the group is empty", func() bool { return os.Remove(group) == nil }) })
		return group
	}
	t.Skip("the number of processes cannot be limited here by a control group (root is not bound by ulimit -u): ", why)
	return ""
}

// eatProcesses moves so many processes into a group that nothing can be started there
// until the returned function ends them.
func eatProcesses(t *testing.T, group string) (giveBack func()) {
	t.Helper()
	limit, err := os.ReadFile(filepath.Join(group, "pids.max"))
	if err != nil {
		t.Fatal(err)
	}
	most, err := strconv.Atoi(strings.TrimSpace(string(limit)))
	if err != nil {
		t.Fatal(err)
	}
	var eaters []*exec.Cmd
	giveBack = func() {
		for _, c := range eaters {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
		eaters = nil
	}
	t.Cleanup(giveBack)
	for range most {
		c := exec.Command("/bin/sleep", "600")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		eaters = append(eaters, c)
		// The limit does not keep a process from being moved.
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(c.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	return giveBack
}

// TestThousandWithJournalErrors: the worker's journal fails in the middle of a run, at one
// call or for a while. What has no intent in a journal does not start, what runs goes on,
// and a new journal takes the old one's place.
func TestThousandWithJournalErrors(t *testing.T) {
	t.Parallel()
	rng := random(t)
	once := func(op faults.Op, path string, first int) []faults.Fault {
		return []faults.Fault{{Op: op, Path: path, First: first, Times: 1, Err: syscall.EIO}}
	}
	at := func() int { return 2 + rng.IntN(scaled(1000)/8) } // of some 250 writes: intents, and ends with what is between, of up to 8 attempts each
	cases := map[string][]faults.Fault{
		"the first write":          once(faults.Write, "journal", 1),
		"a write":                  once(faults.Write, "journal*", at()),
		"another write":            once(faults.Write, "journal*", at()),
		"a torn write":             {{Op: faults.Write, Path: "journal*", First: at(), Times: 1, Err: syscall.EIO, Short: 1 + rng.IntN(100)}},
		"a full disk for a write":  {{Op: faults.Write, Path: "journal*", First: at(), Times: 1, Err: syscall.ENOSPC, Short: 1 + rng.IntN(100)}},
		"making the journal":       once(faults.Create, "journal", 1),
		"making the next journal":  once(faults.Create, "journal.new", 1),
		"the next journal's write": once(faults.Write, "journal.new", 1),
		"the next journal's name":  once(faults.Rename, "journal.new", 1),
		"a write, and what repairs it": {
			{Op: faults.Write, Path: "journal*", First: at(), Times: 1, Err: syscall.EIO},
			{Op: faults.Create, Path: "journal.new", Times: 1 + rng.IntN(10), Err: syscall.EIO},
			{Op: faults.Rename, Path: "journal.new", Times: 1 + rng.IntN(10), Err: syscall.EIO},
		},
		"all calls for a while": {{Path: "journal*", First: at(), Times: 10 + rng.IntN(20), Err: syscall.EIO}},
	}
	if scaled(1000) < 1000 { // the journal stays so short that no next one is made
		maps.DeleteFunc(cases, func(name string, _ []faults.Fault) bool { return strings.Contains(name, "next journal") })
	}
	for name, script := range some(rng, cases) {
		t.Run(name, func(t *testing.T) {
			data, dir := filepath.Join(t.TempDir(), "data"), t.TempDir()
			t.Logf("%+v", script)
			if err := faults.WriteScript(e2etest.Script(data), script...); err != nil {
				t.Fatal(err)
			}
			s := e2etest.Start(t, e2etest.Faulty(t), e2etest.Data(data))
			checkThousand(t, s, s.Submit(thousand(dir, "")), dir)
			if failed := hitsOf(t, data); len(failed) > 0 {
				t.Logf("%d calls failed, the first one: %s", len(failed), failed[0])
			}
		})
	}
}

// some chooses -damages/10 of the cases at random, at least two; under the race detector
// at least one.
func some[T any](rng *rand.Rand, cases map[string]T) map[string]T {
	names := slices.Sorted(maps.Keys(cases))
	rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names[min(max(scaled(2), scaled(*damagesFlag)/10), len(names)):] {
		delete(cases, name)
	}
	return cases
}
