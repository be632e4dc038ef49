package dag

import "fmt"

// grant gives slots to ready tasks.
func (r *Run) grant(class, n int) {
	if class < 0 || class >= len(r.classes) || n < 0 {
		panic(fmt.Sprintf("run: grant of %d slots of class %d, it has %d classes", n, class, len(r.classes)))
	}
	if c := &r.classes[class]; r.open() && c.ready > 0 && n > 0 {
		if r.state == RunQueued {
			r.setState(RunRunning)
		}
		taken := min(n, c.ready)
		n -= taken
		r.addReady(class, -taken)
		for taken > 0 {
			if task := c.next(); r.grantable(task) {
				r.begin(task)
				taken--
			}
		}
	}
	if n > 0 {
		r.emit(Release{Class: class, N: n})
	}
}

// grantable is false for tasks that were killed after they had become ready.
func (r *Run) grantable(task uint32) bool {
	state := TaskState(r.tasks[task])
	return state == TaskQueued || state == TaskRetry
}

// begin gives a ready task its slot and its next attempt.
func (r *Run) begin(task uint32) {
	if TaskState(r.tasks[task]) == TaskRetry {
		tr := r.troubles[task]
		tr.wait = waitNone
		r.troubles[task] = tr
	}
	r.move(task, TaskGranted)
	if r.attempts[task] == 0 {
		r.templates[r.templateOf(task)].started++
	}
	r.attempts[task]++
	r.recordGrant(task)
	r.emit(Start{Task: task, Attempt: r.attempts[task]})
}

// alive tells whether this attempt holds a slot; one that has ended does not.
func (r *Run) alive(task, attempt uint32, what string) bool {
	r.known(task, what)
	made := r.attempts[task]
	// A revoked attempt gave its number back: made+1 may be one.
	if attempt > made && attempt-made > 1 {
		panic(fmt.Sprintf("task %d: attempt %d %s, but it has had %d", task, attempt, what, made))
	}
	return attempt == made && r.live.has(task)
}

func (r *Run) known(task uint32, what string) {
	if task >= r.plan.Tasks {
		panic(fmt.Sprintf("task %d: %s, but the run has %d tasks", task, what, r.plan.Tasks))
	}
}

// start notes that an attempt's process exists since at (0: since now).
func (r *Run) start(task, attempt uint32, at int64) {
	if !r.alive(task, attempt, "started") || r.TaskState(task) == TaskRunning {
		return
	}
	r.wake()
	r.move(task, TaskRunning)
	if at == 0 {
		at = r.now
	}
	r.began(r.templateOf(task), at)
}

// wake takes a restarted run back to RUNNING whose attempts from before had no start yet.
func (r *Run) wake() {
	if r.state == RunQueued && !r.killing {
		r.setState(RunRunning)
	}
}

// finish ends an attempt that was executed. Next is a generator's new plan, at the
// attempt's own times.
func (r *Run) finish(task, attempt uint32, ok bool, next *Plan, at Times) {
	if !r.alive(task, attempt, "finished") {
		return
	}
	r.wake()
	r.ran(task, at)
	r.release(task)
	switch {
	case r.killed(task):
		r.end(task, TaskKilled)
	case !ok:
		r.fail(task)
	default:
		if next != nil {
			r.extend(task, next)
		}
		r.end(task, TaskCompleted)
		r.complete(task)
	}
}

// killed tells whether a live task has to end KILLED, however its attempt ends.
func (r *Run) killed(task uint32) bool { return r.killing || r.tasks[task]&killBit != 0 }

// release gives the slot of a live task back.
func (r *Run) release(task uint32) {
	r.emit(r.classes[r.plan.Templates[r.templateOf(task)].Class].release)
}

// fail is what follows a failed attempt: a retry, or the end.
func (r *Run) fail(task uint32) {
	tr := r.troubles[task]
	tr.failures++
	policy := &r.plan.Templates[r.templateOf(task)].Retry
	if tr.failures > policy.MaxRetries {
		r.end(task, TaskErrored)
		return
	}
	delay := int64(policy.Delay(tr.failures))
	switch {
	case delay == 0:
		tr.wait, tr.at = waitSlot, 0
	case r.state == RunPaused:
		tr.wait, tr.at = waitFrozen, delay
	default:
		tr.wait, tr.at = waitDue, later(r.now, delay)
	}
	r.troubles[task] = tr
	r.move(task, TaskRetry)
	r.record(task, TaskRetry)
	switch tr.wait {
	case waitSlot:
		r.again(task)
	case waitDue:
		r.emit(RetryAt{Task: task, Attempt: r.attempts[task], Due: tr.at})
	}
}

// retryDue queues a task whose interval is over.
func (r *Run) retryDue(task, attempt uint32) {
	r.alive(task, attempt, "is due again")
	tr := r.troubles[task]
	if attempt != r.attempts[task] || tr.wait != waitDue || r.now < tr.at {
		return
	}
	r.requeue(task)
}

// requeue takes a task out of RETRY; it now waits for a slot only.
func (r *Run) requeue(task uint32) {
	tr := r.troubles[task]
	tr.wait, tr.at = waitNone, 0
	r.troubles[task] = tr
	r.move(task, TaskQueued)
	r.record(task, TaskQueued)
	r.again(task)
}

// lose ends an attempt that was lost to the infrastructure.
func (r *Run) lose(task, attempt uint32, at Times) {
	if !r.alive(task, attempt, "was lost") {
		return
	}
	r.wake()
	r.ran(task, at)
	r.release(task)
	if r.killed(task) {
		r.end(task, TaskKilled)
		return
	}
	tr := r.troubles[task]
	tr.lost++
	if tr.lost > r.config.LostLimit {
		r.end(task, TaskErrored)
		return
	}
	r.troubles[task] = tr
	r.back(task)
}

// revoke takes back an attempt that never started.
func (r *Run) revoke(task, attempt uint32) {
	if !r.alive(task, attempt, "was revoked") {
		return
	}
	if r.TaskState(task) == TaskRunning {
		panic(fmt.Sprintf("task %d: attempt %d was revoked, but it had started", task, attempt))
	}
	r.attempts[task]--
	if r.attempts[task] == 0 {
		r.templates[r.templateOf(task)].started--
	}
	r.release(task)
	if r.tasks[task]&killBit != 0 {
		r.end(task, TaskKilled)
		return
	}
	r.back(task)
}

// back queues a task whose attempt came to nothing.
func (r *Run) back(task uint32) {
	r.move(task, TaskQueued)
	r.record(task, TaskQueued)
	r.again(task)
	r.emit(TaskEnded{Task: task, State: TaskQueued})
}

// end moves a task to a final state.
func (r *Run) end(task uint32, to TaskState) {
	r.close(task, to)
	r.record(task, to)
}

// close is end for what a record of the run says for all its tasks.
func (r *Run) close(task uint32, to TaskState) {
	r.move(task, to)
	if len(r.troubles) > 0 {
		delete(r.troubles, task)
	}
	r.emit(TaskEnded{Task: task, State: to})
}

// move is the one place where a task's state changes.
func (r *Run) move(task uint32, to TaskState) {
	old := r.tasks[task]
	from := TaskState(old &^ killBit)
	taskMove(task, from, to)
	r.counts[from]--
	r.counts[to]++
	r.tasks[task] = uint8(to)
	switch to {
	case TaskRunning: // a chunk does not tell it from GRANTED
		r.tasks[task] |= old & killBit
		return
	case TaskGranted:
		r.live.add(task)
	default:
		r.live.remove(task)
	}
	r.dirty.add(task / ChunkTasks)
}
