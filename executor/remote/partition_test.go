package remote_test

import (
	"path/filepath"
	"testing"

	"github.com/caravan-dag/caravan/executor/executortest"
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
