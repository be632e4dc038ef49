package worker

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
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

// TestAttachTellsAllAttempts attaches a second server, which hears of every attempt in its state;
// the first one is detached.
func TestAttachTellsAllAttempts(t *testing.T) {
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
	if err := streamEnd(t, c.stream); err == nil {
		t.Error("the first server is still attached")
	}
}

// TestFramesOfAReplacedServerAreIgnored gives the worker a frame that a replaced server had sent.
func TestFramesOfAReplacedServerAreIgnored(t *testing.T) {
	g := newRig(t)
	g.attach()
	old := newLink()
	frame := new(workerpb.ServerFrame)
	shell(1, "true")(frame)
	stop(frame)
	if err := g.handleFrame(old, frame); err != nil {
		t.Error(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.partition.attempts) != 0 || g.stopping {
		t.Errorf("book %v, stopping %v", g.partition.attempts, g.stopping)
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
	// The slots are free before the final report, so the next attempt may start before it.
	answers := map[string]item{}
	for range 2 {
		i := c.next()
		answers[i.kind] = i
	}
	if end := answers["finished"]; end.key != key(0) || end.report(t).Record.Result != messages.AttemptKilled {
		t.Errorf("%+v", answers)
	}
	if start := answers["started"]; start.key != key(3) {
		t.Errorf("%+v", answers)
	}
}

// TestInvalidFramesEndTheStream sends bytes that cannot be decoded, an order without an attempt, a Lead without
// a session, and what concerns a partition that the worker does not have.
// The worker goes on.
func TestInvalidFramesEndTheStream(t *testing.T) {
	for name, frame := range map[string][]byte{
		"torn": {0x0a, 9}, "another wire type": {0x08, 1}, "order of no attempt": {0x2a, 6, 0x18, 1, 0x2a, 2, 0x08, 1},
		"order of another partition": {0x2a, 4, 0x08, 1, 0x18, 1}, "lead of another partition": {0x12, 4, 0x08, 1, 0x18, 2}, "lead of no session": {0x12, 0},
		"number of 65 bits": {0x30, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
	} {
		g := newRig(t)
		c, _ := g.attach()
		sendRaw(t, c.stream, []byte{0xf8, 1, 7}) // field 31, of a version to come: left out
		sendRaw(t, c.stream, frame)
		if err := streamEnd(t, c.stream); err == nil {
			t.Errorf("%s: accepted", name)
		}
		g.attach() // the worker goes on
	}
}

// TestKillBeforeTheForkGivesTheOrderBack kills an attempt while its intent is being written. The order
// is revoked once the journal says that the intent is withdrawn, so a crash does not make it a lost
// attempt. The same order may come again; it then runs once.
func TestKillBeforeTheForkGivesTheOrderBack(t *testing.T) {
	g := newRig(t)
	c, _ := g.attach()
	g.disk.Add(faults.Rule{Op: faults.Write, Path: journalFileName, N: 1, Do: func(faults.Call) { g.process.Kill(key(1), 0) }})
	c.send(shell(1, "true"))
	if i := c.next(); i.kind == "queued" { // it may be told first that it waits
		c.want("revoked", key(1))
	} else if i.kind != "revoked" || i.key != key(1) {
		t.Fatalf("%+v", i)
	}
	text, err := os.ReadFile(filepath.Join(g.folder.Path, journalFileName))
	if err != nil {
		t.Fatal(err)
	}
	if p := parseJournal(text); !p.complete || p.attempts[key(1)] != nil {
		t.Errorf("after the order was given back the journal has %+v", p)
	}
	c.send(shell(1, "true"))
	if end := c.of("finished").report(t); end.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", end)
	}
	c.send(acknowledge(1), shell(1, "true"))
	if i := c.of("ignored"); i.key != key(1) || g.process.Stats().Starts != 1 {
		t.Errorf("%+v, %d starts", i, g.process.Stats().Starts)
	}
}

// TestOrdersOfAnotherSessionAreIgnored begins sessions on one stream. Only orders of the newest one start
// attempts; the others are answered with the reason, in their own session. An acknowledgement counts in
// each session.
func TestOrdersOfAnotherSessionAreIgnored(t *testing.T) {
	g := newRig(t)
	orderIn := func(s workerpb.Session, task uint32) func(*workerpb.ServerFrame) {
		return func(f *workerpb.ServerFrame) {
			f.OrdersIn(s).AddOrder(&executor.Order{Key: key(task), Shell: "true", UseShell: true, CPUMillis: 1000})
			f.OrdersIn(s).AddKill(key(0), 0)
			f.OrdersIn(s).AddRevocation(key(0))
		}
	}
	c := g.connect()
	c.want("hello", messages.AttemptKey{})
	ignored := func(s workerpb.Session, k messages.AttemptKey, reason workerpb.IgnoreReason, epoch uint64) {
		t.Helper()
		i := c.want("ignored", k)
		if m := i.message.(*workerpb.Ignored); i.session != s || m.Reason != reason || m.Epoch != epoch {
			t.Errorf("%v in session %v, want %v, %d in %v", m, i.session, reason, epoch, s)
		}
	}
	const staleEpoch, staleSession = workerpb.IgnoreReason_IGNORE_REASON_STALE_EPOCH, workerpb.IgnoreReason_IGNORE_REASON_STALE_SESSION
	none := messages.AttemptKey{}

	first := workerpb.Session{Epoch: 4, Number: 7}
	c.send(orderIn(workerpb.Session{Number: 7}, 1)) // the stream has no session yet
	ignored(workerpb.Session{Number: 7}, key(1), staleSession, 0)
	c.send(lead(first), func(f *workerpb.ServerFrame) { f.SetCapacity(workerpb.Amount{CPUMillis: 2000, MemoryBytes: 1 << 20}) })
	if i := c.want("synced", none); i.session != first {
		t.Fatalf("synced in session %v", i.session)
	}
	c.send(func(f *workerpb.ServerFrame) {
		f.OrdersIn(first).AddOrder(&executor.Order{Key: key(0), Shell: "sleep 1000", UseShell: true, CPUMillis: 1000})
	})
	c.want("started", key(0))

	for _, s := range []struct {
		workerpb.Session
		reason workerpb.IgnoreReason
	}{
		{workerpb.Session{Epoch: 3, Number: 9}, staleEpoch}, {workerpb.Session{Epoch: 4, Number: 6}, staleSession}, {first, staleSession},
	} {
		c.send(lead(s.Session))
		ignored(s.Session, none, s.reason, 4)
		if s.Session != first {
			c.send(orderIn(s.Session, 1))
			ignored(s.Session, key(1), s.reason, 4)
		}
	}
	c.send(orderIn(workerpb.Session{Epoch: 5, Number: 1}, 1)) // a later epoch without its Lead
	ignored(workerpb.Session{Epoch: 5, Number: 1}, key(1), staleEpoch, 4)

	for _, later := range []workerpb.Session{{Epoch: 4, Number: 8}, {Epoch: 5, Number: 1}} {
		c.send(lead(later))
		if i := c.want("started", key(0)); i.session != later {
			t.Errorf("started in session %v", i.session)
		}
		c.want("synced", none)
		c.send(orderIn(first, 1))
		reason := staleSession
		if later.Epoch > first.Epoch {
			reason = staleEpoch
		}
		ignored(first, key(1), reason, later.Epoch)
	}
	if n := g.process.Stats().Starts; n != 1 {
		t.Fatalf("%d starts: an order or a kill of another session was carried out", n)
	}
	last := workerpb.Session{Epoch: 5, Number: 1}
	c.send(func(f *workerpb.ServerFrame) { f.OrdersIn(last).AddKill(key(0), 0) })
	if i := c.want("finished", key(0)); i.session != last {
		t.Errorf("finished in session %v", i.session)
	}
	c.send(func(f *workerpb.ServerFrame) { f.OrdersIn(first).AddAcknowledgement(key(0)) })
	c.send(lead(workerpb.Session{Epoch: 5, Number: 2}))
	c.want("synced", none) // the end is not told any more
}

// TestEpochOutlivesTheStream attaches two servers. The worker refuses a Lead of a lower epoch from the second
// one too. A session number may be used again, since the second server counts its own.
func TestEpochOutlivesTheStream(t *testing.T) {
	g := newRig(t)
	for _, s := range []workerpb.Session{{Epoch: 4, Number: 7}, {Epoch: 4, Number: 1}} {
		c := g.connect()
		c.want("hello", messages.AttemptKey{})
		c.send(lead(s))
		c.want("synced", messages.AttemptKey{})
	}
	c := g.connect()
	c.want("hello", messages.AttemptKey{})
	c.send(lead(workerpb.Session{Epoch: 3, Number: 8}))
	if m := c.want("ignored", messages.AttemptKey{}).message.(*workerpb.Ignored); m.Reason != workerpb.IgnoreReason_IGNORE_REASON_STALE_EPOCH || m.Epoch != 4 {
		t.Errorf("%v", m)
	}
}
