package actors

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// rotten is a store of which some summaries cannot be read, or found, by its lists.
type rotten struct {
	persistence.Store
	damaged, lost messages.RunID
}

func (r *rotten) Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error {
	return r.Store.Summaries(q, func(s *messages.Summary) bool {
		switch s.ID {
		case r.lost:
			return true
		case r.damaged:
			s = &messages.Summary{ID: s.ID, Damage: "it rots"}
		}
		return yield(s)
	})
}

// TestListsOfADamagedStore: what is damaged is in each list that might have it, in its place,
// and keeps nothing else out. An unfinished run is listed whatever became of its row.
func TestListsOfADamagedStore(t *testing.T) { inEachNumbering(t, testListsOfADamagedStore) }

func testListsOfADamagedStore(t *testing.T, change func(*Config)) {
	r := newRig(t, change)
	r.stop()
	r.wrap = func(s persistence.Store) persistence.Store { return &rotten{s, r.id(1), r.id(3)} }
	r.start()
	const done, open = `{"tasks":{"a":{"job":{"executor":"noop"}}}}`, `{"tasks":{"a":{"job":{"command":["x"]}}}}`
	for n := range 6 { // 0, 1, 4 and 5 end
		if n == 2 || n == 3 {
			r.submit(open)
			continue
		}
		r.passivated(r.submit(done))
	}
	list := func(q messages.ListQuery) string {
		var ids []string
		err := r.node.Summaries(t.Context(), q, func(s *messages.Summary) bool {
			text := fmt.Sprint(r.number(s.ID))
			if s.Damage != "" {
				text += "!"
			}
			ids = append(ids, text)
			return true
		})
		if err != nil {
			t.Error(err)
		}
		return strings.Join(ids, " ")
	}
	for what, c := range map[string]struct {
		q    messages.ListQuery
		want string
	}{
		"all":        {messages.ListQuery{All: true}, "0 1! 2 3 4 5"},
		"newest":     {messages.ListQuery{All: true, Desc: true}, "5 4 3 2 1! 0"},
		"unfinished": {messages.ListQuery{}, "2 3"},
		"some":       {messages.ListQuery{All: true, Limit: 4}, "0 1! 2 3"},
		"on":         {messages.ListQuery{All: true, HasAfter: true, After: r.id(2)}, "3 4 5"},
		"completed":  {messages.ListQuery{States: []dag.RunState{dag.RunCompleted}}, "0 1! 4 5"},
		"others":     {messages.ListQuery{States: []dag.RunState{dag.RunQueued, dag.RunRunning, dag.RunErrored}}, "2 3"}, // run 1 is known to be COMPLETED
	} {
		if got := list(c.q); got != c.want {
			t.Errorf("%s: %s, want %s", what, got, c.want)
		}
	}
	// The age of a damaged run is unknown: retention leaves it.
	j := &janitor{n: r.node, keep: 1, stop: make(chan struct{})}
	if due, err := j.dueRuns(); err != nil || fmt.Sprint(r.numbers(due)) != "[0 4]" {
		t.Errorf("due are %v, %v", due, err)
	}
}

// pausing is a store whose lists end with their budget at each run.
type pausing struct{ persistence.Store }

func (p *pausing) Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error {
	if q.Budget == nil {
		return p.Store.Summaries(q, yield)
	}
	end, last := false, messages.RunID(0)
	err := p.Store.Summaries(q, func(s *messages.Summary) bool {
		if *q.Budget--; *q.Budget < 0 {
			end = true
			return false
		}
		last = s.ID
		return yield(s)
	})
	if end {
		return &messages.ListPaused{After: last}
	}
	return err
}

// TestPausedListsResume: pages of lists whose budget is used up have each run once, in order,
// finished or not, from both ends.
func TestPausedListsResume(t *testing.T) { inEachNumbering(t, testPausedListsResume) }

func testPausedListsResume(t *testing.T, change func(*Config)) {
	r := newRig(t, change)
	r.stop()
	r.wrap = func(s persistence.Store) persistence.Store { return &pausing{s} }
	r.start()
	const done, open = `{"tasks":{"a":{"job":{"executor":"noop"}}}}`, `{"tasks":{"a":{"job":{"command":["x"]}}}}`
	for n := range 12 {
		if n == 4 || n == 9 {
			r.submit(open)
			continue
		}
		r.passivated(r.submit(done))
	}
	for _, desc := range []bool{false, true} {
		q := messages.ListQuery{All: true, Desc: desc}
		var ids []messages.RunID
		for pages := 0; ; pages++ {
			budget := 2
			q.Budget = &budget
			err := r.node.Summaries(t.Context(), q, func(s *messages.Summary) bool { ids = append(ids, r.number(s.ID)); return true })
			paused, ok := err.(*messages.ListPaused)
			if !ok {
				if err != nil || pages < 3 && !desc {
					t.Errorf("desc %v: %d pages, %v", desc, pages, err)
				}
				break
			}
			q.HasAfter, q.After = true, paused.After
		}
		want := "[0 1 2 3 4 5 6 7 8 9 10 11]"
		if desc {
			want = "[11 10 9 8 7 6 5 4 3 2 1 0]"
		}
		if got := fmt.Sprint(ids); got != want {
			t.Errorf("desc %v: %s, want %s", desc, got, want)
		}
	}
}

func TestLists(t *testing.T) { inEachNumbering(t, testLists) }

func testLists(t *testing.T, change func(*Config)) {
	r := newRig(t, change)
	tagged := `{"tag":"x","tags":{"team":"a"},"jobDefaults":{"executor":"noop"},"tasks":{"a":{"job":{}}}}`
	for range 3 {
		r.awaitState(r.submit(tagged), dag.RunCompleted)
	}
	unfinished := r.number(r.submit(single))
	r.order(1)
	list := func(q messages.ListQuery) (ids []messages.RunID) {
		t.Helper()
		if q.HasAfter {
			q.After = r.id(q.After)
		}
		if err := r.node.Summaries(t.Context(), q, func(s *messages.Summary) bool { ids = append(ids, r.number(s.ID)); return true }); err != nil {
			t.Fatal(err)
		}
		return ids
	}
	for _, c := range []struct {
		name string
		q    messages.ListQuery
		want []messages.RunID
	}{
		{"unfinished", messages.ListQuery{}, []messages.RunID{unfinished}},
		{"all", messages.ListQuery{All: true}, []messages.RunID{0, 1, 2, unfinished}},
		{"tag", messages.ListQuery{All: true, Tag: "x", HasTag: true}, []messages.RunID{0, 1, 2}},
		{"empty tag", messages.ListQuery{All: true, HasTag: true}, []messages.RunID{unfinished}},
		{"label", messages.ListQuery{All: true, Labels: []dag.Label{{Name: "team", Value: "a"}}}, []messages.RunID{0, 1, 2}},
		{"no such label", messages.ListQuery{All: true, Labels: []dag.Label{{Name: "team", Value: "b"}}}, nil},
		{"state", messages.ListQuery{States: []dag.RunState{dag.RunCompleted}}, []messages.RunID{0, 1, 2}},
		{"running", messages.ListQuery{States: []dag.RunState{dag.RunRunning}}, []messages.RunID{unfinished}},
		{"page", messages.ListQuery{All: true, HasAfter: true, After: 0, Limit: 2}, []messages.RunID{1, 2}},
		{"unfinished page", messages.ListQuery{HasAfter: true, After: unfinished, Limit: 2}, nil},
		{"newest first", messages.ListQuery{All: true, Desc: true}, []messages.RunID{unfinished, 2, 1, 0}},
		{"newest first, unfinished", messages.ListQuery{Desc: true}, []messages.RunID{unfinished}},
		{"newest first, tag and page", messages.ListQuery{All: true, Tag: "x", HasTag: true, Desc: true, Limit: 2}, []messages.RunID{2, 1}},
		{"newest first, next page", messages.ListQuery{All: true, Tag: "x", HasTag: true, Desc: true, Limit: 2, HasAfter: true, After: 1}, []messages.RunID{0}},
		{"newest first, after the last page", messages.ListQuery{All: true, Desc: true, HasAfter: true, After: 0}, nil},
		{"newest first, from beyond", messages.ListQuery{All: true, Desc: true, HasAfter: true, After: 1000, Limit: 1}, []messages.RunID{unfinished}},
	} {
		if got := list(c.q); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
