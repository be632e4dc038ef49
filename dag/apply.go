package dag

import (
	"fmt"
	"slices"
)

// This file is what events do to a run, from the report of an attempt to the demand for slots:
//
//	Apply        dispatches the event, and ends with the demand and the final state
//	attempts     grantSlots … revokeAttempt: the transitions of tasks, each with its journal record
//	dependencies completeTask … enqueueReady: the tasks that a completed one makes ready
//	demand       addReady … emitDemand: how many slots each class wants
//
// What users ask for is in run_user.go. How dependencies are counted at the start, and after a restart
// or a generated set, is in run_ready.go.

// Apply applies an event and returns its effects, in order. The slice is
// reused by the next Apply; its elements are not.
//
// Times of a run never go backwards: an event whose At is older than that of the event
// before it, or than the newest record of a recovered run, is taken to happen at that
// moment. Changes of the run's state have strictly ascending times.
//
// These events may come late, twice or not at all; the result is then nil:
// Started, Finished, Generated and Lost of an attempt that has ended already
// (also one that was declared lost) or of an older one; Revoked of an older or
// ended attempt; RetryDue before its time, of an older attempt, or of a task that
// is not in RETRY (killed, restarted) or is frozen; Kill and KillTask of what is
// final; any event for an attempt that was revoked. Slots that cannot be used
// come back at once. A Generated whose task was killed meanwhile does not
// take the new plan: compare Plan.
//
// These are bugs of the driver and panic: a task, class or attempt that never
// existed; Revoked of an attempt that Started; a Next that is not the present
// plan's Extend; Pause, Resume and Restart where Allowed says no.
func (r *Run) Apply(e Event) []Effect {
	r.effects = r.effects[:0]
	switch e := e.(type) {
	case Grant:
		r.advanceClock(e.At)
		r.grantSlots(e.Class, e.N)
	case Started:
		r.advanceClock(e.At)
		r.startAttempt(e.Task, e.Attempt, e.Start)
	case Finished:
		r.advanceClock(e.At)
		r.finishAttempt(e.Task, e.Attempt, e.OK, nil, Times{e.Start, e.Stop})
	case Generated:
		r.advanceClock(e.At)
		r.finishAttempt(e.Task, e.Attempt, true, e.Next, Times{e.Start, e.Stop})
	case Lost:
		r.advanceClock(e.At)
		r.loseAttempt(e.Task, e.Attempt, Times{e.Start, e.Stop})
	case Revoked:
		r.advanceClock(e.At)
		r.revokeAttempt(e.Task, e.Attempt)
	case RetryDue:
		r.advanceClock(e.At)
		r.retryDue(e.Task, e.Attempt)
	case Kill:
		r.advanceClock(e.At)
		r.kill()
	case KillTask:
		r.advanceClock(e.At)
		r.killTask(e.Task)
	case Pause:
		r.advanceClock(e.At)
		r.pause()
	case Resume:
		r.advanceClock(e.At)
		r.resume()
	case Restart:
		r.advanceClock(e.At)
		r.restart()
	default:
		panic("run: unknown type of event") // naming it would put every event on the heap
	}
	// Demand comes before the final state, which must be the last effect. It is then 0 in every
	// class, because a run with ready tasks ends only when it is being killed.
	r.emitDemand()
	r.finishIfIdle()
	if len(r.effects) == 0 {
		return nil
	}
	return r.effects
}

// finishIfIdle sets the run's final state once no task can move any more: no attempt is live, and no
// task is ready or waits for its retry. QUEUED tasks may be left, behind a parent that is ERRORED or
// KILLED; they stay QUEUED. A run with an ERRORED task is ERRORED, whatever else was killed.
//
// A run that is being killed ends with its last live attempt, whatever is ready. The default case
// would be a run that waits for ever: a counter is wrong, so it panics with the numbers.
func (r *Run) finishIfIdle() {
	if r.state.Final() || r.live.count > 0 {
		return
	}
	switch {
	case r.killing:
		r.setState(RunKilled)
	case r.readyTasks > 0 || r.counts[TaskRetry] > 0:
	case r.counts[TaskCompleted] == r.plan.Tasks:
		r.setState(RunCompleted)
	case r.counts[TaskErrored] > 0:
		r.setState(RunErrored)
	case r.counts[TaskKilled] > 0:
		r.setState(RunKilled)
	default:
		panic(fmt.Sprintf("run: %d tasks are QUEUED, %d of %d COMPLETED, and no task can move",
			r.counts[TaskQueued], r.counts[TaskCompleted], r.plan.Tasks))
	}
}

// setState changes the run's state, records it, and updates what depends on it: the demand, which is
// 0 unless the run accepts slots. The time is at least 1 ns after that of the change before, so that
// changes are ordered by their times alone.
func (r *Run) setState(to RunState) {
	mustMoveRun(r.state, to)
	r.state = to
	if to.Final() || to == RunQueued {
		r.killing = false
	}
	c := StateChange{At: max(r.now, r.lastStateChange()+1), State: to}
	r.stateChanges = append(r.stateChanges, c)
	r.recordState()
	r.markAllDemand()
	r.emit(RunChanged{c})
}

// advanceClock sets the time of the event that is being applied. A run's time never goes
// backwards, whatever the driver's clock does: an event that claims an earlier time than
// the one before happens at the same time as that one.
func (r *Run) advanceClock(at int64) { r.now = max(r.now, at) }

// lastStateChange is the time (ns) of the newest change of the run's state. It may be later than now,
// where several changes share one event.
func (r *Run) lastStateChange() int64 { return r.stateChanges[len(r.stateChanges)-1].At }

// acceptsSlots tells whether the run takes slots. A run that is QUEUED does: its first grant makes it
// RUNNING.
func (r *Run) acceptsSlots() bool {
	return (r.state == RunQueued || r.state == RunRunning) && !r.killing
}

func (r *Run) emit(e Effect) { r.effects = append(r.effects, e) }

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

// completeTask counts a COMPLETED task at its children, and enqueues the tasks whose last
// dependency it was. Each dependency is counted down once in a run, because COMPLETED is final.
func (r *Run) completeTask(task uint32) {
	i := r.cachedTemplateOf(task)
	t, ts := r.plan.Templates[i], &r.templates[i]
	ts.remaining--
	if ts.remaining > 0 && !ts.hasMatchedChildren {
		return
	}
	for _, e := range t.Children {
		switch {
		case e.Match != nil:
			g := e.Match.GroupOfParent(task - t.Base)
			if open := r.openParents[e.Match.ID]; open != nil {
				if open[g]--; open[g] > 0 {
					continue
				}
			}
			r.unblockTemplate = e.Template
			e.Match.EachChild(g, r.unblock)
		case ts.remaining == 0 && !e.ViaGenerator:
			r.removePendingParent(e.Template)
		}
	}
}

// removePendingParent takes one all-to-all parent off what template i waits for. With the last one
// its blocked tasks are ready. Their ranges move as they are, so this costs O(ranges), not O(tasks).
func (r *Run) removePendingParent(i int) {
	t, ts := r.plan.Templates[i], &r.templates[i]
	ts.pendingParents--
	if ts.pendingParents > 0 {
		return
	}
	fresh := &r.classes[t.Class].firstAttempts
	for _, s := range ts.blocked.list {
		fresh.push(s.first, s.n)
	}
	r.addReady(t.Class, int(ts.blockedCount))
	ts.blocked, ts.blockedCount = rangeQueue{}, 0
}

// unblockTasks takes one group of parents off what n tasks of unblockTemplate wait for.
func (r *Run) unblockTasks(first, n uint32) {
	t, ts := r.plan.Templates[r.unblockTemplate], &r.templates[r.unblockTemplate]
	for local := first; local < first+n; local++ {
		ts.openGroups[local]--
		if task := t.Base + local; ts.openGroups[local] == 0 && TaskState(r.stateBytes[task]) == TaskQueued {
			r.enqueueReady(t, ts, task, 1)
		}
	}
}

// enqueueReady queues the QUEUED tasks [first, first+n) of one template, whose matched parents are
// done. While all-to-all parents are pending, the tasks are blocked.
func (r *Run) enqueueReady(t *Template, ts *templateState, first, n uint32) {
	if ts.pendingParents > 0 {
		ts.blocked.push(first, n)
		ts.blockedCount += n
		return
	}
	r.classes[t.Class].firstAttempts.push(first, n)
	r.addReady(t.Class, int(n))
}

// addReady counts n more (or fewer) ready tasks of a class. The caller has queued them, or leaves them
// in a queue to be skipped.
func (r *Run) addReady(class, n int) {
	c := &r.classes[class]
	c.readyTasks += n
	r.readyTasks += n
	if c.readyTasks < 0 {
		panic(fmt.Sprintf("run: class %d has %d ready tasks", class, c.readyTasks))
	}
	r.markDemand(class)
}

// enqueueAgain queues a task that has had an attempt: behind the others of that kind, and ahead of
// the first attempts of its class.
func (r *Run) enqueueAgain(task uint32) {
	class := r.plan.Templates[r.cachedTemplateOf(task)].Class
	r.classes[class].requeued.push(task, 1)
	r.addReady(class, 1)
}

func (r *Run) markDemand(class int) {
	if c := &r.classes[class]; !c.demandMarked {
		c.demandMarked = true
		r.changedClasses = append(r.changedClasses, class)
	}
}

// markAllDemand follows a change of the run's state, which the demand of every class depends on.
// Classes without ready tasks and without demand stay as they are.
func (r *Run) markAllDemand() {
	for i := range r.classes {
		if r.classes[i].readyTasks != 0 || r.classes[i].lastDemand != 0 {
			r.markDemand(i)
		}
	}
}

// emitDemand emits the run's demand for each class where it differs from the last one, in ascending
// order: the order in which classes changed depends on the event, and effects must not.
func (r *Run) emitDemand() {
	if len(r.changedClasses) > 1 {
		slices.Sort(r.changedClasses)
	}
	for _, class := range r.changedClasses {
		c := &r.classes[class]
		c.demandMarked = false
		want := 0
		if r.acceptsSlots() {
			want = c.readyTasks
		}
		if want != c.lastDemand {
			c.lastDemand = want
			r.emit(Demand{Class: class, Want: want})
		}
	}
	r.changedClasses = r.changedClasses[:0]
}
