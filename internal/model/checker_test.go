package model

import (
	"slices"
	"testing"
)

// counter is a system of numbers: each one leads to its successor and to its double, up to max.
type counter struct {
	max, forbidden, goal int
	halts                int // without a successor
}

func (c counter) Initial() int { return 1 }

func (c counter) Next(n int, yield func(string, int)) {
	if n == c.halts {
		return
	}
	if n < c.max {
		yield("add", n+1)
	}
	if 2*n <= c.max {
		yield("double", 2*n)
	}
}

func (c counter) Violation(n int) string {
	if n == c.forbidden {
		return "forbidden"
	}
	return ""
}

func (c counter) IsGoal(n int) bool { return n == c.goal }

func TestExploreVisitsAllStates(t *testing.T) {
	r, err := Explore(counter{max: 200_000, goal: 200_000}, 1_000_000)
	if err != nil || r.Violation != "" || r.States != 200_000 || r.Transitions != 299_999 {
		t.Errorf("got %d states, %d transitions, %q, %v", r.States, r.Transitions, r.Violation, err)
	}
}

func TestExploreFindsAShortestTrace(t *testing.T) {
	r, err := Explore(counter{max: 100, forbidden: 25, goal: 100}, 1000)
	want := []string{"add", "add", "double", "double", "double", "add"}
	if err != nil || r.Violation != "forbidden" || r.Last != 25 || !slices.Equal(r.Trace, want) {
		t.Errorf("got %q at %d by %q, %v", r.Violation, r.Last, r.Trace, err)
	}
	if r, _ := Explore(counter{max: 3, forbidden: 1, goal: 3}, 1000); r.Violation != "forbidden" || len(r.Trace) != 0 {
		t.Errorf("the initial state is forbidden: got %q by %q", r.Violation, r.Trace)
	}
}

func TestExploreFindsStatesThatAreStuck(t *testing.T) {
	r, err := Explore(counter{max: 100, goal: 100, halts: 60}, 1000)
	if err != nil || r.Violation != stuck || r.Last <= 50 || r.Last > 60 { // from 51 on the way leads to 60
		t.Errorf("got %q at %d, %v", r.Violation, r.Last, err)
	}
}

func TestExploreStopsAtTheLimit(t *testing.T) {
	if _, err := Explore(counter{max: 100, goal: 100}, 50); err == nil {
		t.Error("100 states passed a limit of 50")
	}
}
