package replay

import (
	"fmt"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// CheckRun proves that a stored run can be gone on with, or shown: all of it is there, its
// definition is valid, its state follows from snapshot and journal, and each task that has
// come to rest has the records of its attempts. attempt is called for each of these.
func CheckRun(store persistence.Reader, id messages.RunID, limits dag.Limits, attempt func(*messages.AttemptRecord)) (dag.RunState, error) {
	stored, err := store.Load(id)
	if err != nil {
		return 0, err
	}
	d, err := Run(stored, limits, &LongPlans{})
	if err != nil {
		return 0, fmt.Errorf("run %d: %w", id, err)
	}
	next, missing := uint32(0), error(nil)
	upTo := func(task, last uint32) { // the tasks before this one have no more records
		for ; next <= task && next < d.Plan().Tasks; next++ {
			of := uint32(0)
			if next == task {
				of = last
			}
			state := d.TaskState(next)
			if want := d.Attempt(next); of < want && (state == dag.TaskCompleted || state == dag.TaskErrored) && missing == nil {
				missing = fmt.Errorf("run %d: task %d: %s, and the record of its attempt %d is missing", id, next, state, want)
			}
		}
	}
	task, last := uint32(0), uint32(0)
	err = store.Attempts(id, 0, d.Plan().Tasks, func(a *messages.AttemptRecord) bool {
		if a.Task != task {
			upTo(task, last)
		}
		task, last = a.Task, a.Attempt
		attempt(a)
		return true
	})
	if err != nil {
		return 0, err
	}
	upTo(task, last)
	if d.Plan().Tasks > 0 {
		upTo(d.Plan().Tasks-1, 0)
	}
	return d.State(), missing
}
