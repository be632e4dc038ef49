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

func send(s persistence.Store, run messages.RunID) chan error {
	done := make(chan error, 1)
	b := journaltest.NewRun(run, "", "")
	b.Done = func(err error) { done <- err }
	s.Append(b)
	return done
}

func runs(t *testing.T, s persistence.Store) int {
	t.Helper()
	ids, err := s.UnfinishedSummaries()
	if err != nil {
		t.Fatal(err)
	}
	return len(ids)
}

func TestHeldBatchesWaitForTheirStep(t *testing.T) {
	m := closing(t, journaltest.NewMemory())
	m.Hold()
	first, second, third := send(m, 0), send(m, 1), send(m, 2)
	m.WaitPending(3)
	if m.Pending() != 3 || runs(t, m) != 0 {
		t.Fatalf("%d pending, %d durable", m.Pending(), runs(t, m))
	}
	m.Step(1)
	if err := <-first; err != nil || m.Pending() != 2 || runs(t, m) != 1 {
		t.Fatalf("after one step: %v, %d pending, %d durable", err, m.Pending(), runs(t, m))
	}
	after := closing(t, m.Crash())
	if runs(t, after) != 1 {
		t.Errorf("%d runs survive", runs(t, after))
	}
	select {
	case <-second:
		t.Error("a batch was answered after the crash")
	case <-third:
		t.Error("a batch was answered after the crash")
	case err := <-send(m, 3):
		t.Errorf("the crashed store answers: %v", err)
	default:
	}
	after.Hold()
	done := send(after, 5)
	after.Release()
	after.Flush()
	if err := <-done; err != nil || after.Pending() != 0 {
		t.Errorf("released: %v", err)
	}
}

// A batch that is being answered when Hold comes is none of those that are held
// back, and takes no step from them.
func TestHoldWaitsForARunningAnswer(t *testing.T) {
	m := closing(t, journaltest.NewMemory())
	for run := range messages.RunID(50) {
		entered, proceed, held := make(chan struct{}), make(chan struct{}), make(chan struct{})
		b := journaltest.NewRun(2*run, "", "")
		b.Done = func(error) {
			close(entered)
			<-proceed
		}
		m.Append(b)
		<-entered
		go func() {
			m.Hold()
			close(held)
		}()
		close(proceed)
		<-held
		if n := m.Pending(); n != 0 {
			t.Fatalf("%d pending", n)
		}
		done := send(m, 2*run+1)
		m.WaitPending(1)
		m.Step(1)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		m.Release()
	}
}

func TestFailedMemoryRefusesAll(t *testing.T) {
	m := closing(t, journaltest.NewMemory())
	cause := errors.New("cause")
	m.SetDiskSpaceError(cause)
	if m.CheckDiskSpace() != cause {
		t.Error("room")
	}
	m.Hold()
	done := send(m, 0)
	m.Fail(cause)
	if err := <-done; !errors.Is(err, persistence.ErrFailed) || !errors.Is(err, cause) {
		t.Errorf("held back when it failed: %v", err)
	}
	if err := <-send(m, 1); !errors.Is(err, persistence.ErrFailed) {
		t.Errorf("after the failure: %v", err)
	}
	m = closing(t, journaltest.NewMemory())
	m.FailAt(2, cause)
	m.Hold()
	one, two, three := send(m, 0), send(m, 1), send(m, 2)
	m.Step(2)
	if err := <-one; err != nil {
		t.Error(err)
	}
	for _, done := range []chan error{two, three} {
		if err := <-done; !errors.Is(err, cause) {
			t.Error(err)
		}
	}
}

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
