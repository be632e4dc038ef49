package dag

import "math"

// Transition is one change in a batch of records that users see.
type Transition struct {
	At      int64 // ns since the epoch
	OfRun   bool  // Run is the run's new state; else State is the task's
	Run     RunState
	Task    uint32
	Attempt uint32 // attempts that the task has had, the one that ended included
	State   TaskState
	Granted bool // it is QUEUED for this attempt, and was in RETRY
}

// Transitions yields the changes in a batch of records, in their order. It needs the
// number of tasks, but no Run. Grants are left out, except those of tasks that had an
// attempt before: these were in RETRY, and are QUEUED to users. A kill or a restart of
// the run moves many tasks at once and yields only the change of the run's state. Starts are
// not recorded.
func Transitions(batch []byte, tasks uint32, yield func(Transition)) error {
	c := &cursor{data: batch}
	c.version(recordVersion)
	var at, next int64
	for c.more() {
		op := c.byte("record")
		kind := recordKind(op & recordKindMask)
		if op&recordAt != 0 {
			at += c.int("time")
		}
		t := Transition{At: at, Attempt: 1}
		task := next
		if op&recordNext == 0 {
			task += c.int("task")
		}
		if op&recordAttempt != 0 {
			t.Attempt = c.attempts("attempt")
		}
		if op&recordRetryState != 0 {
			c.attempts("failures")
			c.attempts("lost attempts")
		}
		switch kind { // records without a task do not change next
		case recordRunState:
			c.uint("number of the change", math.MaxUint32)
			t.OfRun, t.Run = true, RunState(c.byte("state"))
			if c.err == nil {
				yield(t)
			}
			continue
		case recordKillRun:
			continue
		case recordTimes:
			c.uint("template", math.MaxUint32)
			c.times(Times{}, at)
			continue
		}
		if task < 0 || task >= int64(tasks) {
			c.fail("task %d of %d", task, tasks)
			break
		}
		t.Task, next = uint32(task), task+1
		switch kind {
		case recordGranted:
			n := uint32(c.uint("tasks", uint64(tasks-t.Task-1))) + 1
			next = task + int64(n)
			t.Granted = true
			for ; c.err == nil && n > 0 && t.Attempt > 1; n-- {
				yield(t)
				t.Task++
			}
			continue
		case recordRetry:
			t.State = TaskRetry
			if c.byte("wait") != byte(waitSlot) {
				c.uint("time", math.MaxInt64)
			}
		case recordQueued:
		case recordCompleted:
			t.State = TaskCompleted
		case recordErrored:
			t.State = TaskErrored
		case recordKilled:
			t.State = TaskKilled
		case recordKillTask:
			continue
		default:
			c.fail("record kind %d is not known", kind)
		}
		if c.err == nil {
			yield(t)
		}
	}
	return c.err
}
