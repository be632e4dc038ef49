package actors

import (
	"fmt"
	"testing"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// An attempt that was revoked gives its number back: the next one of that number
// has another actor, and may begin before the former one has stopped.
func TestFormerActorDoesNotUnregisterItsSuccessor(t *testing.T) {
	a := newAttempts()
	key := messages.AttemptKey{Run: 3, Task: 70, Attempt: 1}
	run, former, next := actor.NewPID("x", "run"), actor.NewPID("x", "former"), actor.NewPID("x", "next")
	a.add(key, former, run)
	a.add(key, next, run)
	a.remove(key, former)
	if a.find(key).task != next {
		t.Fatal("the report of the next attempt has no recipient")
	}
	a.remove(key, next)
	if a.find(key).task != nil {
		t.Error("still there")
	}
	a.sink(nil, "x")(executor.Report{Key: key}) // without a recipient: dropped
}

// TestReportsOfOneRunNeedNoMap: what is allocated for the reports of one run that come together
// does not grow with their number.
func TestReportsOfOneRunNeedNoMap(t *testing.T) {
	a := newAttempts()
	run, task := actor.NewPID("x", "run"), actor.NewPID("x", "task")
	list := make([]executor.Report, 1000)
	for i := range list {
		list[i].Key = messages.AttemptKey{Run: 1, Task: uint32(i), Attempt: 1}
		a.add(list[i].Key, task, run)
	}
	for _, n := range []int{2, len(list)} {
		// The message, its two lists and the list of messages.
		if allocated := testing.AllocsPerRun(100, func() { a.byRun(list[:n], "x") }); allocated > 4 {
			t.Errorf("%d reports of one run: %v allocations, want at most 4", n, allocated)
		}
	}
}

func BenchmarkReportsByRun(b *testing.B) {
	run, task := actor.NewPID("x", "run"), actor.NewPID("x", "task")
	for _, runs := range []int{1, 8} {
		a := newAttempts()
		list := make([]executor.Report, 64)
		for i := range list {
			list[i].Key = messages.AttemptKey{Run: messages.RunID(i % runs), Task: uint32(i), Attempt: 1}
			a.add(list[i].Key, task, run)
		}
		b.Run(fmt.Sprintf("runs=%d", runs), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				a.byRun(list, "x")
			}
		})
	}
}

// An end that came when no task actor waited for it is acknowledged, so that its
// executor forgets it, when it is history and that is durable; not while its attempt is live.
func TestOrphanedEndsAreAcknowledgedOnceDurable(t *testing.T) {
	r, d := durable(t)
	id := r.submit(single)
	k := r.order(1)
	r.fake.Begin(k)
	r.awaitTasks(id, dag.TaskRunning, 1)
	unclaim := func() { r.node.env.root.Send(r.node.shard(id), &orphanedEnd{k, r.node.env.durables[0]}) }
	unclaim()
	if _, err := r.node.View(t.Context(), id, 0, 1); err != nil { // behind it
		t.Fatal(err)
	}
	if n := d.AckCount(k); n != 0 {
		t.Fatalf("the end of a live attempt was acknowledged %d times", n)
	}
	r.store.Hold()
	r.fake.End(k, messages.AttemptSucceeded, 0)
	r.store.WaitPending(1)
	unclaim()
	r.drainShard(id)
	if n := d.AckCount(k); n != 0 {
		t.Fatalf("an end that is not durable was acknowledged %d times", n)
	}
	r.store.Release()
	d.WaitAck(t, k)
	r.awaitState(id, dag.RunCompleted)
}
