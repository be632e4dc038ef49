package actors

import (
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
)

func TestKillOvertakesWhatWaitsForTheJournal(t *testing.T) {
	r := newRig(t)
	id := r.submit(chain)
	k := r.order(1)
	r.fake.Begin(k)
	r.awaitTasks(id, dag.TaskRunning, 1)
	r.store.Hold()
	resumed := &messages.SetState{Run: id, To: dag.RunPaused, Reply: messages.NewReply[struct{}]()}
	r.node.env.root.Send(r.node.shard(id), resumed)
	r.store.WaitPending(1)
	r.fake.HoldKills(true)
	r.fake.End(k, messages.AttemptSucceeded, 0) // waits behind the pause
	killed := &messages.SetState{Run: id, To: dag.RunKilled, Reply: messages.NewReply[struct{}]()}
	r.node.env.root.Send(r.node.shard(id), killed)
	r.passed(id)
	r.store.Release()
	if a := <-killed.Reply; a.Err != nil {
		t.Fatal(a.Err)
	}
	if s := r.awaitState(id, dag.RunKilled); s.Counts[dag.TaskKilled] != 1 {
		t.Errorf("counts %v", s.Counts)
	}
	if recs := r.attempts(id, "a"); len(recs) != 1 || recs[0].Result != messages.AttemptSucceeded {
		t.Errorf("the late success: %+v", recs)
	}
}

func TestRetryIsDueThoughTheClockSteppedBackSince(t *testing.T) {
	r := newRig(t)
	id := r.submit(`{"tasks":{"a":{"job":{"command":["a"]},"maxRetries":1,"retryIntervalSeconds":3600}}}`)
	r.fake.End(r.order(1), messages.AttemptFailed, 1)
	r.awaitTasks(id, dag.TaskRetry, 1)
	now := r.now()
	due := &messages.RetryDue{Run: id, Attempt: 1, Due: now + int64(time.Minute)}
	r.node.env.root.Send(r.node.shard(id), due) // of an earlier wait: too soon
	if s := r.state(id, "a"); s != dag.TaskRetry {
		t.Fatalf("state %v", s)
	}
	due = &messages.RetryDue{Run: id, Attempt: 1, Due: now + int64(2*time.Hour)}
	r.node.env.root.Send(r.node.shard(id), due)
	r.fake.End(r.order(2), messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
}

// A no-op task is begun before its grant is durable. What else is carried out
// with that batch may be about its former end, and must not stop it.
func TestNoopBegunAheadOutlivesItsFormerEnd(t *testing.T) {
	g := &gate{where: "(*dispatcher).grant", reached: make(chan struct{}), open: make(chan struct{}), closed: true}
	r := newRig(t, func(c *Config) { c.Clock = g })
	id := r.submit(`{"parameters":{"N":["1","2"]},"jobDefaults":{"executor":"noop"},"tasks":{"a":{"job":{"command":["{{N}}"]}}}}`)
	<-g.reached
	r.store.Hold()
	shard, send := r.node.shard(id), r.node.env.root.Send
	kill0 := &messages.KillTask{Run: id, Task: "a_0", Reply: messages.NewReply[struct{}]()}
	kill1 := &messages.KillTask{Run: id, Task: "a_1", Reply: messages.NewReply[struct{}]()}
	again := &messages.SetState{Run: id, To: dag.RunQueued, Reply: messages.NewReply[struct{}]()}
	send(shard, kill0)
	r.store.WaitPending(1)
	send(shard, kill1)
	send(shard, again)
	r.passed(id)
	close(g.open)
	for r.node.env.metrics.held.noops.Load() != 2 { // both were granted, before the dispatcher knew
		runtime.Gosched()
	}
	r.store.Release()
	if a := <-again.Reply; a.Err != nil {
		t.Fatal(a.Err)
	}
	r.awaitState(id, dag.RunCompleted)
}

func TestSummaryOfARunThatWasKilledTwiceInOneBatch(t *testing.T) {
	r := newRig(t)
	id := r.submit(chain)
	r.order(1)
	if err := r.node.Kill(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if s := r.awaitState(id, dag.RunKilled); s.Counts[dag.TaskQueued] != 2 && s.Counts[dag.TaskKilled] != 1 {
		t.Fatalf("counts %v", s.Counts)
	}
	v, err := r.node.View(t.Context(), id, 0, 9)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := r.store.Summary(id)
	if err != nil || stored.Counts != v.Counts {
		t.Errorf("stored %v, viewed %v, %v", stored.Counts, v.Counts, err)
	}
}

func TestStartThatPanicsAgainAndAgainIsLostNotStuck(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(func(executor.Order) executortest.Step { return executortest.Step{Panic: "boom"} })
	id := r.submit(single)
	r.awaitState(id, dag.RunErrored)
	recs := r.attempts(id, "a")
	if len(recs) != 6 || recs[0].Result != messages.AttemptLost || !strings.Contains(recs[0].ExecutorLog, "panicked") {
		t.Errorf("attempts %+v", recs)
	}
	r.fake.SetScript(nil)
	r.finishes(wholeMachine)
}

func TestTaskActorDoesAfterAPanicWhatWasBehindIt(t *testing.T) {
	r := newRig(t)
	release, entered := make(chan struct{}), make(chan struct{})
	first := true
	r.fake.SetScript(func(executor.Order) executortest.Step {
		if !first {
			return executortest.Step{Begin: true}
		}
		first = false
		close(entered)
		<-release
		return executortest.Step{Panic: "boom"}
	})
	id := r.submit(single)
	<-entered
	r.fake.HoldKills(true)
	if err := r.node.Kill(t.Context(), id); err != nil { // its signal is behind the Begin that panics
		t.Fatal(err)
	}
	key := messages.AttemptKey{Run: id, Attempt: 1}
	close(release)
	r.fake.WaitKill(t, key)
	r.fake.End(key, messages.AttemptKilled, 0)
	r.awaitState(id, dag.RunKilled)
}

func TestRequestsAreAnsweredAtOnceWhenAShardHasPanicked(t *testing.T) {
	r := newRig(t)
	waits := &messages.SetState{Run: 3, To: dag.RunPaused, Reply: messages.NewReply[struct{}]()}
	r.node.env.root.Send(r.node.shard(3), &messages.Create{Run: 3}) // of a submission that is nil
	begun := time.Now()
	_, err := call(t.Context(), r.node, waits.Reply, func() { r.node.env.root.Send(r.node.shard(3), waits) })
	if code(err) != messages.Unavailable && code(err) != messages.NotFound || time.Since(begun) > callTimeout/2 {
		t.Errorf("%v after %v", err, time.Since(begun))
	}
	<-r.node.Failed()
	if err := r.node.Kill(t.Context(), 3); code(err) != messages.Unavailable {
		t.Errorf("kill: %v", err)
	}
}

func TestPanicOfTheNodeActorFailsTheNode(t *testing.T) {
	r := newRig(t)
	r.node.env.root.Send(r.node.root, &messages.Submit{}) // a submission that is nil
	<-r.node.Failed()
	if _, err := r.node.Submit(t.Context(), r.plan(single)); code(err) != messages.Unavailable {
		t.Errorf("submit: %v", err)
	}
	if err := r.node.Err(); err == nil || !strings.Contains(err.Error(), "node panicked") {
		t.Errorf("got %v", err)
	}
}

func TestErrorsOfAFailedStoreAreSaidAsSuch(t *testing.T) {
	r := newRig(t)
	id := r.submit(`{"jobDefaults":{"executor":"noop"},"tasks":{"a":{"job":{}}}}`)
	r.awaitState(id, dag.RunCompleted)
	for r.node.env.index.Summary(id) != nil {
		runtime.Gosched()
	}
	r.store.Fail(errors.New("disk is gone"))
	for name, err := range map[string]error{
		"summary": second(r.node.Summary(t.Context(), id)),
		"view":    second(r.node.View(t.Context(), id, 0, 1)),
		"list":    r.node.Summaries(t.Context(), messages.ListQuery{All: true}, func(*messages.Summary) bool { return true }),
	} {
		if code(err) != messages.Unavailable || strings.Count(err.Error(), "storage failed") != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
