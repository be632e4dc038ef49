package actors

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// readCounter is a store that counts what is read of it.
type readCounter struct {
	persistence.Store
	*readCounts
}

// readCounts are the reads of all stores that a rig has opened one after the other.
type readCounts struct{ summaries, loads atomic.Int64 }

func (c *readCounter) Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error {
	return c.Store.Summaries(q, func(s *messages.Summary) bool {
		c.summaries.Add(1)
		return yield(s)
	})
}

func (c *readCounter) Load(run messages.RunID) (*persistence.Stored, error) {
	c.loads.Add(1)
	return c.Store.Load(run)
}

func newCountedRig(t *testing.T) (*rig, *readCounts) {
	r := newRig(t)
	r.stop()
	count := new(readCounts)
	r.wrap = func(s persistence.Store) persistence.Store { return &readCounter{s, count} }
	r.start()
	return r, count
}

// TestRetentionReadsWhatIsDue: a sweep reads no summary of a run that stays, neither for their
// number nor for their age.
func TestRetentionReadsWhatIsDue(t *testing.T) {
	r, count := newCountedRig(t)
	const runs = 20
	for range runs {
		r.retired(r.submit(`{"tasks":{"a":{"job":{"executor":"noop"}}}}`))
	}
	j := &janitor{n: r.node, keep: runs - 3, age: time.Hour, stop: make(chan struct{})}
	due, err := j.due()
	if got := count.summaries.Load(); err != nil || fmt.Sprint(due) != "[0 1 2]" || got != 3 {
		t.Errorf("due are %v by %d summaries, %v", due, got, err)
	}
	count.summaries.Store(0)
	j.keep, j.age = 0, 1
	if due, err = j.due(); err != nil || len(due) != runs {
		t.Errorf("due are %v, %v", due, err)
	}
}

// TestResumedFollowersLoadNothing: of a live run the journal is read and nothing else, and of
// one that has ended not even that is told again.
func TestResumedFollowersLoadNothing(t *testing.T) {
	r, count := newCountedRig(t)
	id := r.submit(retried)
	k := r.order(1)
	r.fake.Begin(k)
	r.awaitTasks(id, dag.TaskRunning, 1)
	loads := count.loads.Load()
	f, err := r.node.Follow(t.Context(), id, 1)
	if err != nil || f == nil {
		t.Fatalf("%v, %v", f, err)
	}
	f.Close()
	if n := count.loads.Load() - loads; n != 0 {
		t.Errorf("a live run was loaded %d times", n)
	}
	r.fake.End(k, messages.AttemptFailed, 3)
	r.fake.End(r.order(2), messages.AttemptSucceeded, 0)
	r.fake.End(r.order(3), messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
	r.retired(id)
	_, end := r.story(id, 0)
	r.crash() // and started again: nothing of the run is in memory
	loads = count.loads.Load()
	if f, err := r.node.Follow(t.Context(), id, end.Seq); f != nil || err != nil {
		t.Errorf("behind the end: %v, %v", f, err)
	}
	if n := count.loads.Load() - loads; n != 0 {
		t.Errorf("a run that has ended was loaded %d times", n)
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

// TestPausedListsGoOn: pages of lists whose budget is used up have each run once, in order,
// finished or not, from both ends.
func TestPausedListsGoOn(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.wrap = func(s persistence.Store) persistence.Store { return &pausing{s} }
	r.start()
	const done, open = `{"tasks":{"a":{"job":{"executor":"noop"}}}}`, `{"tasks":{"a":{"job":{"command":["x"]}}}}`
	for n := range 12 {
		if n == 4 || n == 9 {
			r.submit(open)
			continue
		}
		r.retired(r.submit(done))
	}
	for _, desc := range []bool{false, true} {
		q := messages.ListQuery{All: true, Desc: desc}
		var ids []messages.RunID
		for pages := 0; ; pages++ {
			budget := 2
			q.Budget = &budget
			err := r.node.Summaries(t.Context(), q, func(s *messages.Summary) bool { ids = append(ids, s.ID); return true })
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
