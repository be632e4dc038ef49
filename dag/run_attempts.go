package dag

import "fmt"

// grantSlots gives up to n slots of a class to its ready tasks, and releases the rest. The first grant
// of a QUEUED run makes it RUNNING.
//
// The loop ends: at most readyTasks slots are given, and that many tasks of the queues can be granted.
// Each killed task is skipped once, so a grant costs O(tasks granted and skipped).
func (r *Run) grantSlots(class, n int) {
	if class < 0 || class >= len(r.classes) || n < 0 {
		panic(fmt.Sprintf("run: grant of %d slots of class %d, it has %d classes", n, class, len(r.classes)))
	}
	if c := &r.classes[class]; r.acceptsSlots() && c.readyTasks > 0 && n > 0 {
		if r.state == RunQueued {
			r.setState(RunRunning)
		}
		taken := min(n, c.readyTasks)
		n -= taken
		r.addReady(class, -taken)
		for taken > 0 {
			if task := c.popTask(); r.isGrantable(task) {
				r.beginAttempt(task)
				taken--
			}
		}
	}
	if n > 0 {
		r.emit(Release{Class: class, N: n})
	}
}

// isGrantable tells whether a task from a queue may start. It is false for a task that was killed
// after it had become ready, the only one that a queue keeps without counting it.
func (r *Run) isGrantable(task uint32) bool {
	state := TaskState(r.stateBytes[task])
	return state == TaskQueued || state == TaskRetry
}

// beginAttempt gives a ready task its slot and its next attempt. Attempts count from 1. The
// failures of a task in RETRY are kept, for the next failure.
func (r *Run) beginAttempt(task uint32) {
	if TaskState(r.stateBytes[task]) == TaskRetry {
		tr := r.retries[task]
		tr.wait = waitNone
		r.retries[task] = tr
	}
	r.moveTask(task, TaskGranted)
	if r.attempts[task] == 0 {
		r.templates[r.cachedTemplateOf(task)].startedTasks++
	}
	r.attempts[task]++
	r.recordGrant(task)
	r.emit(Start{Task: task, Attempt: r.attempts[task]})
}

// holdsSlot tells whether this attempt holds a slot. A report of an attempt that has ended, or of an
// older one, may come late or twice: it is false then, and the caller ignores the event. A task or an
// attempt that never existed is a bug of the driver and panics; what says what the driver claims.
func (r *Run) holdsSlot(task, attempt uint32, what string) bool {
	r.mustKnowTask(task, what)
	made := r.attempts[task]
	// A revoked attempt gave its number back: made+1 may be one.
	if attempt > made && attempt-made > 1 {
		panic(fmt.Sprintf("task %d: attempt %d %s, but it has had %d", task, attempt, what, made))
	}
	return attempt == made && r.live.has(task)
}

func (r *Run) mustKnowTask(task uint32, what string) {
	if task >= r.plan.Tasks {
		panic(fmt.Sprintf("task %d: %s, but the run has %d tasks", task, what, r.plan.Tasks))
	}
}

// startAttempt notes that an attempt's process exists since at (ns; 0: since now). A start is not a
// record: after a crash the executor tells again which of its attempts run, so a write for each start
// would be wasted. Only the time of a template's first start is recorded, with other records.
func (r *Run) startAttempt(task, attempt uint32, at int64) {
	if !r.holdsSlot(task, attempt, "started") || r.TaskState(task) == TaskRunning {
		return
	}
	r.resumeRunning()
	r.moveTask(task, TaskRunning)
	if at == 0 {
		at = r.now
	}
	r.recordStart(r.cachedTemplateOf(task), at)
}

// resumeRunning sets a restarted run to RUNNING at the first sign of life of an attempt from before
// the restart: a run with a RUNNING task is never shown as QUEUED, and only a RUNNING run may end.
func (r *Run) resumeRunning() {
	if r.state == RunQueued && !r.killing {
		r.setState(RunRunning)
	}
}

// finishAttempt ends an attempt that was executed. next is a generator's new plan, else nil; at holds
// the attempt's own times. A kill wins over any outcome: the success of an attempt that was to be
// killed is seen on the attempt only, and a set that it generated is dropped.
func (r *Run) finishAttempt(task, attempt uint32, ok bool, next *Plan, at Times) {
	if !r.holdsSlot(task, attempt, "finished") {
		return
	}
	r.resumeRunning()
	r.recordEnd(task, at)
	r.releaseSlot(task)
	switch {
	case r.killRequested(task):
		r.endTask(task, TaskKilled)
	case !ok:
		r.failAttempt(task)
	default:
		if next != nil {
			r.extendPlan(task, next)
		}
		r.endTask(task, TaskCompleted)
		r.completeTask(task)
	}
}

// killRequested tells whether a live task has to end KILLED, however its attempt ends: the user has
// killed the run or this task.
func (r *Run) killRequested(task uint32) bool { return r.killing || r.stateBytes[task]&killBit != 0 }

// releaseSlot gives the slot of a live task back. It is called once for each attempt, before the
// task's state changes.
func (r *Run) releaseSlot(task uint32) {
	r.emit(r.classes[r.plan.Templates[r.cachedTemplateOf(task)].Class].release)
}

// failAttempt moves a task to RETRY after a failed attempt, or to ERRORED after the last one. The
// interval counts from the event, not from the attempt's own end. While the run is paused it does
// not begin to run: resume turns what is left of it into a time. A task without an interval is
// ready at once, in RETRY, and its slot may be granted again without a timer.
func (r *Run) failAttempt(task uint32) {
	tr := r.retries[task]
	tr.failures++
	policy := &r.plan.Templates[r.cachedTemplateOf(task)].Retry
	if tr.failures > policy.MaxRetries {
		r.endTask(task, TaskErrored)
		return
	}
	delay := int64(policy.Delay(tr.failures))
	switch {
	case delay == 0:
		tr.wait, tr.at = waitSlot, 0
	case r.state == RunPaused:
		tr.wait, tr.at = waitFrozen, delay
	default:
		tr.wait, tr.at = waitDue, addSaturated(r.now, delay)
	}
	r.retries[task] = tr
	r.moveTask(task, TaskRetry)
	r.recordTask(task, TaskRetry)
	switch tr.wait {
	case waitSlot:
		r.enqueueAgain(task)
	case waitDue:
		r.emit(RetryAt{Task: task, Attempt: r.attempts[task], Due: tr.at})
	}
}

// retryDue queues a task whose interval is over. A timer that fires early, for an older attempt, or
// for a task that was killed, restarted or frozen in the meantime, is ignored.
func (r *Run) retryDue(task, attempt uint32) {
	r.holdsSlot(task, attempt, "is due again")
	tr := r.retries[task]
	if attempt != r.attempts[task] || tr.wait != waitDue || r.now < tr.at {
		return
	}
	r.requeueFromRetry(task)
}

// requeueFromRetry takes a task out of RETRY, once its interval is over: it now waits for a slot only.
func (r *Run) requeueFromRetry(task uint32) {
	tr := r.retries[task]
	tr.wait, tr.at = waitNone, 0
	r.retries[task] = tr
	r.moveTask(task, TaskQueued)
	r.recordTask(task, TaskQueued)
	r.enqueueAgain(task)
}

// loseAttempt ends an attempt that was lost to the infrastructure. It does not use up a retry. A task
// that is lost too often is ERRORED: it may be what kills the workers.
func (r *Run) loseAttempt(task, attempt uint32, at Times) {
	if !r.holdsSlot(task, attempt, "was lost") {
		return
	}
	r.resumeRunning()
	r.recordEnd(task, at)
	r.releaseSlot(task)
	if r.killRequested(task) {
		r.endTask(task, TaskKilled)
		return
	}
	tr := r.retries[task]
	tr.lost++
	if tr.lost > r.config.LostLimit {
		r.endTask(task, TaskErrored)
		return
	}
	r.retries[task] = tr
	r.requeueUnfinished(task)
}

// revokeAttempt takes back an attempt that never started: its number is free again, so that attempts
// stay without gaps. A task that the user has killed is KILLED. When the whole run is being killed,
// the task is QUEUED again, as if it had never been granted.
func (r *Run) revokeAttempt(task, attempt uint32) {
	if !r.holdsSlot(task, attempt, "was revoked") {
		return
	}
	if r.TaskState(task) == TaskRunning {
		panic(fmt.Sprintf("task %d: attempt %d was revoked, but it had started", task, attempt))
	}
	r.attempts[task]--
	if r.attempts[task] == 0 {
		r.templates[r.cachedTemplateOf(task)].startedTasks--
	}
	r.releaseSlot(task)
	if r.stateBytes[task]&killBit != 0 {
		r.endTask(task, TaskKilled)
		return
	}
	r.requeueUnfinished(task)
}

// requeueUnfinished queues a task whose attempt was lost or revoked, ahead of first attempts. Its
// actor may go: the next attempt is a new start.
func (r *Run) requeueUnfinished(task uint32) {
	r.moveTask(task, TaskQueued)
	r.recordTask(task, TaskQueued)
	r.enqueueAgain(task)
	r.emit(TaskEnded{Task: task, State: TaskQueued})
}

// endTask moves a task to a final state and records it.
func (r *Run) endTask(task uint32, to TaskState) {
	r.moveToFinal(task, to)
	r.recordTask(task, to)
}

// moveToFinal is endTask without a record of the task, for a kill of the run: its one record implies
// what becomes of every task in RETRY, so that a kill of a million tasks writes a few bytes.
func (r *Run) moveToFinal(task uint32, to TaskState) {
	r.moveTask(task, to)
	if len(r.retries) > 0 {
		delete(r.retries, task)
	}
	r.emit(TaskEnded{Task: task, State: to})
}

// moveTask is the one place where a task's state changes: it checks the move, and keeps counts, live
// and dirty right. The caller counts what depends on the move (queues, remaining) and records it. A
// new state loses the kill bit, except RUNNING, which goes on with the attempt that is to be killed.
func (r *Run) moveTask(task uint32, to TaskState) {
	old := r.stateBytes[task]
	from := TaskState(old &^ killBit)
	mustMoveTask(task, from, to)
	r.counts[from]--
	r.counts[to]++
	r.stateBytes[task] = uint8(to)
	switch to {
	case TaskRunning: // a chunk stores it as GRANTED
		r.stateBytes[task] |= old & killBit
		return
	case TaskGranted:
		r.live.add(task)
	default:
		r.live.remove(task)
	}
	r.dirty.add(task / ChunkTasks)
}
