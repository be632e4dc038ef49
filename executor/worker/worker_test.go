package worker

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/messages"
)

func TestAnEndIsRepeatedUntilItIsAcknowledged(t *testing.T) {
	g := newRig(t)
	c, said := g.attach()
	if len(said) != 1 || said[0] != workerpb.TypeHello {
		t.Fatalf("a new worker said %v", said)
	}
	c.send(shell(1, "echo out"))
	c.want(workerpb.TypeStarted, key(1))
	first := bytes.Clone(c.want(workerpb.TypeFinished, key(1)))
	c.send(shell(1, "echo again")) // a repetition gets the answer that there is
	if again := c.want(workerpb.TypeFinished, key(1)); !bytes.Equal(first, again) {
		t.Errorf("the end changed")
	}
	rep, err := workerpb.ParseFinished(first)
	if err != nil || rep.Record.Result != messages.AttemptSucceeded || string(rep.Record.Stdout.Inline) != "out\n" || rep.Record.Node != "here" {
		t.Errorf("%+v, %v", rep, err)
	}

	c, said = g.attach()
	if len(said) != 2 || said[1] != workerpb.TypeFinished {
		t.Fatalf("it said %v", said)
	}
	c.send(workerpb.AppendKey(nil, workerpb.TypeAck, key(1)))
	c.send(shell(1, "echo again"))
	c.want(workerpb.TypeIgnored, key(1))
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
		c.want(workerpb.TypeStarted, key(i))
	}
	c.send(shell(2, "sleep 1000"))
	c.send(shell(2, "sleep 1000"))
	c.want(workerpb.TypeQueued, key(2))
	_, said := g.attach()
	count := map[workerpb.Type]int{}
	for _, typ := range said {
		count[typ]++
	}
	if count[workerpb.TypeStarted] != 2 || count[workerpb.TypeQueued] != 1 {
		t.Errorf("it said %v", said)
	}
	if err := c.broken(); err == nil {
		t.Error("the first server is still attached")
	}
}

// A frame that a replaced server had sent is not carried out.
func TestStaleFrames(t *testing.T) {
	g := newRig(t)
	g.attach()
	old := newSession()
	for _, frame := range [][]byte{shell(1, "true"), workerpb.AppendEmpty(nil, workerpb.TypeStop)} {
		if err := g.handle(old, frame); err != nil {
			t.Error(err)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.book) != 0 || g.stopping {
		t.Errorf("book %v, stopping %v", g.book, g.stopping)
	}
}

func TestKillAndRevoke(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	for i := range uint32(2) {
		c.send(shell(i, "sleep 1000"))
		c.want(workerpb.TypeStarted, key(i))
	}
	c.send(append(shell(2, "sleep 1000"), shell(3, "sleep 1000")...))
	c.send(workerpb.AppendKey(nil, workerpb.TypeRevoke, key(2)))
	c.want(workerpb.TypeRevoked, key(2))
	c.send(workerpb.AppendKill(nil, workerpb.Kill{Key: key(0), Grace: time.Second}))
	rep, err := workerpb.ParseFinished(c.want(workerpb.TypeFinished, key(0)))
	if err != nil || rep.Record.Result != messages.AttemptKilled {
		t.Errorf("%+v, %v", rep, err)
	}
	c.want(workerpb.TypeStarted, key(3))
}

func TestDrain(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	for i := range uint32(3) {
		c.send(shell(i, "read x </dev/zero; sleep 1000"))
	}
	c.send(workerpb.AppendEmpty(nil, workerpb.TypeDrain))
	usage := func() (a workerpb.Amount) {
		for {
			if typ, body := c.next(); typ == workerpb.TypeUsage {
				a, err := workerpb.ParseAmount(body)
				if err != nil {
					t.Fatal(err)
				}
				return a
			} else if k, _ := workerpb.ParseKey(body); typ == workerpb.TypeRevoked && k != key(2) {
				t.Errorf("revoked: %v", k)
			}
		}
	}
	for a := usage(); a.CPUMillis != 2000; a = usage() {
		t.Logf("usage %+v", a)
	}
	c.send(shell(9, "true"))
	for typ, body := c.next(); typ != workerpb.TypeRevoked; typ, body = c.next() {
		t.Logf("type %d: %v", typ, body)
	}
	c.send(workerpb.AppendKill(workerpb.AppendKill(nil, workerpb.Kill{Key: key(0)}), workerpb.Kill{Key: key(1)}))
	for a := usage(); a.CPUMillis > 0; a = usage() {
		t.Logf("usage %+v", a)
	}
	// It ends once all is acknowledged, and leaves nothing that it was not told to remove.
	c.send(workerpb.AppendKey(workerpb.AppendKey(nil, workerpb.TypeAck, key(0)), workerpb.TypeAck, key(1)))
	if err := g.wait(); err != nil || !exists(g.folder.Path) {
		t.Errorf("%v, folder there: %v", err, exists(g.folder.Path))
	}
	if e := bury(t, g.folder.Path); len(e.Ends) != 0 || !e.Certain {
		t.Errorf("%+v", e)
	}
}

func TestStop(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	c.send(shell(1, "sleep 1000"))
	c.want(workerpb.TypeStarted, key(1))
	c.send(workerpb.AppendEmpty(workerpb.AppendEmpty(nil, workerpb.TypeStop), workerpb.TypeStop))
	rep, err := workerpb.ParseFinished(c.want(workerpb.TypeFinished, key(1)))
	if err != nil || rep.Record.Result != messages.AttemptLost {
		t.Errorf("%+v, %v", rep, err)
	}
	if typ, _ := c.next(); typ != workerpb.TypeStopped {
		t.Errorf("item of type %d", typ)
	}
	c.conn.Close()
	if err := g.wait(); err != nil {
		t.Error(err)
	}
	// Nobody acknowledged the end: it stays for the next server.
	e := bury(t, g.folder.Path)
	if len(e.Ends) != 1 || e.Ends[0].Record.Result != messages.AttemptLost || !e.Certain {
		t.Errorf("%+v", e)
	}
}

func bury(t *testing.T, path string) *Estate {
	t.Helper()
	f, err := Take(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Release)
	e, err := Bury(context.Background(), dead(f), 100*time.Millisecond, quiet())
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
	c.want(workerpb.TypeStarted, key(1))
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
	c.want(workerpb.TypeStarted, key(1))
	l := g.open(workerpb.LogMethod)
	ask := func(frame []byte) workerpb.LogData {
		t.Helper()
		l.send(frame)
		typ, body := l.next()
		if typ != workerpb.TypeLogData {
			t.Fatalf("item of type %d: %q", typ, body)
		}
		d, err := workerpb.ParseLogData(body)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	read := func(off int64, n int) workerpb.LogData {
		t.Helper()
		return ask(workerpb.AppendLogRead(nil, workerpb.LogRead{Off: off, N: n}))
	}
	ask(workerpb.AppendLogOpen(nil, workerpb.LogOpen{Key: key(1)}))
	for d := read(0, 0); d.Size < 16 || d.Kept != 0; d = read(0, 0) {
		t.Log(d)
	}
	for d := read(5, 0); d.Kept != 12; d = read(5, 0) { // the monitor cuts the middle
	}
	if d := read(0, 100); string(d.Data) != "0123" || d.EOF || !d.Live {
		t.Errorf("%+v", d)
	}
	if d := read(5, 100); !d.Cut {
		t.Errorf("%+v", d)
	}
	if d := read(12, 100); string(d.Data) != "cdef" || !d.EOF {
		t.Errorf("%+v", d)
	}
	c.send(workerpb.AppendKill(nil, workerpb.Kill{Key: key(1)}))
	c.want(workerpb.TypeFinished, key(1))
	if d := read(12, 100); d.Live || string(d.Data) != "cdef" {
		t.Errorf("after the end: %+v", d)
	}

	l = g.open(workerpb.LogMethod)
	l.send(workerpb.AppendLogOpen(nil, workerpb.LogOpen{Key: key(1)}))
	typ, body := l.next()
	if e, err := workerpb.ParseLogError(body); typ != workerpb.TypeLogError || err != nil || !e.NotLive {
		t.Errorf("type %d, %+v, %v", typ, e, err)
	}
	for name, frame := range map[string][]byte{
		"empty": {}, "read first": workerpb.AppendLogRead(nil, workerpb.LogRead{}), "other": workerpb.AppendEmpty(nil, workerpb.TypeSynced),
		"torn open": {byte(workerpb.TypeLogOpen), 1, 0x80},
	} {
		l := g.open(workerpb.LogMethod)
		l.send(frame)
		if err := l.broken(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestFramesThatAreNone(t *testing.T) {
	for name, frame := range map[string][]byte{
		"torn": {1, 9}, "order": {byte(workerpb.TypeOrder), 0}, "kill": {byte(workerpb.TypeKill), 0},
		"ack": {byte(workerpb.TypeAck), 0}, "capacity": {byte(workerpb.TypeCapacity), 0},
	} {
		g := newRig(t)
		c, _ := g.attach()
		c.send([]byte{250, 1, 7}) // of a type to come: left out
		c.send(frame)
		if err := c.broken(); err == nil {
			t.Errorf("%s: accepted", name)
		}
		g.attach() // the worker goes on
	}
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
	c.want(workerpb.TypeStarted, key(1))
	before, err := os.Stat(g.journal.path)
	if err != nil {
		t.Fatal(err)
	}
	g.breakJournal(nil)
	c.send(shell(2, "true"))
	c.want(workerpb.TypeStarted, key(2))
	c.want(workerpb.TypeFinished, key(2))
	c.want(workerpb.TypeFinished, key(1))
	if after, err := os.Stat(g.journal.path); err != nil || os.SameFile(before, after) {
		t.Errorf("the file that failed is in use still: %v", err)
	}
	g.cancel()
	if err := g.wait(); err != nil {
		t.Error(err)
	}
	e := bury(t, g.folder.Path)
	if len(e.Ends) != 2 || !e.Certain {
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
	c.want(workerpb.TypeStarted, key(1))
	c.send(shell(2, "true"))
	c.want(workerpb.TypeStarted, key(2))
	c.want(workerpb.TypeFinished, key(2))
	i := uint32(10)
	for ; g.journalSize() < 3000; i++ {
		c.send(shell(i, "true"))
		c.want(workerpb.TypeStarted, key(i))
		c.want(workerpb.TypeFinished, key(i))
		c.send(workerpb.AppendKey(nil, workerpb.TypeAck, key(i)))
	}
	c.send(shell(i-1, "true")) // behind its acknowledgement
	c.want(workerpb.TypeIgnored, key(i-1))
	g.journal.mu.Lock()
	g.journal.next = 0
	g.journal.mu.Unlock()
	g.write()
	if n := g.journalSize(); n > 500 {
		t.Errorf("%d bytes after compaction", n)
	}
	text, err := os.ReadFile(g.journal.path)
	if err != nil {
		t.Fatal(err)
	}
	p := readJournal(text)
	if a := p.attempts[key(1)]; !p.whole || len(p.attempts) != 2 || a == nil || a.pid == 0 || a.end != nil || p.attempts[key(2)].end == nil {
		t.Errorf("%+v", p)
	}
	// A compaction that does not work leaves the old journal.
	g.journal.mu.Lock()
	g.journal.next = 0
	g.journal.path = "/nowhere/journal"
	g.journal.mu.Unlock()
	g.write()
	if again, _ := os.ReadFile(filepath.Join(g.folder.Path, journalFileName)); !bytes.Equal(again, text) {
		t.Error("the journal changed")
	}
}

func (g *rig) journalSize() int64 {
	g.journal.mu.Lock()
	defer g.journal.mu.Unlock()
	return g.journal.size
}

func TestSplit(t *testing.T) {
	if parts := split([]byte("abc")); len(parts) != 1 {
		t.Errorf("%d parts", len(parts))
	}
	rep := executor.Report{Key: key(1), Stdout: make([]byte, workerpb.MaxFrame/8)}
	var frame []byte
	for range 9 {
		frame = workerpb.AppendFinished(frame, &rep)
	}
	n := 0
	for _, part := range split(frame) {
		for len(part) > 0 {
			var err error
			if _, _, part, err = workerpb.Next(part); err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	if n != 9 {
		t.Errorf("%d items came through", n)
	}
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
	d, err := workerpb.ParseDeferred(c.of(workerpb.TypeDeferred))
	if err != nil || d.Reason != "journal" || d.N != 1 {
		t.Errorf("%+v, %v", d, err)
	}
	if exists(ran) {
		t.Error("it ran")
	}
	c.send(workerpb.AppendEmpty(nil, workerpb.TypePing))
	c.of(workerpb.TypePong)
	repair()
	c.of(workerpb.TypeStarted)
	rep, err := workerpb.ParseFinished(c.of(workerpb.TypeFinished))
	if err != nil || rep.Record.Result != messages.AttemptSucceeded || !exists(ran) {
		t.Errorf("%+v, %v", rep, err)
	}
}

// TestDrainInAShortage: what waits for the end of a shortage is given back.
func TestDrainInAShortage(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	repair := g.breakJournal(unix.ENOSPC)
	c.send(shell(1, "true"))
	c.of(workerpb.TypeDeferred)
	c.send(workerpb.AppendEmpty(nil, workerpb.TypeDrain))
	c.of(workerpb.TypeRevoked)
	repair()
}
