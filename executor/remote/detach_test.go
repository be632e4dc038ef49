package remote_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/executor/worker"
)

func shortlyIdle(c *remote.Config) { c.Settings.Idle = 300 * time.Millisecond }

// TestDetachDeliversWhatWasSent detaches from a slow worker with much to send: all orders and
// acknowledgements have reached it when Detach returns.
func TestDetachDeliversWhatWasSent(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec, shortlyIdle)
	r.Start(g.order(0, "true"))
	rec.WaitFinal(key(0))
	pid := g.worker()
	_ = unix.Kill(pid, unix.SIGSTOP)
	time.AfterFunc(100*time.Millisecond, func() { _ = unix.Kill(pid, unix.SIGCONT) })
	large := g.order(1, "touch ran")
	for i := range 10 { // more than what is on its way at one time
		large.Environment = append(large.Environment, fmt.Sprint("FILLER", i, "=", strings.Repeat("x", 100_000)))
	}
	r.Start(large)
	r.Acknowledge(key(0))
	if err := r.Detach(); err != nil {
		t.Fatal(err)
	}
	g.idled()
	if _, err := os.Stat(filepath.Join(g.data, "ran")); err != nil {
		t.Errorf("the order was lost: %v", err)
	}
	left, _ := worker.ListFolders(g.dir())
	if len(left) != 1 {
		t.Fatalf("folders %v, want the one with the end of task 1", left)
	}
	f, err := worker.LockFolder(left[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Release()
	if text := read(f.LogPath()); !strings.Contains(text, "ends=1 ") {
		t.Errorf("not one end is left, but: %s", text)
	}
}

// TestEndsOutliveAnIdleWorker lets a worker end idle with ends that are not acknowledged. The next
// server reports those that it is asked for, forgets the others, removes the folder, and starts its
// own worker at once.
func TestEndsOutliveAnIdleWorker(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec, shortlyIdle)
	for i := range uint32(2) {
		r.Start(g.order(i, "exit 3"))
		rec.WaitFinal(key(i))
	}
	if err := r.Detach(); err != nil {
		t.Fatal(err)
	}
	g.idled()
	left, _ := worker.ListFolders(g.dir())
	if len(left) != 1 {
		t.Fatalf("folders %v, want the one with the ends", left)
	}
	before := len(g.log.String()) // a worker of the first server may have been idle before that server came
	rec = executortest.NewRecorder(t)
	r = g.open(rec)
	r.Start(resumed(g.order(0, "true")))
	r.ExpectResume()
	if rep := rec.WaitFinal(key(0)); rep.Kind != executor.Finished || rep.Record.RC != 3 {
		t.Errorf("%+v", rep)
	}
	r.Acknowledge(key(0))
	poll(t, "the folder to go", func() bool { now, _ := worker.ListFolders(g.dir()); return len(now) == 1 && now[0] != left[0] })
	if n := len(rec.Reports(key(1))); n != 0 {
		t.Errorf("%d reports of an orphan", n)
	}
	r.Start(g.order(2, "true"))
	rec.WaitFinal(key(2))
	if text := g.log.String()[before:]; strings.Contains(text, "die before they serve") {
		t.Error("the new worker had to wait for an old one's death")
	}
}
