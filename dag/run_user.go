package dag

import (
	"fmt"
	"slices"
)

// Allowed tells whether the user may ask for this state now: nil, or an error that names the present
// state and the wish. RunQueued is a restart, RunRunning a resume. RunKilled is always allowed; a
// final run ignores it. The driver must ask before it applies Pause, Resume or Restart, which panic
// where Allowed says no. While a run is being killed, only another kill is allowed.
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

// kill ends all live tasks. A task in RETRY is KILLED at once, a QUEUED task stays QUEUED. The run is
// KILLED when the last attempt has ended (finishIfIdle). A second kill only repeats the signals, for
// a process that ignored the first. The demand is withdrawn before the signals, so that no slot is
// granted while they are carried out.
func (r *Run) kill() {
	if r.state.Final() {
		return
	}
	if !r.killing {
		r.killing = true
		r.recordKill()
		r.markAllDemand()
		for _, task := range r.tasksInRetry(waitSlot, waitDue, waitFrozen) {
			r.removeFromReady(task)
			r.moveToFinal(task, TaskKilled)
		}
	}
	r.emitDemand()
	r.live.each(func(task uint32) { r.emit(Signal{Task: task, Attempt: r.attempts[task]}) })
}

// killTask ends one task. A live one is marked by a bit of its state byte, which is recorded, and is
// KILLED when its attempt has ended; any other is KILLED at once. A final task or run ignores it.
func (r *Run) killTask(task uint32) {
	r.mustKnowTask(task, "killed")
	state := r.TaskState(task)
	switch {
	case r.state.Final() || state.Final():
	case state.Live():
		if r.stateBytes[task]&killBit == 0 {
			r.stateBytes[task] |= killBit
			r.dirty.add(task / ChunkTasks)
			r.recordKillTask(task)
		}
		r.emit(Signal{Task: task, Attempt: r.attempts[task]})
	default:
		r.removeFromReady(task)
		r.endTask(task, TaskKilled)
	}
}

// removeFromReady subtracts a task that is QUEUED or in RETRY from the ready or blocked count, before
// it is KILLED. The task stays in its queue, where it is skipped: finding it would cost a search. The
// cases are those of Run's table of where a task is queued.
func (r *Run) removeFromReady(task uint32) {
	i := r.cachedTemplateOf(task)
	t, ts := r.plan.Templates[i], &r.templates[i]
	switch {
	case TaskState(r.stateBytes[task]) == TaskRetry:
		if r.retries[task].wait == waitSlot {
			r.addReady(t.Class, -1)
		}
	case ts.openGroups != nil && ts.openGroups[task-t.Base] > 0:
	case ts.pendingParents > 0:
		ts.blockedCount--
	default:
		r.addReady(t.Class, -1)
	}
}

// pause stops the run from taking slots and its retry timers from running. Attempts that have started
// go on; those that are granted only are taken back, where that is still possible.
func (r *Run) pause() {
	r.mustAllow(RunPaused)
	r.setState(RunPaused)
	r.emitDemand()
	r.freezeIntervals(r.lastStateChange(), nil)
	r.live.each(func(task uint32) {
		if !r.killRequested(task) && r.TaskState(task) == TaskGranted {
			r.emit(Cancel{Task: task, Attempt: r.attempts[task]})
		}
	})
}

// freezeIntervals keeps the rest (ns, at least 0) of the retry intervals of the tasks in only (nil:
// all), at the time of the pause. The record of the pause implies it, so tasks need no records
// of their own; a replay calls it too. Order does not matter: each task is changed by itself.
func (r *Run) freezeIntervals(at int64, only map[uint32]struct{}) {
	for task, tr := range r.retries {
		if tr.wait == waitDue && isSelected(only, task) {
			tr.wait, tr.at = waitFrozen, max(0, tr.at-at)
			r.retries[task] = tr
		}
	}
}

// thawIntervals lets the frozen intervals continue from the time of the resume, as freezeIntervals
// does in reverse.
func (r *Run) thawIntervals(at int64, only map[uint32]struct{}) {
	for task, tr := range r.retries {
		if tr.wait == waitFrozen && isSelected(only, task) {
			tr.wait, tr.at = waitDue, addSaturated(at, tr.at)
			r.retries[task] = tr
		}
	}
}

func isSelected(only map[uint32]struct{}, task uint32) bool {
	_, ok := only[task]
	return ok || only == nil
}

// resume goes on after a pause. An interval that was over at the pause ends at once; each
// other one gets its timer again.
func (r *Run) resume() {
	r.mustAllow(RunRunning)
	r.setState(RunRunning)
	r.thawIntervals(r.lastStateChange(), nil)
	for _, task := range r.tasksInRetry(waitDue) {
		if due := r.retries[task].at; due > r.lastStateChange() {
			r.emit(RetryAt{Task: task, Attempt: r.attempts[task], Due: due})
		} else {
			r.requeueFromRetry(task)
		}
	}
}

// restart queues all tasks that are neither COMPLETED nor live, with fresh retry budgets. Attempt
// numbers go on. Live attempts, which only a PAUSED run has, go on too. A run with a RUNNING task
// moves on to RUNNING in the same event: it is never shown as QUEUED.
//
// Its one record (a change to QUEUED) implies the moves of all tasks, so it costs O(tasks) time but
// a few bytes of journal.
func (r *Run) restart() {
	r.mustAllow(RunQueued)
	r.setState(RunQueued)
	for _, task := range r.tasksInRetry(waitSlot, waitDue, waitFrozen) {
		r.emit(TaskEnded{Task: task, State: TaskQueued})
	}
	r.requeueAll()
	r.rebuildQueues()
	if r.counts[TaskRunning] > 0 {
		r.setState(RunRunning)
	}
}

// requeueAll moves the tasks of a restart to QUEUED, without records and queues: rebuildQueues
// follows.
func (r *Run) requeueAll() {
	clear(r.retries)
	for task, b := range r.stateBytes {
		if s := TaskState(b &^ killBit); s == TaskErrored || s == TaskKilled || s == TaskRetry {
			r.moveTask(uint32(task), TaskQueued)
		}
	}
}

// tasksInRetry returns the tasks in RETRY that wait for one of kinds, ascending.
func (r *Run) tasksInRetry(kinds ...waitKind) []uint32 {
	if r.counts[TaskRetry] == 0 {
		return nil
	}
	tasks := make([]uint32, 0, r.counts[TaskRetry])
	for task, tr := range r.retries {
		if slices.Contains(kinds, tr.wait) {
			tasks = append(tasks, task)
		}
	}
	slices.Sort(tasks)
	return tasks
}
