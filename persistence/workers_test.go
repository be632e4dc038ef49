package persistence_test

import (
	"slices"
	"testing"

	"github.com/caravan-dag/caravan/persistence"
)

// TestWorkerRows proves that the list of workers is durable, and that what a backup check reads of it is valid.
func TestWorkerRows(t *testing.T) {
	config := persistence.Config{Dir: t.TempDir()}
	open := func() *persistence.RunStore {
		t.Helper()
		s, err := persistence.OpenStore(config)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	check := func(s *persistence.RunStore, want ...string) {
		t.Helper()
		if got, err := s.Workers(); err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, %v; want %v", got, err, want)
		}
	}
	s := open()
	check(s)
	for _, ids := range [][]string{{"gpu.2"}, {"gpu.1", "gpu.2"}, {"gpu.1"}, nil} {
		if err := s.AddWorkers(ids...); err != nil {
			t.Fatal(err)
		}
	}
	check(s, "gpu.1", "gpu.2")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.AddWorkers("late"); err == nil {
		t.Error("a closed store takes a row")
	}
	s = open()
	check(s, "gpu.1", "gpu.2")
	for _, id := range []string{"gpu.1", "unknown"} {
		if err := s.RemoveWorker(id); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	check(s, "gpu.2")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
