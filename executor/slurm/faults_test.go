package slurm_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/slurm"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// waitingScript appends a line to a file at its start, and ends when another file exists.
const waitingScript = `echo "$CARAVAN_TASK" >> "$DATA/starts"; while [ ! -e "$DATA/go" ]; do sleep 0.02; done`

func (g *rig) releaseTasks() {
	if err := os.WriteFile(filepath.Join(g.data, "go"), nil, 0o600); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) countStarts() int { return countLines(filepath.Join(g.data, "starts")) }

// waitStarts waits for the first line of n scripts. A start is reported before, so a kill after that report
// may come first.
func (g *rig) waitStarts(n int) {
	g.t.Helper()
	poll(g.t, "scripts to begin", func() bool { return g.countStarts() == n })
}

// An order that sbatch will never accept fails; one that it may accept later waits.
func TestRefusedSubmissions(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	g.cluster.RefuseSubmissions("Invalid partition name specified")
	s.Start(g.order(1, "true"))
	checkEnd(t, rec.WaitFinal(key(1)), messages.AttemptNotStarted, -1, "sbatch: Batch job submission failed: Invalid partition name specified")

	g.cluster.RefuseSubmissions("Slurm temporarily unable to accept job, sleeping and retrying")
	s.Start(g.order(2, "true"))
	poll(t, "a second try", func() bool { return g.cluster.CallCount("sbatch") >= 3 })
	g.cluster.RefuseSubmissions("")
	checkEnd(t, rec.WaitFinal(key(2)), messages.AttemptSucceeded, 0, "")
}

// A submission that exceeds a limit on submitted jobs is repeated when jobs have ended. The log says
// once that orders wait, and that they go on.
func TestSubmitLimitIsAwaited(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	s.Start(g.order(1, waitingScript))
	rec.WaitStarted(key(1))
	g.cluster.RefuseSubmissions("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)")
	s.Start(g.order(2, "true"))
	poll(t, "a second try", func() bool { return g.cluster.CallCount("sbatch") >= 3 })
	if err := s.Healthy(); err != nil {
		t.Errorf("health of a cluster at its limit: %v", err)
	}
	g.cluster.RefuseSubmissions("")
	checkEnd(t, rec.WaitFinal(key(2)), messages.AttemptSucceeded, 0, "")
	if n := strings.Count(g.log.String(), "limit on submitted jobs; orders wait"); n != 1 {
		t.Errorf("%d lines on one limit", n)
	}
	if n := strings.Count(g.log.String(), "Slurm accepts jobs again"); n != 1 {
		t.Errorf("%d lines on its end", n)
	}
	g.releaseTasks()
	checkEnd(t, rec.WaitFinal(key(1)), messages.AttemptSucceeded, 0, "")
}

// Arrays that exceed the cluster's limit are split.
func TestTooLargeArraysAreSplit(t *testing.T) {
	testenv.WithGrowingTime(t, 200*time.Millisecond, func(gather time.Duration) error { return splitArray(t, gather) })
}

// splitArray returns an error when an array has half of the orders. A busy machine takes longer than gather to
// give all orders, and may have submitted only some of them in the array that was refused.
func splitArray(t *testing.T, gather time.Duration) error {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec, func(c *slurm.Config) { c.Gather = gather })
	g.cluster.RefuseSubmissions("Invalid job array specification")
	for i := range uint32(8) {
		s.Start(g.order(i, "true"))
	}
	poll(t, "a second try", func() bool { return g.cluster.CallCount("sbatch") >= 2 })
	g.cluster.RefuseSubmissions("")
	rec.WaitFinals(8)
	for i := range uint32(8) {
		if r := rec.WaitFinal(key(i)); r.Record.Result == messages.AttemptNotStarted && !strings.Contains(r.Record.ExecutorLog, "Invalid job array") {
			t.Errorf("%+v", r)
		}
	}
	for _, j := range g.cluster.Jobs() {
		if j.Index >= 4 {
			return fmt.Errorf("an array with index %d", j.Index)
		}
	}
	return nil
}

// When sbatch accepts a job and fails, the job is found by its name and not submitted again.
func TestAcceptedJobIsNotResubmitted(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	g.cluster.BreakConnections("Socket timed out on send/recv operation")
	s.Start(g.order(1, waitingScript))
	rec.WaitStarted(key(1))
	g.releaseTasks()
	checkEnd(t, rec.WaitFinal(key(1)), messages.AttemptSucceeded, 0, "")
	if g.countStarts() != 1 || g.cluster.CallCount("sbatch") != 1 {
		t.Errorf("%d starts, %d calls of sbatch", g.countStarts(), g.cluster.CallCount("sbatch"))
	}
}

// An order waits for a cluster that does not answer. Jobs that run there go on.
func TestUnreachableClusterIsAwaited(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	s.Start(g.order(1, waitingScript))
	rec.WaitStarted(key(1))
	g.cluster.SetUnreachable(true)
	s.Start(g.order(2, "true"))
	poll(t, "the log to tell", func() bool { return strings.Contains(g.log.String(), "Slurm does not answer") })
	if err := s.Healthy(); err == nil || !strings.Contains(err.Error(), "slurm does not answer") {
		t.Errorf("health of an unreachable cluster: %v", err)
	}
	g.releaseTasks()
	if n := len(rec.Reports(key(1))); n != 1 {
		t.Errorf("%d reports while nothing is known", n)
	}
	g.cluster.SetUnreachable(false)
	checkEnd(t, rec.WaitFinal(key(1)), messages.AttemptSucceeded, 0, "")
	checkEnd(t, rec.WaitFinal(key(2)), messages.AttemptSucceeded, 0, "")
	if n := strings.Count(g.log.String(), "does not answer"); n != 1 {
		t.Errorf("%d lines on one absence", n)
	}
	if err := s.Healthy(); err != nil {
		t.Errorf("health of a cluster that answers again: %v", err)
	}
}

// A cluster that does not answer is polled until it does, even when no job is left to ask about.
func TestIdleSlurmRecoversItsHealth(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	g.cluster.SetUnreachable(true)
	s.Start(g.order(1, "true"))
	poll(t, "Healthy to say so", func() bool { return s.Healthy() != nil })
	s.Kill(key(1), 0)
	g.cluster.SetUnreachable(false)
	rec.WaitFinal(key(1))
	poll(t, "Healthy to recover", func() bool { return s.Healthy() == nil })
}

// Attempts that end by a failure of their node, or by preemption, are lost and have not failed.
func TestNodeFailureLosesTheAttempt(t *testing.T) {
	for _, state := range []string{"NODE_FAIL", "PREEMPTED"} {
		g := newRig(t)
		rec := executortest.NewRecorder(t)
		s := g.open(rec)
		s.Start(g.order(1, waitingScript))
		rec.WaitStarted(key(1))
		g.waitStarts(1)
		g.cluster.LoseRunningJobs(state)
		checkEnd(t, rec.WaitFinal(key(1)), messages.AttemptLost, rec.WaitFinal(key(1)).Record.RC, "ended as "+state)
	}
}

// When Slurm has forgotten a job, the folder tells how the attempt ended. An attempt that had not
// begun is submitted again.
func TestForgottenJobsAreDecidedByTheFolder(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	g.cluster.HoldJobs(true)
	s.Start(g.order(1, "exit 4"))
	g.waitSubmitted(1)
	g.cluster.ForgetJobs(true)
	poll(t, "it to be submitted again", func() bool { return len(g.cluster.Jobs()) == 1 })
	g.cluster.HoldJobs(false)
	checkEnd(t, rec.WaitFinal(key(1)), messages.AttemptFailed, 4, "")
}

// A job that an administrator cancels is a failed attempt, whose record names the cause.
func TestJobCancelledByAnAdministrator(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	s.Start(g.order(1, waitingScript))
	rec.WaitStarted(key(1))
	g.waitStarts(1)
	g.cancelAllJobs()
	checkEnd(t, rec.WaitFinal(key(1)), messages.AttemptSignaled, 143, "ended as CANCELLED")
	g.cluster.HoldJobs(true)
	s.Start(g.order(2, waitingScript))
	g.waitSubmitted(2)
	g.cancelAllJobs()
	checkEnd(t, rec.WaitFinal(key(2)), messages.AttemptNotStarted, -1, "ended as CANCELLED before it began")
}

// A job that the cluster runs twice runs its attempt once.
func TestRequeuedJobRunsItsAttemptOnce(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	s.Start(g.order(1, waitingScript))
	rec.WaitStarted(key(1))
	j := g.cluster.Jobs()[0]
	g.cluster.Resubmit(j.Array, j.Index)
	poll(t, "the second one to end", func() bool { return g.cluster.Jobs()[1].State == "COMPLETED" })
	g.releaseTasks()
	checkEnd(t, rec.WaitFinal(key(1)), messages.AttemptSucceeded, 0, "")
	if g.countStarts() != 1 {
		t.Errorf("%d starts", g.countStarts())
	}
}

// The record names a node that does not see the folder.
func TestFolderMissingOnANodeIsNamed(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	g.cluster.HoldJobs(true)
	s.Start(g.order(1, "true"))
	g.waitSubmitted(1)
	if err := os.Rename(g.path(1, ""), g.dir()+"/hidden"); err != nil {
		t.Fatal(err)
	}
	g.cluster.HoldJobs(false)
	poll(t, "the job's end", func() bool { return g.cluster.Jobs()[0].State == "FAILED" })
	if err := os.Rename(g.dir()+"/hidden", g.path(1, "")); err != nil {
		t.Fatal(err)
	}
	checkEnd(t, rec.WaitFinal(key(1)), messages.AttemptNotStarted, -1, "must be on a file system that the server and the nodes share")
}

// A Slurm without JSON is asked by scontrol.
func TestOldSlurmWithoutJSON(t *testing.T) {
	g := newRig(t)
	g.cluster.DisableJSON()
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	s.Start(g.order(1, "exit 2"))
	s.Start(g.order(2, waitingScript))
	checkEnd(t, rec.WaitFinal(key(1)), messages.AttemptFailed, 2, "")
	rec.WaitStarted(key(2))
	g.waitStarts(1)
	s.Kill(key(2), testenv.Patience)
	checkEnd(t, rec.WaitFinal(key(2)), messages.AttemptKilled, 143, "killed by the user")
	if n := g.cluster.CallCount("squeue"); n != 1 {
		t.Errorf("squeue was called %d times", n)
	}
}

// A task that ignores SIGTERM is killed after its grace.
func TestKillForcesATaskThatIgnoresSIGTERM(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	s.Start(g.order(1, `trap "echo no" TERM; touch $DATA/ignores; while :; do sleep 0.02; done`))
	s.Start(g.order(2, `sleep 1000 & wait`))
	rec.WaitStarted(key(1))
	rec.WaitStarted(key(2))
	poll(t, "the task ignores SIGTERM", func() bool {
		_, err := os.Stat(filepath.Join(g.data, "ignores"))
		return err == nil
	})
	s.Kill(key(1), time.Minute)
	s.Kill(key(1), 100*time.Millisecond) // is brought forward
	s.Kill(key(2), 0)
	checkEnd(t, rec.WaitFinal(key(1)), messages.AttemptKilled, 137, "killed by the user")
	if r := rec.WaitFinal(key(2)); r.Record.Result != messages.AttemptKilled || r.Record.RC != 137 && r.Record.RC != 143 {
		t.Errorf("%+v", r.Record)
	}
}

func TestNewChecksItsConfig(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	for name, change := range map[string]func(*slurm.Config){
		"required":                 func(c *slurm.Config) { c.Sink = nil },
		"sbatch is not in PATH":    func(c *slurm.Config) { c.Getenv = func(string) string { return "" } },
		"slurm folder /dev/null/x": func(c *slurm.Config) { c.Dir = "/dev/null/x" },
	} {
		c := g.config(rec.Sink)
		change(&c)
		if _, err := slurm.New(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	g.open(rec)
	if _, err := slurm.New(g.config(rec.Sink)); err == nil || !strings.Contains(err.Error(), "in use by another server") {
		t.Errorf("a second one: %v", err)
	}
}

// A child of a killed server holds the lock of the folder until its exec. The next server waits for it.
func TestLockOfAKilledServerIsWaitedFor(t *testing.T) {
	g := newRig(t)
	if err := os.MkdirAll(g.dir(), 0o700); err != nil {
		t.Fatal(err)
	}
	// On a busy machine the holder may take longer than a server waits.
	testenv.RepeatWithin(t, testenv.Patience, "a server opens once the holder is gone", func() bool {
		held, err := vfs.LockFile(filepath.Join(g.dir(), "lock"))
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		time.AfterFunc(50*time.Millisecond, func() { held.Close() })
		s, err := slurm.New(g.config(executortest.NewRecorder(t).Sink))
		return err == nil && s.Close() == nil
	})
}

var _ executor.Durable = (*slurm.Slurm)(nil)
