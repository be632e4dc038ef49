package fleet

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// print ends an attempt with output in files of the node.
func (n *testNode) print(key messages.AttemptKey, texts ...string) {
	n.c.t.Helper()
	rec := messages.AttemptRecord{Task: key.Task, Attempt: key.Attempt, Start: 7, Stop: 8, Node: n.id}
	var parts []outputs.Part
	for s, text := range texts {
		parts = append(parts, outputs.Part{Stream: messages.Stream(s), Body: strings.NewReader(text), Length: int64(len(text))})
	}
	offsets, err := n.outputs.Append(key, parts...)
	if err != nil {
		n.c.t.Fatal(err)
	}
	for s, text := range texts {
		out := messages.Output{Size: int64(len(text)), Head: int64(len(text)) - 2, Tail: 2, Offset: offsets[s]}
		if messages.Stream(s) == messages.Stdout {
			rec.Stdout = out
		} else {
			rec.Stderr = out
		}
	}
	n.workers.mu.Lock()
	a := n.workers.attempts[key]
	a.State = lifecycle.Ended
	a.End = &executor.Report{Key: key, Kind: executor.Finished, At: 8, GrantedAt: a.GrantedAt, Record: rec}
	end := *a.End
	n.workers.mu.Unlock()
	n.workers.sink(end)
}

// recordOf returns the record of an attempt's end, as a leader has heard it.
func (n *testNode) recordOf(key messages.AttemptKey) *messages.AttemptRecord {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.reports {
		if r.Key == key && r.Kind == executor.Finished {
			return &r.Record
		}
	}
	return nil
}

// begun orders an attempt at the node that leads, and begins it there.
func (n *testNode) begun(key messages.AttemptKey) {
	n.c.t.Helper()
	n.order(key)
	eventually(n.c.t, "the order comes", func() bool { return n.workers.startsOf(key) == 1 })
	n.workers.begin(key)
	n.awaitHeard(key, "started")
}

// read reads a stream in the files of a node.
func (n *testNode) read(t *testing.T, key messages.AttemptKey, stream messages.Stream, out messages.Output) string {
	t.Helper()
	log, err := n.outputs.Log(outputs.ID{Key: key, Stream: stream}, out)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	text, err := io.ReadAll(io.NewSectionReader(log, 0, out.Size))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestEndWaitsForTheCopyOfItsOutput: a leader hears of an end when another node has the output, and the record
// says which: the leader's node, or else the next one that is up.
func TestEndWaitsForTheCopyOfItsOutput(t *testing.T) {
	c := newTestCluster(t, "a", "b", "c")
	a, b, third := c.nodes[0], c.nodes[1], c.nodes[2]
	b.drain() // tasks start at a
	third.drain()
	long, short := strings.Repeat("0123456789", maxOutputRead/4), "error"
	check := func(leader, has *testNode, key messages.AttemptKey) {
		t.Helper()
		leader.awaitHeard(key, "started", "succeeded")
		rec := leader.recordOf(key)
		if rec.Copy == nil || rec.Copy.Node != "name of "+has.id || rec.Node != "a" {
			t.Fatalf("the copy of %v is at %+v; want %s", key, rec.Copy, has.id)
		}
		if text := has.read(t, key, messages.Stdout, rec.Copy.At(rec.Stdout, messages.Stdout)); text != long {
			t.Errorf("stdout of the copy has %d bytes", len(text))
		}
		if text := has.read(t, key, messages.Stderr, rec.Copy.At(rec.Stderr, messages.Stderr)); text != short {
			t.Errorf("stderr of the copy: %q", text)
		}
	}
	a.lead(4)
	for task := range uint32(3) {
		a.begun(testKey(task))
	}
	a.print(testKey(0), long, short)
	check(a, b, testKey(0))
	a.HandOver(testPartition)
	third.lead(5, testKey(1), testKey(2))
	third.awaitHeard(testKey(1), "started")
	a.print(testKey(1), long, short)
	check(third, third, testKey(1))
	third.Acknowledge(testKey(1))
	eventually(t, "the end is forgotten", func() bool {
		a.copying.mu.Lock()
		defer a.copying.mu.Unlock()
		return !a.workers.has(testKey(1)) && a.copying.ends[testKey(1)] == nil
	})

	// While the others are down the end is held back, and its attempt counts as running.
	third.HandOver(testPartition)
	c.leads.Store(nil)
	third.stop()
	b.stop()
	a.print(testKey(2), long, short)
	known, _ := a.copying.Attempts(testPartition)
	at := slices.IndexFunc(known, func(k Known) bool { return k.Key == testKey(2) })
	if at < 0 || known[at].State != lifecycle.Running || known[at].StartedAt != 7 || known[at].End != nil {
		t.Errorf("without a copy: %+v", known)
	}
	a.stop()
	a.start()
	b.start()
	b.lead(6, testKey(2))
	check(b, b, testKey(2))
}

// TestEndWithoutACopy: an end is reported when no other node takes its output, because all of them refuse it or
// are down.
func TestEndWithoutACopy(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	b.drain() // tasks start at a
	b.outputs.KeepFree(func(total int64) int64 { return total })
	a.lead(4)
	a.begun(testKey(1))
	a.begun(testKey(2))
	eventually(t, "the nodes are connected", func() bool {
		a.Fleet.mu.Lock()
		defer a.Fleet.mu.Unlock()
		return a.links["b"] != nil
	})
	a.print(testKey(1), "a text")
	a.awaitHeard(testKey(1), "started", "succeeded")
	a.logLimit = time.Millisecond
	b.stop()
	a.print(testKey(2), "a text")
	a.awaitHeard(testKey(2), "started", "succeeded")
	for task := range uint32(2) {
		if rec := a.recordOf(testKey(task + 1)); rec.Copy != nil || a.read(t, testKey(task+1), messages.Stdout, rec.Stdout) != "a text" {
			t.Errorf("the record is %+v", rec)
		}
	}
}

// TestEndsDoNotWaitForEachOthersCopies: ends of a partition that has no leader are held back until another node has a
// copy, or a leader is there. Those of other partitions do not wait for them.
func TestEndsDoNotWaitForEachOthersCopies(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	a.logLimit = 100 * time.Millisecond
	b.stop()
	a.lead(4)
	a.awaitRoom()
	a.begun(testKey(1))
	var others []messages.AttemptKey
	for task := range uint32(2 * concurrentCopies) {
		key := messages.AttemptKey{Run: testRun + 1, Task: task, Attempt: 1}
		a.workers.mu.Lock()
		a.workers.attempts[key] = &Known{Key: key, GrantedAt: 5, State: lifecycle.Running, StartedAt: 7}
		a.workers.mu.Unlock()
		a.print(key, "a text")
		others = append(others, key)
	}
	a.print(testKey(1), "a text")
	a.awaitHeard(testKey(1), "started", "succeeded")
	a.copying.mu.Lock()
	defer a.copying.mu.Unlock()
	for _, key := range others {
		if a.copying.ends[key].isReady {
			t.Errorf("the end of %v is passed on, and nobody waits for it", key)
		}
	}
}

// damageBlock changes a byte in a block of the only output file of a node.
func damageBlock(t *testing.T, n *testNode, block int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.outputDir, "*", "*.out"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	f, err := os.OpenFile(files[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{'X'}, 100+block*(64<<10)); err != nil {
		t.Fatal(err)
	}
}

// TestCopyThatBreaksOff leaves nothing that a record could name, and its space is given back.
func TestCopyThatBreaksOff(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	b.drain() // tasks start at a
	a.lead(4)
	a.begun(testKey(1))
	eventually(t, "the nodes are connected", func() bool {
		a.Fleet.mu.Lock()
		defer a.Fleet.mu.Unlock()
		return a.links["b"] != nil
	})
	out := messages.Output{Size: 1 << 20, Head: 1 << 20}
	offsets, err := a.outputs.Append(testKey(1), outputs.Part{Body: strings.NewReader(strings.Repeat("x", 1<<20)), Length: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	out.Offset = offsets[0]
	damageBlock(t, a, 3)
	made, refused, err := a.copyTo("b", &messages.AttemptRecord{Stdout: out}, testKey(1))
	if made != nil || !refused || err == nil || !strings.Contains(err.Error(), "does not match its checksum") {
		t.Errorf("copy %+v, refused %v, %v", made, refused, err)
	}
	eventually(t, "the space is given back", func() bool {
		size := int64(0) // without a file, if b has not begun
		err := b.outputs.ReadRun(testRun, func(n int64, _ io.Reader) error { size = n; return nil })
		return err == nil && size == 0
	})
}
