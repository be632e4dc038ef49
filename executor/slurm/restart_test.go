package slurm_test

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/slurm"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// cancelAllJobs ends all jobs, as an administrator would.
func (g *rig) cancelAllJobs() {
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

// The next server continues with running attempts, learns which have ended, and repeats ends that
// were not acknowledged. No attempt starts twice.
func TestNextServerResumesAttempts(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	s.Start(g.order(1, "echo first; exit 3")) // ends before
	s.Start(g.order(2, waitingScript+"; echo second"))
	s.Start(g.order(3, "exit 5")) // ends before, and is acknowledged
	rec.WaitFinal(key(1))
	rec.WaitFinal(key(3))
	rec.WaitStarted(key(2))
	s.Acknowledge(key(3))
	poll(t, "the folder to go", func() bool { return !fileExists(g.path(3, "")) })
	g.cluster.HoldJobs(true)
	s.Start(g.order(4, waitingScript)) // waits in the cluster
	g.waitSubmitted(4)
	if err := s.Detach(); err != nil {
		t.Fatal(err)
	}
	g.cluster.HoldJobs(false)
	g.cluster.ForgetJobs(false)
	g.waitStarts(2)
	before := len(rec.All())

	rec2 := executortest.NewRecorder(t)
	s = g.open(rec2)
	s.ExpectResume(1)
	for _, task := range []uint32{1, 2, 4} {
		s.Start(asResumed(g.order(task, "echo never")))
	}
	fresh := asResumed(g.order(5, waitingScript)) // was granted, and the server died before it was ordered
	s.Start(fresh)
	s.ResumeDone(1)
	checkEnd(t, rec2.WaitFinal(key(1)), messages.AttemptFailed, 3, "")
	for _, task := range []uint32{2, 4, 5} {
		rec2.WaitStarted(key(task))
	}
	l, err := s.OpenLog(key(2), messages.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s.Kill(key(4), testenv.Patience)
	checkEnd(t, rec2.WaitFinal(key(4)), messages.AttemptKilled, 143, "")
	g.releaseTasks()
	r := rec2.WaitFinal(key(2))
	checkEnd(t, r, messages.AttemptSucceeded, 0, "")
	if string(r.Record.Stdout.Inline) != "second\n" || rec2.Starts(key(1)) != 1 {
		t.Errorf("printed %q; the first has %d starts", r.Record.Stdout.Inline, rec2.Starts(key(1)))
	}
	checkEnd(t, rec2.WaitFinal(key(5)), messages.AttemptSucceeded, 0, "")
	if g.countStarts() != 3 {
		t.Errorf("%d starts, want 3", g.countStarts())
	}
	if n := len(rec.All()); n != before {
		t.Errorf("%d reports after Detach", n-before)
	}
	s.Acknowledge(key(1), key(2), key(4), key(5))
	poll(t, "the folders to go", func() bool { return !fileExists(filepath.Join(g.dir(), "1")) })
}

// Attempts of runs that were not expected are ended and forgotten.
func TestUnexpectedAttemptsAreDiscarded(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	s.Start(g.order(1, waitingScript))
	s.Start(g.order(2, "true"))
	rec.WaitStarted(key(1))
	rec.WaitFinal(key(2))
	g.waitStarts(1)
	g.cluster.HoldJobs(true)
	s.Start(g.order(3, waitingScript))
	g.waitSubmitted(3)
	if err := s.Detach(); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(g.path(4, ""), 0o700); err != nil { // never submitted
		t.Fatal(err)
	}
	rec = executortest.NewRecorder(t)
	s = g.open(rec)
	s.ExpectResume(2, 3)
	poll(t, "the folders to go", func() bool { return !fileExists(filepath.Join(g.dir(), "1")) })
	poll(t, "the jobs to end", func() bool {
		for _, j := range g.cluster.Jobs() {
			if j.State == "PENDING" || j.State == "RUNNING" {
				return false
			}
		}
		return true
	})
	if n := len(rec.All()); n != 0 || g.countStarts() != 1 {
		t.Errorf("%d reports, %d starts", n, g.countStarts())
	}
	g.cluster.HoldJobs(false)
	s.Start(g.order(5, "true"))
	checkEnd(t, rec.WaitFinal(key(5)), messages.AttemptSucceeded, 0, "")
}

// ResumeDone ends the attempts that its run did not order again. Attempts of other runs stay.
func TestResumeDoneEndsOrphansOfItsRun(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	for task := range uint32(3) {
		o := g.order(task, waitingScript)
		o.Key.Run = messages.RunID(task)
		s.Start(o)
		rec.WaitStarted(o.Key)
	}
	g.waitStarts(3)
	if err := s.Detach(); err != nil {
		t.Fatal(err)
	}
	rec = executortest.NewRecorder(t)
	s = g.open(rec)
	s.ExpectResume(0, 1, 2)
	again := asResumed(g.order(2, waitingScript))
	again.Key.Run = 2
	s.Start(again)
	rec.WaitStarted(again.Key)
	s.ResumeDone(0)
	s.ResumeDone(2)
	poll(t, "the run to go", func() bool { return !fileExists(filepath.Join(g.dir(), "0")) })
	if !fileExists(filepath.Join(g.dir(), "1/1.1/begun")) || !fileExists(filepath.Join(g.dir(), "2/2.1/begun")) {
		t.Error("another run's attempts are gone")
	}
	g.releaseTasks()
	checkEnd(t, rec.WaitFinal(again.Key), messages.AttemptSucceeded, 0, "")
	if n := len(rec.All()); n != 2 || g.countStarts() != 3 {
		t.Errorf("%d reports, %d starts", n, g.countStarts())
	}
}

// Orders of a run whose actor is rebuilt do not count until they are given again.
func TestRebuiltRunMustOrderAgain(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	log := &reports{rec: rec}
	s, err := slurm.New(g.config(log.sink))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.ExpectResume()
	s.Start(g.order(1, waitingScript))
	s.Start(g.order(2, "exit 3"))
	rec.WaitStarted(key(1))
	rec.WaitFinal(key(2))
	g.cluster.HoldJobs(true)
	s.Start(g.order(3, waitingScript))
	g.waitSubmitted(3)
	l, err := s.OpenLog(key(1), messages.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s.ExpectResume(1)
	fresh := executortest.NewRecorder(t)
	log.use(fresh)
	for _, task := range []uint32{1, 2, 3} {
		s.Start(asResumed(g.order(task, waitingScript)))
	}
	s.ResumeDone(1)
	g.cluster.HoldJobs(false)
	fresh.WaitStarted(key(1))
	checkEnd(t, fresh.WaitFinal(key(2)), messages.AttemptFailed, 3, "")
	fresh.WaitStarted(key(3))
	if l.Live() {
		t.Error("a log of the attempt that does not count is live")
	}
	g.releaseTasks()
	checkEnd(t, fresh.WaitFinal(key(1)), messages.AttemptSucceeded, 0, "")
	checkEnd(t, fresh.WaitFinal(key(3)), messages.AttemptSucceeded, 0, "")
	if g.countStarts() != 2 {
		t.Errorf("%d starts", g.countStarts())
	}
}

// An order that can never run has no folder. A run that is rebuilt before its end was durable orders it again,
// and hears the same again.
func TestRebuiltRunHearsAgainWhyAnOrderCannotRun(t *testing.T) {
	g := newRig(t)
	log := &reports{rec: executortest.NewRecorder(t)}
	s, err := slurm.New(g.config(log.sink))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.ExpectResume()
	o := g.order(1, "")
	o.Command, o.UseShell = nil, false
	s.Start(o)
	checkEnd(t, log.rec.WaitFinal(key(1)), messages.AttemptNotStarted, -1, "")
	s.ExpectResume(1)
	fresh := executortest.NewRecorder(t)
	log.use(fresh)
	s.Start(asResumed(o))
	s.ResumeDone(1)
	checkEnd(t, fresh.WaitFinal(key(1)), messages.AttemptNotStarted, -1, "")
}

// A run's actor is rebuilt while the report of an ended attempt is being made. The report that the run
// gets once it has ordered the attempt again has the whole output.
func TestRebuildDuringCollectionKeepsOutput(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	log := &reports{rec: rec}
	s, err := slurm.New(g.config(log.sink))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.ExpectResume()
	release := slurm.HoldCollections(s)
	o := g.order(1, "echo hello")
	o.Capture = true
	s.Start(o)
	poll(t, "the collection", func() bool { return slurm.IsCollecting(s, o.Key) })
	s.ExpectResume(1)
	fresh := executortest.NewRecorder(t)
	poll(t, "the rebuild", func() bool { return !slurm.IsCollecting(s, o.Key) })
	log.use(fresh)
	release()
	poll(t, "the saved report", func() bool { return fileExists(g.path(1, "verdict")) })
	s.Start(asResumed(o))
	s.ResumeDone(1)
	r := fresh.WaitFinal(o.Key)
	checkEnd(t, r, messages.AttemptSucceeded, 0, "")
	if string(r.Stdout) != "hello\n" || string(r.Record.Stdout.Inline) != "hello\n" {
		t.Errorf("captured %q, kept %q of %d bytes", r.Stdout, r.Record.Stdout.Inline, r.Record.Stdout.Size)
	}
}

// A run's actor is rebuilt again while an end that was reported before is about to be repeated. Only the
// attempt of the last order reports its start and its end.
func TestRebuildDuringRepetitionReportsOnce(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	log := &reports{rec: rec}
	s, err := slurm.New(g.config(log.sink))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.ExpectResume()
	s.Start(g.order(1, "exit 3"))
	rec.WaitFinal(key(1))
	s.ExpectResume(1)
	fresh := executortest.NewRecorder(t)
	log.use(fresh)
	release := slurm.HoldCollections(s)
	s.Start(asResumed(g.order(1, "exit 3")))
	poll(t, "the repetition", func() bool { return slurm.IsCollecting(s, key(1)) })
	s.ExpectResume(1)
	s.Start(asResumed(g.order(1, "exit 3")))
	s.ResumeDone(1)
	poll(t, "the second repetition", func() bool { return slurm.IsCollecting(s, key(1)) })
	release()
	checkEnd(t, fresh.WaitFinal(key(1)), messages.AttemptFailed, 3, "")
	if err := s.Close(); err != nil { // after it no report comes
		t.Error(err)
	}
	if n := len(fresh.Reports(key(1))); n != 2 {
		t.Errorf("%d reports, want its start and its end", n)
	}
}

// reports passes reports to one Recorder after another.
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

// A job that was killed with its node while no server ran, and that Slurm has forgotten, is lost.
func TestAttemptUnknownToSlurmIsLost(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	s.Start(g.order(1, waitingScript))
	rec.WaitStarted(key(1))
	if err := s.Detach(); err != nil {
		t.Fatal(err)
	}
	g.cluster.LoseRunningJobs("NODE_FAIL")
	g.cluster.ForgetJobs(false)
	rec = executortest.NewRecorder(t)
	s = g.open(rec)
	s.Start(asResumed(g.order(1, waitingScript)))
	checkEnd(t, rec.WaitFinal(key(1)), messages.AttemptLost, -1, "Slurm no longer knows job")
}

// An order that was revoked while its job waited may come again, and then starts once.
func TestRevokedKeyIsFree(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	s := g.open(rec)
	g.cluster.HoldJobs(true)
	for round := range 3 {
		s.Start(g.order(1, waitingScript))
		poll(t, "a job", func() bool { return len(g.cluster.Jobs()) == round+1 })
		s.Revoke(key(1))
		poll(t, "the order to be taken back", func() bool { return len(rec.Reports(key(1))) == round+1 })
	}
	s.Start(g.order(1, waitingScript))
	g.cluster.HoldJobs(false)
	rec.WaitStarted(key(1))
	g.releaseTasks()
	poll(t, "the end", func() bool { return len(rec.Reports(key(1))) == 5 })
	if g.countStarts() != 1 {
		t.Errorf("%d starts", g.countStarts())
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

// crashTasks is how many attempts each server orders.
const crashTasks = 12

func crashOrder(data string, task uint32) executor.Order {
	return executor.Order{Key: key(task), Name: fmt.Sprint("t_", task), Shell: fmt.Sprintf(`echo %d >> "$DATA/starts"; sleep 0.1`, task),
		UseShell: true, CPUMillis: 1000, Environment: []string{"DATA=" + data}, Dir: data}
}

// crashServer orders all tasks, as a server does, and is killed while it does. again: it is a
// restarted server, which sets Resume.
func crashServer(data string, again bool) int {
	store, err := outputs.Open(filepath.Join(data, "output"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	common := executor.CommonConfig{Outputs: store, Sink: func(...executor.Report) {}, Logger: slog.New(slog.DiscardHandler)}
	s, err := slurm.New(slurm.Config{CommonConfig: common, Dir: filepath.Join(data, "slurm"), Poll: 20 * time.Millisecond, Gather: 10 * time.Millisecond})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("open")
	for task := range uint32(crashTasks) {
		o := crashOrder(data, task)
		o.Resume = again
		s.Start(o)
	}
	select {}
}

// A server is killed at random moments, several times. In the end every attempt has started exactly
// once.
func TestEachAttemptStartsOnceAcrossCrashes(t *testing.T) {
	const rounds, kills = 3, 4
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for round := range uint64(rounds) {
		rng := rand.New(rand.NewPCG(round, 7))
		g := newRig(t)
		g.cluster.SetSlots(4)
		for kill := range kills {
			cmd := exec.Command(self, "server", g.data, strconv.FormatBool(kill > 0))
			cmd.Env = append(os.Environ(), g.cluster.Environment()...)
			cmd.Stderr = g.log
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := out.Read(make([]byte, 16)); err != nil {
				t.Fatalf("the server does not open: %v\n%s", err, g.log)
			}
			after := time.NewTimer(time.Duration(rng.IntN(300)) * time.Millisecond)
			<-after.C
			_ = cmd.Process.Signal(unix.SIGKILL)
			_ = cmd.Wait() // it was killed
		}
		rec := executortest.NewRecorder(t)
		s := g.open(rec)
		s.ExpectResume(1)
		for task := range uint32(crashTasks) {
			s.Start(asResumed(crashOrder(g.data, task)))
		}
		s.ResumeDone(1)
		rec.WaitFinals(crashTasks)
		if n := g.countStarts(); n != crashTasks {
			t.Errorf("round %d: %d starts, want %d", round, n, crashTasks)
		}
		for task := range uint32(crashTasks) {
			checkEnd(t, rec.WaitFinal(key(task)), 0, 0, "")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
