package remote_test

import (
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/messages"
)

// TestPartitionsTakeTheirAttemptsOver: an engine that starts decides about the attempts of its own partition
// alone, after a restart of the server and while it lives.
func TestPartitionsTakeTheirAttemptsOver(t *testing.T) {
	g := newRig(t)
	even, odd := messages.Numbering{Partitions: 2}, messages.Numbering{Partitions: 2, Partition: 1}
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	r.TakeOver(even)
	r.TakeOver(odd)
	mine, other := g.order(0, "echo x >>ran; exec sleep 1000"), g.order(1, "exec sleep 1000")
	other.Key.Run = 2
	r.Start(mine)
	r.Start(other)
	rec.WaitStarted(mine.Key)
	rec.WaitStarted(other.Key)
	if err := r.Detach(); err != nil {
		t.Fatal(err)
	}

	tasks := func() int { return len(g.processes()) - len(g.workers()) }
	rec = executortest.NewRecorder(t)
	r = g.open(rec)
	r.TakeOver(even) // its run has ended elsewhere
	poll(t, "the orphan to end", func() bool { return tasks() == 1 })
	r.TakeOver(odd, mine.Key.Run)
	r.Start(resumed(mine))
	r.ResumeDone(mine.Key.Run)
	rec.WaitStarted(mine.Key)
	if ran := read(filepath.Join(g.data, "ran")); ran != "x\n" {
		t.Errorf("the attempt has started %q", ran)
	}
	r.TakeOver(even)
	again := g.order(2, "exit 0")
	again.Key.Run = 2
	r.Start(again)
	rec.WaitFinal(again.Key)
	if n := tasks(); n != 1 {
		t.Errorf("%d tasks run, want that of the other partition", n)
	}
	r.TakeOver(odd) // an engine that does not know the run
	poll(t, "the orphan to end", func() bool { return tasks() == 0 })
	for _, rep := range rec.All() {
		if rep.Key == mine.Key && rep.Record.Stop != 0 {
			t.Errorf("the engine before hears of the end: %+v", rep)
		}
	}
}

// TestAttemptOfAnotherMachineIsNotStarted: an attempt of the journal that no worker here knows may run where
// another engine of the partition has ordered it.
func TestAttemptOfAnotherMachineIsNotStarted(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	o := g.order(0, "echo x >>ran")
	next := o
	next.Key.Attempt = 2
	odd := messages.Numbering{Partitions: 2, Partition: 1}
	r.TakeOver(odd) // every run of a new folder is in doubt until then
	r.HandOver(odd)
	r.TakeOver(odd, o.Key.Run)
	r.Start(resumed(o))
	r.Start(next)
	r.ResumeDone(o.Key.Run)
	if end := rec.WaitFinal(o.Key); end.Record.Result != messages.AttemptLost {
		t.Errorf("it ends as %v", end.Record.Result)
	}
	if end := rec.WaitFinal(next.Key); end.Record.Result != messages.AttemptSucceeded {
		t.Errorf("the next one ends as %v", end.Record.Result)
	}
	if ran := read(filepath.Join(g.data, "ran")); ran != "x\n" {
		t.Errorf("started: %q", ran)
	}
}

// TestHandedOverPartition: what waits for a worker is dropped when the engine of the partition ends, and
// what a worker has goes on. Nothing is reported and nothing is an orphan until the next engine comes.
func TestHandedOverPartition(t *testing.T) {
	g := newRig(t)
	even, odd := messages.Numbering{Partitions: 2}, messages.Numbering{Partitions: 2, Partition: 1}
	rec, engine := executortest.NewRecorder(t), new(atomic.Pointer[executortest.Recorder]) // of the present engine
	engine.Store(rec)
	r := g.open(rec, func(c *remote.Config) { c.Sink = func(reports ...executor.Report) { engine.Load().Sink(reports...) } })
	r.TakeOver(odd)
	waiting := g.order(0, "echo x >>waited")
	r.Start(waiting) // there is no worker yet
	r.HandOver(odd)
	r.TakeOver(even)
	other := g.order(1, "exit 0")
	other.Key.Run = 2
	r.Start(other)
	rec.WaitFinal(other.Key)

	r.TakeOver(odd)
	running, ended := g.order(2, "exec sleep 1000"), g.order(3, until("go")+"; echo x >>ended")
	r.Start(running)
	r.Start(ended)
	rec.WaitStarted(running.Key)
	rec.WaitStarted(ended.Key)
	r.HandOver(odd)
	g.touch("go")
	poll(t, "the attempt to end", func() bool { return read(filepath.Join(g.data, "ended")) != "" })
	later := other
	later.Key.Task = 4
	r.Start(later) // the worker has told of the end before that of this one
	rec.WaitFinal(later.Key)
	if all := rec.Reports(ended.Key); len(all) != 1 {
		t.Errorf("reported without an engine: %+v", all)
	}
	rec = executortest.NewRecorder(t)
	engine.Store(rec)
	r.TakeOver(odd, running.Key.Run)
	for _, o := range []executor.Order{waiting, running, ended} {
		r.Start(resumed(o))
	}
	r.ResumeDone(running.Key.Run)
	for o, want := range map[*executor.Order]messages.AttemptResult{&waiting: messages.AttemptLost, &ended: messages.AttemptSucceeded} {
		if end := rec.WaitFinal(o.Key); end.Record.Result != want {
			t.Errorf("task %d ends as %v, want %v", o.Key.Task, end.Record.Result, want)
		}
	}
	r.Kill(running.Key, 0)
	if end := rec.WaitFinal(running.Key); end.Record.Result != messages.AttemptKilled {
		t.Errorf("the attempt that runs ends as %v", end.Record.Result)
	}
	if got := read(filepath.Join(g.data, "waited")); got != "" {
		t.Errorf("an order was carried out after its engine: %q", got)
	}
}
