package dag

import (
	"fmt"
	"slices"
)

// Allowed tells whether the user may ask for this state now: nil, or an error
// that names the present state and the wish. RunQueued is a restart, RunRunning
// a resume; RunKilled is always allowed and changes nothing when the run is final.
func (r *Run) Allowed(to RunState) error {
	var from uint16
	switch to {
	case RunKilled:
		return nil
	case RunQueued:
		from = 1<<RunErrored | 1<<RunKilled | 1<<RunPaused
	case RunPaused:
		from = 1<<RunQueued | 1<<RunRunning
	case RunRunning:
		from = 1 << RunPaused
	}
	if from>>r.state&1 == 0 {
		return fmt.Errorf("a run that is %s cannot be set to %s", r.state, to)
	}
	if r.killing {
		return fmt.Errorf("a run that is being killed cannot be set to %s", to)
	}
	return nil
}

func (r *Run) mustAllow(to RunState) {
	if err := r.Allowed(to); err != nil {
		panic("run: " + err.Error())
	}
}

// kill ends everything that is live. What waits for a retry is KILLED at once,
// what is queued stays so. Once more only signals once more.
func (r *Run) kill() {
	if r.state.Final() {
		return
	}
	if !r.killing {
		r.killing = true
		r.recordKill()
		r.touchAll()
		for _, task := range r.waiting(waitSlot, waitDue, waitFrozen) {
			r.unready(task)
			r.close(task, TaskKilled)
		}
	}
	r.demand()
	r.live.each(func(task uint32) { r.emit(Signal{Task: task, Attempt: r.attempts[task]}) })
}

// killTask ends one task.
func (r *Run) killTask(task uint32) {
	r.known(task, "killed")
	state := r.TaskState(task)
	switch {
	case r.state.Final() || state.Final():
	case state.Live():
		if r.tasks[task]&killBit == 0 {
			r.tasks[task] |= killBit
			r.dirty.add(task / ChunkTasks)
			r.recordKillTask(task)
		}
		r.emit(Signal{Task: task, Attempt: r.attempts[task]})
	default:
		r.unready(task)
		r.end(task, TaskKilled)
	}
}

// unready takes a task that is QUEUED or in RETRY out of the counts of those that
// can be granted or that are held. It stays in their queues and is skipped there.
func (r *Run) unready(task uint32) {
	i := r.templateOf(task)
	t, ts := r.plan.Templates[i], &r.templates[i]
	switch {
	case TaskState(r.tasks[task]) == TaskRetry:
		if r.troubles[task].wait == waitSlot {
			r.addReady(t.Class, -1)
		}
	case ts.waits != nil && ts.waits[task-t.Base] > 0:
	case ts.pending > 0:
		ts.holding--
	default:
		r.addReady(t.Class, -1)
	}
}

// pause stops the run from taking slots and its retry timers from running.
func (r *Run) pause() {
	r.mustAllow(RunPaused)
	r.setState(RunPaused)
	r.demand()
	r.freeze(r.changed(), nil)
	r.live.each(func(task uint32) {
		if !r.killed(task) && r.TaskState(task) == TaskGranted {
			r.emit(Cancel{Task: task, Attempt: r.attempts[task]})
		}
	})
}

// freeze keeps what remains of the intervals of those tasks that only has (nil: all).
func (r *Run) freeze(at int64, only map[uint32]struct{}) {
	for task, tr := range r.troubles {
		if tr.wait == waitDue && within(only, task) {
			tr.wait, tr.at = waitFrozen, max(0, tr.at-at)
			r.troubles[task] = tr
		}
	}
}

// thaw lets the frozen intervals go on.
func (r *Run) thaw(at int64, only map[uint32]struct{}) {
	for task, tr := range r.troubles {
		if tr.wait == waitFrozen && within(only, task) {
			tr.wait, tr.at = waitDue, later(at, tr.at)
			r.troubles[task] = tr
		}
	}
}

func within(only map[uint32]struct{}, task uint32) bool {
	_, ok := only[task]
	return ok || only == nil
}

// resume goes on after a pause.
func (r *Run) resume() {
	r.mustAllow(RunRunning)
	r.setState(RunRunning)
	r.thaw(r.changed(), nil)
	for _, task := range r.waiting(waitDue) {
		if due := r.troubles[task].at; due > r.changed() {
			r.emit(RetryAt{Task: task, Attempt: r.attempts[task], Due: due})
		} else {
			r.requeue(task)
		}
	}
}

// restart queues again what is neither COMPLETED nor live, with fresh budgets. A run
// with a RUNNING task is not QUEUED: it goes on to RUNNING in the same event.
func (r *Run) restart() {
	r.mustAllow(RunQueued)
	r.setState(RunQueued)
	for _, task := range r.waiting(waitSlot, waitDue, waitFrozen) {
		r.emit(TaskEnded{Task: task, State: TaskQueued})
	}
	r.requeueAll()
	r.placeReady()
	if r.counts[TaskRunning] > 0 {
		r.setState(RunRunning)
	}
}

// requeueAll is the part of a restart that concerns tasks, without their order.
func (r *Run) requeueAll() {
	clear(r.troubles)
	for task, b := range r.tasks {
		if s := TaskState(b &^ killBit); s == TaskErrored || s == TaskKilled || s == TaskRetry {
			r.move(uint32(task), TaskQueued)
		}
	}
}

// waiting returns the tasks in RETRY that wait for one of kinds, ascending.
func (r *Run) waiting(kinds ...waitKind) []uint32 {
	if r.counts[TaskRetry] == 0 {
		return nil
	}
	tasks := make([]uint32, 0, r.counts[TaskRetry])
	for task, tr := range r.troubles {
		if slices.Contains(kinds, tr.wait) {
			tasks = append(tasks, task)
		}
	}
	slices.Sort(tasks)
	return tasks
}
