package journaltest_test

import (
	"errors"
	"testing"

	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
