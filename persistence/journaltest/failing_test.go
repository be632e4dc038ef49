package journaltest_test

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// holdableFailing is a Failing around a Memory that can be held.
type holdableFailing struct {
	*journaltest.Failing
	below holdableMemory
}

func (f holdableFailing) HoldCommit(n int) <-chan struct{} { return f.below.HoldCommit(n) }

func (f holdableFailing) ReleaseCommits() { f.below.ReleaseCommits() }

func (f holdableFailing) OpenCrashed(t testing.TB) persistence.Store { return f.below.OpenCrashed(t) }

// TestFailingConforms: a wrapper that passes calls on, or fails them, is a Store like the one below it.
func TestFailingConforms(t *testing.T) {
	below := map[persistence.Store]*journaltest.Memory{}
	wrap := func(t testing.TB, m *journaltest.Memory) persistence.Store {
		f := journaltest.NewFailing(m)
		t.Cleanup(func() {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
		below[f] = m
		return f
	}
	journaltest.Run(t, journaltest.Backend{
		Open: func(t testing.TB) persistence.Store { return wrap(t, journaltest.NewMemory()) },
		Reopen: func(t testing.TB, s persistence.Store) persistence.Store {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return wrap(t, below[s].Reopen())
		},
		Crash: func(t testing.TB, s persistence.Store) persistence.Store { return wrap(t, below[s].Crash()) },
		Fail:  func(_ testing.TB, s persistence.Store) { s.(*journaltest.Failing).FailAppend(1) },
		CrashPoints: []journaltest.CrashPoint{{
			Name: "before a batch is durable",
			Open: func(t testing.TB) journaltest.HoldableStore {
				f := wrap(t, journaltest.NewMemory())
				return holdableFailing{f.(*journaltest.Failing), holdableMemory{below[f]}}
			},
		}},
	})
}

// TestFailingAnswersInOrder: batches that were passed on and batches that were refused are answered in
// the order of Append. Torn: the failed batch is durable all the same.
func TestFailingAnswersInOrder(t *testing.T) {
	for _, torn := range []bool{false, true} {
		m := closing(t, journaltest.NewMemory())
		f := journaltest.NewFailing(m)
		if f.Err() != nil || f.CheckDiskSpace() != nil {
			t.Fatal("failed from the start")
		}
		if torn {
			f.TearAppend(3)
		} else {
			f.FailAppend(3)
		}
		m.Hold()
		var order []messages.RunID
		done := make(chan error, 5)
		for run := range messages.RunID(5) {
			b := journaltest.NewRun(run, "", "")
			b.Done = func(err error) {
				order = append(order, run)
				done <- err
			}
			f.Append(b)
		}
		m.Release()
		for i := range 5 {
			err := <-done
			if want := i >= 2; errors.Is(err, persistence.ErrFailed) != want {
				t.Errorf("torn %v: batch %d: %v", torn, i, err)
			}
		}
		for i, run := range order {
			if run != messages.RunID(i) {
				t.Errorf("torn %v: answered in order %v", torn, order)
			}
		}
		<-f.Failed()
		if !errors.Is(f.Err(), journaltest.ErrInjected) || !errors.Is(f.CheckDiskSpace(), persistence.ErrFailed) {
			t.Errorf("err %v, room %v", f.Err(), f.CheckDiskSpace())
		}
		if want := map[bool]int{false: 2, true: 3}[torn]; runs(t, m) != want {
			t.Errorf("torn %v: %d runs were written, want %d", torn, runs(t, m), want)
		}
	}
}

// TestCloseOfFailingAnswersRefusedBatches: a batch that was refused is answered when Close returns, though
// it waits for one that the store below still holds.
func TestCloseOfFailingAnswersRefusedBatches(t *testing.T) {
	m := closing(t, journaltest.NewMemory())
	f := journaltest.NewFailing(m)
	m.Hold()
	f.FailAppend(2)
	var answered atomic.Int64
	for run := range messages.RunID(100) {
		b := journaltest.NewRun(run, "", "")
		b.Done = func(error) { answered.Add(1) }
		f.Append(b)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if n := answered.Load(); n != 100 {
		t.Errorf("%d batches of 100 are answered", n)
	}
}

// TestFailReadFailsOnce: the n-th read fails, and those before and after it do not.
func TestFailReadFailsOnce(t *testing.T) {
	f := journaltest.NewFailing(closing(t, journaltest.NewMemory()))
	done := journaltest.NewRun(1, "", "")
	done.Summary.State = dag.RunCompleted
	journaltest.MustAppend(t, f, done)
	calls := []func() error{
		func() error { _, err := f.UnfinishedSummaries(); return err },
		func() error { _, err := f.NextRun(); return err },
		func() error { _, err := f.Load(1); return err },
		func() error { _, err := f.DefinitionIfPristine(1); return err },
		func() error { _, err := f.Summary(1); return err },
		func() error { return f.Summaries(messages.ListQuery{}, nil) },
		func() error { return f.Attempts(1, 0, 1, nil) },
		func() error { _, _, _, err := f.LookUpKey("k"); return err },
		func() error { _, _, err := f.JournalRecords(1, 0); return err },
		func() error { _, err := f.ExpireKeys(0, 1, 1); return err },
		func() error { _, _, err := f.ClockMark(); return err },
		func() error { return f.SetClockMark(persistence.ClockMark{}) },
		func() error { return f.Delete([]messages.RunID{1}, 0) },
	}
	for n := range calls {
		f.FailRead(n + 1)
		for i, call := range calls[:n+1] {
			err := call()
			if want := i == n; errors.Is(err, journaltest.ErrInjected) != want {
				t.Errorf("call %d of %d: %v", i, n, err)
			}
		}
	}
	if err := f.Delete([]messages.RunID{1}, 0); err != nil {
		t.Error(err)
	}
}
