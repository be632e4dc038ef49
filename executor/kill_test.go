package executor_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

func timeout(d time.Duration) func(*executor.Order) {
	return func(o *executor.Order) { o.Timeout = d }
}

func TestTimeoutEndsTheAttempt(t *testing.T) {
	r := newRig(t, nil)
	began := time.Now()
	rec := r.runShell("sleep 1000", timeout(150*time.Millisecond)).Record
	if rec.Result != messages.AttemptTimedOut || rec.RC != 143 || rec.ExecutorLog != "timed out after 150ms" {
		t.Errorf("%+v", rec)
	}
	if took := time.Since(began); took < 150*time.Millisecond {
		t.Errorf("took %v", took)
	}
	if rec := r.runShell("true", timeout(time.Hour)).Record; rec.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rec)
	}
}

func TestTimeoutForcesATaskThatIgnoresSIGTERM(t *testing.T) {
	r := newRig(t, func(c *executor.ProcessConfig) { c.Grace = 200 * time.Millisecond })
	limit := 100 * time.Millisecond
	rec := r.runShell("trap '' TERM; sleep 1000", timeout(limit)).Record
	for rec.RC == 143 && limit < testenv.Patience { // a busy machine reached the trap too late
		limit *= 4
		rec = r.runShell("trap '' TERM; sleep 1000", timeout(limit)).Record
	}
	if rec.Result != messages.AttemptTimedOut || rec.RC != 137 {
		t.Errorf("%+v", rec)
	}
	if took := time.Duration(rec.Stop - rec.Start); took < limit+200*time.Millisecond {
		t.Errorf("took %v", took)
	}
}

func TestKillGrantsTheGrace(t *testing.T) {
	r := newRig(t, nil)
	key := r.startShell(1, `trap 'echo bye; exit 0' TERM; echo ready; while `+whileTestRuns()+`; do sleep 0.01; done`)
	r.waitPrinted(key, "ready")
	r.Kill(key, 10*time.Second)
	rec := r.WaitFinal(key).Record
	if rec.Result != messages.AttemptKilled || rec.RC != 0 || rec.ExecutorLog != "killed by the user" {
		t.Errorf("%+v", rec)
	}
	if out := r.readOutput(rec.Stdout); out != "ready\nbye\n" {
		t.Errorf("printed %q", out)
	}
}

func TestKillForcesATaskThatIgnoresSIGTERM(t *testing.T) {
	r := newRig(t, nil)
	key := r.startShell(1, `trap '' TERM; echo ready; sleep 1000`)
	r.waitPrinted(key, "ready")
	began := time.Now()
	r.Kill(key, time.Hour)
	r.Kill(key, 200*time.Millisecond) // only an earlier SIGKILL counts
	r.Kill(key, time.Hour)
	rec := r.WaitFinal(key).Record
	if rec.Result != messages.AttemptKilled || rec.RC != 137 {
		t.Errorf("%+v", rec)
	}
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("took %v", took)
	}
}

func TestKillReachesAStoppedTask(t *testing.T) {
	r := newRig(t, nil)
	pidFile := filepath.Join(r.dir, "pid")
	key := r.startShell(1, `trap 'echo woken; exit 5' TERM; echo $$ >`+pidFile+`; while `+whileTestRuns()+`; do kill -STOP $$; done`)
	poll(t, func() string {
		text, _ := os.ReadFile(pidFile)
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		if state, err := testenv.ProcessState(pid); err != nil || state != 'T' {
			return fmt.Sprintf("the task is not stopped: %q, %v", state, err)
		}
		return ""
	})
	r.Kill(key, 10*time.Second)
	if rec := r.WaitFinal(key).Record; rec.Result != messages.AttemptKilled || rec.RC != 5 {
		t.Errorf("%+v", rec)
	}
}

// The leader obeys at once, while a member of its group uses the grace to clean up.
func TestKillWaitsForTheGroup(t *testing.T) {
	r := newRig(t, nil)
	done := filepath.Join(r.dir, "done")
	key := r.startShell(1, fmt.Sprintf(`(trap 'sleep 0.3; echo x > %s; exit' TERM; echo ready; while %s; do sleep 0.01; done) & exec sleep 1000`, done, whileTestRuns()))
	r.waitPrinted(key, "ready")
	r.Kill(key, 20*time.Second)
	rec := r.WaitFinal(key).Record
	if rec.Result != messages.AttemptKilled {
		t.Errorf("%+v", rec)
	}
	if _, err := os.Stat(done); err != nil {
		t.Errorf("reported before the group had ended: %v", err)
	}
	if pids := markedProcesses(r.mark); len(pids) != 0 {
		t.Errorf("%v live on after the report", pids)
	}
}

func TestKillForcesTheGroup(t *testing.T) {
	r := newRig(t, nil)
	key := r.startShell(1, `(trap '' TERM; echo ready; sleep 1000; sleep 1000) & sleep 1000`)
	r.waitPrinted(key, "ready")
	r.Kill(key, 200*time.Millisecond)
	if rec := r.WaitFinal(key).Record; rec.Result != messages.AttemptKilled || rec.RC != 143 {
		t.Errorf("%+v", rec)
	}
	if pids := markedProcesses(r.mark); len(pids) != 0 {
		t.Errorf("%v live on after the report", pids)
	}
}

// A timeout ends the background children too. A task that ends by itself leaves them alone, frees
// its slot, and keeps the output printed so far.
func TestTimeoutEndsBackgroundChildren(t *testing.T) {
	r := newRig(t, nil)
	all := func(o *executor.Order) { o.CPUMillis = 4000 }
	for _, script := range []string{
		`sleep 1000 & echo $! >&2`,
		`setsid sleep 1000 & echo $! >&2`,
		`setsid sh -c 'while ` + whileTestRuns() + `; do echo later; sleep 0.01; done' & echo $! >&2`,
	} {
		rec := r.runShell(script, all).Record
		if rec.Result != messages.AttemptSucceeded {
			t.Errorf("%q: %+v", script, rec)
		}
		var pid int
		if _, err := fmt.Sscan(r.readOutput(rec.Stderr), &pid); err != nil {
			t.Fatalf("%q printed %q", script, r.readOutput(rec.Stderr))
		}
		r.checkIdle()
		if syscall.Kill(pid, 0) != nil {
			t.Errorf("%q: the child is gone", script)
		}
	}
	killMarked(t, r.mark)
	rec := r.runShell(`sleep 1000 & sleep 1000`, all, timeout(100*time.Millisecond)).Record
	if rec.Result != messages.AttemptTimedOut || len(markedProcesses(r.mark)) != 0 {
		t.Errorf("%+v, and %v live on", rec, markedProcesses(r.mark))
	}
}

func TestKillOfManyAttemptsAtOnce(t *testing.T) {
	r := newRig(t, nil)
	const n = 40
	for i := range uint32(n) {
		r.startShell(i, "sleep 1000", func(o *executor.Order) { o.CPUMillis = 100 })
	}
	for i := range uint32(n) {
		r.WaitStarted(id(i))
	}
	for i := range uint32(n) {
		r.Kill(id(i), time.Hour) // none of them needs a grace
	}
	r.WaitFinals(n)
}

func TestCloseEndsEverything(t *testing.T) {
	r := newRig(t, func(c *executor.ProcessConfig) { c.CloseGrace = 100 * time.Millisecond })
	stubborn := r.startShell(1, `trap '' TERM; echo ready; sleep 1000`)
	r.startShell(2, "sleep 1000 & sleep 1000")
	waiting := r.startShell(3, "true", func(o *executor.Order) { o.CPUMillis = 4000 })
	r.waitPrinted(stubborn, "ready")
	r.WaitStarted(id(2))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for _, k := range []messages.AttemptKey{stubborn, id(2)} {
		if rec := r.WaitFinal(k).Record; rec.Result != messages.AttemptLost || rec.ExecutorLog != "ended by the executor's shutdown" {
			t.Errorf("%+v", rec)
		}
	}
	if rep := r.WaitFinal(waiting); rep.Kind != executor.Revoked {
		t.Errorf("%+v", rep)
	}
	if pids := markedProcesses(r.mark); len(pids) != 0 {
		t.Errorf("%v live on after Close", pids)
	}
}

// 200 attempts end by themselves while kills come at random moments.
func TestKillsRaceWithExits(t *testing.T) {
	r := newRig(t, nil)
	const n = 200
	rng := rand.New(rand.NewPCG(3, 4))
	scripts := []string{"true", "exit 1", "sleep 0.002", "sleep 0.01 & true", "trap '' TERM; sleep 0.02", "kill -KILL $$", "sleep 1000 & wait"}
	threads := runtime.NumGoroutine()
	var expected []bool // ends by itself
	for i := range uint32(n) {
		s := rng.IntN(len(scripts))
		expected = append(expected, s != len(scripts)-1)
		key := r.startShell(i, scripts[s], func(o *executor.Order) {
			o.CPUMillis = 500 + 500*rng.Int64N(3)
			if rng.IntN(8) == 0 {
				o.Timeout = time.Duration(1+rng.IntN(10)) * time.Millisecond
			}
		})
		if rng.IntN(2) == 0 || !expected[i] {
			time.AfterFunc(time.Duration(rng.IntN(int(i)*2000+1000))*time.Microsecond, func() { r.Kill(key, 100*time.Millisecond) })
		}
	}
	r.WaitFinals(n)
	r.checkIdle()
	for i := range uint32(n) {
		if finals := len(r.Reports(id(i))) - r.Starts(id(i)); finals != 1 {
			t.Errorf("task %d: %d final reports", i, finals)
		}
	}
	// Tasks that ended by themselves left their children alone; these end soon.
	poll(t, func() string { return strings.Join(markedProcesses(r.mark), " ") })
	poll(t, func() string {
		if now := runtime.NumGoroutine(); now > threads {
			return fmt.Sprintf("%d goroutines before, %d after", threads, now)
		}
		return ""
	})
}
