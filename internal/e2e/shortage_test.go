package e2e

import (
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
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

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// withShellLimit is a program that starts the binary under test under a limit of the shell.
func withShellLimit(t *testing.T, ulimit string) string {
	t.Helper()
	script := filepath.Join(t.TempDir(), "limited")
	e2etest.WriteProgram(t, script, "#!/bin/sh\nulimit "+ulimit+"\nexec "+e2etest.Binary()+" \"$@\"\n")
	return script
}

// dialMany opens n connections to a server and sends some bytes on each.
func dialMany(t *testing.T, s *e2etest.Server, n int, text string) {
	t.Helper()
	for range n {
		c, err := net.DialTimeout("tcp", strings.TrimPrefix(s.URL, "http://"), e2etest.Patience)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		// A refused connection may be closed already.
		_, _ = io.WriteString(c, text)
	}
}

// TestServerWithFewDescriptors: a server with 256 descriptors gets 300 connections. It goes on,
// serves others, and runs 300 tasks.
func TestServerWithFewDescriptors(t *testing.T) {
	s := e2etest.Start(t, e2etest.Program(withShellLimit(t, "-n 256")))
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("exit 0 # {{N}}")}).
		With("parameters", map[string]any{"N": e2etest.Numbers(300)}))
	for _, text := range []string{"", "GET /ready HTTP/1.1\r\nHos", "GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n"} {
		dialMany(t, s, 100, text)
	}
	began := time.Now()
	for i := range 50 {
		e2etest.Eventually(t, fmt.Sprintf("request %d is answered", i), func() bool {
			r, err := s.Try("GET", "/ready", "")
			return err == nil && r.Status == 200
		})
	}
	t.Logf("50 requests next to 300 connections took %v", time.Since(began))
	s.Await(run, "COMPLETED")
	for name, attempts := range s.Get(run).TaskAttempts {
		if len(attempts) != 1 {
			t.Errorf("%s was attempted %d times", name, len(attempts))
		}
	}
}

// TestLeavingClientsFreeTheirPlaces: thousands of clients wait for a state that does not change and
// leave at once. Clients at another address are served throughout, and all places become free.
func TestLeavingClientsFreeTheirPlaces(t *testing.T) {
	s := e2etest.Start(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("sleep 300")}))
	s.AwaitTask(run, "a", "RUNNING")
	address := strings.TrimPrefix(s.URL, "http://")
	const workers = 16
	clients := scaled(8300)
	dialer := net.Dialer{Timeout: e2etest.Patience, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range clients / workers {
				c, err := dialer.Dial("tcp", address)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.WriteString(c, fmt.Sprintf("GET /v1/dagrun/%d/state?wait=60s HTTP/1.1\r\nHost: localhost\r\n\r\n", run))
				c.Close()
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	served := 0
	for busy := true; busy; served++ {
		select {
		case <-done:
			busy = false
		default:
		}
		s.Want(200, "GET", fmt.Sprintf("/v1/dagrun/%d/state", run), "")
	}
	t.Logf("%d requests were served during that time", served)
	awaitIdleWaiters(t, s)
	s.Want(200, "DELETE", fmt.Sprintf("/v1/dagrun/%d", run), "")
}

// awaitIdleWaiters waits until the server has no waiting requests, as long as it goes on beginning
// and ending requests for a state: on a slow machine many are still in the queue of its socket. A
// wait without an event ends by itself after a minute, which is too late here.
func awaitIdleWaiters(t *testing.T, s *e2etest.Server) {
	t.Helper()
	const still = 15 * time.Second
	least, most, since := math.MaxInt, 0, time.Now()
	for {
		waiting, ended := 0, 0
		for line := range strings.Lines(string(s.Want(200, "GET", "/metrics", "").Body)) {
			value, _ := strconv.Atoi(line[strings.LastIndexByte(line, ' ')+1 : len(line)-1])
			switch {
			case strings.HasPrefix(line, "caravan_http_waiting_requests "):
				waiting = value
			case strings.HasPrefix(line, "caravan_http_requests_total{") && strings.Contains(line, `/state"`):
				ended += value
			}
		}
		switch {
		case waiting == 0:
			return
		case waiting < least || ended > most:
			least, most, since = min(waiting, least), ended, time.Now()
		case time.Since(since) > still:
			t.Fatalf("%d requests wait, and none has begun or ended for %v", waiting, still)
		}
		waitRandomly(10 * time.Millisecond)
	}
}

// viaShell is the binary under test, started by a line of shell.
func viaShell(t *testing.T, line string) func(*testenv.Config) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "caravan")
	e2etest.WriteProgram(t, path, fmt.Sprintf("#!/bin/sh\n%s || exit 9\nexec %q \"$@\"\n", line, e2etest.Binary()))
	return e2etest.Program(path)
}

// checkEachRanOnce checks that every task of a run is COMPLETED after one attempt.
func checkEachRanOnce(t *testing.T, s *e2etest.Server, run uint64, tasks int) {
	t.Helper()
	s.Await(run, "COMPLETED")
	doc := s.Get(run)
	if len(doc.TaskAttempts) != tasks {
		t.Errorf("%d tasks have attempts, want %d", len(doc.TaskAttempts), tasks)
	}
	for name, attempts := range doc.TaskAttempts {
		if len(attempts) != 1 || attempts[0].RC != 0 {
			t.Errorf("%s: %+v", name, attempts)
		}
	}
}

// TestTasksWithFewDescriptors: 150 tasks that sleep, all of which the slots would start at once.
func TestTasksWithFewDescriptors(t *testing.T) {
	e2etest.OneByOne(t)
	t.Parallel()
	s := e2etest.Start(t, viaShell(t, "ulimit -n 256"))
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"t": e2etest.Sh(`: {{N}}; exec sleep 1`).Job("cores", "0.01"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(150)}))
	checkEachRanOnce(t, s, run, 150)
}

// TestTasksWithFewProcesses: server, worker and tasks share 60 processes and threads.
func TestTasksWithFewProcesses(t *testing.T) {
	group := "/sys/fs/cgroup/pids/caravan-test-few-" + fmt.Sprint(os.Getpid())
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Skip("no control group for processes can be made here: ", err)
	}
	t.Cleanup(func() { e2etest.Eventually(t, "the group is empty", func() bool { return os.Remove(group) == nil }) })
	if err := os.WriteFile(group+"/pids.max", []byte("60"), 0); err != nil {
		t.Skip("the number of processes cannot be limited here: ", err)
	}
	s := e2etest.Start(t, viaShell(t, "echo $$ >"+group+"/cgroup.procs"))
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"t": e2etest.Sh(`: {{N}}; exec sleep 0.05`).Job("cores", "0.01"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(150)}))
	checkEachRanOnce(t, s, run, 150)
}

// TestHungWorkerIsReported: the log, /healthz and a metric report a hanging worker within 10 s. A
// kill is answered during the hang and takes effect when the worker is back.
func TestHungWorkerIsReported(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	dir := t.TempDir()
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"t": e2etest.Sh("exec sleep 1000").Job("workDir", dir)}))
	s.AwaitTask(run, "t", "RUNNING")
	pids := testenv.Workers(s.Config().Data)
	if len(pids) != 1 {
		t.Fatalf("workers: %v", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pids[0], syscall.SIGCONT)
	e2etest.Eventually(t, "/healthz says that the worker hangs", func() bool {
		r := s.Do(http.MethodGet, "/healthz", "")
		return r.Status == 503 && strings.Contains(string(r.Body), "has not answered for")
	})
	if v, err := s.Metric("caravan_worker_responding"); err != nil || v != 0 {
		t.Errorf("caravan_worker_responding %v, %v", v, err)
	}
	e2etest.Eventually(t, "the log says that the worker hangs", func() bool {
		return strings.Contains(s.Log(), "a worker does not answer")
	})
	s.Want(200, http.MethodDelete, fmt.Sprintf("/v1/dagrun/%d", run), "")
	s.Submit(e2etest.Graph(map[string]e2etest.Task{"n": e2etest.Sh("true")})) // still accepted
	_ = syscall.Kill(pids[0], syscall.SIGCONT)
	s.Await(run, "KILLED")
	e2etest.Eventually(t, "/healthz is well again", func() bool { return s.Do(http.MethodGet, "/healthz", "").Status == 200 })
	// The log says so with the next pulse, up to a second after the answer.
	e2etest.Eventually(t, "the log says that the worker is back", func() bool {
		return strings.Contains(s.Log(), "a worker answers again")
	})
	// A pause of the server itself does not count as a hang of the worker.
	before := strings.Count(s.Log(), "a worker does not answer")
	_ = s.Signal(syscall.SIGSTOP)
	waitRandomly(12 * time.Second)
	_ = s.Signal(syscall.SIGCONT)
	for range 30 {
		if r := s.Do(http.MethodGet, "/healthz", ""); r.Status != 200 {
			t.Fatalf("%+v", r)
		}
		waitRandomly(100 * time.Millisecond)
	}
	if n := strings.Count(s.Log(), "a worker does not answer"); n != before {
		t.Error("the server's own pause is taken for the worker's")
	}
}

// manyProcesses is more than the slots of the tests that have them.
var manyProcesses = max(scaled(400), 100)

// manyTasks is a run of that many processes.
func manyTasks(dir, script string) e2etest.Doc { return processes(dir, manyProcesses, script) }

// processes is a run of n processes. Each appends its name to dir/ran, which shows repeated
// starts whatever the attempt number, and prints enough for the worker's journal to be compacted.
// script follows.
func processes(dir string, n int, script string) e2etest.Doc {
	return e2etest.Graph(map[string]e2etest.Task{
		"t": e2etest.Sh(`echo "$CARAVAN_TASK" >>ran; printf '%02000d\n' {{N}}; printf '%02000d\n' {{N}} >&2; `+script).Job("workDir", dir).Job("cores", "0.25"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(n)})
}

// checkMany is checkProcesses of manyTasks.
func checkMany(t *testing.T, s *e2etest.Server, run uint64, dir string) {
	t.Helper()
	checkProcesses(t, s, run, dir, manyProcesses)
}

// checkProcesses waits for the end of a run of processes: every task is COMPLETED after its first
// attempt, and each has run once.
func checkProcesses(t *testing.T, s *e2etest.Server, run uint64, dir string, tasks int) {
	t.Helper()
	checkEachRanOnce(t, s, run, tasks)
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

// faultHits returns the calls that the script of a data folder has failed, at least one.
func faultHits(t *testing.T, data string) []string {
	t.Helper()
	hits, err := faults.ScriptHits(e2etest.Script(data))
	if err != nil {
		t.Fatal(err)
	}
	if len(hits) == 0 {
		t.Error("the script failed no call, so the test is void")
	}
	return hits
}

// TestManyTasksWithFewDescriptors: server, worker and tasks have 256 descriptors each, and slots
// for 150 tasks.
func TestManyTasksWithFewDescriptors(t *testing.T) {
	e2etest.OneByOne(t)
	t.Parallel()
	s := e2etest.Start(t, viaShell(t, "ulimit -n 256"), e2etest.Args("--cores", "40"))
	for _, pid := range append(testenv.Workers(s.Config().Data), s.PID()) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		if err != nil {
			t.Fatal(err)
		}
		if f := strings.Fields(string(text[strings.Index(string(text), "Max open files"):])); f[3] != "256" || f[4] != "256" {
			t.Fatalf("process %d may have %v open files", pid, f[3:5])
		}
	}
	dir := t.TempDir()
	checkMany(t, s, s.Submit(manyTasks(dir, "exec sleep 0.1")), dir)
}

// TestManyTasksWithFewProcesses: server, worker and tasks share a group of few processes. During
// the run another program takes all remaining processes for three seconds, so that starts fail, and
// then frees them. Tasks end after that.
func TestManyTasksWithFewProcesses(t *testing.T) {
	e2etest.OneByOne(t)
	t.Parallel()
	group := pidsGroup(t, 160)
	s := e2etest.Start(t, viaShell(t, "echo $$ >"+group+"/cgroup.procs"), e2etest.Args("--cores", "10"))
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "gate"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := s.Submit(manyTasks(dir, "[ -e eaten ] || read line <gate; exec sleep 0.05")) // without a further process
	e2etest.Eventually(t, "the run is under way", func() bool { return countStarts(dir) > 20 })
	eater := exhaustProcesses(t, group)
	if err := os.WriteFile(filepath.Join(dir, "eaten"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	defer openGate(dir)()
	e2etest.Eventually(t, "starts are deferred for want of processes", func() bool {
		v, err := s.Metric("caravan_starts_deferred_total")
		return err == nil && v > 0
	})
	waitRandomly(exhaustedFor)
	before := countStarts(dir)
	if before >= manyProcesses {
		t.Error("the run ended before the processes were freed, so the test is void")
	}
	eater()
	t.Logf("%d tasks had begun when the processes were given back", before)
	checkMany(t, s, run, dir)
}

// openGate releases the readers of dir/gate, and later ones, until it is stopped.
func openGate(dir string) (stop func()) {
	over := make(chan struct{})
	var opener sync.WaitGroup
	opener.Go(func() {
		for !e2etest.Over(over) {
			// It can be opened only while it has a reader.
			if f, err := os.OpenFile(filepath.Join(dir, "gate"), os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
				f.Close()
			}
			waitRandomly(10 * time.Millisecond)
		}
	})
	return func() { close(over); opener.Wait() }
}

// exhaustedFor is how long starts are impossible.
const exhaustedFor = 3 * time.Second

// countStarts returns how many attempts have begun.
func countStarts(dir string) int {
	text, _ := os.ReadFile(filepath.Join(dir, "ran"))
	return strings.Count(string(text), "\n")
}

// pidsGroup makes a control group of at most n processes and threads, or skips the test.
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

// exhaustProcesses moves processes into a group until starts are impossible there. The returned
// function ends them.
func exhaustProcesses(t *testing.T, group string) (giveBack func()) {
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
		// The limit does not prevent that a process is moved.
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(c.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	return giveBack
}

// TestManyTasksWithJournalErrors: the worker's journal fails in the middle of a run, at one call
// or for a while. A task without an intent in a journal does not start, running tasks go on, and a
// new journal replaces the old one.
func TestManyTasksWithJournalErrors(t *testing.T) {
	e2etest.OneByOne(t)
	t.Parallel()
	rng := seededRandom(t)
	once := func(op faults.Op, path string, first int) []faults.Fault {
		return []faults.Fault{{Op: op, Path: path, First: first, Times: 1, Err: syscall.EIO}}
	}
	at := func() int { return 2 + rng.IntN(manyProcesses/8) } // of some 100 writes: intents, and ends with what is between, of up to 8 attempts each
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
	if e2etest.Race { // the journal is too short for a second one
		maps.DeleteFunc(cases, func(name string, _ []faults.Fault) bool { return strings.Contains(name, "next journal") })
	}
	for name, script := range sampleCases(rng, cases) {
		t.Run(name, func(t *testing.T) {
			data, dir := filepath.Join(t.TempDir(), "data"), t.TempDir()
			t.Logf("%+v", script)
			if err := faults.WriteScript(e2etest.Script(data), script...); err != nil {
				t.Fatal(err)
			}
			s := e2etest.Start(t, e2etest.Faulty(t), e2etest.Data(data))
			checkMany(t, s, s.Submit(manyTasks(dir, "")), dir)
			if failed := faultHits(t, data); len(failed) > 0 {
				t.Logf("%d calls failed, the first one: %s", len(failed), failed[0])
			}
		})
	}
}

// sampleCases chooses -damages/10 of the cases at random, at least two; under the race detector at
// least one.
func sampleCases[T any](rng *rand.Rand, cases map[string]T) map[string]T {
	names := slices.Sorted(maps.Keys(cases))
	rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names[min(max(scaled(2), scaled(*damagesFlag)/10), len(names)):] {
		delete(cases, name)
	}
	return cases
}

// TestManyConcurrentProcesses: very many tasks with tiny core requests run at the same time. Lists
// show them, a kill ends them all, and the memory of their worker stays small.
func TestManyConcurrentProcesses(t *testing.T) {
	tasks := scaled(500)
	if *sizesFlag == "big" {
		tasks = 10_000
	}
	// The worker keeps 64 descriptors and takes 8 for each attempt.
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if most := int(min(files.Max, 1<<30)-64) / 8; most < tasks {
		t.Logf("%d descriptors are allowed here, so no more than %d attempts at once", files.Max, most)
		tasks = most
	}
	const most = 100 << 20
	s := e2etest.Start(t, e2etest.Args("--cores", "10"))
	dir := t.TempDir()
	begin := time.Now()
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"t": e2etest.Sh("echo {{N}} >>ran; exec sleep 600").Job("workDir", dir).Job("cores", "0.001"),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(tasks)}))
	testenv.Poll(5*time.Minute, func() bool { return countStarts(dir) == tasks })
	started := time.Since(begin)
	if got := len(processesIn(dir)); got != tasks {
		t.Errorf("%d processes run, want %d", got, tasks)
	}
	e2etest.Eventually(t, "all are listed as running", func() bool { return taskStates(s, run)["RUNNING"] == tasks })
	workers := testenv.Workers(s.Config().Data)
	begin = time.Now()
	s.Want(200, "DELETE", e2etest.Path(run, ""), "")
	if !testenv.Poll(2*time.Minute, func() bool { return s.State(run) == "KILLED" }) {
		t.Fatalf("after a kill the run is %s, its tasks %v", s.State(run), taskStates(s, run))
	}
	killed := time.Since(begin)
	if left := processesIn(dir); len(left) > 0 {
		t.Errorf("the run is KILLED, %d of its processes live: %s", len(left), left[0])
	}
	if got := taskStates(s, run)["KILLED"]; got != tasks {
		t.Errorf("%d tasks are KILLED, want %d", got, tasks)
	}
	if len(workers) != 1 {
		t.Fatalf("%d workers", len(workers))
	}
	peak := peakMemory(t, workers[0])
	if peak > most && !e2etest.Race {
		t.Errorf("the worker had %d MB of memory, want at most %d", peak>>20, most>>20)
	}
	t.Logf("%d processes at once after %v, all killed after %v; the worker had %d MB at most, the server %d MB",
		tasks, started.Round(time.Millisecond), killed.Round(time.Millisecond), peak>>20, peakMemory(t, s.PID())>>20)
	checkSettled(t, s, dir)
}

// taskStates counts the tasks of a run by state.
func taskStates(s *e2etest.Server, run uint64) map[string]int {
	counts := map[string]int{}
	for _, state := range s.Get(run).TaskStates {
		counts[state]++
	}
	return counts
}
