package remote_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// TestDeadWorkerIsRecovered kills the worker: its attempts are lost and their processes ended,
// wherever they went. Ends that were not acknowledged are reported again, and the next worker runs
// what waited.
func TestDeadWorkerIsRecovered(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	r.Start(g.order(0, "true"))
	rec.WaitFinal(key(0)) // and not acknowledged
	r.Start(g.order(1, `trap "" TERM; setsid sleep 1000 & env -i sleep 1000 & touch there; while `+tested()+`; do sleep 1000; done`))
	r.Start(g.order(2, "exec sleep 1000"))
	r.Start(g.order(3, "echo x >>ran3"))
	poll(t, "task 1", func() bool { _, err := os.Stat(filepath.Join(g.data, "there")); return err == nil })
	rec.WaitStarted(key(1))
	rec.WaitStarted(key(2))
	log, err := r.OpenLog(key(1), messages.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	first := g.worker()
	_ = unix.Kill(first, unix.SIGKILL)
	for _, k := range []messages.AttemptKey{key(1), key(2)} {
		rep := rec.WaitFinal(k)
		if rec := rep.Record; rec.Result != messages.AttemptLost || rec.RC != -1 || rec.Node != "here" || rec.Start == 0 ||
			!strings.Contains(rec.ExecutorLog, fmt.Sprintf("pid %d", first)) {
			t.Errorf("%+v", rep)
		}
	}
	if log.Live() {
		t.Error("the log of a lost attempt is live")
	}
	if _, err := log.ReadAt(make([]byte, 1), 0); err == nil {
		t.Error("read from a dead worker")
	}
	if rep := rec.WaitFinal(key(3)); rep.Record.Result != messages.AttemptSucceeded || read(filepath.Join(g.data, "ran3")) != "x\n" {
		t.Errorf("%+v", rep)
	}
	if left := g.processes(); len(left) != 1 {
		t.Errorf("processes %v, want the new worker alone", left)
	}
	if n := len(rec.Reports(key(0))); n > 2 || rec.Starts(key(0)) != 1 {
		t.Errorf("%d reports of the attempt that had ended", n)
	}
	// The dead worker's folder stays until every end in it is acknowledged, over a restart too.
	r.Acknowledge(key(3))
	r.Detach()
	rec = executortest.NewRecorder(t)
	r = g.open(rec)
	r.Start(resumed(g.order(0, "false")))
	if rep := rec.WaitFinal(key(0)); rep.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rep)
	}
	r.Acknowledge(key(0))
	r.ExpectResume()
	poll(t, "the dead worker's folder to be removed", func() bool { left, _ := worker.ListFolders(g.dir()); return len(left) == 1 })
}

// TestUnrecoveredWorkerIsReported kills a worker whose journal cannot be read: orders wait, Healthy
// names the cause, and both end when the journal can be read again.
func TestUnrecoveredWorkerIsReported(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	r.Start(g.order(0, "exec sleep 1000"))
	rec.WaitStarted(key(0))
	paths, _ := filepath.Glob(g.dir() + "/w-*/journal")
	if len(paths) != 1 {
		t.Fatal(paths)
	}
	journal, kept := paths[0], paths[0]+".kept"
	if err := errors.Join(os.Rename(journal, kept), os.Mkdir(journal, 0o700)); err != nil {
		t.Fatal(err)
	}
	_ = unix.Kill(g.worker(), unix.SIGKILL)
	poll(t, "the cause in Healthy", func() bool {
		err := r.Healthy()
		return err != nil && strings.HasPrefix(err.Error(), "attempts wait: cannot recover the state of a dead worker: ") &&
			strings.HasSuffix(err.Error(), journal+": it is a folder, not a regular file")
	})
	r.Start(g.order(1, "true"))
	if err := errors.Join(os.Remove(journal), os.Rename(kept, journal)); err != nil {
		t.Fatal(err)
	}
	if rep := rec.WaitFinal(key(0)); rep.Record.Result != messages.AttemptLost {
		t.Errorf("%+v", rep)
	}
	rec.WaitFinal(key(1))
	if err := r.Healthy(); err != nil {
		t.Error(err)
	}
}

// TestRecoveredWorkerIsNotReported kills two workers, and the journal of the first cannot be read for a
// while. Once the first is recovered Healthy is silent, though the processes of the second still have the
// grace to end.
func TestRecoveredWorkerIsNotReported(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	r.Start(g.order(0, "exec sleep 1000"))
	rec.WaitStarted(key(0))
	first := g.worker()
	paths, _ := filepath.Glob(g.dir() + "/w-*/journal")
	if len(paths) != 1 {
		t.Fatal(paths)
	}
	r.Detach()
	rec = executortest.NewRecorder(t)
	r = g.open(rec, func(c *remote.Config) {
		c.Settings.Version = "newer" // so that a second worker starts
		c.Settings.CloseGrace = 2 * time.Second
	})
	r.Start(resumed(g.order(0, "true")))
	r.ExpectResume()
	r.Start(g.order(1, `trap "" TERM; touch there; while `+tested()+`; do sleep 1000; done`))
	poll(t, "task 1", func() bool { _, err := os.Stat(filepath.Join(g.data, "there")); return err == nil })
	rec.WaitStarted(key(1))
	pids := slices.DeleteFunc(g.workers(), func(pid int) bool { return pid == first })
	if len(pids) != 1 {
		t.Fatalf("new workers: %v, want one", pids)
	}
	journal, kept := paths[0], paths[0]+".kept"
	if err := errors.Join(os.Rename(journal, kept), os.Mkdir(journal, 0o700)); err != nil {
		t.Fatal(err)
	}
	_ = unix.Kill(first, unix.SIGKILL)
	poll(t, "the cause in Healthy", func() bool { return r.Healthy() != nil })
	// The next try is a second away and finds both.
	if err := errors.Join(os.Remove(journal), os.Rename(kept, journal)); err != nil {
		t.Fatal(err)
	}
	_ = unix.Kill(pids[0], unix.SIGKILL)
	rec.WaitFinal(key(0))
	if err := r.Healthy(); err != nil {
		t.Error(err)
	}
	rec.WaitFinal(key(1))
}

// TestSlowRecoveryIsReported kills a worker whose task ignores SIGTERM: while the task lives, orders
// wait, and Healthy tells of the recovery that takes long.
func TestSlowRecoveryIsReported(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec, func(c *remote.Config) {
		c.Settings.CloseGrace = testenv.Patience // the task ends before
		remote.SetSlowRecovery(c, time.Millisecond)
	})
	r.Start(g.order(0, `trap "" TERM; touch there; `+until("over")))
	poll(t, "task 0", func() bool { _, err := os.Stat(filepath.Join(g.data, "there")); return err == nil })
	rec.WaitStarted(key(0))
	_ = unix.Kill(g.worker(), unix.SIGKILL)
	poll(t, "the recovery in Healthy", func() bool {
		err := r.Healthy()
		return err != nil && strings.Contains(err.Error(), "attempts wait: the recovery of dead worker w-")
	})
	g.touch("over")
	rec.WaitFinal(key(0))
	if err := r.Healthy(); err != nil {
		t.Error(err)
	}
}

// TestTerminatedWorkerEndsItsAttempts sends SIGTERM to the worker, which ends its attempts.
func TestTerminatedWorkerEndsItsAttempts(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	r.Start(g.order(1, "exec sleep 1000"))
	rec.WaitStarted(key(1))
	_ = unix.Kill(g.worker(), unix.SIGTERM)
	if rep := rec.WaitFinal(key(1)); rep.Record.Result != messages.AttemptLost {
		t.Errorf("%+v", rep)
	}
	r.Start(g.order(2, "true"))
	rec.WaitFinal(key(2))
}

// TestUpgradeDrainsTheOldWorker starts a server of another version. The old worker finishes its
// attempts, gives back what waits, and ends; the new one uses the slots that are left.
func TestUpgradeDrainsTheOldWorker(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	// A task notes how many run beside it.
	script := func(gate string) string {
		return `touch running.$CARAVAN_TASK; ls running.* | wc -l >>beside; ` + until(gate) + `; rm running.$CARAVAN_TASK`
	}
	for i := range uint32(4) {
		o := g.order(i, script(fmt.Sprint("go", i)))
		r.Start(o)
	}
	rec.WaitStarted(key(0))
	rec.WaitStarted(key(1))
	r.Detach()
	old := g.worker()

	rec = executortest.NewRecorder(t)
	newer := func(c *remote.Config) { c.Settings.Version = "newer" }
	r = g.open(rec, newer)
	for i := range uint32(4) {
		r.Start(resumed(g.order(i, script(fmt.Sprint("go", i)))))
	}
	r.ExpectResume()
	rec.WaitStarted(key(0))
	poll(t, "the new worker", func() bool { return len(g.workers()) == 2 })
	if rec.Starts(key(2)) != 0 {
		t.Error("task 2 runs beside two others in two slots")
	}
	g.touch("go0")
	rec.WaitFinal(key(0))
	rec.WaitStarted(key(2)) // in the slot that the old one left
	log, err := r.OpenLog(key(1), messages.Stdout)
	if err != nil {
		t.Errorf("log of a task of the old worker: %v", err)
	} else {
		log.Close()
	}
	for i := 1; i < 4; i++ {
		g.touch(fmt.Sprint("go", i))
	}
	for i := range uint32(4) {
		if rep := rec.WaitFinal(key(i)); rep.Record.Result != messages.AttemptSucceeded {
			t.Errorf("%+v", rep)
		}
		r.Acknowledge(key(i))
	}
	poll(t, "the old worker to end", func() bool { return unix.Kill(old, 0) != nil || len(g.workers()) == 1 })
	for line := range strings.Lines(read(filepath.Join(g.data, "beside"))) {
		if n := strings.TrimSpace(line); n != "1" && n != "2" {
			t.Errorf("%s tasks in two slots", n)
		}
	}
	poll(t, "its folder to go", func() bool { left, _ := worker.ListFolders(g.dir()); return len(left) == 1 })
}

// TestUnresponsiveWorkerDelaysStarts stops the worker: everything waits, and a second worker is not
// started. Close ends the worker all the same.
func TestUnresponsiveWorkerDelaysStarts(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	o := g.order(1, "echo x >>ran; exec sleep 1000")
	r.Start(o)
	rec.WaitStarted(key(1))
	g.awaitText("ran", "x\n") // a start comes before what the script does
	r.Detach()
	pid := g.worker()
	_ = unix.Kill(pid, unix.SIGSTOP)
	rec = executortest.NewRecorder(t)
	r = g.open(rec)
	r.Start(resumed(o))
	r.Start(g.order(2, "true"))
	r.Kill(key(1), 100*time.Millisecond)
	r.Revoke(key(2))
	if rep := rec.WaitFinal(key(2)); rep.Kind != executor.Revoked {
		t.Errorf("%+v", rep)
	}
	if n := len(g.workers()); n != 1 || len(rec.Reports(key(1))) != 0 {
		t.Errorf("%d workers, reports %+v", n, rec.Reports(key(1)))
	}
	_ = unix.Kill(pid, unix.SIGCONT)
	if rep := rec.WaitFinal(key(1)); rep.Record.Result != messages.AttemptKilled || read(filepath.Join(g.data, "ran")) != "x\n" {
		t.Errorf("%+v", rep)
	}
}

func TestIdleWorkerEndsAndIsReplaced(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec, shortlyIdle)
	for i := range uint32(200) {
		r.Start(g.order(i, "true"))
	}
	for i := range uint32(200) {
		rec.WaitFinal(key(i))
		r.Acknowledge(key(i))
	}
	status := read(fmt.Sprintf("/proc/%d/status", g.worker()))
	var kb int
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			fmt.Sscan(rest, &kb)
		}
	}
	if limit := 40 << 10; kb == 0 || kb > limit && !race || kb > 3*limit {
		t.Errorf("resident: %d KB", kb)
	}
	t.Logf("resident: %d KB", kb)
	r.Detach()
	g.idled()
	if left, _ := worker.ListFolders(g.dir()); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// leaver is a data folder whose worker has ended in order, and a process with the mark of such
// a worker that is not in the registry any more.
type leaver struct {
	*rig
	named   func(*remote.Config)
	process *exec.Cmd
	died    chan error
}

func newLeaver(t *testing.T) *leaver {
	t.Helper()
	g := &leaver{rig: newRig(t), died: make(chan error, 1)}
	folder := "data" + filepath.Base(g.data) + t.Name()
	g.named = func(cfg *remote.Config) { cfg.Settings.DataFolderID = folder }
	rec := executortest.NewRecorder(t)
	r := g.open(rec, g.named)
	r.ResumeDone(1)
	g.run(r, rec, 0)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	g.process = exec.Command("/bin/sleep", "1000")
	g.process.Env = []string{worker.MarkVariable + "=" + worker.MarkValue(folder, "w-leaving")}
	if err := g.process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.process.Process.Kill() })
	go func() { g.died <- g.process.Wait() }()
	return g
}

// run runs a task.
func (g *leaver) run(r *remote.Remote, rec *executortest.Recorder, task uint32) {
	g.t.Helper()
	o := g.order(task, "true")
	r.Start(o)
	if rep := rec.WaitFinal(o.Key); rep.Record.Result != messages.AttemptSucceeded {
		g.t.Errorf("task %d: %+v", task, rep)
	}
	r.Acknowledge(o.Key)
}

// TestExitingWorkerIsAwaited has the process of a worker that ended in order, and that the registry
// does not name any more. The server waits for its end and reports no damage.
func TestExitingWorkerIsAwaited(t *testing.T) {
	g := newLeaver(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec, g.named, func(cfg *remote.Config) { remote.SetExitGrace(cfg, testenv.Patience) })
	r.ResumeDone(1)
	select {
	case err := <-g.died:
		t.Errorf("it was ended: %v", err)
	case <-time.After(300 * time.Millisecond): // the supervisor looks every 10 ms
		_ = g.process.Process.Kill()
		<-g.died
	}
	g.run(r, rec, 1)
	if log := g.log.String(); strings.Contains(log, "w-leaving") {
		t.Errorf("a worker that has ended in order is told of:\n%s", log)
	}
}

// TestUnlistedWorkerIsEnded has a process that stays longer: it counts as one of a worker whose
// folder is missing. It is ended, and the log says so, before an attempt starts.
func TestUnlistedWorkerIsEnded(t *testing.T) {
	g := newLeaver(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec, g.named, func(cfg *remote.Config) { remote.SetExitGrace(cfg, 200*time.Millisecond) })
	r.ResumeDone(1)
	select {
	case <-g.died:
	case <-time.After(testenv.Patience):
		_ = g.process.Process.Kill() // else Close would wait for it
		t.Fatal("a stray process of this data folder goes on")
	}
	g.run(r, rec, 1)
	if log := g.log.String(); !strings.Contains(log, "ending the processes of a worker without a folder") || !strings.Contains(log, "w-leaving") {
		t.Errorf("the log does not say so:\n%s", log)
	}
}
