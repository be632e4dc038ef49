package actors

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// Await goes on through the end of a run, the stop of its actor and its restart.
func TestAwaitContinuesAfterTheActorStops(t *testing.T) {
	r := newRig(t)
	id := r.submit(single)
	first := r.order(1)
	r.fake.End(first, messages.AttemptFailed, 1)
	r.awaitState(id, dag.RunErrored)
	r.runToCompletion(wholeMachine) // the same slots: run and dispatcher are done with it
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			s, err := r.node.Await(ctx, id, func(s *messages.Summary) bool { return s.State == dag.RunCompleted })
			if err != nil || s.State != dag.RunCompleted {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
	if err := r.node.SetState(t.Context(), id, dag.RunQueued); err != nil {
		t.Fatal(err)
	}
	orders := r.fake.WaitOrders(t, 3)
	r.fake.End(orders[2].Key, messages.AttemptSucceeded, 0)
	all.Wait()
}

func TestAwaitEnds(t *testing.T) {
	r := newRig(t)
	never := func(*messages.Summary) bool { return false }
	live := r.submit(single)
	r.order(1)
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if s, err := r.node.Await(over, live, never); !errors.Is(err, context.Canceled) || s.State.Final() {
		t.Errorf("a live run: %+v, %v", s, err)
	}
	if _, err := r.node.Await(over, live+1, never); code(err) != messages.NotFound {
		t.Errorf("an unknown run: %v", err)
	}
	r.fake.End(r.order(1), messages.AttemptSucceeded, 0)
	r.awaitState(live, dag.RunCompleted)
	r.runToCompletion(wholeMachine)
	if s, err := r.node.Await(over, live, never); !errors.Is(err, context.Canceled) || s.State != dag.RunCompleted {
		t.Errorf("a finished run: %+v, %v", s, err)
	}
	waits := make(chan error)
	go func() {
		_, err := r.node.Await(context.Background(), live, never)
		waits <- err
	}()
	r.stop()
	if err := <-waits; code(err) != messages.Unavailable {
		t.Errorf("a node that closes: %v", err)
	}
	r.start() // for the rig's own stop
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

func TestViewShowsRunningAttempts(t *testing.T) {
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
		gone := func() (messages.Log, error) { return nil, executor.ErrNotRunning }
		l, err := r.node.absentLog(t.Context(), id, messages.LiveAttempt{Task: 0, Attempt: 1}, "a", messages.Stdout, gone)
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

// TestLogOfAnAttemptWhoseWorkerConnectsSoon: right after a start of the server the executor does not have the
// attempt yet. The request waits for it, rather than for the end of the attempt.
func TestLogOfAnAttemptWhoseWorkerConnectsSoon(t *testing.T) {
	r := newRig(t)
	id := r.submit(single)
	k := r.order(1)
	r.fake.Begin(k)
	r.fake.Print(k, "one")
	r.awaitTasks(id, dag.TaskRunning, 1)
	tries := 0
	l, err := r.node.absentLog(t.Context(), id, messages.LiveAttempt{Task: 0, Attempt: 1}, "a", messages.Stdout, func() (messages.Log, error) {
		if tries++; tries < 3 {
			return nil, executor.ErrNotRunning
		}
		return r.fake.OpenLog(k, messages.Stdout)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if !l.Live() || l.Size() != 3 {
		t.Errorf("live: %v, %d bytes", l.Live(), l.Size())
	}
}

// times of a run's first template.
func (r *rig) times(id messages.RunID) dag.Times {
	r.t.Helper()
	v, err := r.node.View(context.Background(), id, 0, 1<<30)
	if err != nil {
		r.t.Fatal(err)
	}
	return v.Times[0]
}

// TestViewHasTimesOfTemplates: they are those of the attempts' records, in live and in
// finished runs, over retries, over snapshots that cut the journal, and over crashes.
func TestViewHasTimesOfTemplates(t *testing.T) {
	r := newRig(t, func(c *Config) { c.snapshotEvery = -1 })
	id := r.submit(`{"tasks":{"a":{"job":{"command":["a"]},"maxRetries":2}}}`)
	k := r.order(1)
	if got := r.times(id); got != (dag.Times{}) {
		t.Errorf("nothing has started: %v", got)
	}
	r.fake.Begin(k)
	r.awaitTasks(id, dag.TaskRunning, 1)
	first := r.times(id).First
	if first == 0 || r.times(id).Last != 0 {
		t.Errorf("one has started: %v", r.times(id))
	}
	r.fake.End(k, messages.AttemptFailed, 1)
	r.order(2)
	last := r.attempts(id, "a")[0].Stop
	if got := r.times(id); got != (dag.Times{First: first, Last: last}) {
		t.Errorf("one has ended: %v, want %d to %d", got, first, last)
	}
	r.crash()
	if got := r.times(id); got.First != first || got.Last < last {
		t.Errorf("after a crash: %v, was %d to %d", got, first, last)
	}
	r.fake.End(r.order(3), messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
	recs := r.attempts(id, "a")
	want := dag.Times{First: recs[0].Start, Last: recs[len(recs)-1].Stop}
	if got := r.times(id); got != want || got.First != first {
		t.Errorf("at the end: %v, want %v", got, want)
	}
}

// cachedTasks is a number of tasks from which a finished run is cached.
const cachedTasks = 10_000

// The view of a large finished run, which is cached, is current after a restart of the run. The
// run is unknown once it is deleted.
func TestViewsOfACachedRunAreCurrent(t *testing.T) {
	r, count := newCountedRig(t)
	var n []string
	for i := range cachedTasks {
		n = append(n, strconv.Itoa(i))
	}
	id := r.submit(`{"parameters":{"N":["` + strings.Join(n, `","`) + `"]},"tasks":{
		"many":{"job":{"command":["{{N}}"],"executor":"noop"}},
		"one":{"job":{"command":["x"]}}}}`)
	sees := func(state dag.RunState) {
		t.Helper()
		r.awaitState(id, state)
		r.passivated(id)
		for i := range 2 {
			loads := count.loads.Load()
			if v, err := r.node.View(t.Context(), id, 0, 1); err != nil || v.State != state {
				t.Fatalf("%+v, %v; want %v", v, err, state)
			}
			if loaded := count.loads.Load() > loads; loaded != (i == 0) {
				t.Errorf("view %d of the run: loaded %v", i, loaded)
			}
		}
	}
	r.fake.End(r.order(1), messages.AttemptFailed, 1)
	sees(dag.RunErrored)
	r.fake.SetScript(succeed)
	if err := r.node.SetState(t.Context(), id, dag.RunQueued); err != nil {
		t.Fatal(err)
	}
	sees(dag.RunCompleted)
	j := &janitor{n: r.node, keep: 1, stop: make(chan struct{})}
	last := r.submit(single)
	r.awaitState(last, dag.RunCompleted)
	r.passivated(last)
	if err := j.sweep(); err != nil {
		t.Fatal(err)
	}
	r.drainShard(id) // the shard has released it
	if _, err := r.node.View(t.Context(), id, 0, 1); code(err) != messages.NotFound {
		t.Errorf("a deleted run: %v", err)
	}
}

// Readers that share a cached run get copies of its state.
func TestViewsOfACachedRunAreCopies(t *testing.T) {
	r := newRig(t)
	numbers := strings.Repeat(`"x",`, cachedTasks-1) + `"x"`
	id := r.submit(`{"jobDefaults":{"executor":"noop"},"parameters":{"N":[` + numbers + `]},"tasks":{
		"many":{"job":{"command":["{{N}}"]}},"last":{"job":{},"parents":["many"]}}}`)
	r.awaitState(id, dag.RunCompleted)
	r.passivated(id)
	done := make(chan error)
	for range 8 {
		go func() {
			v, err := r.node.View(t.Context(), id, 0, 1<<32-1)
			for first := uint32(0); err == nil && first <= cachedTasks; first += 1000 {
				v.States[first] = dag.TaskKilled // it is a copy
				v.Changes[0].State, v.Times[0] = dag.RunKilled, dag.Times{}
				_, err = r.node.Task(t.Context(), id, v.Plan.TaskName(first))
			}
			done <- err
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if v, err := r.node.View(t.Context(), id, 0, 1<<32-1); err != nil || v.States[0] != dag.TaskCompleted || v.Changes[0].State != dag.RunQueued || v.Times[0].First == 0 {
		t.Errorf("%v, %v", v.Changes, err)
	}
}
