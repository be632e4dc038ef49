package dag

import "slices"

// Plan returns the present plan: the one of the submission, or the last Next.
func (r *Run) Plan() *Plan { return r.plan }

// State returns the run's state.
func (r *Run) State() RunState { return r.state }

// Changes returns a copy of the run's states so far, the first QUEUED included.
func (r *Run) Changes() []StateChange { return slices.Clone(r.changes) }

// Counts returns how many tasks are in each state; users see GRANTED as QUEUED.
func (r *Run) Counts() [NumTaskStates]uint32 { return r.counts }

// LastUpdate returns the time of the newest record, in ns since the epoch.
func (r *Run) LastUpdate() int64 { return r.lastUpdate }

// TaskState returns the state of a task.
func (r *Run) TaskState(task uint32) TaskState { return TaskState(r.tasks[task] &^ killBit) }

// Attempt returns the number of attempts that a task has had, the live one
// included: the number of its newest attempt, 0 before the first.
func (r *Run) Attempt(task uint32) uint32 { return r.attempts[task] }

// States appends the states of the tasks [first, first+n).
func (r *Run) States(dst []TaskState, first, n uint32) []TaskState {
	dst = slices.Grow(dst, int(n))
	for _, b := range r.tasks[first : first+n] {
		dst = append(dst, TaskState(b&^killBit))
	}
	return dst
}

// Started tells whether a task of a template has had an attempt.
func (r *Run) Started(template int) bool { return r.templates[template].started > 0 }

// Waiting tells whether a task is in RETRY.
func (r *Run) Waiting() bool { return r.counts[TaskRetry] > 0 }

// Live yields the tasks that are GRANTED or RUNNING, ascending.
func (r *Run) Live(yield func(task, attempt uint32, s TaskState)) {
	r.live.each(func(task uint32) { yield(task, r.attempts[task], r.TaskState(task)) })
}

// GrantedAt returns the time (ns since the epoch) of the grant of a task that was live
// when the run was recovered and still has that attempt: exact when the
// records after the newest snapshot have it, else the time of the run's first state,
// which is a lower bound.
func (r *Run) GrantedAt(task uint32) int64 {
	if at, ok := r.granted[task]; ok {
		return at
	}
	return r.changes[0].At
}

// KillRequested tells whether the run is being killed.
func (r *Run) KillRequested() bool { return r.killing }

// TaskKillRequested tells whether the task is live and is being killed by itself.
func (r *Run) TaskKillRequested(task uint32) bool { return r.tasks[task]&killBit != 0 }
