package actors

import (
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

func TestBatchThatIsTooBigFailsOnlyItsRun(t *testing.T) {
	r := newRig(t, func(c *Config) {})
	r.stop()
	r.wrap = func(s persistence.Store) persistence.Store {
		return &refusing{s, func(b *persistence.Batch) bool {
			return len(b.Attempts) > 0 && b.Attempts[0].RC == 77 || b.Create != nil && len(b.Create.Definition) > 1000
		}}
	}
	r.start()
	id := r.submit(`{"parameters":{"N":["1","2"]},"tasks":{"a":{"job":{"command":["{{N}}"]}}}}`)
	first, other := r.order(1), r.order(2)
	r.fake.Begin(other)
	r.fake.HoldKills(true)
	r.fake.End(first, messages.AttemptFailed, 77)
	r.fake.WaitKill(t, other)
	for name, err := range map[string]error{
		"pause": r.node.SetState(t.Context(), id, dag.RunPaused),
		"kill":  r.node.Kill(t.Context(), id),
		"view":  second(r.node.View(t.Context(), id, 0, 1)),
	} {
		if code(err) != messages.Internal || strings.Contains(err.Error(), "storage failed") || !strings.Contains(err.Error(), "run "+strconv.Itoa(int(id))) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.node.Submit(t.Context(), r.plan(`{"tag":"`+strings.Repeat("x", 1000)+`","tasks":{"a":{"job":{"command":["a"]}}}}`)); code(err) != messages.TooLarge {
		t.Errorf("a submission that is too big: %v", err)
	}
	if err := r.node.Healthy(t.Context()); err != nil {
		t.Errorf("the node: %v", err)
	}
	r.runToCompletion(wholeMachine) // its slots are free
	r.fake.HoldKills(false)
	r.stop()
	r.wrap = nil
	r.fake.SetScript(succeed) // before the start: what is ordered meanwhile would be held
	r.start()                 // it goes on from what is durable
	r.awaitState(id, dag.RunCompleted)
}

func TestKillOvertakesEventsThatWaitForTheJournal(t *testing.T) {
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
	r.drainShard(id)
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

func TestRetryIsDueAfterTheClockSteppedBack(t *testing.T) {
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
func TestNoopStartedEarlyOutlivesItsFormerEnd(t *testing.T) {
	g := &gate{where: "(*dispatcher).grantSlots", reached: make(chan struct{}), open: make(chan struct{}), closed: true}
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
	r.drainShard(id)
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

const (
	chain   = `{"tasks":{"a":{"job":{"command":["a"]},"children":["b"]},"b":{"job":{"command":["b"]},"parents":["a"]}}}`
	fanNoop = `{"parameters":{"N":["1","2","3","4","5"]},"jobDefaults":{"executor":"noop"},
		"tasks":{"first":{"job":{}},"mid":{"job":{"command":["{{N}}"]},"parents":["first"]},"last":{"job":{},"parents":["mid"]}}}`
	single = `{"tasks":{"a":{"job":{"command":["a"]}}}}`
)

func succeed(executor.Order) executortest.Step {
	return executortest.Step{End: messages.AttemptSucceeded}
}

func TestChildrenStartAfterTheirParents(t *testing.T) {
	r := newRig(t)
	id := r.submit(chain)
	a := r.order(1)
	if a != (messages.AttemptKey{Run: id, Task: 0, Attempt: 1}) {
		t.Fatalf("first order is %+v", a)
	}
	r.fake.Begin(a)
	r.awaitTasks(id, dag.TaskRunning, 1)
	r.fake.End(a, messages.AttemptSucceeded, 0)
	b := r.order(2)
	if b.Task != 1 {
		t.Fatalf("second order is %+v", b)
	}
	r.fake.End(b, messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
	if got := r.changes(id); !slices.Equal(got, []string{"QUEUED", "RUNNING", "COMPLETED"}) {
		t.Errorf("changes %v", got)
	}
	for _, name := range []string{"a", "b"} {
		if recs := r.attempts(id, name); len(recs) != 1 || recs[0].RC != 0 || recs[0].Stop == 0 {
			t.Errorf("attempts of %s: %+v", name, recs)
		}
	}
}

func TestNoopRunCompletes(t *testing.T) {
	r := newRig(t)
	id := r.submit(fanNoop)
	s := r.awaitState(id, dag.RunCompleted)
	if s.Counts[dag.TaskCompleted] != 7 {
		t.Errorf("counts %v", s.Counts)
	}
	if recs := r.attempts(id, "mid_3"); len(recs) != 1 || recs[0].Result != messages.AttemptSucceeded {
		t.Errorf("attempts %+v", recs)
	}
}

func TestNoAttemptStartsBeforeItsGrantIsDurable(t *testing.T) {
	r := newRig(t)
	r.store.Hold()
	done := make(chan messages.RunID, 1)
	go func() {
		id, _ := r.node.Submit(t.Context(), r.plan(chain))
		done <- id
	}()
	r.store.WaitPending(1)
	select {
	case <-done:
		t.Fatal("answered before the submission was durable")
	default:
	}
	r.store.Step(1)
	id := <-done
	r.store.WaitPending(1) // the grant
	if n := len(r.fake.Orders()); n != 0 {
		t.Fatalf("%d orders before the grant was durable", n)
	}
	r.store.Step(1)
	a := r.order(1)
	r.fake.End(a, messages.AttemptSucceeded, 0)
	r.store.WaitPending(1) // the end of a
	if n := len(r.fake.Orders()); n != 1 {
		t.Fatalf("%d orders: the child started before its parent's end was durable", n)
	}
	if s, _ := r.node.Summary(t.Context(), id); s.Counts[dag.TaskCompleted] != 0 {
		t.Error("COMPLETED was shown before it was durable")
	}
	r.store.Release()
	r.fake.End(r.order(2), messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
}

func TestRetries(t *testing.T) {
	r := newRig(t)
	id := r.submit(`{"tasks":{
		"bad":{"job":{"command":["x"]},"maxRetries":2,"children":["never"]},
		"never":{"job":{"command":["y"]}},
		"good":{"job":{"command":["z"]}}}}`)
	fails := 0
	for n := 1; n <= 4; n++ { // the order of the good one may be any of them
		k := r.order(n)
		if k.Task == 2 {
			r.fake.End(k, messages.AttemptSucceeded, 0)
			continue
		}
		fails++
		if int(k.Attempt) != fails {
			t.Fatalf("attempt %d comes as number %d", fails, k.Attempt)
		}
		r.fake.End(k, messages.AttemptFailed, 3)
	}
	s := r.awaitState(id, dag.RunErrored)
	if s.Counts[dag.TaskErrored] != 1 || s.Counts[dag.TaskCompleted] != 1 || s.Counts[dag.TaskQueued] != 1 {
		t.Errorf("counts %v", s.Counts)
	}
	recs := r.attempts(id, "bad")
	if len(recs) != 3 {
		t.Fatalf("%d attempts", len(recs))
	}
	for i, rec := range recs {
		if rec.Attempt != uint32(i+1) || rec.RC != 3 {
			t.Errorf("attempt %d: %+v", i, rec)
		}
	}
}

func TestRetryWaitsForItsInterval(t *testing.T) {
	r := newRig(t)
	id := r.submit(`{"tasks":{"a":{"job":{"command":["a"]},"maxRetries":1,"retryIntervalSeconds":3600}}}`)
	r.fake.End(r.order(1), messages.AttemptFailed, 1)
	r.awaitTasks(id, dag.TaskRetry, 1)
	if err := r.node.SetState(t.Context(), id, dag.RunPaused); err != nil {
		t.Fatal(err)
	}
	r.pass(2 * time.Hour) // frozen: the hour does not run out
	if err := r.node.SetState(t.Context(), id, dag.RunRunning); err != nil {
		t.Fatal(err)
	}
	r.awaitTasks(id, dag.TaskRetry, 1)
	r.pass(2 * time.Hour)
	k := r.order(2)
	if k.Attempt != 2 {
		t.Fatalf("got %+v", k)
	}
	r.fake.End(k, messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
}

func TestKillWhileAllSlotsAreBusy(t *testing.T) {
	r := newRig(t)
	id := r.submit(`{"parameters":{"N":["1","2","3","4","5","6"]},"tasks":{"a":{"job":{"command":["{{N}}"]},"maxRetries":3}}}`)
	first, second := r.order(1), r.order(2)
	r.fake.Begin(first)
	r.fake.Begin(second)
	r.fake.HoldKills(true)
	if err := r.node.Kill(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	r.fake.WaitKill(t, first)
	r.fake.WaitKill(t, second)
	if err := r.node.Kill(t.Context(), id); err != nil {
		t.Errorf("the second kill: %v", err)
	}
	r.fake.End(first, messages.AttemptKilled, 143)
	r.fake.End(second, messages.AttemptSucceeded, 0) // too late: recorded, moves nothing
	s := r.awaitState(id, dag.RunKilled)
	if s.Counts[dag.TaskKilled] != 2 || s.Counts[dag.TaskQueued] != 4 {
		t.Errorf("counts %v", s.Counts)
	}
	if recs := r.attempts(id, fmt.Sprintf("a_%d", second.Task)); len(recs) != 1 || recs[0].RC != 0 {
		t.Errorf("the late success: %+v", recs)
	}
	if err := r.node.Kill(t.Context(), id); err != nil {
		t.Errorf("kill of a finished run: %v", err)
	}
	if n := len(r.fake.Orders()); n != 2 {
		t.Errorf("%d orders", n)
	}
}

func TestKillTask(t *testing.T) {
	r := newRig(t)
	id := r.submit(chain)
	r.order(1)
	if err := r.node.KillTask(t.Context(), id, "a"); err != nil {
		t.Fatal(err)
	}
	s := r.awaitState(id, dag.RunKilled)
	if s.Counts[dag.TaskKilled] != 1 || s.Counts[dag.TaskQueued] != 1 {
		t.Errorf("counts %v", s.Counts)
	}
	if err := r.node.KillTask(t.Context(), id, "a"); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := r.node.KillTask(t.Context(), id, "zz"); code(err) != messages.NotFound || !strings.Contains(err.Error(), `"zz"`) {
		t.Errorf("unknown task: %v", err)
	}
}

func TestPauseRevokesAttemptsNotStarted(t *testing.T) {
	r := newRig(t)
	id := r.submit(`{"parameters":{"N":["1","2","3"]},"tasks":{"a":{"job":{"command":["{{N}}"]}}}}`)
	first, second := r.order(1), r.order(2)
	r.fake.Begin(first)
	r.awaitTasks(id, dag.TaskRunning, 1)
	if err := r.node.SetState(t.Context(), id, dag.RunPaused); err != nil {
		t.Fatal(err)
	}
	r.fake.WaitRevoke(t, second)
	r.fake.End(first, messages.AttemptSucceeded, 0)
	r.awaitTasks(id, dag.TaskCompleted, 1)
	if err := r.node.SetState(t.Context(), id, dag.RunPaused); code(err) != messages.Conflict || !strings.Contains(err.Error(), "PAUSED") {
		t.Errorf("pause twice: %v", err)
	}
	r.fake.SetScript(succeed)
	if err := r.node.SetState(t.Context(), id, dag.RunRunning); err != nil {
		t.Fatal(err)
	}
	r.awaitState(id, dag.RunCompleted)
	for _, name := range []string{"a_0", "a_1", "a_2"} {
		if recs := r.attempts(id, name); len(recs) != 1 || recs[0].Attempt != 1 {
			t.Errorf("%s: %+v", name, recs)
		}
	}
}

func TestRestartKeepsCompletedTasks(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(func(o executor.Order) executortest.Step {
		if o.Name == "b" && o.Key.Attempt == 1 {
			return executortest.Step{End: messages.AttemptFailed}
		}
		return executortest.Step{End: messages.AttemptSucceeded}
	})
	id := r.submit(chain)
	r.awaitState(id, dag.RunErrored)
	for _, to := range []dag.RunState{dag.RunPaused, dag.RunRunning, dag.RunCompleted} {
		if err := r.node.SetState(t.Context(), id, to); code(err) != messages.Conflict {
			t.Errorf("%v of an ERRORED run: %v", to, err)
		}
	}
	if err := r.node.SetState(t.Context(), id, dag.RunQueued); err != nil {
		t.Fatal(err)
	}
	r.awaitState(id, dag.RunCompleted)
	if n := r.fake.Starts(messages.AttemptKey{Run: id, Task: 0, Attempt: 1}); n != 1 || len(r.attempts(id, "a")) != 1 {
		t.Errorf("a ran %d times", n)
	}
	if recs := r.attempts(id, "b"); len(recs) != 2 || recs[1].Attempt != 2 {
		t.Errorf("b: %+v", recs)
	}
	if err := r.node.SetState(t.Context(), id, dag.RunQueued); code(err) != messages.Conflict {
		t.Errorf("restart of a COMPLETED run: %v", err)
	}
}

func TestGenerator(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(func(o executor.Order) executortest.Step {
		if o.Name == "gen" {
			if !o.Capture {
				t.Error("a generator's output is not captured")
			}
			return executortest.Step{Out: `{"x":{"job":{"command":["x"]}},"y":{"job":{"command":["y"]},"parents":["x"]}}`}
		}
		return executortest.Step{End: messages.AttemptSucceeded}
	})
	id := r.submit(`{"tasks":{"gen":{"job":{"command":["g"]},"isGenerator":true,"children":["after"]},"after":{"job":{"command":["z"]}}}}`)
	s := r.awaitState(id, dag.RunCompleted)
	if s.Tasks != 4 || s.Counts[dag.TaskCompleted] != 4 {
		t.Errorf("summary %+v", s)
	}
	var order []string
	for _, o := range r.fake.Orders() {
		order = append(order, o.Name)
	}
	if !slices.Equal(order, []string{"gen", "x", "y", "after"}) {
		t.Errorf("order %v", order)
	}
}

func TestInvalidGeneratedTasks(t *testing.T) {
	for name, out := range map[string]string{
		"no tasks":    `hello`,
		"name clash":  `{"gen":{"job":{"command":["x"]}}}`,
		"cycle":       `{"x":{"job":{"command":["x"]},"parents":["y"]},"y":{"job":{"command":["x"]},"parents":["x"]}}`,
		"started":     `{"x":{"job":{"command":["x"]},"children":["gen"]}}`,
		"nothing":     ``,
		"long name":   `{"x":{"job":{"command":["x"]},"parents":["` + strings.Repeat("ä", 1<<20) + `"]}}`,
		"wrong token": `{"x":{"job":{"command":["{{NOPE}}"]}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.fake.SetScript(func(executor.Order) executortest.Step { return executortest.Step{Out: out} })
			id := r.submit(`{"tasks":{"gen":{"job":{"command":["g"]},"isGenerator":true,"maxRetries":1}}}`)
			r.awaitState(id, dag.RunErrored)
			recs := r.attempts(id, "gen")
			if len(recs) != 2 || len(recs[0].ExecutorLog) > maxExecutorLog+10 || !utf8.ValidString(recs[0].ExecutorLog) || recs[0].Result != messages.AttemptRejected || !strings.Contains(recs[1].ExecutorLog, "generated tasks refused: ") {
				t.Errorf("attempts %+v", recs)
			}
		})
	}
}
