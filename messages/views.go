package messages

import (
	"fmt"
	"slices"

	"github.com/caravan-dag/caravan/dag"
)

// RunID numbers runs from 0 upwards; a number is never given twice.
type RunID uint64

// Member is a member of a job that the engine does not know, its value as raw JSON.
type Member = dag.Member

// Counts holds the number of tasks per dag.TaskState.
type Counts [dag.NumTaskStates]uint32

// Summary is a run at a glance. It is immutable.
type Summary struct {
	ID         RunID
	Tag        string
	Tags       []dag.Label
	State      dag.RunState
	Start      int64 // ns since the epoch: when it was accepted
	LastUpdate int64 // ns since the epoch, by the run's clock: the newest durable event
	Changed    int64 // ns, on the server's own clock, which cannot be set: the same moment, or a little later
	Tasks      uint32
	Counts     Counts
	// Damage says why the stored summary cannot be read; "" when it can. Only the ID of a damaged
	// summary is known. Only lists have such entries.
	Damage string
}

// View is a run, or the tasks [First, First+len(States)) of it, at one durable
// moment. It is immutable and is rendered outside the run's actor.
type View struct {
	Summary
	Seq     uint64 // of the newest durable batch: see RunEvents
	Plan    *dag.Plan
	First   uint32
	States  []dag.TaskState
	Changes []dag.StateChange
	Times   []dag.Times   // by template; of a view of all tasks only
	Live    []LiveAttempt // attempts that run now, of the viewed tasks, sorted by task
}

// ListQuery selects runs. The zero value selects unfinished runs.
type ListQuery struct {
	All      bool   // finished runs too
	Tag      string // exact tag; ignored unless HasTag
	HasTag   bool
	Labels   []dag.Label    // every one must be among the run's tags
	States   []dag.RunState // empty = any; a final state here implies All
	After    RunID          // keyset cursor: only what comes behind it; ignored unless HasAfter
	HasAfter bool
	Desc     bool // descending by id, newest first; of the engine, not of its store
	Limit    int  // 0 = no limit

	// ChangedFrom and ChangedTo bound Summary.Changed (ns, on the server's own clock), both
	// included; 0 = no bound.
	ChangedFrom, ChangedTo int64
	// Before bounds the ids from above: only what comes before it; 0 = no bound.
	Before RunID
	// Budget is how many stored rows a list may look at; nil = no bound. The list takes what it
	// looks at off, and ends with a *ListPaused when nothing is left, a few hundred rows more or
	// less. It has yielded what it found by then.
	Budget *int
}

// Selects tells whether a query selects a summary, apart from its Limit and Budget. A damaged
// summary is selected: its tag and state are unknown.
func (q *ListQuery) Selects(s *Summary) bool {
	switch {
	case q.HasAfter && s.ID <= q.After, q.Before > 0 && s.ID >= q.Before:
		return false
	case s.Damage != "":
		return true
	case q.HasTag && s.Tag != q.Tag:
		return false
	case q.ChangedFrom > 0 && s.Changed < q.ChangedFrom, q.ChangedTo > 0 && s.Changed > q.ChangedTo:
		return false
	case len(q.States) == 0 && !q.All && s.State.Final():
		return false
	case len(q.States) > 0 && !slices.Contains(q.States, s.State):
		return false
	}
	return !slices.ContainsFunc(q.Labels, func(l dag.Label) bool { return !slices.Contains(s.Tags, l) })
}

// ListPaused is the error of a list whose budget is used up. The list goes on with After as
// its cursor.
type ListPaused struct{ After RunID }

func (e *ListPaused) Error() string {
	return fmt.Sprintf("the list is paused at run %d: it has looked at as many rows as it may", e.After)
}
