package persistence

import (
	"runtime"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// A deletion that began before the highest run was created, and ends behind that one's,
// does not give its id free.
func TestConcurrentDeletionsKeepTheHighestID(t *testing.T) {
	s, put := openSmall(t, 1)
	end := func(run messages.RunID) {
		t.Helper()
		if err := put(&Batch{Run: run, Summary: &messages.Summary{ID: run, Tag: "t", State: dag.RunKilled}}); err != nil {
			t.Fatal(err)
		}
	}
	end(1)
	other := make(chan error, 1)
	err := s.deleteRuns([]messages.RunID{1}, 0, func(rows []mutation) error {
		if err := put(&Batch{Run: 9, Create: &Creation{Definition: []byte("spec")},
			Summary: &messages.Summary{ID: 9, State: dag.RunQueued}}); err != nil {
			return err
		}
		end(9)
		go func() { other <- s.Delete([]messages.RunID{9}, 0) }()
		// It ends, unless it waits for this one.
		for len(other) == 0 && s.deleteMu.TryLock() {
			s.deleteMu.Unlock()
			runtime.Gosched()
		}
		return s.commitRows(rows)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-other; err != nil {
		t.Fatal(err)
	}
	if next, err := Meta(s, "next"); err != nil || next != 10 {
		t.Errorf("the next run by what is stored is %d, %v, want 10", next, err)
	}
}
