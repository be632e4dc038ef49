package remote_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/messages"
)

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

// TestWorkerThatIsLeaving: the process of a worker that has ended in order, and that the
// registry does not name any more, is waited for. It says nothing about any attempt.
func TestWorkerThatIsLeaving(t *testing.T) {
	g := newLeaver(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec, g.named)
	r.ResumeDone(1)
	select {
	case err := <-g.died:
		t.Errorf("it was ended: %v", err)
	case <-time.After(300 * time.Millisecond): // the keeper looks every 10 ms
		_ = g.process.Process.Kill()
		<-g.died
	}
	g.run(r, rec, 1)
	if log := g.log.String(); strings.Contains(log, "w-leaving") {
		t.Errorf("a worker that has ended in order is told of:\n%s", log)
	}
}

// TestWorkerThatDoesNotLeave: a process that stays longer is one of a worker whose folder is
// missing. It is ended, and the log says so, before anything else is started.
func TestWorkerThatDoesNotLeave(t *testing.T) {
	g := newLeaver(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec, g.named, func(cfg *remote.Config) { remote.LeavingWithin(cfg, 200*time.Millisecond) })
	r.ResumeDone(1)
	select {
	case <-g.died:
	case <-time.After(5 * time.Second):
		_ = g.process.Process.Kill() // else Close would wait for it
		t.Fatal("a stray process of this data folder goes on")
	}
	g.run(r, rec, 1)
	if log := g.log.String(); !strings.Contains(log, "ending the processes of a worker without a folder") || !strings.Contains(log, "w-leaving") {
		t.Errorf("nobody is told:\n%s", log)
	}
}
