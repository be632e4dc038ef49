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

// TestWorkerThatIsLeaving: the process of a worker that has ended in order, and that the
// registry does not name any more, is waited for. It says nothing about any attempt.
func TestWorkerThatIsLeaving(t *testing.T) {
	g := newRig(t)
	folder := ""
	named := func(cfg *remote.Config) {
		cfg.Settings.Folder = "data" + filepath.Base(g.data) + t.Name()
		folder = cfg.Settings.Folder
	}
	run := func(r *remote.Remote, rec *executortest.Recorder, task uint32) {
		t.Helper()
		o := g.order(task, "true")
		r.Start(o)
		if rep := rec.WaitFinal(o.Key); rep.Record.Result != messages.AttemptSucceeded {
			t.Errorf("task %d: %+v", task, rep)
		}
		r.Acknowledge(o.Key)
	}
	rec := executortest.NewRecorder(t)
	r := g.open(rec, named)
	r.Settled(1)
	run(r, rec, 0)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}

	leaving := exec.Command("/bin/sleep", "1000")
	leaving.Env = []string{worker.Mark + "=" + worker.MarkValue(folder, "w-leaving")}
	if err := leaving.Start(); err != nil {
		t.Fatal(err)
	}
	rec = executortest.NewRecorder(t)
	r = g.open(rec, named)
	r.Settled(1)
	died := make(chan error, 1)
	go func() { died <- leaving.Wait() }()
	select {
	case err := <-died:
		t.Errorf("it was ended: %v", err)
	case <-time.After(300 * time.Millisecond): // the keeper looks every 10 ms
		_ = leaving.Process.Kill()
		<-died
	}
	run(r, rec, 1)
	if log := g.log.String(); strings.Contains(log, "w-leaving") {
		t.Errorf("a worker that has ended in order is told of:\n%s", log)
	}
}
