package query

import (
	"errors"
	"testing"

	"github.com/caravan-dag/caravan/messages"
)

// loads returns a load of a run of so many tasks that counts its calls.
func loads(n *int, tasks uint32) func(*finishedRun) error {
	return func(l *finishedRun) error {
		*n++
		l.summary.Tasks = tasks
		return nil
	}
}

func TestLargeRunsAreCached(t *testing.T) {
	var k finishedRuns
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
	counts("a large run, and a small one between", 2)
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
	counts("its time is over", 1)
	if !k.expiry.Stop() {
		t.Error("it is cached for ever")
	}
}

// Readers that ask while a run is being loaded share that load. Readers that come after the run
// has changed load it again.
func TestReadersShareALoad(t *testing.T) {
	var k finishedRuns
	begun, gate := make(chan struct{}), make(chan struct{})
	slow := func(l *finishedRun) error {
		begun <- struct{}{}
		<-gate
		l.summary.Tasks = minCachedTasks
		return nil
	}
	type answer struct {
		l   *finishedRun
		err error
	}
	answers := make(chan answer)
	ask := func(load func(*finishedRun) error) {
		l, err := k.get(t.Context(), 7, load)
		answers <- answer{l, err}
	}
	go ask(slow)
	<-begun
	never := func(*finishedRun) error { return errors.New("it is loaded twice") }
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
		t.Errorf("a load from before the change is shared: %v, loaded %d times", err, n)
	}
	if l, err := k.get(t.Context(), 7, never); err != nil || l != now {
		t.Errorf("the cached run is not the newer one: %p, want %p, %v", l, now, err)
	}
}

func TestLoadsThatFail(t *testing.T) {
	var k finishedRuns
	broken := errors.New("broken")
	if _, err := k.get(t.Context(), 7, func(*finishedRun) error { return broken }); err != broken {
		t.Errorf("got %v", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic is lost")
			}
		}()
		_, _ = k.get(t.Context(), 7, func(*finishedRun) error { panic("a bug") })
	}()
	n := 0
	if _, err := k.get(t.Context(), 7, loads(&n, minCachedTasks)); err != nil || n != 1 {
		t.Errorf("after that: %v", err)
	}
}
