package query

import (
	"errors"
	"slices"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// A list that is newest first goes through many windows, with few runs in most of them.
func TestNewestFirstOverManyWindows(t *testing.T) {
	var store listed
	for id := messages.RunID(0); id < 600_000; id += 1 + id/7 {
		store.runs = append(store.runs, &messages.Summary{ID: id, State: dag.RunCompleted})
	}
	r := &Reader{Index: NewIndex(messages.Numbering{}), Store: &store, NextID: func() messages.RunID { return 600_000 }}
	var got []messages.RunID
	list := func(q messages.ListQuery) {
		t.Helper()
		got = got[:0]
		q.All, q.Desc = true, true
		if err := r.Summaries(t.Context(), q, func(s *messages.Summary) bool { got = append(got, s.ID); return true }); err != nil {
			t.Fatal(err)
		}
	}
	var want []messages.RunID
	for _, s := range slices.Backward(store.runs) {
		want = append(want, s.ID)
	}
	if list(messages.ListQuery{}); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for i := 0; i < len(want); i += 3 { // page by page
		q := messages.ListQuery{Limit: 3}
		if i > 0 {
			q.HasAfter, q.After = true, want[i-1]
		}
		if list(q); !slices.Equal(got, want[i:min(i+3, len(want))]) {
			t.Errorf("page from %d on: %v", i, got)
		}
	}
	store.err = errors.New("disk is gone")
	if err := r.Summaries(t.Context(), messages.ListQuery{All: true, Desc: true}, func(*messages.Summary) bool { return true }); err == nil {
		t.Error("the store's error is lost")
	}
}

// A list that is newest first skips ids of deleted runs: its cost is that of the runs that are
// there.
func TestNewestFirstSkipsGaps(t *testing.T) {
	at := func(ids ...messages.RunID) *listed {
		store := new(listed)
		for _, id := range ids {
			store.runs = append(store.runs, &messages.Summary{ID: id, State: dag.RunCompleted})
		}
		return store
	}
	const far = messages.RunID(1) << 50
	for _, store := range []*listed{
		at(), at(0), at(far), at(0, far), at(0, 1, far/3, far/2-1, far/2, far/2+70_000, far-3, far),
		at(windowRuns-1, windowRuns, 2*windowRuns, 3*windowRuns-1, 1<<40, 1<<40+windowRuns, 1<<41-1, 1<<41),
	} {
		r := &Reader{Index: NewIndex(messages.Numbering{}), Store: store, NextID: func() messages.RunID { return far + 1 }}
		i := len(store.runs)
		err := r.Summaries(t.Context(), messages.ListQuery{All: true, Desc: true}, func(s *messages.Summary) bool {
			if i--; i < 0 || s != store.runs[i] {
				t.Fatalf("%d is not the next of %d", s.ID, len(store.runs))
			}
			return true
		})
		if err != nil || i != 0 {
			t.Errorf("%d runs are missing, %v", i, err)
		}
		if store.asked > 10_000 {
			t.Errorf("the store was asked %d times for %d runs", store.asked, len(store.runs))
		}
	}
}

// listed is a store that answers lists only.
type listed struct {
	persistence.Store
	runs  []*messages.Summary
	asked int
	err   error
}

func (l *listed) Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error {
	if l.asked++; l.asked > 1_000_000 {
		return errors.New("no end")
	}
	for _, s := range l.runs {
		if (!q.HasAfter || s.ID > q.After) && !yield(s) {
			break
		}
	}
	return l.err
}

// TestListOfARunThatFinishesMeanwhile: a run that leaves the index while a list is made, after the
// store's page was read, is listed as it is now.
func TestListOfARunThatFinishesMeanwhile(t *testing.T) {
	x := NewIndex(messages.Numbering{})
	x.Insert(&messages.Summary{ID: 5, State: dag.RunRunning})
	store := &finishing{listed: listed{runs: []*messages.Summary{
		{ID: 1, State: dag.RunCompleted}, {ID: 9, State: dag.RunCompleted},
	}}, finish: func() { x.Remove(5) }}
	r := &Reader{Index: x, Store: store}
	var got []messages.RunID
	q := messages.ListQuery{States: []dag.RunState{dag.RunRunning, dag.RunCompleted}}
	err := r.Summaries(t.Context(), q, func(s *messages.Summary) bool {
		if got = append(got, s.ID); s.State != dag.RunCompleted {
			t.Errorf("run %d is listed as %s", s.ID, s.State)
		}
		return true
	})
	if err != nil || !slices.Equal(got, []messages.RunID{1, 5, 9}) {
		t.Errorf("%v, %v", got, err)
	}
}

// TestListOfARunThatCannotBeRead: a run that leaves the index while a list is made is left out if it is
// deleted. Any other error of reading it ends the list.
func TestListOfARunThatCannotBeRead(t *testing.T) {
	all := messages.ListQuery{All: true}
	newest, few, paused := all, all, all
	newest.Desc, few.Limit = true, 2
	for what, q := range map[string]messages.ListQuery{"oldest": all, "newest": newest, "a page": few, "paused": paused} {
		for _, lost := range []error{persistence.ErrNotFound, errors.New("disk is gone")} {
			x := NewIndex(messages.Numbering{})
			x.Insert(&messages.Summary{ID: 5, State: dag.RunRunning})
			store := &finishing{listed: listed{runs: []*messages.Summary{{ID: 1, State: dag.RunCompleted}}}, finish: func() { x.Remove(5) }, lost: lost}
			if what == "paused" {
				store.err = &messages.ListPaused{After: 7}
			}
			r := &Reader{Index: x, Store: store, NextID: func() messages.RunID { return 10 }}
			err := r.Summaries(t.Context(), q, func(*messages.Summary) bool { return true })
			var pause *messages.ListPaused
			if deleted := lost == persistence.ErrNotFound; deleted && what == "paused" {
				if !errors.As(err, &pause) {
					t.Errorf("%s: %v", what, err)
				}
			} else if deleted != (err == nil) || !deleted && !errors.Is(err, lost) {
				t.Errorf("%s: %v when reading gives %q", what, err, lost)
			}
		}
	}
}

// finishing is a store whose run 5 finishes after a page of the list was read.
type finishing struct {
	listed
	finish func()
	lost   error // of reading run 5; nil = it is COMPLETED
}

func (f *finishing) Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error {
	f.finish()
	return f.listed.Summaries(q, yield)
}

func (f *finishing) Summary(id messages.RunID) (*messages.Summary, error) {
	if f.lost != nil {
		return nil, f.lost
	}
	return &messages.Summary{ID: id, State: dag.RunCompleted}, nil
}
