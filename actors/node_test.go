package actors

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
)

func TestIdsCountUpFromZeroAndGoOn(t *testing.T) {
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

func TestCrashLosesNothingThatWasAnswered(t *testing.T) {
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

func TestStorageFailureIsSaid(t *testing.T) {
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

func second[T any](_ T, err error) error { return err }

func TestLowDiskRefusesNewRunsOnly(t *testing.T) {
	r := newRig(t)
	id := r.submit(chain)
	r.store.SetRoom(errors.New("disk is nearly full: 3 MB free"))
	if _, err := r.node.Submit(t.Context(), r.plan(single)); code(err) != messages.Unavailable {
		t.Errorf("submit: %v", err)
	}
	r.fake.End(r.order(1), messages.AttemptSucceeded, 0)
	r.fake.End(r.order(2), messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
	r.store.SetRoom(nil)
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

func TestLists(t *testing.T) {
	r := newRig(t)
	tagged := `{"tag":"x","tags":{"team":"a"},"jobDefaults":{"executor":"noop"},"tasks":{"a":{"job":{}}}}`
	for range 3 {
		r.awaitState(r.submit(tagged), dag.RunCompleted)
	}
	live := r.submit(single)
	r.order(1)
	list := func(q messages.ListQuery) (ids []messages.RunID) {
		t.Helper()
		if err := r.node.Summaries(t.Context(), q, func(s *messages.Summary) bool { ids = append(ids, s.ID); return true }); err != nil {
			t.Fatal(err)
		}
		return ids
	}
	for _, c := range []struct {
		name string
		q    messages.ListQuery
		want []messages.RunID
	}{
		{"unfinished", messages.ListQuery{}, []messages.RunID{live}},
		{"all", messages.ListQuery{All: true}, []messages.RunID{0, 1, 2, live}},
		{"tag", messages.ListQuery{All: true, Tag: "x", HasTag: true}, []messages.RunID{0, 1, 2}},
		{"empty tag", messages.ListQuery{All: true, HasTag: true}, []messages.RunID{live}},
		{"label", messages.ListQuery{All: true, Labels: []dag.Label{{Name: "team", Value: "a"}}}, []messages.RunID{0, 1, 2}},
		{"no such label", messages.ListQuery{All: true, Labels: []dag.Label{{Name: "team", Value: "b"}}}, nil},
		{"state", messages.ListQuery{States: []dag.RunState{dag.RunCompleted}}, []messages.RunID{0, 1, 2}},
		{"running", messages.ListQuery{States: []dag.RunState{dag.RunRunning}}, []messages.RunID{live}},
		{"page", messages.ListQuery{All: true, HasAfter: true, After: 0, Limit: 2}, []messages.RunID{1, 2}},
		{"live page", messages.ListQuery{HasAfter: true, After: live, Limit: 2}, nil},
		{"newest first", messages.ListQuery{All: true, Desc: true}, []messages.RunID{live, 2, 1, 0}},
		{"newest first, unfinished", messages.ListQuery{Desc: true}, []messages.RunID{live}},
		{"newest first, tag and page", messages.ListQuery{All: true, Tag: "x", HasTag: true, Desc: true, Limit: 2}, []messages.RunID{2, 1}},
		{"newest first, next page", messages.ListQuery{All: true, Tag: "x", HasTag: true, Desc: true, Limit: 2, HasAfter: true, After: 1}, []messages.RunID{0}},
		{"newest first, after the last page", messages.ListQuery{All: true, Desc: true, HasAfter: true, After: 0}, nil},
		{"newest first, from beyond", messages.ListQuery{All: true, Desc: true, HasAfter: true, After: 1000, Limit: 1}, []messages.RunID{live}},
	} {
		if got := list(c.q); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestLogs(t *testing.T) {
	r := newRig(t)
	id := r.submit(`{"tasks":{"a":{"job":{"command":["a"]},"maxRetries":1}}}`)
	if _, err := r.node.OpenLog(t.Context(), id, "a", 0, messages.Stdout); code(err) != messages.NotFound {
		t.Errorf("before any attempt: %v", err)
	}
	read := func(attempt uint32) string {
		t.Helper()
		l, err := r.node.OpenLog(t.Context(), id, "a", attempt, messages.Stdout)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		b, err := io.ReadAll(io.NewSectionReader(l, 0, l.Size()))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	k := r.order(1)
	r.fake.Begin(k)
	r.fake.Print(k, "one")
	r.awaitTasks(id, dag.TaskRunning, 1)
	if got := read(0); got != "one" {
		t.Errorf("live: %q", got)
	}
	r.fake.End(k, messages.AttemptFailed, 1)
	k = r.order(2)
	r.fake.Begin(k)
	r.fake.Print(k, "two")
	r.awaitTasks(id, dag.TaskRunning, 1)
	if got := read(1); got != "one" {
		t.Errorf("the first attempt: %q", got)
	}
	if got := read(2); got != "two" {
		t.Errorf("the second attempt: %q", got)
	}
	r.fake.End(k, messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
	if got := read(0); got != "two" {
		t.Errorf("finished: %q", got)
	}
	if _, err := r.node.OpenLog(t.Context(), id, "a", 3, messages.Stdout); code(err) != messages.NotFound {
		t.Errorf("no such attempt: %v", err)
	}
}

func TestViewShowsWhatRuns(t *testing.T) {
	r := newRig(t)
	id := r.submit(chain)
	k := r.order(1)
	r.fake.Begin(k)
	r.awaitTasks(id, dag.TaskRunning, 1)
	v, err := r.node.View(t.Context(), id, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	if len(v.States) != 2 || v.States[0] != dag.TaskRunning || len(v.Live) != 1 || v.Live[0].Attempt != 1 || v.Live[0].Start == 0 {
		t.Errorf("view %+v", v)
	}
	if v, _ := r.node.View(t.Context(), id, 1, 10); len(v.States) != 1 || v.First != 1 || len(v.Live) != 0 {
		t.Errorf("the second half: %+v", v)
	}
	if v, _ := r.node.View(t.Context(), id, 9, 10); len(v.States) != 0 {
		t.Errorf("beyond the end: %+v", v)
	}
}

func TestCloseKeepsWhatRanAsLost(t *testing.T) {
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

func TestRetention(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(succeed)
	for range 5 {
		r.awaitState(r.submit(single), dag.RunCompleted)
	}
	r.fake.SetScript(nil)
	live := r.submit(single)
	r.order(6)
	for id := range live { // their actors must be gone
		if _, err := r.node.View(t.Context(), id, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	var left []messages.RunID
	for deadline := time.Now().Add(patience); len(left) != 3 && time.Now().Before(deadline); { // those that retire just now stay for the next look
		if err := (&janitor{n: r.node, keep: 2, stop: make(chan struct{})}).sweep(); err != nil {
			t.Fatal(err)
		}
		left = nil
		_ = r.node.Summaries(t.Context(), messages.ListQuery{All: true}, func(s *messages.Summary) bool { left = append(left, s.ID); return true })
	}
	if !slices.Equal(left, []messages.RunID{3, 4, live}) {
		t.Errorf("left %v", left)
	}
	r.pass(2 * time.Hour)
	if err := (&janitor{n: r.node, age: time.Hour, stop: make(chan struct{})}).sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.node.Summary(t.Context(), 3); code(err) != messages.NotFound {
		t.Errorf("an old run: %v", err)
	}
	if s, err := r.node.Summary(t.Context(), live); err != nil || s.State.Final() {
		t.Errorf("the live run: %+v, %v", s, err)
	}
	if id := r.submit(single); id != live+1 {
		t.Errorf("ids go on at %d", id)
	}
}

func TestAwaitEndsWithItsContext(t *testing.T) {
	r := newRig(t)
	id := r.submit(single)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := r.node.Await(ctx, id, func(*messages.Summary) bool { return false }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestLogOfAnAttemptThatHasJustEnded(t *testing.T) {
	r := newRig(t)
	id := r.submit(single)
	k := r.order(1)
	r.fake.Begin(k)
	r.fake.Print(k, "one")
	r.awaitTasks(id, dag.TaskRunning, 1)
	r.store.Hold()
	r.fake.End(k, messages.AttemptSucceeded, 0)
	r.store.WaitPending(1) // the record is on its way
	text := make(chan string)
	go func() {
		l, err := r.node.endedLog(t.Context(), id, messages.LiveAttempt{Task: 0, Attempt: 1}, "a", messages.Stdout)
		if err != nil {
			text <- err.Error()
			return
		}
		defer l.Close()
		b, _ := io.ReadAll(io.NewSectionReader(l, 0, l.Size()))
		text <- string(b)
	}()
	r.store.Release()
	if got := <-text; got != "one" {
		t.Errorf("got %q", got)
	}
}
