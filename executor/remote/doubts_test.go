package remote_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// steps are by how much the machine's clock is set after the memory of workers was lost.
var steps = []time.Duration{0, -time.Hour, time.Hour}

// TestResumeOfAnUnknownAttempt resumes an attempt that workers do not know. It is lost when it was
// granted before the memory of workers began, or before that memory was lost; else it never began,
// and begins. The machine's clock may be set in between: the time of the grant does not decide.
func TestResumeOfAnUnknownAttempt(t *testing.T) {
	for _, step := range steps {
		t.Run(step.String(), func(t *testing.T) {
			t.Parallel() // it mostly waits
			g := newParallelRig(t)
			before, later := g.order(1, "echo x >>ran"), g.order(2, "true")
			before.GrantedAt -= int64(step)
			later.GrantedAt += int64(step)
			open := func() (*executortest.Recorder, *remote.Remote) {
				rec := executortest.NewRecorder(t)
				r := g.open(rec)
				r.ExpectResume(1)
				return rec, r
			}
			beforeIsLost := func(rec *executortest.Recorder, r *remote.Remote) {
				t.Helper()
				r.Start(resumed(before))
				r.ResumeDone(1)
				if rep := rec.WaitFinal(key(1)); rep.Record.Result != messages.AttemptLost || !strings.Contains(rep.Record.ExecutorLog, "not known") {
					t.Errorf("%+v", rep)
				}
			}
			rec, r := open()
			beforeIsLost(rec, r)
			r.Detach() // and that it is lost was not durable

			rec, r = open()
			beforeIsLost(rec, r)
			r.Acknowledge(key(1))
			poll(t, "the registry to have no doubts", func() bool { return strings.Contains(read(filepath.Join(g.dir(), "workers")), `"doubts":[]`) })
			r.Detach()
			g.idled() // the worker is not needed and has removed its folder

			rec, r = open()
			r.Start(resumed(later)) // never arrived
			if rep := rec.WaitFinal(key(2)); rep.Record.Result != messages.AttemptSucceeded {
				t.Errorf("%+v", rep)
			}
			// The registry is missing, as its word is after a restart of the machine.
			r.Detach()
			if err := os.Remove(filepath.Join(g.dir(), "workers")); err != nil {
				t.Fatal(err)
			}
			rec, r = open()
			beforeIsLost(rec, r)
			if read(filepath.Join(g.data, "ran")) != "" {
				t.Error("it ran")
			}
		})
	}
}

// TestLossesOutliveTheServer damages a journal and kills the server before the losses are durable.
// The next server reports the same losses, though the worker's folder is gone.
func TestLossesOutliveTheServer(t *testing.T) {
	for _, step := range steps {
		t.Run(step.String(), func(t *testing.T) {
			t.Parallel() // it mostly waits
			g := newParallelRig(t)
			rec := executortest.NewRecorder(t)
			r := g.open(rec)
			r.ExpectResume()
			o := g.order(1, "echo x >>ran; exec sleep 1000")
			o.GrantedAt -= int64(step)
			r.Start(o)
			poll(t, "the task to run", func() bool { return read(filepath.Join(g.data, "ran")) != "" })
			pid := g.worker()
			paths, err := worker.ListFolders(g.dir())
			if err != nil || len(paths) != 1 {
				t.Fatal(paths, err)
			}
			_ = unix.Kill(pid, unix.SIGSTOP)
			if err := os.Truncate(filepath.Join(paths[0], "journal"), 0); err != nil {
				t.Fatal(err)
			}
			_ = unix.Kill(pid, unix.SIGKILL)
			if rep := rec.WaitFinal(o.Key); rep.Record.Result != messages.AttemptLost {
				t.Errorf("%+v", rep)
			}
			poll(t, "the folder to go", func() bool { _, err := os.Stat(paths[0]); return err != nil })
			r.Detach()

			rec = executortest.NewRecorder(t)
			r = g.open(rec)
			r.ExpectResume(1)
			r.Start(resumed(o))
			if rep := rec.WaitFinal(o.Key); rep.Record.Result != messages.AttemptLost {
				t.Errorf("%+v", rep)
			}
			if text := read(filepath.Join(g.data, "ran")); text != "x\n" {
				t.Errorf("it ran: %q", text)
			}
		})
	}
}

// TestKilledDoubtfulAttemptIsLost kills an attempt that may have run: it is reported as lost, not as
// revoked.
func TestKilledDoubtfulAttemptIsLost(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	r.ExpectResume(1)
	r.Start(resumed(g.order(1, "true")))
	r.Kill(key(1), 0)
	if rep := rec.WaitFinal(key(1)); rep.Record.Result != messages.AttemptLost {
		t.Errorf("%+v", rep)
	}
}

// TestRegistryThatCannotBeWritten fails the writes of the registry for a while. A worker is not
// started before the registry names it, a folder that the registry names stays, and all goes on once
// writes work.
func TestRegistryThatCannotBeWritten(t *testing.T) {
	g := newRig(t)
	disk := faults.New(vfs.OS{})
	onDisk := func(c *remote.Config) { c.FS = disk }
	rec := executortest.NewRecorder(t)
	r := g.open(rec, onDisk)
	r.ExpectResume()
	r.Start(g.order(1, "exec sleep 1000"))
	rec.WaitStarted(key(1))
	disk.Add(faults.Rule{Op: faults.Write, Path: "workers.new"})
	_ = unix.Kill(g.worker(), unix.SIGKILL)
	if rep := rec.WaitFinal(key(1)); rep.Record.Result != messages.AttemptLost {
		t.Errorf("%+v", rep)
	}
	r.Acknowledge(key(1))
	r.Start(g.order(2, "true"))
	poll(t, "errors to be logged", func() bool {
		return strings.Contains(g.log.String(), "dead worker not removed from the registry") && strings.Contains(g.log.String(), "worker not started")
	})
	if rec.Starts(key(2)) != 0 || len(g.workers()) != 0 {
		t.Error("a worker was started")
	}
	if left, _ := worker.ListFolders(g.dir()); len(left) == 0 {
		t.Error("the folder was removed")
	}
	disk.Reset()
	if rep := rec.WaitFinal(key(2)); rep.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rep)
	}
	poll(t, "the folder to go", func() bool { left, _ := worker.ListFolders(g.dir()); return len(left) == 1 })
}
