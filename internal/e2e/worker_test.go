package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/servertest"
)

// fan is a run of n tasks that each take a while and append "start NAME ATTEMPT"
// before it and "end NAME ATTEMPT" behind it to dir/lines.
func fan(dir string, n int, seconds string) e2etest.Doc {
	return e2etest.Graph(map[string]e2etest.Task{
		"t": e2etest.Sh(`echo "start $CARAVAN_TASK $CARAVAN_ATTEMPT" >> lines; test -n x{{N}}; sleep `+seconds+
			`; echo "end $CARAVAN_TASK $CARAVAN_ATTEMPT" >> lines; echo out-$CARAVAN_TASK`).Job("workDir", dir),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(n)})
}

// inFolder lists the living processes whose working folder is dir.
func inFolder(dir string) (found []string) {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		if at, err := os.Readlink(link); err == nil && at == dir {
			cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(link), "cmdline"))
			found = append(found, filepath.Base(filepath.Dir(link))+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return found
}

// settled checks what must hold when nothing runs any more: no process of a task, no
// slot taken, nothing that wants one.
func settled(t *testing.T, s *e2etest.Server, dir string) {
	t.Helper()
	e2etest.Eventually(t, "no process of a task is left", func() bool { return len(inFolder(dir)) == 0 })
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

// TestServerKilledThreeTimes: 300 tasks of 100 ms each, the server killed three times
// at random moments: each task is started exactly once.
func TestServerKilledThreeTimes(t *testing.T) {
	t.Parallel()
	const tasks, cores = 300, 8
	rng := random(t)
	for round := range *roundsFlag {
		dir := t.TempDir()
		s := e2etest.Start(t, e2etest.Args("--cores", fmt.Sprint(cores)))
		run := s.Submit(fan(dir, tasks, "0.1"))
		for kill := range 3 {
			target := rng.IntN(tasks/4) + kill*tasks/4
			e2etest.Poll(e2etest.Patience, func() bool { return ended(readLines(t, dir)) >= target })
			pauseFor(time.Duration(rng.IntN(20_000)) * time.Microsecond)
			s = s.Crash()
		}
		if done := ended(readLines(t, dir)); done == tasks {
			t.Errorf("round %d: the run was over before the last kill", round)
		}
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
		settled(t, s, dir)
		if _, _, err := s.Stop(e2etest.Patience); err != nil {
			t.Error(err)
		}
	}
}

// TestWorkerAndServerKilled kills the worker, the server or both at random moments,
// some of them stopped before, so that what they were doing is done late or never.
// Nothing is lost, and what runs again was running when a worker died.
func TestWorkerAndServerKilled(t *testing.T) {
	t.Parallel()
	const tasks, cores, kills = 120, 4, 4
	rng := random(t)
	for round := range *roundsFlag {
		dir := t.TempDir()
		s := e2etest.Start(t, e2etest.Args("--cores", fmt.Sprint(cores)))
		data := s.Config().Data
		run := s.Submit(fan(dir, tasks, "0.05"))
		deaths := 0
		for kill := range kills {
			target := rng.IntN(tasks/kills/2) + kill*tasks/kills
			e2etest.Poll(e2etest.Patience, func() bool { return ended(readLines(t, dir)) >= target })
			pauseFor(time.Duration(rng.IntN(20_000)) * time.Microsecond)
			var died int
			s, died = disturb(t, s, rng, data)
			deaths += died
		}
		s.Await(run, "COMPLETED")
		checkAttempts(t, round, s.Get(run), readLines(t, dir), tasks, deaths*cores)
		settled(t, s, dir)
		t.Logf("round %d: %d workers killed", round, deaths)
		if _, _, err := s.Stop(e2etest.Patience); err != nil {
			t.Error(err)
		}
	}
}

// disturb kills some of server and worker, and starts the server again if it was one
// of them. It returns how many workers may have died.
func disturb(t *testing.T, s *e2etest.Server, rng *rand.Rand, data string) (*e2etest.Server, int) {
	t.Helper()
	const worker, server = 1, 2
	victims := 1 + rng.IntN(3)
	workers := servertest.Workers(data)
	signal := func(sig syscall.Signal) {
		for _, pid := range workers {
			_ = syscall.Kill(pid, sig) // it may have ended
		}
	}
	if rng.IntN(2) == 0 {
		signal(syscall.SIGSTOP)
		pauseFor(time.Duration(rng.IntN(50)) * time.Millisecond)
	}
	if rng.IntN(3) == 0 {
		_ = s.Signal(syscall.SIGSTOP)
		pauseFor(time.Duration(rng.IntN(20)) * time.Millisecond)
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

// checkAttempts: every task ended well, by its last attempt; attempts are numbered,
// none began twice, those that were lost say so, and there are no more than extra.
func checkAttempts(t *testing.T, round int, doc *e2etest.Run, lines []line, tasks, extra int) {
	t.Helper()
	begun := map[line]int{}
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
