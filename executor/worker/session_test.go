package worker

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

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

// TestInvalidFramesEndTheStream sends bytes that cannot be decoded, and an order without an attempt.
// The worker goes on.
func TestInvalidFramesEndTheStream(t *testing.T) {
	for name, frame := range map[string][]byte{
		"torn": {0x0a, 9}, "another wire type": {0x08, 1}, "order of no attempt": {0x1a, 2, 0x08, 1}, "number of 65 bits": {0x30, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
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
