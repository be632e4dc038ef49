package slurm_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/slurm"
	"github.com/caravan-dag/caravan/messages"
)

// scancel ends all jobs, as an administrator would.
func (g *rig) scancel() {
	g.t.Helper()
	var ids []string
	for _, j := range g.cluster.Jobs() {
		if j.State == "PENDING" || j.State == "RUNNING" {
			ids = append(ids, itoa(j.Array)+"_"+itoa(j.Index))
		}
	}
	cmd := exec.Command(filepath.Join(g.cluster.Getenv("SLURM_CONF"), "bin", "scancel"), ids...)
	cmd.Env = g.cluster.Environment()
	if out, err := cmd.CombinedOutput(); err != nil {
		g.t.Fatalf("%v: %s", err, out)
	}
}

// TestReattach: the next server goes on with what ran, learns what ended meanwhile, and
// hears again what was not acknowledged; nothing is started twice.
func TestReattach(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	s.Start(g.order(1, "echo first; exit 3")) // ends before
	s.Start(g.order(2, patient+"; echo second"))
	s.Start(g.order(3, "exit 5")) // ends before, and is acknowledged
	rec.WaitFinal(key(1))
	rec.WaitFinal(key(3))
	rec.WaitStarted(key(2))
	s.Acknowledge(key(3))
	poll(t, "the folder to go", func() bool { return !exists(g.path(3, "")) })
	g.cluster.HoldJobs(true)
	s.Start(g.order(4, patient)) // waits in the cluster
	g.submitted(4)
	if err := s.Detach(); err != nil {
		t.Fatal(err)
	}
	g.cluster.HoldJobs(false)
	g.cluster.ForgetJobs(false)
	poll(t, "task 4", func() bool { return g.starts() == 2 })
	before := len(rec.All())

	rec2 := executortest.NewRecorder(t)
	s = g.open(rec2)
	s.ExpectResume(1)
	for _, task := range []uint32{1, 2, 4} {
		s.Start(resumed(g.order(task, "echo never")))
	}
	fresh := resumed(g.order(5, patient)) // was granted, and the server died before it was ordered
	s.Start(fresh)
	s.ResumeDone(1)
	ended(t, rec2.WaitFinal(key(1)), messages.AttemptFailed, 3, "")
	for _, task := range []uint32{2, 4, 5} {
		rec2.WaitStarted(key(task))
	}
	l, err := s.OpenLog(key(2), messages.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s.Kill(key(4), time.Second)
	ended(t, rec2.WaitFinal(key(4)), messages.AttemptKilled, 143, "")
	g.release()
	r := rec2.WaitFinal(key(2))
	ended(t, r, messages.AttemptSucceeded, 0, "")
	if string(r.Record.Stdout.Inline) != "second\n" || rec2.Starts(key(1)) != 1 {
		t.Errorf("printed %q; the first has %d starts", r.Record.Stdout.Inline, rec2.Starts(key(1)))
	}
	ended(t, rec2.WaitFinal(key(5)), messages.AttemptSucceeded, 0, "")
	if g.starts() != 3 {
		t.Errorf("%d starts, want 3", g.starts())
	}
	if n := len(rec.All()); n != before {
		t.Errorf("%d reports after Detach", n-before)
	}
	s.Acknowledge(key(1), key(2), key(4), key(5))
	poll(t, "the folders to go", func() bool { return !exists(filepath.Join(g.dir(), "1")) })
}

// TestSettled: what nobody asked for is ended and forgotten.
func TestSettled(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	s.Start(g.order(1, patient))
	s.Start(g.order(2, "true"))
	rec.WaitStarted(key(1))
	rec.WaitFinal(key(2))
	g.cluster.HoldJobs(true)
	s.Start(g.order(3, patient))
	g.submitted(3)
	if err := s.Detach(); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(g.path(4, ""), 0o700); err != nil { // never submitted
		t.Fatal(err)
	}
	rec = executortest.NewRecorder(t)
	s = g.open(rec)
	s.ExpectResume(2, 3)
	poll(t, "the folders to go", func() bool { return !exists(filepath.Join(g.dir(), "1")) })
	poll(t, "the jobs to end", func() bool {
		for _, j := range g.cluster.Jobs() {
			if j.State == "PENDING" || j.State == "RUNNING" {
				return false
			}
		}
		return true
	})
	if n := len(rec.All()); n != 0 || g.starts() != 1 {
		t.Errorf("%d reports, %d starts", n, g.starts())
	}
	g.cluster.HoldJobs(false)
	s.Start(g.order(5, "true"))
	ended(t, rec.WaitFinal(key(5)), messages.AttemptSucceeded, 0, "")
}

// TestSettledRun: of a run that has given all it wants the rest is ended; what a run has
// that has not, stays.
func TestSettledRun(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	for task := range uint32(3) {
		o := g.order(task, patient)
		o.Key.Run = messages.RunID(task)
		s.Start(o)
		rec.WaitStarted(o.Key)
	}
	if err := s.Detach(); err != nil {
		t.Fatal(err)
	}
	rec = executortest.NewRecorder(t)
	s = g.open(rec)
	s.ExpectResume(0, 1, 2)
	again := resumed(g.order(2, patient))
	again.Key.Run = 2
	s.Start(again)
	rec.WaitStarted(again.Key)
	s.ResumeDone(0)
	s.ResumeDone(2)
	poll(t, "the run to go", func() bool { return !exists(filepath.Join(g.dir(), "0")) })
	if !exists(filepath.Join(g.dir(), "1/1.1/begun")) || !exists(filepath.Join(g.dir(), "2/2.1/begun")) {
		t.Error("another run's attempts are gone")
	}
	g.release()
	ended(t, rec.WaitFinal(again.Key), messages.AttemptSucceeded, 0, "")
	if n := len(rec.All()); n != 2 || g.starts() != 3 {
		t.Errorf("%d reports, %d starts", n, g.starts())
	}
}

// TestRunBeginsAnew: what a run had given counts no more, until it gives it again.
func TestRunBeginsAnew(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	log := &reports{rec: rec}
	s, err := slurm.New(g.config(log.sink))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.ExpectResume()
	s.Start(g.order(1, patient))
	s.Start(g.order(2, "exit 3"))
	rec.WaitStarted(key(1))
	rec.WaitFinal(key(2))
	g.cluster.HoldJobs(true)
	s.Start(g.order(3, patient))
	g.submitted(3)
	s.ExpectResume(1)
	fresh := executortest.NewRecorder(t)
	log.use(fresh)
	for _, task := range []uint32{1, 2, 3} {
		s.Start(resumed(g.order(task, patient)))
	}
	s.ResumeDone(1)
	g.cluster.HoldJobs(false)
	fresh.WaitStarted(key(1))
	ended(t, fresh.WaitFinal(key(2)), messages.AttemptFailed, 3, "")
	fresh.WaitStarted(key(3))
	g.release()
	ended(t, fresh.WaitFinal(key(1)), messages.AttemptSucceeded, 0, "")
	ended(t, fresh.WaitFinal(key(3)), messages.AttemptSucceeded, 0, "")
	if g.starts() != 2 {
		t.Errorf("%d starts", g.starts())
	}
}

// reports goes to one Recorder after another.
type reports struct {
	mu  sync.Mutex
	rec *executortest.Recorder
}

func (r *reports) use(rec *executortest.Recorder) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec = rec
}

func (r *reports) sink(list ...executor.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec.Sink(list...)
}

// TestNobodyKnows: a job that was killed with its node while no server looked, and that
// Slurm has forgotten, is lost.
func TestNobodyKnows(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	s.Start(g.order(1, patient))
	rec.WaitStarted(key(1))
	if err := s.Detach(); err != nil {
		t.Fatal(err)
	}
	g.cluster.LoseRunningJobs("NODE_FAIL")
	g.cluster.ForgetJobs(false)
	rec = executortest.NewRecorder(t)
	s = g.open(rec)
	s.Start(resumed(g.order(1, patient)))
	ended(t, rec.WaitFinal(key(1)), messages.AttemptLost, -1, "Slurm no longer knows job")
}

// TestRevokedKeyIsFree: an order that was taken back while its job waited may come
// again, and begins once.
func TestRevokedKeyIsFree(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	g.cluster.HoldJobs(true)
	for round := range 3 {
		s.Start(g.order(1, patient))
		poll(t, "a job", func() bool { return len(g.cluster.Jobs()) == round+1 })
		s.Revoke(key(1))
		poll(t, "the order to be taken back", func() bool { return len(rec.Reports(key(1))) == round+1 })
	}
	s.Start(g.order(1, patient))
	g.cluster.HoldJobs(false)
	rec.WaitStarted(key(1))
	g.release()
	poll(t, "the end", func() bool { return len(rec.Reports(key(1))) == 5 })
	if g.starts() != 1 {
		t.Errorf("%d starts", g.starts())
	}
}
