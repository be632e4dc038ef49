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

func TestMemoryConforms(t *testing.T) {
	crash := func(t testing.TB, s persistence.Store) persistence.Store {
		return closing(t, s.(*journaltest.Memory).Crash())
	}
	journaltest.Run(t, journaltest.Backend{
		Open: func(t testing.TB) persistence.Store { return closing(t, journaltest.NewMemory()) },
		Reopen: func(t testing.TB, s persistence.Store) persistence.Store {
			m := s.(*journaltest.Memory)
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			return closing(t, m.Reopen())
		},
		Crash: crash,
		Fail:  func(_ testing.TB, s persistence.Store) { s.(*journaltest.Memory).FailAt(1, errors.New("disk is gone")) },
	})
}
