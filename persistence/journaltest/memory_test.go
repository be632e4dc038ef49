package journaltest_test

import (
	"errors"
	"testing"

	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

func TestMain(m *testing.M) { testenv.VerifyNoLeaks(m) }

// closing has a store closed when the test ends.
func closing(t testing.TB, m *journaltest.Memory) *journaltest.Memory {
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// holdableMemory is a Memory that waits before its n-th batch from now is durable.
type holdableMemory struct{ *journaltest.Memory }

func (m holdableMemory) HoldCommit(n int) <-chan struct{} {
	m.Hold()
	held := make(chan struct{})
	go func() {
		m.Step(n - 1)
		m.WaitPending(1)
		close(held)
	}()
	return held
}

func (m holdableMemory) ReleaseCommits() { m.Release() }

func (m holdableMemory) OpenCrashed(t testing.TB) persistence.Store { return closing(t, m.Reopen()) }

func TestMemoryConforms(t *testing.T) {
	journaltest.Run(t, journaltest.Backend{
		Open: func(t testing.TB) persistence.Store { return closing(t, journaltest.NewMemory()) },
		Reopen: func(t testing.TB, s persistence.Store) persistence.Store {
			m := s.(*journaltest.Memory)
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			return closing(t, m.Reopen())
		},
		Crash: func(t testing.TB, s persistence.Store) persistence.Store {
			return closing(t, s.(*journaltest.Memory).Crash())
		},
		Fail: func(_ testing.TB, s persistence.Store) { s.(*journaltest.Memory).FailAt(1, errors.New("disk is gone")) },
		CrashPoints: []journaltest.CrashPoint{{
			Name: "before a batch is durable",
			Open: func(t testing.TB) journaltest.HoldableStore {
				return holdableMemory{closing(t, journaltest.NewMemory())}
			},
		}},
	})
}

// send appends the creation of a run, and returns the channel of its answer.
func send(s persistence.Store, run messages.RunID) chan error {
	done := make(chan error, 1)
	b := journaltest.NewRun(run, "", "")
	b.Done = func(err error) { done <- err }
	s.Append(b)
	return done
}

// runs returns how many unfinished runs a store has.
func runs(t *testing.T, s persistence.Store) int {
	t.Helper()
	ids, err := s.UnfinishedSummaries()
	if err != nil {
		t.Fatal(err)
	}
	return len(ids)
}

// TestHeldBatchesWaitForTheirStep: a held batch is neither visible nor durable until its step, and a crash
// loses it without an answer.
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

// TestHoldWaitsForARunningAnswer: a batch that is being answered when Hold comes is not held back, and
// does not take a step from those that are.
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

// TestFailedMemoryRefusesAll: Fail answers batches that are held back, and FailAt only the n-th one and
// those after it.
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
