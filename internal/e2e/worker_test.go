package e2e

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// timedFan is a run of n tasks whose script takes some time. A task appends "start NAME ATTEMPT" to
// dir/lines before that, and "end NAME ATTEMPT" after it.
func timedFan(dir string, n int, script string) e2etest.Doc {
	return e2etest.Graph(map[string]e2etest.Task{
		"t": e2etest.Sh(`echo "start $CARAVAN_TASK $CARAVAN_ATTEMPT" >> lines; test -n x{{N}}; `+script+
			`; echo "end $CARAVAN_TASK $CARAVAN_ATTEMPT" >> lines; echo out-$CARAVAN_TASK`).Job("workDir", dir),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(n)})
}

// processesIn lists the living processes whose working folder is dir.
func processesIn(dir string) (found []string) {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		if at, err := os.Readlink(link); err == nil && at == dir {
			cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(link), "cmdline"))
			found = append(found, filepath.Base(filepath.Dir(link))+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return found
}

// checkSettled checks an idle server: task processes, held slots and slot requests are all zero.
func checkSettled(t *testing.T, s *e2etest.Server, dir string) {
	t.Helper()
	e2etest.Eventually(t, "no process of a task is left", func() bool { return len(processesIn(dir)) == 0 })
	for _, name := range []string{"caravan_slots_cores", "caravan_slots_memory_bytes", "caravan_slots_noop", "caravan_slot_requests"} {
		e2etest.Eventually(t, name+" is back at 0", func() bool {
			v, err := s.Metric(name)
			if err != nil {
				t.Fatal(err)
			}
			return v == 0
		})
	}
}

// TestServerKilledThreeTimes: 160 tasks of 100 ms each, and a server killed three times at random
// moments. Each task is started exactly once. The last quarter of the tasks goes on when the last kill
// is over.
func TestServerKilledThreeTimes(t *testing.T) {
	t.Parallel()
	const tasks, cores = 160, 8
	rng := seededRandom(t)
	for round := range *roundsFlag {
		dir := t.TempDir()
		s := e2etest.Start(t, e2etest.Args("--cores", fmt.Sprint(cores)))
		if err := syscall.Mkfifo(filepath.Join(dir, "gate"), 0o600); err != nil {
			t.Fatal(err)
		}
		run := s.Submit(timedFan(dir, tasks, fmt.Sprintf("[ {{N}} -lt %d ] || [ -e over ] || read line <gate; sleep 0.1", tasks*3/4)))
		for kill := range 3 {
			target := rng.IntN(tasks/4) + kill*tasks/4
			testenv.Poll(e2etest.Patience, func() bool { return countEnded(readLines(t, dir)) >= target })
			waitRandomly(time.Duration(rng.IntN(20_000)) * time.Microsecond)
			s = s.Crash()
		}
		if err := os.WriteFile(filepath.Join(dir, "over"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		defer openGate(dir)()
		s.Await(run, "COMPLETED")
		starts := map[string]int{}
		for _, l := range readLines(t, dir) {
			if l.what == "start" {
				starts[l.task]++
			}
		}
		doc := s.Get(run)
		for i := range tasks {
			name := fmt.Sprintf("t_%d", i)
			a := doc.TaskAttempts[name]
			if starts[name] != 1 || len(a) != 1 || a[0].RC != 0 || a[0].OutputLog != "out-"+name+"\n" {
				t.Errorf("round %d: %s was started %d times; attempts %+v", round, name, starts[name], a)
			}
		}
		checkSettled(t, s, dir)
		if _, _, err := s.Stop(e2etest.Patience); err != nil {
			t.Error(err)
		}
	}
}

// TestWorkerAndServerKilled kills the worker, the server or both at random moments, some of them
// after SIGSTOP, so that their work happens late or not at all. All tasks complete, and only tasks
// that were running when a worker died run again.
func TestWorkerAndServerKilled(t *testing.T) {
	t.Parallel()
	const tasks, cores, kills = 120, 4, 4
	rng := seededRandom(t)
	for round := range *roundsFlag {
		dir := t.TempDir()
		s := e2etest.Start(t, e2etest.Args("--cores", fmt.Sprint(cores)))
		data := s.Config().Data
		run := s.Submit(timedFan(dir, tasks, "sleep 0.05"))
		deaths := 0
		for kill := range kills {
			target := rng.IntN(tasks/kills/2) + kill*tasks/kills
			testenv.Poll(e2etest.Patience, func() bool { return countEnded(readLines(t, dir)) >= target })
			waitRandomly(time.Duration(rng.IntN(20_000)) * time.Microsecond)
			var died int
			s, died = killSome(t, s, rng, data)
			deaths += died
		}
		s.Await(run, "COMPLETED")
		checkAttempts(t, round, s.Get(run), readLines(t, dir), tasks, deaths*cores)
		checkSettled(t, s, dir)
		t.Logf("round %d: %d workers killed", round, deaths)
		if _, _, err := s.Stop(e2etest.Patience); err != nil {
			t.Error(err)
		}
	}
}

// killSome kills some of server and worker, and starts the server again if it was one of them. It
// returns how many workers may have died.
func killSome(t *testing.T, s *e2etest.Server, rng *rand.Rand, data string) (*e2etest.Server, int) {
	t.Helper()
	const worker, server = 1, 2
	victims := 1 + rng.IntN(3)
	workers := testenv.Workers(data)
	signal := func(sig syscall.Signal) {
		for _, pid := range workers {
			_ = syscall.Kill(pid, sig) // it may have ended
		}
	}
	if rng.IntN(2) == 0 {
		signal(syscall.SIGSTOP)
		waitRandomly(time.Duration(rng.IntN(50)) * time.Millisecond)
	}
	if rng.IntN(3) == 0 {
		_ = s.Signal(syscall.SIGSTOP)
		waitRandomly(time.Duration(rng.IntN(20)) * time.Millisecond)
	}
	deaths := 0
	if victims&worker != 0 {
		signal(syscall.SIGKILL)
		deaths = max(len(workers), 1)
	}
	if victims&server != 0 {
		s.Kill()
		defer signal(syscall.SIGCONT)
		return s.Restart(), deaths
	}
	_ = s.Signal(syscall.SIGCONT)
	signal(syscall.SIGCONT)
	return s, deaths
}

// checkAttempts: every task succeeded by its last attempt. Attempts are numbered and start once,
// lost ones say so, and there are at most extra of them.
func checkAttempts(t *testing.T, round int, doc *e2etest.Run, lines []taskLine, tasks, extra int) {
	t.Helper()
	begun := map[taskLine]int{}
	starts := 0
	for _, l := range lines {
		if l.what == "start" {
			starts++
			if begun[l]++; begun[l] > 1 {
				t.Errorf("round %d: %s: attempt %d was started %d times", round, l.task, l.attempt, begun[l])
			}
		}
	}
	if starts > tasks+extra {
		t.Errorf("round %d: %d starts of %d tasks, at most %d were running when a worker died", round, starts, tasks, extra)
	}
	if len(doc.TaskAttempts) != tasks {
		t.Errorf("round %d: attempts of %d tasks, want %d", round, len(doc.TaskAttempts), tasks)
	}
	for task, attempts := range doc.TaskAttempts {
		for i, a := range attempts {
			last := i == len(attempts)-1
			if a.Attempt != i+1 || (a.RC == 0) != last || !last && !strings.HasPrefix(a.ExecutorLog, "lost: ") {
				t.Errorf("round %d: %s: attempt %d of %d: %+v", round, task, i+1, len(attempts), a)
			}
		}
		for l := range begun {
			if l.task == task && l.attempt > len(attempts) {
				t.Errorf("round %d: %s: attempt %d ran and is not in the record", round, task, l.attempt)
			}
		}
	}
}

// TestSIGTERMLeavesTasksRunning: the server ends although tasks run, and the tasks go
// on. The next server adopts them: it shows, follows and kills them.
func TestSIGTERMLeavesTasksRunning(t *testing.T) {
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
	code, took, err := s.Stop(e2etest.Patience)
	if err != nil || code != 0 {
		t.Fatalf("exit code %d, %v:\n%s", code, err, s.Log())
	}
	t.Logf("stopped after %v", took)
	if n := len(processesIn(dir)); n < 2 {
		t.Errorf("%d processes go on, want those of two tasks", n)
	}

	s = s.Restart()
	s.AwaitTask(run, "deaf", "RUNNING")
	s.AwaitTask(other, "long", "RUNNING")
	if a, b := before.TaskAttempts["deaf"], s.Get(run).TaskAttempts["deaf"]; len(a) != 1 || len(b) != 1 || a[0].StartTime != b[0].StartTime {
		t.Errorf("attempts before %+v, and after %+v", a, b)
	}
	// Both slots are taken: other tasks do not start.
	third := s.Submit(e2etest.Graph(map[string]e2etest.Task{"third": e2etest.Sh("true")}))
	follower := followOutput(t, s, run, "deaf")
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
	checkSettled(t, s, dir)
}

// followOutput follows the output of a task, line by line.
func followOutput(t *testing.T, s *e2etest.Server, run uint64, task string) func() string {
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

// TestAdoptedTasksCanBeControlled: requests before and after a crash apply to the tasks that
// survived it.
func TestAdoptedTasksCanBeControlled(t *testing.T) {
	t.Parallel()
	s, dir := e2etest.Start(t, e2etest.Args("--kill-grace", "100ms")), t.TempDir()
	waits := "while ! test -e go; do sleep 0.02; done"
	paused := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"a": e2etest.Sh(waits).Job("workDir", dir).Job("cores", "0.1"), "b": e2etest.Sh("true").After("a"),
	}))
	one := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"victim": e2etest.Sh(waits).Job("workDir", dir).Job("cores", "0.1"), "other": e2etest.Sh(waits).Job("workDir", dir).Job("cores", "0.1"),
	}))
	for run, tasks := range map[uint64][]string{paused: {"a"}, one: {"victim", "other"}} {
		for _, task := range tasks {
			s.AwaitTask(run, task, "RUNNING")
		}
	}
	s.Want(200, "PATCH", e2etest.Path(paused, "/state/PAUSED"), "")
	late := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"slow": e2etest.Sh("exec sleep 300").Job("workDir", dir).Job("timeoutSeconds", 3).Job("cores", "0.1"),
	}))
	s.AwaitTask(late, "slow", "RUNNING")
	s = s.Crash()
	s.Want(200, "DELETE", e2etest.Path(one, "/task/victim"), "") // perhaps before the worker has reported
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
	s.Await(late, "ERRORED") // its timeout ends it
	for run, task := range map[uint64]string{paused: "a", one: "victim", late: "slow"} {
		if a := s.Get(run).TaskAttempts[task]; len(a) != 1 {
			t.Errorf("%s: attempts %+v", task, a)
		}
	}
	checkSettled(t, s, dir)
}

// TestUpgrade: another build of the binary takes over in the middle of a run. Running tasks go on in
// the old worker, which then ends.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	bin, err := testenv.BuildAs(t.TempDir(), e2etest.Race, "upgraded")
	if err != nil {
		t.Fatal(err)
	}
	s, dir := e2etest.Start(t), t.TempDir()
	data := s.Config().Data
	const tasks = 60
	run := s.Submit(timedFan(dir, tasks, "sleep 0.1"))
	e2etest.Eventually(t, "some tasks have ended", func() bool { return countEnded(readLines(t, dir)) >= tasks/4 })
	old := testenv.Workers(data)
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
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
		now := testenv.Workers(data)
		return len(old) == 1 && len(now) == 1 && now[0] != old[0]
	})
	checkSettled(t, s, dir)
}

// TestGrandchildInOwnSessionDoesNotBlockTask: a task that leaves a process in another session ends
// when its own process ends: its slot is free, its output complete, and the grandchild is not waited
// for.
func TestGrandchildInOwnSessionDoesNotBlockTask(t *testing.T) {
	t.Parallel()
	s, dir := e2etest.Start(t), t.TempDir()
	t.Cleanup(func() {
		for _, p := range processesIn(dir) {
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
	e2etest.Eventually(t, "no cores are taken", func() bool {
		n, err := s.Metric("caravan_slots_cores")
		return err == nil && n == 0
	})
}

// TestCleanEndLeavesNoProcessesOrFiles: an idle server that stops leaves no processes, and neither
// does a run with a server of its own, whether it ends or is interrupted.
func TestCleanEndLeavesNoProcessesOrFiles(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"x": e2etest.Sh("true")}))
	data := s.Config().Data
	if len(testenv.Workers(data)) != 1 {
		t.Errorf("workers: %v", testenv.Workers(data))
	}
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	e2etest.Eventually(t, "the worker has ended", func() bool { return len(testenv.Workers(data)) == 0 })

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
			left := processesIn(dir)
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

// TestStoppedProcessesContinue stops the server, its worker, and both with SIGSTOP for -pause, under
// a load of submissions and of tasks. The others do not mistake this for a disk that hangs or for a
// worker that died: all go on, and every task runs once.
func TestStoppedProcessesContinue(t *testing.T) {
	t.Parallel()
	tasks := max(scaled(200), 100)
	for _, name := range []string{"server", "worker", "both"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := e2etest.Start(t)
			run := s.Submit(processes(dir, tasks, "exec sleep 0.05"))
			e2etest.Eventually(t, "the run is under way", func() bool { return countStarts(dir) > 20 })
			workers := testenv.Workers(s.Config().Data)
			if len(workers) != 1 {
				t.Fatalf("workers: %v", workers)
			}
			var stop []int
			if name != "worker" {
				stop = append(stop, s.PID())
			}
			if name != "server" {
				stop = append(stop, workers[0])
			}

			// Commits are in progress throughout.
			var load sync.WaitGroup
			over := make(chan struct{})
			var acknowledged atomic.Int64
			for range 4 {
				load.Go(func() {
					for {
						select {
						case <-over:
							return
						default:
						}
						// While the server is stopped, an answer may exceed the patience of a client.
						if r, err := s.Try("POST", "/v1/dagrun", `{"tasks":{"n":{"job":{"executor":"noop"}}}}`); err == nil && r.Status == http.StatusOK {
							acknowledged.Add(1)
						}
						waitRandomly(2 * time.Millisecond)
					}
				})
			}
			e2etest.Eventually(t, "runs are acknowledged", func() bool { return acknowledged.Load() > 20 })
			for _, pid := range stop {
				if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			waitRandomly(*pauseFlag)
			for _, pid := range stop {
				if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%s stood for %v", name, time.Since(began))
			before := acknowledged.Load()
			e2etest.Eventually(t, "runs are acknowledged again", func() bool { return acknowledged.Load() > before+20 })
			close(over)
			load.Wait()
			checkProcesses(t, s, run, dir, tasks)
			e2etest.Eventually(t, "/healthz is well", func() bool { return s.Do(http.MethodGet, "/healthz", "").Status == http.StatusOK })
			if now := testenv.Workers(s.Config().Data); len(now) != 1 || now[0] != workers[0] {
				t.Errorf("the worker was %d, now there are %v", workers[0], now)
			}
			for _, word := range []string{"cannot go on", "has not ended after", "a worker has ended"} {
				if strings.Contains(s.Log(), word) {
					t.Errorf("the log says %q", word)
				}
			}
			mute := strings.Count(s.Log(), "a worker does not answer")
			if name == "server" && mute > 0 || name == "worker" && *pauseFlag > 10*time.Second && mute != 1 {
				t.Errorf("the log says %d times that the worker does not answer", mute)
			}
			if n := len(s.List(fmt.Sprintf("?all=1&limit=%d", 10_000))); int64(n) < min(acknowledged.Load(), 10_000) {
				t.Errorf("%d runs are there, %d were acknowledged", n, acknowledged.Load())
			}
		})
	}
}
