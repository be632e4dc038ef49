package persistence_test

import (
	"testing"

	"github.com/caravan-dag/caravan/persistence"
)

// TestClusterTableRow proves that the table of a cluster's nodes is durable, and the newest one counts.
func TestClusterTableRow(t *testing.T) {
	config := persistence.Config{Dir: t.TempDir()}
	for _, want := range []string{"", "first", "second"} {
		s, err := persistence.OpenStore(config)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.ClusterTable(); err != nil || string(got) != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
		next := map[string][]string{"": {"zero", "first"}, "first": {"second"}}[want]
		for _, text := range next {
			if err := s.SetClusterTable([]byte(text)); err != nil {
				t.Fatal(err)
			}
			if got, err := s.ClusterTable(); err != nil || string(got) != text {
				t.Errorf("%q, %v after the commit of %q", got, err, text)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.SetClusterTable([]byte("late")); err == nil {
			t.Error("a closed store takes a table")
		}
	}
}
