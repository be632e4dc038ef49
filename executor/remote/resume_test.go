package remote_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// TestNextServerAdoptsRunningAttempts leaves attempts running between two servers. The second server
// hears their starts, reads and follows their output, kills one, and hears the ends of before; each
// attempt starts once.
func TestNextServerAdoptsRunningAttempts(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	orders := []executor.Order{
		g.order(0, "echo x >>ran0; echo before; exec sleep 1000"),
		g.order(1, "echo x >>ran1; "+until("go")+"; seq 3000; touch ended; exit 3"),
		g.order(2, "echo x >>ran2"),
	}
	for _, o := range orders {
		r.Start(o)
	}
	began := rec.WaitStarted(key(0)).At
	rec.WaitStarted(key(1))
	if err := r.Detach(); err != nil {
		t.Fatal(err)
	}
	before := g.worker()
	g.touch("go")
	poll(t, "the task to end", func() bool { _, err := os.Stat(filepath.Join(g.data, "ended")); return err == nil })
	poll(t, "the waiting task to run", func() bool { return read(filepath.Join(g.data, "ran2")) != "" })

	rec = executortest.NewRecorder(t)
	r = g.open(rec)
	for _, o := range orders {
		r.Start(resumed(o))
	}
	if again := rec.WaitStarted(key(0)); again.At != began {
		t.Errorf("started at %d, before the restart %d", again.At, began)
	}
	failed := rec.WaitFinal(key(1)).Record
	if failed.RC != 3 || failed.Stdout.Size != 13893 || failed.Stdout.Inline != nil {
		t.Errorf("%+v", failed)
	}
	store, err := outputs.Open(filepath.Join(g.data, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	kept, err := store.Log(outputs.ID{Key: key(1)}, failed.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, failed.Stdout.Size)
	if n, err := kept.ReadAt(buf, 0); n != len(buf) || err != nil && err != io.EOF || !strings.HasSuffix(string(buf), "\n3000\n") {
		t.Errorf("%d bytes, %v", n, err)
	}
	kept.Close()
	if rep := rec.WaitFinal(key(2)); rep.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rep)
	}

	log, err := r.OpenLog(key(0), messages.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	poll(t, "output", func() bool { return log.Size() == 7 })
	n, err := log.ReadAt(buf[:100], 0)
	if string(buf[:n]) != "before\n" || err != io.EOF || !log.Live() || log.Kept(3) != 3 {
		t.Errorf("%q, %v, live %v", buf[:n], err, log.Live())
	}
	r.Kill(key(0), time.Second)
	if rep := rec.WaitFinal(key(0)); rep.Record.Result != messages.AttemptKilled {
		t.Errorf("%+v", rep)
	}
	if log.Live() || log.Size() != 7 {
		t.Errorf("after the end: live %v, %d bytes", log.Live(), log.Size())
	}
	log.Close()
	if _, err := r.OpenLog(key(0), messages.Stdout); !errors.Is(err, executor.ErrNotRunning) {
		t.Errorf("%v", err)
	}
	if g.worker() != before {
		t.Error("another worker was started")
	}
	for i := range 3 {
		if text := read(filepath.Join(g.data, fmt.Sprint("ran", i))); text != "x\n" {
			t.Errorf("task %d ran %q", i, text)
		}
	}
}

// TestOrphansAreEndedAndForgotten does not ask for some attempts of the former server: they are
// ended and forgotten.
func TestOrphansAreEndedAndForgotten(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec, shortlyIdle)
	r.Start(g.order(0, "exec sleep 1000"))
	r.Start(g.order(1, "true"))
	rec.WaitFinal(key(1))
	rec.WaitStarted(key(0))
	r.Detach()
	rec = executortest.NewRecorder(t)
	r = g.open(rec, shortlyIdle)
	r.ExpectResume()
	r.Start(g.order(2, "true"))
	rec.WaitFinal(key(2))
	r.Acknowledge(key(2))
	poll(t, "the orphan to end", func() bool { return len(g.processes()) == 1 })
	// Its process is gone before the worker says so: until then there is no end to forget.
	poll(t, "its end to be forgotten", func() bool { return r.TrackedAttempts() == 0 })
	r.Detach()
	g.idled()
	if left, _ := worker.ListFolders(g.dir()); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	for _, rep := range rec.All() {
		if rep.Key != key(2) {
			t.Errorf("reported: %+v", rep)
		}
	}
}

// TestRestartedRunGetsItsReportsAgain lets the actor of a run begin again, while other runs go on.
// The run hears of an attempt only when it has given it again, and then everything; attempts that it
// does not give again are ended.
func TestRestartedRunGetsItsReportsAgain(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	var hears atomic.Pointer[executortest.Recorder]
	hears.Store(rec)
	r := g.open(rec, func(c *remote.Config) { c.Sink = func(list ...executor.Report) { hears.Load().Sink(list...) } })
	r.ExpectResume()
	ended, runs, extra, waits := g.order(0, "exit 3"), g.order(1, until("go")), g.order(2, "exec sleep 1000"), g.order(3, "true")
	r.Start(ended)
	rec.WaitFinal(ended.Key) // and it is not known whether that was taken
	r.Start(runs)
	r.Start(extra)
	began := rec.WaitStarted(runs.Key).At
	rec.WaitStarted(extra.Key)
	r.Start(waits) // for a slot
	r.ExpectResume(1)

	g.touch("go")
	other := g.order(9, "true")
	other.Key.Run = 2
	r.Start(other)
	rec.WaitFinal(other.Key) // after the end of the task that ran, and of the one that waited
	for _, o := range []executor.Order{runs, waits} {
		if n := len(rec.Reports(o.Key)); o.Key == runs.Key && n != 1 || o.Key == waits.Key && n != 0 {
			t.Errorf("%v: %d reports before it was given again", o.Key, n)
		}
	}
	again := executortest.NewRecorder(t)
	hears.Store(again)
	for _, o := range []executor.Order{ended, runs, waits} {
		r.Start(resumed(o))
	}
	r.ResumeDone(1)
	if rep := again.WaitFinal(ended.Key); rep.Record.RC != 3 {
		t.Errorf("%+v", rep)
	}
	if rep := again.WaitFinal(runs.Key); rep.Record.Result != messages.AttemptSucceeded || again.WaitStarted(runs.Key).At != began {
		t.Errorf("%+v", rep)
	}
	if rep := again.WaitFinal(waits.Key); rep.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rep)
	}
	r.Acknowledge(ended.Key, runs.Key, waits.Key, other.Key)
	poll(t, "the attempt that was not given again to be ended and forgotten", func() bool { return r.TrackedAttempts() == 0 && len(g.processes()) == 1 })
	if n := len(again.Reports(extra.Key)); n != 0 {
		t.Errorf("%d reports of an orphan", n)
	}
}

// TestReusedKeyIsLost: a store that lost its end gives numbers again that a worker still
// has attempts of. The former are ended, the new ones are told that they cannot be.
func TestReusedKeyIsLost(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	r.Start(g.order(1, "exec sleep 1000"))
	r.Start(g.order(2, "exit 4"))
	rec.WaitStarted(key(1))
	rec.WaitFinal(key(2))
	r.Detach()

	rec = executortest.NewRecorder(t)
	r = g.open(rec)
	r.ExpectResume() // no run is known
	r.Start(g.order(0, "true"))
	rec.WaitFinal(key(0)) // the worker has been heard
	for i := range uint32(2) {
		o := g.order(i+1, "touch ran"+fmt.Sprint(i+1))
		r.Start(o)
		if rep := rec.WaitFinal(o.Key); rep.Record.Result != messages.AttemptLost && rep.Record.Result != messages.AttemptSucceeded {
			t.Errorf("%+v", rep)
		} else if rep.Record.RC == 4 || rep.Record.Start != 0 && rep.Record.Start < o.GrantedAt {
			t.Errorf("the end of the former attempt: %+v", rep)
		}
		r.Acknowledge(o.Key)
		o.Key.Attempt = 2
		r.Start(o)
		if rep := rec.WaitFinal(o.Key); rep.Record.Result != messages.AttemptSucceeded {
			t.Errorf("%+v", rep)
		}
		r.Acknowledge(o.Key)
	}
	r.Acknowledge(key(0))
	poll(t, "the former attempt to be ended and forgotten", func() bool { return r.TrackedAttempts() == 0 })
}
