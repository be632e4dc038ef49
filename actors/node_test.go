package actors

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
)

func TestRunIDsAscendAcrossRestarts(t *testing.T) {
	r := newRig(t)
	for want := range messages.RunID(20) {
		if id := r.submit(single); id != want {
			t.Fatalf("run %d got id %d", want, id)
		}
	}
	r.crash()
	if id := r.submit(single); id != 20 {
		t.Errorf("after the crash: id %d", id)
	}
}

func TestIdempotencyKey(t *testing.T) {
	r := newRig(t)
	keyed := func(spec string) *messages.Submission {
		s := r.plan(spec)
		s.IdempotencyKey = "k"
		return s
	}
	r.store.Hold()
	var all sync.WaitGroup
	ids := make(chan messages.RunID, 8)
	for range cap(ids) {
		all.Go(func() {
			id, err := r.node.Submit(t.Context(), keyed(chain))
			if err != nil {
				t.Error(err)
			}
			ids <- id
		})
	}
	r.store.WaitPending(1)
	if _, err := r.node.Submit(t.Context(), keyed(single)); code(err) != messages.KeyReused {
		t.Errorf("another body, while the first is pending: %v", err)
	}
	r.store.Release()
	all.Wait()
	for range cap(ids) {
		if id := <-ids; id != 0 {
			t.Errorf("id %d", id)
		}
	}
	if _, err := r.node.Submit(t.Context(), keyed(single)); code(err) != messages.KeyReused {
		t.Errorf("another body: %v", err)
	}
	r.crash()
	if id, err := r.node.Submit(t.Context(), keyed(chain)); err != nil || id != 0 {
		t.Errorf("after the crash: %d, %v", id, err)
	}
}

func TestCrashLosesNoAnsweredRequest(t *testing.T) {
	r := newRig(t)
	id := r.submit(`{"parameters":{"N":["1","2","3","4"]},"tasks":{"a":{"job":{"command":["{{N}}"]},"children":["z"]},"z":{"job":{"command":["z"]}}}}`)
	first, second := r.order(1), r.order(2)
	r.fake.End(first, messages.AttemptSucceeded, 0)
	r.awaitTasks(id, dag.TaskCompleted, 1)
	r.order(4) // short tasks are granted ahead: all that can be ordered has been
	r.fake.Begin(second)
	seen := len(r.fake.Orders())
	r.crash()
	r.awaitTasks(id, dag.TaskCompleted, 1)
	for n := seen + 1; ; n++ {
		k := r.order(n)
		if k.Task == first.Task {
			t.Error("the completed task was started again")
		}
		if k.Task == second.Task && k.Attempt != 2 {
			t.Errorf("the lost attempt's successor is %+v", k)
		}
		r.fake.End(k, messages.AttemptSucceeded, 0)
		if k.Task == 4 {
			break
		}
	}
	r.awaitState(id, dag.RunCompleted)
	recs := r.attempts(id, fmt.Sprintf("a_%d", second.Task))
	if len(recs) != 2 || recs[0].Result != messages.AttemptLost || recs[0].ExecutorLog == "" || recs[1].Attempt != 2 {
		t.Errorf("attempts of the lost task: %+v", recs)
	}
	for _, name := range []string{"a_0", "a_1", "a_2", "a_3", "z"} {
		if recs := r.attempts(id, name); recs[len(recs)-1].Result != messages.AttemptSucceeded {
			t.Errorf("%s: %+v", name, recs)
		}
	}
}

func TestCrashAtEveryCommit(t *testing.T) {
	spec := `{"parameters":{"N":["1","2","3"]},"tasks":{
		"gen":{"job":{"command":["g"]},"isGenerator":true},
		"a":{"job":{"command":["{{N}}"]},"maxRetries":1,"parents":["gen"]},
		"z":{"job":{"command":["z"]},"parents":["a"]}}}`
	for at := 1; at < 14; at++ {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			r := newRig(t)
			var mu sync.Mutex
			failed := map[string]bool{}
			r.fake.SetScript(func(o executor.Order) executortest.Step {
				mu.Lock()
				defer mu.Unlock()
				if o.Name == "gen" {
					return executortest.Step{Out: `{"x":{"job":{"command":["x"]}}}`}
				}
				if o.Name == "a_1" && !failed[o.Name] {
					failed[o.Name] = true
					return executortest.Step{End: messages.AttemptFailed}
				}
				return executortest.Step{End: messages.AttemptSucceeded}
			})
			r.store.Hold()
			answered := make(chan error, 1)
			go func() {
				_, err := r.node.Submit(t.Context(), r.plan(spec))
				answered <- err
			}()
			for n := 0; n < at; n++ {
				if !r.pendingOrFinal(0) {
					break
				}
				r.store.Step(1)
			}
			if err := <-answered; err != nil {
				t.Fatal(err)
			}
			r.crash()
			s := r.awaitState(0, dag.RunCompleted)
			if s.Tasks != 6 || s.Counts[dag.TaskCompleted] != 6 {
				t.Errorf("summary %+v", s)
			}
			v, err := r.node.View(t.Context(), 0, 0, 100)
			if err != nil {
				t.Fatal(err)
			}
			for i := range v.Tasks {
				recs := r.attempts(0, v.Plan.TaskName(i))
				n := 0
				for j, rec := range recs {
					if int(rec.Attempt) != j+1 {
						t.Errorf("%s: attempt %d is number %d", v.Plan.TaskName(i), j+1, rec.Attempt)
					}
					if rec.Result == messages.AttemptSucceeded {
						n++
					}
				}
				if n != 1 {
					t.Errorf("%s succeeded %d times on record", v.Plan.TaskName(i), n)
				}
			}
		})
	}
}

func TestStorageFailureIsReported(t *testing.T) {
	r := newRig(t)
	id := r.submit(chain)
	k := r.order(1)
	r.store.FailAt(1, errors.New("disk is gone"))
	r.fake.End(k, messages.AttemptSucceeded, 0)
	<-r.node.Failed()
	if err := r.node.Err(); err == nil {
		t.Error("no reason")
	}
	for name, err := range map[string]error{
		"submit":  second(r.node.Submit(t.Context(), r.plan(single))),
		"kill":    r.node.Kill(t.Context(), id),
		"healthy": r.node.Healthy(t.Context()),
	} {
		if code(err) != messages.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(r.fake.Orders()) != 1 {
		t.Error("a child started on a parent whose end was not durable")
	}
}

func TestLowDiskRefusesNewRunsOnly(t *testing.T) {
	r := newRig(t)
	id := r.submit(chain)
	r.store.SetDiskSpaceError(errors.New("disk is nearly full: 3 MB free"))
	if _, err := r.node.Submit(t.Context(), r.plan(single)); code(err) != messages.Unavailable {
		t.Errorf("submit: %v", err)
	}
	r.fake.End(r.order(1), messages.AttemptSucceeded, 0)
	r.fake.End(r.order(2), messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
	r.store.SetDiskSpaceError(nil)
	r.submit(single)
}

func TestUnknownRuns(t *testing.T) {
	r := newRig(t)
	for name, err := range map[string]error{
		"summary": second(r.node.Summary(t.Context(), 7)),
		"view":    second(r.node.View(t.Context(), 7, 0, 1)),
		"task":    second(r.node.Task(t.Context(), 7, "a")),
		"kill":    r.node.Kill(t.Context(), 7),
		"task k":  r.node.KillTask(t.Context(), 7, "a"),
		"pause":   r.node.SetState(t.Context(), 7, dag.RunPaused),
		"log":     second(r.node.OpenLog(t.Context(), 7, "a", 0, messages.Stdout)),
	} {
		if code(err) != messages.NotFound || err.Error() != "unknown run 7" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCloseRecordsRunningAttemptsAsLost(t *testing.T) {
	r := newRig(t)
	id := r.submit(single)
	r.fake.Begin(r.order(1))
	r.awaitTasks(id, dag.TaskRunning, 1)
	r.stop()
	if _, err := r.node.Submit(t.Context(), r.plan(single)); code(err) != messages.Unavailable {
		t.Errorf("submit after close: %v", err)
	}
	if err := r.node.Kill(t.Context(), id); code(err) != messages.Unavailable {
		t.Errorf("kill after close: %v", err)
	}
	r.start()
	k := r.order(2)
	if k.Attempt != 2 {
		t.Errorf("the next attempt is %+v", k)
	}
	r.fake.End(k, messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
	if recs := r.attempts(id, "a"); len(recs) != 2 || recs[0].Result != messages.AttemptLost {
		t.Errorf("attempts %+v", recs)
	}
}

func TestErrorsOfAFailedStoreNameTheStorage(t *testing.T) {
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
