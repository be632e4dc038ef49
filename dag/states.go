package dag

import (
	"fmt"
)

// TaskState is the state of one task, one byte. Its String is the word users see.
type TaskState uint8

// The order is part of the storage format: only append.
const (
	TaskQueued    TaskState = iota // waits for its parents or for a slot
	TaskGranted                    // has a slot, its attempt is not known to have started; users see QUEUED
	TaskRunning                    // its attempt runs
	TaskRetry                      // failed, waits for its next attempt
	TaskCompleted                  // final
	TaskErrored                    // out of attempts
	TaskKilled                     // killed by the user
	NumTaskStates                  // how many there are
)

// RunState is the state of a run. Its String is the word users see.
type RunState uint8

// The order is part of the storage format: only append.
const (
	RunQueued RunState = iota
	RunRunning
	RunPaused
	RunCompleted
	RunErrored
	RunKilled
	numRunStates
)

// StateChange is one entry of dagStateChanges. At is in ns since the epoch.
type StateChange struct {
	At    int64
	State RunState
}

var taskNames = [NumTaskStates]string{"QUEUED", "GRANTED", "RUNNING", "RETRY", "COMPLETED", "ERRORED", "KILLED"}

var runNames = [numRunStates]string{"QUEUED", "RUNNING", "PAUSED", "COMPLETED", "ERRORED", "KILLED"}

// The transition tables: bit `to` of entry `from` is set where the move is allowed. mustMoveTask and
// mustMoveRun hold every move against them, so a driver or a change that breaks the state machine
// panics at the move, and not later at a wrong count. A task moves like this:
//
//	QUEUED     GRANTED    Grant
//	           KILLED     KillTask
//	GRANTED    RUNNING    Started
//	           QUEUED     Revoked; Lost, within the limit
//	           RETRY      Finished, not OK, with retries left
//	           COMPLETED  Finished, OK; Generated
//	           ERRORED    Finished, not OK, without retries; Lost, beyond the limit
//	           KILLED     any end of an attempt that was to be killed
//	RUNNING    as GRANTED, except Revoked: an attempt that started cannot be taken back
//	RETRY      GRANTED    Grant: there was no interval to wait for
//	           QUEUED     RetryDue or Resume: the interval is over; Restart
//	           KILLED     Kill, KillTask
//	ERRORED    QUEUED     Restart
//	KILLED     QUEUED     Restart
//
// COMPLETED is the end: a completed task never runs again. A Kill of the run leaves QUEUED tasks
// QUEUED. The run itself moves like this:
//
//	QUEUED     RUNNING    the first grant; after a restart also the first sign of life of an
//	                      attempt that the restart found
//	           PAUSED     Pause
//	           KILLED     Kill, or KillTask of all that could move
//	RUNNING    PAUSED     Pause
//	           COMPLETED, ERRORED, KILLED: no task can move any more (finishIfIdle)
//	PAUSED     RUNNING    Resume
//	           QUEUED     Restart
//	           COMPLETED, ERRORED, KILLED: what still ran when it was paused was the last
//	ERRORED    QUEUED     Restart
//	KILLED     QUEUED     Restart
//
// QUEUED does not move to COMPLETED or ERRORED, because the end of an attempt sets the run to
// RUNNING first.
const (
	taskLive  = 1<<TaskGranted | 1<<TaskRunning
	taskFinal = 1<<TaskCompleted | 1<<TaskErrored | 1<<TaskKilled
	runFinal  = 1<<RunCompleted | 1<<RunErrored | 1<<RunKilled
)

var taskTransitions = [NumTaskStates]uint16{
	TaskQueued:    1<<TaskGranted | 1<<TaskKilled,
	TaskGranted:   1<<TaskRunning | 1<<TaskQueued | 1<<TaskRetry | taskFinal, // back to QUEUED: revoked or lost
	TaskRunning:   1<<TaskQueued | 1<<TaskRetry | taskFinal,                  // back to QUEUED: lost
	TaskRetry:     1<<TaskQueued | 1<<TaskGranted | 1<<TaskKilled,            // QUEUED: its interval is over, or restart; GRANTED: it had no interval
	TaskCompleted: 0,
	TaskErrored:   1 << TaskQueued, // restart
	TaskKilled:    1 << TaskQueued, // restart
}

var runTransitions = [numRunStates]uint16{
	RunQueued:    1<<RunRunning | 1<<RunPaused | 1<<RunKilled,
	RunRunning:   1<<RunPaused | runFinal,
	RunPaused:    1<<RunRunning | 1<<RunQueued | runFinal, // final: what still ran was the last
	RunCompleted: 0,
	RunErrored:   1 << RunQueued, // restart
	RunKilled:    1 << RunQueued, // restart
}

// String is the word that users see: a task that has a slot but is not known to
// have started is still QUEUED.
func (s TaskState) String() string {
	switch {
	case s == TaskGranted:
		return taskNames[TaskQueued]
	case s < NumTaskStates:
		return taskNames[s]
	}
	return fmt.Sprintf("TaskState(%d)", uint8(s))
}

// Final tells whether only a restart of the run can move the task again.
func (s TaskState) Final() bool { return s < NumTaskStates && taskFinal>>s&1 != 0 }

// Live tells whether an attempt of the task holds a slot.
func (s TaskState) Live() bool { return s < NumTaskStates && taskLive>>s&1 != 0 }

// String is the word that users see.
func (s RunState) String() string {
	if s < numRunStates {
		return runNames[s]
	}
	return fmt.Sprintf("RunState(%d)", uint8(s))
}

// Final tells whether the run is COMPLETED, ERRORED or KILLED.
func (s RunState) Final() bool { return s < numRunStates && runFinal>>s&1 != 0 }

// ParseRunState returns the state whose String is word.
func ParseRunState(word string) (RunState, bool) {
	for s, name := range runNames {
		if name == word {
			return RunState(s), true
		}
	}
	return 0, false
}

// ParseTaskState returns the state whose String is word.
func ParseTaskState(word string) (TaskState, bool) {
	for s, name := range taskNames {
		if name == word && TaskState(s) != TaskGranted {
			return TaskState(s), true
		}
	}
	return 0, false
}

// mustMoveTask panics when the table does not allow the move.
func mustMoveTask(task uint32, from, to TaskState) {
	if taskTransitions[from]>>to&1 == 0 {
		panic(fmt.Sprintf("task %d: illegal move %s -> %s", task, taskNames[from], taskNames[to]))
	}
}

// mustMoveRun panics when the table does not allow the move.
func mustMoveRun(from, to RunState) {
	if runTransitions[from]>>to&1 == 0 {
		panic(fmt.Sprintf("run: illegal move %s -> %s", from, to))
	}
}

// Event is what happened to a run. All times are ns since the epoch, by the driver's clock; At is
// when the driver learned of the event. The set is closed. Apply says which events may come late,
// twice or not at all.
type Event interface{ isEvent() }

type (
	// Grant: the dispatcher gave N slots of a class. A slot that the run cannot use comes back as
	// a Release effect, so a grant may cross a change of the run's demand.
	Grant struct {
		Class, N int
		At       int64
	}
	// Started: the attempt's process exists. It is not recorded. Start is when it
	// began (0: At), which may be long ago when the driver was away.
	Started struct {
		Task, Attempt uint32
		At            int64
		Start         int64
	}
	// Finished: the attempt ended (its process is proven dead), or could not be
	// started. OK means rc 0. A Granted task may finish without a Started. Start and
	// Stop are the attempt's own times. 0 means unknown: it never started, or it ended
	// at At. The same holds for Generated and Lost.
	Finished struct {
		Task, Attempt uint32
		OK            bool
		At            int64
		Start, Stop   int64
	}
	// Generated: a generator's attempt succeeded and its output was planned:
	// Next is the present plan's Extend. It stands in place of Finished.
	Generated struct {
		Task, Attempt uint32
		Next          *Plan
		At            int64
		Start, Stop   int64
	}
	// Lost: the attempt was lost to the infrastructure (a worker or a machine is gone), and is
	// proven not to run any more: the next attempt may start at once. It does not use up a retry,
	// but Config.LostLimit bounds how often a task may be lost.
	Lost struct {
		Task, Attempt uint32
		At            int64
		Start, Stop   int64
	}
	// Revoked: the attempt is proven never to have started (answer to a Cancel or
	// Signal). Its number will be used again, so the event must not be sent twice.
	Revoked struct {
		Task, Attempt uint32
		At            int64
	}
	// RetryDue: the interval of a task in RETRY is over. Attempt is the number
	// of the failed attempt; a stale or early event is ignored.
	RetryDue struct {
		Task, Attempt uint32
		At            int64
	}
	// Kill: the user kills the run.
	Kill struct{ At int64 }
	// KillTask: the user kills one task.
	KillTask struct {
		Task uint32
		At   int64
	}
	// Pause, Resume and Restart: PATCH state. See Run.Allowed.
	Pause   struct{ At int64 }
	Resume  struct{ At int64 }
	Restart struct{ At int64 }
)

// Effect is an action for the driver, once the event's records are durable. Effects must be carried
// out in their order; a final RunChanged comes last, after all slots were released. The set is closed.
// Effects are comparable: tests compare them by ==.
type Effect interface{ isEffect() }

type (
	// Demand: the run wants slots for Want tasks of Class, in all, now. It is absolute, not a
	// difference, and is emitted only where it differs from the last one. Plan.InitialState
	// makes the first ones of a run that is not in memory.
	Demand struct{ Class, Want int }
	// Release: N slots of Class come back.
	Release struct{ Class, N int }
	// Start: begin this attempt; it holds a slot of its class.
	Start struct{ Task, Attempt uint32 }
	// Signal: end this attempt's process (SIGTERM, grace, SIGKILL). It ends as
	// Finished, or as Revoked when it had not started. A second Kill or KillTask
	// gives it once more.
	Signal struct{ Task, Attempt uint32 }
	// Cancel: take this attempt back if it has not started (pause). It ends as
	// Revoked, or goes on if it had started.
	Cancel struct{ Task, Attempt uint32 }
	// RetryAt: send RetryDue{Task, Attempt} at Due (ns since the epoch, by the clock that
	// gives events their At: the run's clock of package actors, which may differ from the
	// wall clock). A retry without an interval needs no timer: the task is in RETRY, and
	// ready, until a grant. While the run is paused RetryAt is held back until the resume.
	RetryAt struct {
		Task, Attempt uint32
		Due           int64
	}
	// TaskEnded: the task is COMPLETED, ERRORED or KILLED, or went back to the
	// queue without a retry to wait for: its actor may be stopped.
	TaskEnded struct {
		Task  uint32
		State TaskState
	}
	// RunChanged: the run's state changed. A final state is the last effect.
	RunChanged struct{ StateChange }
)

func (Grant) isEvent()     {}
func (Started) isEvent()   {}
func (Finished) isEvent()  {}
func (Generated) isEvent() {}
func (Lost) isEvent()      {}
func (Revoked) isEvent()   {}
func (RetryDue) isEvent()  {}
func (Kill) isEvent()      {}
func (KillTask) isEvent()  {}
func (Pause) isEvent()     {}
func (Resume) isEvent()    {}
func (Restart) isEvent()   {}

func (Demand) isEffect()     {}
func (Release) isEffect()    {}
func (Start) isEffect()      {}
func (Signal) isEffect()     {}
func (Cancel) isEffect()     {}
func (RetryAt) isEffect()    {}
func (TaskEnded) isEffect()  {}
func (RunChanged) isEffect() {}
