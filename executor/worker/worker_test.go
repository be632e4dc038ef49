package worker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/messages"
)

func TestAnEndIsRepeatedUntilItIsAcknowledged(t *testing.T) {
	g := newRig(t)
	c, said := g.attach()
	if len(said) != 1 || said[0] != "hello" {
		t.Fatalf("a new worker said %v", said)
	}
	c.send(shell(1, "echo out"))
	c.want("started", key(1))
	first := c.want("finished", key(1))
	c.send(shell(1, "echo again")) // a repetition gets the answer that there is
	if again := c.want("finished", key(1)); !bytes.Equal(first.end, again.end) {
		t.Errorf("the end changed")
	}
	rep := first.report(t)
	if rep.Record.Result != messages.AttemptSucceeded || string(rep.Record.Stdout.Inline) != "out\n" || rep.Record.Node != "here" {
		t.Errorf("%+v", rep)
	}

	c, said = g.attach()
	if len(said) != 2 || said[1] != "finished" {
		t.Fatalf("it said %v", said)
	}
	c.send(acknowledge(1))
	c.send(shell(1, "echo again"))
	c.want("ignored", key(1))
	if n := g.process.Stats().Starts; n != 1 {
		t.Errorf("%d starts", n)
	}
	if _, said = g.attach(); len(said) != 1 {
		t.Errorf("after the acknowledgement it said %v", said)
	}
}

func TestWhatAnAttachedServerHears(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	for i := range uint32(2) { // one by one: those that begin together are told in any order
		c.send(shell(i, "sleep 1000"))
		c.want("started", key(i))
	}
	c.send(shell(2, "sleep 1000"))
	c.send(shell(2, "sleep 1000"))
	c.want("queued", key(2))
	_, said := g.attach()
	count := map[string]int{}
	for _, typ := range said {
		count[typ]++
	}
	if count["started"] != 2 || count["queued"] != 1 {
		t.Errorf("it said %v", said)
	}
	if err := streamEnd(c.stream); err == nil {
		t.Error("the first server is still attached")
	}
}

// A frame that a replaced server had sent is not carried out.
func TestStaleFrames(t *testing.T) {
	g := newRig(t)
	g.attach()
	old := newSession()
	frame := new(workerpb.ServerFrame)
	shell(1, "true")(frame)
	stop(frame)
	if err := g.handleFrame(old, frame); err != nil {
		t.Error(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.attempts) != 0 || g.stopping {
		t.Errorf("book %v, stopping %v", g.attempts, g.stopping)
	}
}

func TestKillAndRevoke(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	for i := range uint32(2) {
		c.send(shell(i, "sleep 1000"))
		c.want("started", key(i))
	}
	c.send(shell(2, "sleep 1000"), shell(3, "sleep 1000"))
	c.send(revoke(2))
	c.want("revoked", key(2))
	c.send(kill(0, time.Second))
	rep := c.want("finished", key(0)).report(t)
	if rep.Record.Result != messages.AttemptKilled {
		t.Errorf("%+v", rep)
	}
	c.want("started", key(3))
}

func TestDrain(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	for i := range uint32(3) {
		c.send(shell(i, "read x </dev/zero; sleep 1000"))
	}
	c.send(drain)
	usage := func() workerpb.Amount {
		for {
			i := c.next()
			if i.kind == "usage" {
				return i.message.(*workerpb.Resources).Amount()
			}
			if i.kind == "revoked" && i.key != key(2) {
				t.Errorf("revoked: %v", i.key)
			}
		}
	}
	for a := usage(); a.CPUMillis != 2000; a = usage() {
		t.Logf("usage %+v", a)
	}
	c.send(shell(9, "true"))
	c.of("revoked")
	c.send(kill(0, 0), kill(1, 0))
	for a := usage(); a.CPUMillis > 0; a = usage() {
		t.Logf("usage %+v", a)
	}
	// It ends once all is acknowledged, and leaves nothing that it was not told to remove.
	c.send(acknowledge(0), acknowledge(1))
	if err := g.wait(); err != nil || !exists(g.folder.Path) {
		t.Errorf("%v, folder there: %v", err, exists(g.folder.Path))
	}
	if e := bury(t, g.folder.Path); len(e.Ends) != 0 || !e.Complete {
		t.Errorf("%+v", e)
	}
}

func TestStop(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	c.send(shell(1, "sleep 1000"))
	c.want("started", key(1))
	c.send(stop)
	rep := c.want("finished", key(1)).report(t)
	if rep.Record.Result != messages.AttemptLost {
		t.Errorf("%+v", rep)
	}
	c.want("stopped", messages.AttemptKey{})
	c.conn.Close()
	if err := g.wait(); err != nil {
		t.Error(err)
	}
	// Nobody acknowledged the end: it stays for the next server.
	e := bury(t, g.folder.Path)
	if len(e.Ends) != 1 || e.Ends[0].Record.Result != messages.AttemptLost || !e.Complete {
		t.Errorf("%+v", e)
	}
}

func bury(t *testing.T, path string) *DeadWorkerState {
	t.Helper()
	f, err := LockFolder(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Release)
	e, err := RecoverDeadWorker(context.Background(), dead(f), 100*time.Millisecond, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestIdle(t *testing.T) {
	// Long enough for the test to come before the worker has been idle for so long.
	g := newRig(t, func(s *Settings) { s.Idle = time.Second })
	c, _ := g.attach()
	c.send(shell(1, "sleep 1.5"))
	c.want("started", key(1))
	c.conn.Close()
	if err := g.wait(); err != nil {
		t.Error(err)
	}
	// It waited for the task, and left its end to the next server.
	e := bury(t, g.folder.Path)
	if len(e.Ends) != 1 || e.Ends[0].Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", e)
	}
}

func TestLog(t *testing.T) {
	g := newRig(t, func(s *Settings) { s.MaxOutput = 8 })
	c, _ := g.attach()
	c.send(shell(1, "printf 0123456789abcdef; exec sleep 1000"))
	c.want("started", key(1))
	l := g.openLog()
	ask := func(request *workerpb.LogRequest) *workerpb.LogReply {
		t.Helper()
		if err := l.Send(request); err != nil {
			t.Fatal(err)
		}
		reply, err := l.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	read := func(off int64, n uint32) *workerpb.LogReply {
		t.Helper()
		return ask(&workerpb.LogRequest{Offset: off, Length: n})
	}
	open := &workerpb.LogRequest{Open: &workerpb.LogOpen{Run: 1, Task: 1, Attempt: 1}}
	ask(open)
	for d := read(0, 0); d.Size < 16 || d.Kept != 0; d = read(0, 0) {
		t.Log(d)
	}
	for d := read(5, 0); d.Kept != 12; d = read(5, 0) { // the monitor cuts the middle
	}
	if d := read(0, 100); string(d.Data) != "0123" || d.Eof || !d.Live {
		t.Errorf("%+v", d)
	}
	if d := read(5, 100); !d.Cut {
		t.Errorf("%+v", d)
	}
	if d := read(12, 100); string(d.Data) != "cdef" || !d.Eof {
		t.Errorf("%+v", d)
	}
	c.send(kill(1, 0))
	c.want("finished", key(1))
	if d := read(12, 100); d.Live || string(d.Data) != "cdef" {
		t.Errorf("after the end: %+v", d)
	}

	l = g.openLog()
	if reply := ask(open); !reply.GetError().GetNotLive() {
		t.Errorf("a log of an attempt that has ended: %+v", reply)
	}
	for name, request := range map[string][]byte{
		"empty": {}, "read first": {0x10, 1}, "torn": {0x0a, 9, 1}, "opened twice": nil,
	} {
		l := g.openLog()
		if request == nil {
			if err := errors.Join(l.Send(open), l.Send(open), l.Send(open)); err != nil {
				t.Fatal(err)
			}
		} else {
			sendRaw(t, l, request)
		}
		if err := streamEnd(l); err == nil || name != "opened twice" && err == io.EOF {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFramesThatAreNone(t *testing.T) {
	for name, frame := range map[string][]byte{
		"torn": {0x0a, 9}, "another wire type": {0x08, 1}, "order of no attempt": {0x1a, 2, 0x08, 1}, "number of 65 bits": {0x30, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
	} {
		g := newRig(t)
		c, _ := g.attach()
		sendRaw(t, c.stream, []byte{0xf8, 1, 7}) // field 31, of a version to come: left out
		sendRaw(t, c.stream, frame)
		if err := streamEnd(c.stream); err == nil {
			t.Errorf("%s: accepted", name)
		}
		g.attach() // the worker goes on
	}
}

func (g *rig) openLog() grpc.BidiStreamingClient[workerpb.LogRequest, workerpb.LogReply] {
	g.t.Helper()
	conn, ctx := g.dial()
	stream, err := workerpb.NewWorkerClient(conn).Log(ctx)
	if err != nil {
		g.t.Fatal(err)
	}
	return stream
}

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

// TestJournalError: a journal that failed once is not written any more. A new file takes
// its place, with all that the worker knows.
func TestJournalError(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	c.send(shell(1, "sleep 0.1"))
	c.want("started", key(1))
	before, err := os.Stat(g.journal.path)
	if err != nil {
		t.Fatal(err)
	}
	g.breakJournal(nil)
	c.send(shell(2, "true"))
	c.want("started", key(2))
	c.want("finished", key(2))
	c.want("finished", key(1))
	if after, err := os.Stat(g.journal.path); err != nil || os.SameFile(before, after) {
		t.Errorf("the file that failed is in use still: %v", err)
	}
	g.cancel()
	if err := g.wait(); err != nil {
		t.Error(err)
	}
	e := bury(t, g.folder.Path)
	if len(e.Ends) != 2 || !e.Complete {
		t.Errorf("%+v", e)
	}
	for _, rep := range e.Ends {
		if rep.Record.Result != messages.AttemptSucceeded {
			t.Errorf("%+v", rep)
		}
	}
}

// A journal is written anew when it has grown, from what is not acknowledged.
func TestCompaction(t *testing.T) {
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
	c.send(shell(i-1, "true")) // behind its acknowledgement
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

func (g *rig) journalSize() int64 {
	g.journal.mu.Lock()
	defer g.journal.mu.Unlock()
	return g.journal.size
}

func TestRunRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := Run(context.Background(), Config{Dir: filepath.Join(dir, "none")}); err == nil {
		t.Error("a folder that is none")
	}
	if err := Run(context.Background(), Config{Dir: dir, Settings: Settings{Outputs: "/dev/null/x"}, Logger: quiet()}); err == nil {
		t.Error("an output folder that is none")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Run(ctx, Config{Dir: dir, Settings: Settings{Outputs: dir}, Logger: quiet()}); err != nil {
		t.Error(err)
	}
}

// TestJournalCannotBeWritten: while no journal can be written nothing is forked, and no
// attempt is lost by that: what waits starts when it can.
func TestJournalCannotBeWritten(t *testing.T) {
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

// TestDrainInAShortage: what waits for the end of a shortage is given back.
func TestDrainInAShortage(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	repair := g.breakJournal(unix.ENOSPC)
	c.send(shell(1, "true"))
	c.of("postponed")
	c.send(drain)
	c.of("revoked")
	repair()
}
