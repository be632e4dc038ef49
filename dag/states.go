package dag

import "fmt"

var taskNames = [NumTaskStates]string{"QUEUED", "GRANTED", "RUNNING", "RETRY", "COMPLETED", "ERRORED", "KILLED"}

var runNames = [numRunStates]string{"QUEUED", "RUNNING", "PAUSED", "COMPLETED", "ERRORED", "KILLED"}

// The transition tables: bit `to` of entry `from` is set where the move is allowed.
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
