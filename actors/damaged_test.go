package actors

import (
	"fmt"
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
func TestListsOfADamagedStore(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.wrap = func(s persistence.Store) persistence.Store { return &rotten{s, 1, 3} }
	r.start()
	const done, open = `{"tasks":{"a":{"job":{"executor":"noop"}}}}`, `{"tasks":{"a":{"job":{"command":["x"]}}}}`
	for n := range 6 { // 0, 1, 4 and 5 end
		if n == 2 || n == 3 {
			r.submit(open)
			continue
		}
		r.retired(r.submit(done))
	}
	list := func(q messages.ListQuery) string {
		var ids []string
		err := r.node.Summaries(t.Context(), q, func(s *messages.Summary) bool {
			text := fmt.Sprint(s.ID)
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
		"on":         {messages.ListQuery{All: true, HasAfter: true, After: 2}, "3 4 5"},
		"completed":  {messages.ListQuery{States: []dag.RunState{dag.RunCompleted}}, "0 1! 4 5"},
		"others":     {messages.ListQuery{States: []dag.RunState{dag.RunQueued, dag.RunRunning, dag.RunErrored}}, "2 3"}, // run 1 is known to be COMPLETED
	} {
		if got := list(c.q); got != c.want {
			t.Errorf("%s: %s, want %s", what, got, c.want)
		}
	}
	// Of a damaged run nobody knows how old it is: retention leaves it.
	j := &janitor{n: r.node, keep: 1, stop: make(chan struct{})}
	if due, err := j.due(); err != nil || fmt.Sprint(due) != "[0 4]" {
		t.Errorf("due are %v, %v", due, err)
	}
}
