package actors

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// loads is a load that counts, of runs of so many tasks.
func loads(n *int, tasks uint32) func(*cachedRun) error {
	return func(l *cachedRun) error {
		*n++
		l.summary.Tasks = tasks
		return nil
	}
}

func TestLargeRunsAreKeptForTheNextLook(t *testing.T) {
	var k finishedRunCache
	n := 0
	at := func(id messages.RunID, tasks uint32) {
		t.Helper()
		if l, err := k.get(t.Context(), id, loads(&n, tasks)); err != nil || l.summary.Tasks != tasks {
			t.Errorf("%+v, %v", l, err)
		}
	}
	counts := func(what string, want int) {
		t.Helper()
		if n != want {
			t.Errorf("%s: loaded %d times, want %d", what, n, want)
		}
		n = 0
	}
	at(1, minCachedTasks-1)
	at(1, minCachedTasks-1)
	counts("a small run", 2)
	at(2, minCachedTasks)
	at(1, minCachedTasks-1)
	at(2, minCachedTasks)
	counts("a large one, and a small one between", 2)
	at(3, minCachedTasks)
	at(2, minCachedTasks)
	counts("another large one takes its place", 2)
	k.invalidate(3)
	at(2, minCachedTasks)
	counts("another run has changed", 0)
	k.invalidate(2)
	at(2, minCachedTasks)
	counts("it has changed", 1)
	k.evict()
	at(2, minCachedTasks)
	counts("it was left alone", 1)
	if !k.expiry.Stop() {
		t.Error("it is kept for ever")
	}
}

// All who ask while a run is being loaded share that, but for those who come when it has
// changed meanwhile.
func TestLookersShareALoading(t *testing.T) {
	var k finishedRunCache
	begun, gate := make(chan struct{}), make(chan struct{})
	slow := func(l *cachedRun) error {
		begun <- struct{}{}
		<-gate
		l.summary.Tasks = minCachedTasks
		return nil
	}
	type answer struct {
		l   *cachedRun
		err error
	}
	answers := make(chan answer)
	ask := func(load func(*cachedRun) error) {
		l, err := k.get(t.Context(), 7, load)
		answers <- answer{l, err}
	}
	go ask(slow)
	<-begun
	never := func(*cachedRun) error { return errors.New("it is loaded twice") }
	go ask(never)
	go ask(never)
	gate <- struct{}{}
	first := (<-answers).l
	for range 2 {
		if a := <-answers; a.l != first || a.err != nil {
			t.Errorf("%p, %v; want %p", a.l, a.err, first)
		}
	}
	k.invalidate(7)

	go ask(slow)
	<-begun
	k.invalidate(7)
	n := 0
	now, err := k.get(t.Context(), 7, loads(&n, minCachedTasks))
	gate <- struct{}{}
	old := <-answers
	if err != nil || n != 1 || now == old.l {
		t.Errorf("a loading from before the change is shared: %v, loaded %d times", err, n)
	}
	if l, err := k.get(t.Context(), 7, never); err != nil || l != now {
		t.Errorf("what is kept is not the newer one: %p, want %p, %v", l, now, err)
	}
}

func TestLoadingsThatFail(t *testing.T) {
	var k finishedRunCache
	broken := errors.New("broken")
	if _, err := k.get(t.Context(), 7, func(*cachedRun) error { return broken }); err != broken {
		t.Errorf("got %v", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic is lost")
			}
		}()
		_, _ = k.get(t.Context(), 7, func(*cachedRun) error { panic("a bug") })
	}()
	n := 0
	if _, err := k.get(t.Context(), 7, loads(&n, minCachedTasks)); err != nil || n != 1 {
		t.Errorf("after that: %v", err)
	}
}

// A large run that is kept is seen as it is after a restart, and is unknown once it is
// deleted.
func TestLargeRunIsSeenAsItIs(t *testing.T) {
	r := newRig(t)
	var n []string
	for i := range minCachedTasks {
		n = append(n, strconv.Itoa(i))
	}
	id := r.submit(`{"parameters":{"N":["` + strings.Join(n, `","`) + `"]},"tasks":{
		"many":{"job":{"command":["{{N}}"],"executor":"noop"}},
		"one":{"job":{"command":["x"]}}}}`)
	sees := func(state dag.RunState) {
		t.Helper()
		r.awaitState(id, state)
		r.retired(id)
		for range 2 {
			if v, err := r.node.View(t.Context(), id, 0, 1); err != nil || v.State != state {
				t.Fatalf("%+v, %v; want %v", v, err, state)
			}
		}
	}
	r.fake.End(r.order(1), messages.AttemptFailed, 1)
	sees(dag.RunErrored)
	r.fake.Play(succeed)
	if err := r.node.SetState(t.Context(), id, dag.RunQueued); err != nil {
		t.Fatal(err)
	}
	sees(dag.RunCompleted)
	if r.node.env.finishedRuns.last == nil {
		t.Fatal("it is not kept")
	}
	j := &janitor{n: r.node, keep: 1, stop: make(chan struct{})}
	last := r.submit(single)
	r.awaitState(last, dag.RunCompleted)
	r.retired(last)
	if err := j.sweep(); err != nil {
		t.Fatal(err)
	}
	r.passed(id) // the shard has let go of it
	if _, err := r.node.View(t.Context(), id, 0, 1); code(err) != messages.NotFound {
		t.Errorf("a deleted run: %v", err)
	}
}

// All who look at a run that is kept see the same one, at the same time.
func TestViewsOfWhatIsKeptOnlyRead(t *testing.T) {
	r := newRig(t)
	numbers := strings.Repeat(`"x",`, minCachedTasks-1) + `"x"`
	id := r.submit(`{"jobDefaults":{"executor":"noop"},"parameters":{"N":[` + numbers + `]},"tasks":{
		"many":{"job":{"command":["{{N}}"]}},"last":{"job":{},"parents":["many"]}}}`)
	r.awaitState(id, dag.RunCompleted)
	r.retired(id)
	done := make(chan error)
	for range 8 {
		go func() {
			v, err := r.node.View(t.Context(), id, 0, 1<<32-1)
			for first := uint32(0); err == nil && first <= minCachedTasks; first += 1000 {
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
