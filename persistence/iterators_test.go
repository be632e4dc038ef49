package persistence

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// What was deleted before the store was opened is passed over by one list, and known then.
func TestListLearnsDeletedRuns(t *testing.T) {
	for _, numbering := range []messages.Numbering{{}, {Partitions: 6}, {Partitions: 6, Partition: 5}} {
		testListLearnsDeletedRuns(t, numbering)
	}
}

func testListLearnsDeletedRuns(t *testing.T, numbering messages.Numbering) {
	t.Helper()
	dir := t.TempDir()
	s, put := openPartitionAt(t, dir, numbering)
	var runs []messages.RunID
	for n := range uint64(40) {
		run := numbering.ID(n)
		create(t, put, run)
		if n > 0 {
			finish(t, put, run)
		}
		if n > 0 && n < 30 && n != 10 {
			runs = append(runs, run)
		}
	}
	restart(t, put, numbering.ID(10))
	restart(t, put, numbering.ID(35))
	if err := s.Delete(runs, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, put = openPartitionAt(t, dir, numbering)
	want := " 0:QUEUED 10:QUEUED 30:KILLED 31:KILLED 32:KILLED 33:KILLED 34:KILLED 35:QUEUED 36:KILLED 37:KILLED 38:KILLED 39:KILLED"
	if got := listedByTag(t, s); got != want {
		t.Errorf("%s, want%s", got, want)
	}
	if got := s.deletedIDs.String(); got != "[{1 9} {11 29}]" {
		t.Errorf("gone are %s", got)
	}
	finish(t, put, numbering.ID(10))
	finish(t, put, numbering.ID(35))
	want = " 0:QUEUED 10:KILLED 30:KILLED 31:KILLED 32:KILLED 33:KILLED 34:KILLED 35:KILLED 36:KILLED 37:KILLED 38:KILLED 39:KILLED"
	if got := listedByTag(t, s); got != want {
		t.Errorf("later:%s, want%s", got, want)
	}
}

// Whatever happens to runs, and in whatever order, a list shows those that are there.
func TestListsAgreeWithAModel(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(5, 6))
	dir := t.TempDir()
	s, put := openAt(t, dir)
	model := map[messages.RunID]string{}
	next := messages.RunID(0)
	for range 1500 {
		run := messages.RunID(rng.Uint64N(uint64(next) + 1))
		switch what := rng.IntN(100); {
		case what < 30:
			create(t, put, next)
			model[next] = "QUEUED"
			next += 1 + messages.RunID(rng.IntN(2))
		case what < 60 && model[run] == "QUEUED":
			finish(t, put, run)
			model[run] = "KILLED"
		case what < 70 && model[run] == "KILLED":
			restart(t, put, run)
			model[run] = "QUEUED"
		case what < 90 && model[run] == "KILLED":
			if err := s.Delete([]messages.RunID{run}, 0); err != nil {
				t.Fatal(err)
			}
			delete(model, run)
		case what == 99:
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s, put = openAt(t, dir)
		}
		q := messages.ListQuery{All: true, HasAfter: rng.IntN(2) == 0, After: run, Limit: rng.IntN(20), HasTag: rng.IntN(2) == 0, Tag: "t"}
		want := ""
		for id, n := messages.RunID(0), 0; id < next && (q.Limit == 0 || n < q.Limit); id++ {
			if state := model[id]; state != "" && (!q.HasAfter || id > q.After) {
				want += fmt.Sprintf(" %d:%s", id, state)
				n++
			}
		}
		if got := listedRuns(t, s, q); got != want {
			t.Fatalf("%+v:\n%s, want\n%s", q, got, want)
		}
	}
}

func create(t *testing.T, put func(*Batch) error, run messages.RunID) {
	t.Helper()
	change(t, put, run, dag.RunQueued, &Creation{Definition: []byte("spec")})
}

func finish(t *testing.T, put func(*Batch) error, run messages.RunID) {
	t.Helper()
	change(t, put, run, dag.RunKilled, nil)
}

func restart(t *testing.T, put func(*Batch) error, run messages.RunID) {
	t.Helper()
	change(t, put, run, dag.RunQueued, nil)
}

func change(t *testing.T, put func(*Batch) error, run messages.RunID, to dag.RunState, c *Creation) {
	t.Helper()
	if err := put(&Batch{Run: run, Create: c, Summary: &messages.Summary{ID: run, Tag: "t", State: to}}); err != nil {
		t.Fatal(err)
	}
}
