package worker

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/messages"
)

// breakJournal has the next write of the journal fail, and with outage whatever else would
// write one, until repair.
func (g *rig) breakJournal(outage error) (repair func()) {
	g.disk.Reset()
	g.disk.Add(faults.Rule{Op: faults.Write, Path: journalFileName, N: 1, Err: unix.EIO, Short: 5})
	if outage != nil {
		g.disk.Add(faults.Rule{Op: faults.Create, Path: journalFileName + ".new", Err: outage})
	}
	return g.disk.Reset
}

func (g *rig) journalSize() int64 {
	g.journal.mu.Lock()
	defer g.journal.mu.Unlock()
	return g.journal.size
}

// TestFailedJournalIsReplaced fails one write of the journal. The file is not written any more: a
// new one takes its place, with all that the worker knows.
func TestFailedJournalIsReplaced(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	ends := filepath.Join(g.dir, "ends")
	c.send(shell(1, "while [ ! -e "+ends+" ]; do sleep 0.01; done"))
	c.want("started", key(1))
	before, err := os.Stat(g.journal.path)
	if err != nil {
		t.Fatal(err)
	}
	g.breakJournal(nil)
	c.send(shell(2, "true"))
	c.want("started", key(2))
	c.want("finished", key(2))
	if err := os.WriteFile(ends, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.want("finished", key(1))
	if after, err := os.Stat(g.journal.path); err != nil || os.SameFile(before, after) {
		t.Errorf("the file that failed is in use still: %v", err)
	}
	g.cancel()
	if err := g.wait(); err != nil {
		t.Error(err)
	}
	e := recoverState(t, g.folder.Path)
	if len(e.Ends) != 2 || !e.Complete {
		t.Errorf("%+v", e)
	}
	for _, rep := range e.Ends {
		if rep.Record.Result != messages.AttemptSucceeded {
			t.Errorf("%+v", rep)
		}
	}
}

// TestGrownJournalIsCompacted lets the journal grow: it is rewritten with the attempts that are not
// acknowledged.
func TestGrownJournalIsCompacted(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	c.send(shell(1, "exec sleep 1000"))
	c.want("started", key(1))
	c.send(shell(2, "true"))
	c.want("started", key(2))
	c.want("finished", key(2))
	i := uint32(10)
	for ; g.journalSize() < 3000; i++ {
		c.send(shell(i, "true"))
		c.want("started", key(i))
		c.want("finished", key(i))
		c.send(acknowledge(i))
	}
	c.send(shell(i-1, "true")) // after its acknowledgement
	c.want("ignored", key(i-1))
	g.journal.mu.Lock()
	g.journal.compactAt = 0
	g.journal.mu.Unlock()
	g.writeJournal()
	if n := g.journalSize(); n > 500 {
		t.Errorf("%d bytes after compaction", n)
	}
	text, err := os.ReadFile(g.journal.path)
	if err != nil {
		t.Fatal(err)
	}
	p := parseJournal(text)
	if a := p.attempts[key(1)]; !p.complete || len(p.attempts) != 2 || a == nil || a.pid == 0 || a.end != nil || p.attempts[key(2)].end == nil {
		t.Errorf("%+v", p)
	}
	// A compaction that does not work leaves the old journal.
	g.journal.mu.Lock()
	g.journal.compactAt = 0
	g.journal.path = "/nowhere/journal"
	g.journal.mu.Unlock()
	g.writeJournal()
	if again, _ := os.ReadFile(filepath.Join(g.folder.Path, journalFileName)); !bytes.Equal(again, text) {
		t.Error("the journal changed")
	}
}

// TestAttemptsWaitForTheJournal fails all writes of journals. Nothing is forked until a journal can
// be written, and no attempt is lost.
func TestAttemptsWaitForTheJournal(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	ran := filepath.Join(g.dir, "ran")
	repair := g.breakJournal(unix.EIO)
	c.send(shell(1, "touch "+ran))
	if d := c.of("postponed").message.(*workerpb.Postponed); d.Reason != "journal" || d.Count != 1 {
		t.Errorf("%+v", d)
	}
	if exists(ran) {
		t.Error("it ran")
	}
	c.send(ping)
	c.of("pong")
	repair()
	c.of("started")
	rep := c.of("finished").report(t)
	if rep.Record.Result != messages.AttemptSucceeded || !exists(ran) {
		t.Errorf("%+v", rep)
	}
}

// TestDrainGivesBackPostponedOrders drains a worker while the start of an order is postponed.
func TestDrainGivesBackPostponedOrders(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	repair := g.breakJournal(unix.ENOSPC)
	c.send(shell(1, "true"))
	c.of("postponed")
	c.send(drain)
	c.of("revoked")
	repair()
}
